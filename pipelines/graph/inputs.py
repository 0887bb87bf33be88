"""The inputs of a run: patterns that are listed when it is planned, or a list made before."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from datarater.pipelines import errors
from datarater.pipelines.errors import NoMatchError, UsageError
from datarater.pipelines.run_folder.layout import read_json_lines
from datarater.rater_model.documents.files import NoInputError, list_files
from datarater.rater_model.documents.records import FileInfo


class Inputs(Protocol):
    """Names the input files of a run in little memory, however many they are."""

    def files(self) -> list[FileInfo]:
        """Returns the files, sorted by path.

        Raises:
            CurationError: There is none, or a file system cannot be reached.
        """


@dataclasses.dataclass(frozen=True)
class Patterns:
    """Paths, folders and globs; see `datarater.rater_model.documents.files.list_files`."""

    patterns: tuple[str, ...]

    def files(self) -> list[FileInfo]:
        """Returns the files that match now, sorted by path.

        Raises:
            NoMatchError: No file matches.
            UsageError: None matches, because `@` was meant to name a list.
            UnreadableInputError: A file system cannot be reached.
        """
        try:
            return list_files(self.patterns)
        except NoInputError as error:
            lists = [pattern[1:] for pattern in self.patterns if pattern.startswith("@")]
            if lists:
                raise UsageError(
                    f"--input: {error}; to read the inputs from a text file, use --input_list "
                    f"{lists[0]}"
                ) from error
            raise NoMatchError(f"--input: {error}") from error
        except OSError as error:
            raise errors.reading_failed(error.filename or "--input", error) from error


@dataclasses.dataclass(frozen=True)
class FileList:
    """Files that were listed before, as they were then.

    A file that has changed since then fails when it is read.

    Attributes:
        path: Path of a committed file in the format of a plan's `inputs.jsonl`.
    """

    path: str

    def files(self) -> list[FileInfo]:
        """Returns the listed files.

        Raises:
            CountsError: The list is damaged.
            UnreadableInputError: The list cannot be read.
        """
        try:
            return read_json_lines(self.path, FileInfo)
        except OSError as error:
            raise errors.reading_failed(self.path, error) from error
