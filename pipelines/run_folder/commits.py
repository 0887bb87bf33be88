"""Commits files of the run folder: each is created once and never replaced. The first commit wins.

A runner may run the same step twice: as a retry, speculatively, or in a worker that it has given up
on but that is still alive. So a step creates its file under the final name only if there is none,
in one atomic operation, and "already exists" means that the step is done. The loser's result is
discarded; readers see the same content forever.

- Local file systems: a temporary file in the same folder is written, synced, and linked to its
  final name. A link never replaces a file. A process that is killed in between leaves a file named
  `.tmp-*`, which nothing reads and `sweep` removes.
- Object stores: the file system's create mode (a generation precondition on gs://, If-None-Match on
  s3://), which is atomic.

Each function is the method of that name of the path's store (`datarater.pipelines.run_folder.
stores.Store`). Files that `replace` and `remove` change are not committed: leases and marks, on
which no result depends.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import IO, Concatenate, ParamSpec, TypeVar

from datarater.pipelines.errors import UnreadableInputError, UsageError
from datarater.pipelines.run_folder.local_files import LocalFiles
from datarater.pipelines.run_folder.object_store import ObjectStore
from datarater.pipelines.run_folder.stores import Store, failing_by_name
from datarater.rater_model.documents.files import check_protocol, local_path
from datarater.rater_model.documents.store_errors import (
    MissingPackageError,
    UnknownProtocolError,
    protocols_in,
)

IN_MEMORY_BYTES = 8 * 2**20
"""Size up to which the content of a file is read or made in memory."""
_LOCAL, _REMOTE = LocalFiles(), ObjectStore()

P = ParamSpec("P")
R = TypeVar("R")


def store_of(path: str) -> Store:
    """Returns the store that a path or URL lies in."""
    return _REMOTE if local_path(path) is None else _LOCAL


def _by_path(method: Callable[Concatenate[Store, str, P], R]) -> Callable[Concatenate[str, P], R]:
    @functools.wraps(method)
    def call(path: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = getattr(store_of(path), method.__name__)(path, *args, **kwargs)
        return result

    return call


check_file_system = _by_path(Store.check_file_system)
check_creates_once = _by_path(Store.check_creates_once)
exists = _by_path(Store.exists)
read_bytes = _by_path(Store.read_bytes)
read_head = _by_path(Store.read_head)
read_tail = _by_path(Store.read_tail)
open_committed = _by_path(Store.open_committed)
staged = _by_path(Store.staged)
commit_staged = _by_path(Store.commit_staged)
commit_if_absent = _by_path(Store.commit_if_absent)
replace = _by_path(Store.replace)
remove = _by_path(Store.remove)
sweep = _by_path(Store.sweep)
list_folder = _by_path(Store.list_folder)
list_subfolders = _by_path(Store.list_subfolders)


def commit_file(path: str, file: IO[bytes]) -> bool:
    """Commits the content of an open file, as `commit_if_absent` does, in bounded memory.

    Args:
        path: Final name.
        file: File that can seek; its whole content is committed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= IN_MEMORY_BYTES:
        return commit_if_absent(path, file.read())
    with staged(path) as name:
        with failing_by_name(path), open(name, "xb") as copy:
            shutil.copyfileobj(file, copy, 2**20)
        return commit_staged(path, name)


def read_if_there(path: str) -> bytes | None:
    """Reads a file; None if there is no such file."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None


def check_protocols(flag: str, paths: str) -> None:
    """Refuses URLs of file systems that fsspec does not know, or whose package is not installed.

    Args:
        flag: Name of the flag, for the message.
        paths: A path or URL, or several in one string.

    Raises:
        UnreadableInputError: The package is not installed; the message names the flag and the
            extra to install.
        UsageError: There is no such file system; the message names the flag.
    """
    for protocol in protocols_in(paths):
        try:
            check_protocol(f"{protocol}://")
        except MissingPackageError as error:
            raise UnreadableInputError(f"{flag}: {paths}: {error.strerror}") from error
        except UnknownProtocolError as error:
            raise UsageError(f"{flag}: {paths}: {error.strerror}") from error
