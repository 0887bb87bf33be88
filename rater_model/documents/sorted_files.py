"""Sorts lists of files that may be longer than memory."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator
from typing import IO

import orjson

from datarater.rater_model.documents.records import FileInfo

FILES_IN_MEMORY = 200_000
"""Number of files after which some are sorted and put on disk."""


class FileSorter:
    """Collects files in any order and yields them sorted by path, each path once.

    Args:
        in_memory: Number of files that are kept in memory.
    """

    def __init__(self, in_memory: int = FILES_IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._files: list[FileInfo] = []
        self._runs: list[IO[bytes]] = []
        self._is_sorted = True

    def add(self, file: FileInfo) -> None:
        """Adds a file."""
        self._is_sorted = self._is_sorted and (not self._files or self._files[-1].path < file.path)
        self._files.append(file)
        if len(self._files) >= self._in_memory:
            self._put_on_disk()

    def _sort(self) -> None:
        if not self._is_sorted:
            self._files.sort(key=lambda file: file.path)
        self._is_sorted = True

    def _put_on_disk(self) -> None:
        self._sort()
        run = tempfile.TemporaryFile(prefix="datarater-listing-")  # noqa: SIM115
        for file in self._files:
            run.write(orjson.dumps((file.path, file.size, file.fingerprint)) + b"\n")
        self._runs.append(run)
        self._files = []

    def sorted(self) -> Iterator[FileInfo]:
        """Yields the files, sorted by path; of several with one path, one."""
        self._sort()
        runs = [_read(run) for run in self._runs]
        previous = None
        for file in heapq.merge(*runs, self._files, key=lambda file: file.path):
            if file.path != previous:
                yield file
            previous = file.path
        for run in self._runs:
            run.close()


def _read(run: IO[bytes]) -> Iterator[FileInfo]:
    run.seek(0)
    for line in run:
        yield FileInfo(*orjson.loads(line))
