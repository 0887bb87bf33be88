"""The inputs of a run: patterns that are listed when it is planned, or a list made before."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from datarater.pipelines import errors
from datarater.pipelines.errors import NoMatchError, UsageError
from datarater.pipelines.run_folder.layout import stream_json_lines
from datarater.rater_model.documents.files import NoInputError, iter_files, local_path
from datarater.rater_model.documents.records import FileInfo


class Inputs(Protocol):
    """Names the input files of a run in little memory, however many they are."""

    def files(self) -> Iterator[FileInfo]:
        """Yields the files, sorted by path.

        Raises:
            CurationError: There is none, or a file system cannot be reached.
        """


@dataclasses.dataclass(frozen=True)
class Patterns:
    """Paths, folders and globs; see `datarater.rater_model.documents.files.list_files`.

    Attributes:
        patterns: The patterns.
        without: Folders whose files are left out, such as the run folder, which may match too.
        flag: Name of the flag that they come from, for messages.
    """

    patterns: tuple[str, ...]
    without: tuple[str, ...] = ()
    flag: str = "--input"

    def files(self) -> Iterator[FileInfo]:
        """Yields the files that match now, sorted by path.

        Raises:
            NoMatchError: No file matches.
            UsageError: None matches, because `@` was meant to name a list.
            UnreadableInputError: A file system cannot be reached.
        """
        try:
            is_empty = True
            for file in outside(iter_files(self.patterns), self.without):
                is_empty = False
                yield file
        except NoInputError as error:
            lists = [pattern[1:] for pattern in self.patterns if pattern.startswith("@")]
            if lists and self.flag == "--input":
                raise UsageError(
                    f"--input: {error}; to read the inputs from a text file, use --input_list "
                    f"{lists[0]}"
                ) from error
            raise NoMatchError(f"{self.flag}: {error}") from error
        except OSError as error:
            raise errors.reading_failed(error.filename or self.flag, error) from error

        if is_empty:
            raise NoMatchError(
                f"{self.flag}: every file that matches is in {' or '.join(self.without)}, which "
                "the run itself writes; give the files to read, or use another --output"
            )


def outside(files: Iterable[FileInfo], folders: Sequence[str]) -> Iterator[FileInfo]:
    """Yields the files that are in none of several folders, through whatever links.

    Args:
        files: The files.
        folders: Paths or URLs.
    """
    roots = [_real(folder) for folder in folders if folder]
    real_folder = functools.lru_cache(maxsize=1024)(_real)
    for file in files:
        folder, _, name = file.path.rpartition("/")
        path = f"{real_folder(folder or '.')}/{name}"
        if not any(path.startswith(f"{root}/") for root in roots):
            yield file


def _real(path: str) -> str:
    local = local_path(path)
    return path.rstrip("/") if local is None else os.path.realpath(local).rstrip("/")


@dataclasses.dataclass(frozen=True)
class FileList:
    """Files that were listed before, as they were then.

    A file that has changed since then fails when it is read.

    Attributes:
        path: Path of a committed file in the format of a plan's lists of inputs.
    """

    path: str

    def files(self) -> Iterator[FileInfo]:
        """Yields the listed files.

        Raises:
            CountsError: The list is damaged.
            UnreadableInputError: The list cannot be read.
        """
        try:
            yield from stream_json_lines(self.path, FileInfo)
        except OSError as error:
            raise errors.reading_failed(self.path, error) from error
