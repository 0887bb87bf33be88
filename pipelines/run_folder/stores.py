"""What a run folder needs of the place that it lies in, whether a disk or an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, NamedTuple, Protocol

from datarater.pipelines import errors

TEMPORARY_PREFIX = ".tmp-"
"""Start of the names of unfinished files, which nothing reads."""


class Entry(NamedTuple):
    """A file in a listing.

    Attributes:
        path: Path in the form that a store's methods take.
        size: Size in bytes.
        modified: Time in seconds since 1970; 0 if the file system does not report it.
    """

    path: str
    size: int
    modified: float


class Store(Protocol):
    """A place for run folders. All methods take whole paths or URLs."""

    def check_file_system(self, path: str) -> None:
        """Refuses a run folder on a file system that cannot create a file only if it is absent.

        Args:
            path: Path or URL of the run folder.

        Raises:
            RunFolderError: The file system cannot; the message names it.
        """
        return  # a disk shows whether it has links once a file is committed

    def check_creates_once(self, path: str) -> None:
        """Refuses a store that replaces a file which it was asked to create only if it is absent.

        It creates a file in the folder twice; the second time must fail.

        Args:
            path: Path or URL of a new run folder.

        Raises:
            RunFolderError: The second succeeded; the message names the store.
        """
        return  # a disk links a file to its name, which never replaces one

    def exists(self, path: str) -> bool:
        """Returns whether a file exists now."""

    def read_bytes(self, path: str) -> bytes:
        """Reads a file.

        Raises:
            FileNotFoundError: There is no such file.
        """

    def read_head(self, path: str, count: int) -> bytes:
        """Reads the first bytes of a file, fewer if it is shorter, in one request."""

    def read_tail(self, path: str, size: int, count: int) -> bytes:
        """Reads the last bytes of a file of known size, in one request."""

    def open_committed(self, path: str) -> BinaryIO:
        """Opens a committed file for reading."""

    def staged(self, path: str) -> AbstractContextManager[str]:
        """Yields a name on the local disk for the content that will be committed to `path`.

        For a local path the name is in the target's folder, so that committing copies nothing. The
        file is removed at the end of the block, committed or not.
        """

    def commit_staged(self, path: str, staged_path: str) -> bool:
        """Commits a staged file under its final name.

        Args:
            path: Final name.
            staged_path: Name that `staged(path)` yielded; the file is written and closed.

        Returns:
            True if this commit won; False if the file existed already.

        Raises:
            RunFolderError: The file system failed, or cannot create a file only if it is absent;
                nothing is committed.
        """

    def commit_if_absent(self, path: str, data: bytes) -> bool:
        """Commits the content of a file, unless the file exists already.

        Args:
            path: Final name; missing folders are created.
            data: Content.

        Returns:
            True if this commit won; False if a file with other content existed already. (On an
            object store, two commits of the same bytes may both return True.)

        Raises:
            RunFolderError: The file system failed, or cannot create a file only if it is absent;
                nothing is committed.
        """

    def replace(self, path: str, data: bytes) -> None:
        """Writes a small file, replacing any other; readers see the old or the new content.

        Raises:
            RunFolderError: The file system failed.
        """

    def remove(self, path: str) -> None:
        """Removes a file if it exists.

        Raises:
            RunFolderError: The file system failed.
        """

    def sweep(self, folder: str) -> None:
        """Removes the unfinished files of killed writers, in a folder and its subfolders.

        Call it only for a folder whose work is done: a writer that is still alive would lose its
        file.
        """
        return  # object stores keep no unfinished files

    def list_folder(self, folder: str) -> list[Entry]:
        """Lists the finished files in a folder, sorted; none if there is no such folder.

        Raises:
            OSError: The file system failed.
        """

    def list_subfolders(self, folder: str) -> list[str]:
        """Lists the names of the subfolders of a folder, sorted; none if there is no folder."""


@contextlib.contextmanager
def failing_by_name(path: str) -> Iterator[None]:
    """Names the file of the run folder in the error if the block fails."""
    try:
        yield
    except OSError as error:
        raise errors.writing_failed(path, error) from error
