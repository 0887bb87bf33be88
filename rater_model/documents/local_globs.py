"""Matches globs on the local disk one entry at a time, however many files there are."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fsspec.utils import glob_translate

Details = Mapping[str, Any]

_FILE: Details = {"type": "file"}
_FOLDER: Details = {"type": "directory"}


def local_matches(pattern: str) -> Iterator[tuple[str, Details]]:
    """Yields the paths that a glob matches and whether they are folders, in any order.

    Folders are read through links, but not again below themselves.

    Args:
        pattern: Absolute glob.

    Raises:
        ValueError: if the glob is malformed.
        OSError: if a folder cannot be read.
    """
    matches = re.compile(glob_translate(pattern)).match
    if "**" in pattern:
        fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        entries = _below(fixed.rpartition("/")[0] or "/")
        yield from (entry for entry in entries if matches(entry[0]))
    else:
        yield from _level_by_level("", pattern.split("/")[1:])


def _level_by_level(folder: str, parts: Sequence[str]) -> Iterator[tuple[str, Details]]:
    part, *rest = parts
    if not glob.has_magic(part):
        path = f"{folder}/{part}"
        if rest:
            yield from _level_by_level(path, rest)
        elif os.path.lexists(path):
            yield path, _FOLDER if os.path.isdir(path) else _FILE
        return

    matches = re.compile(glob_translate(part)).match
    for path, details in _entries(folder or "/"):
        if not matches(path.rpartition("/")[2]):
            continue
        if not rest:
            yield path, details
        elif details is _FOLDER:
            yield from _level_by_level(path, rest)


def _below(
    folder: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, Details]]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for path, details in _entries(folder):
        yield path, details
        if details is _FOLDER:
            yield from _below(path, above | {identity})


def _entries(folder: str) -> Iterator[tuple[str, Details]]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            yield entry.path, _FOLDER if entry.is_dir() else _FILE
