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
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import inspect
import os
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from datarater.pipelines import errors
from datarater.pipelines.errors import RunFolderError, UnreadableInputError, UsageError
from datarater.rater_model.documents.files import check_protocol, local_path
from datarater.rater_model.documents.store_errors import (
    MissingPackageError,
    UnknownProtocolError,
    raising_os_errors,
)

TEMPORARY_PREFIX = ".tmp-"
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TRIES = 5
_FIRST_WAIT_SECONDS = 0.2
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


def _patiently(path: str, operation: Callable[[], Any]) -> Any:
    """Does something on a remote file system, with retries: networks fail, and stores shed load.

    A create whose answer was lost may have succeeded. Then the next try finds the file, which means
    that it is done.
    """
    wait = _FIRST_WAIT_SECONDS
    for _ in range(_TRIES - 1):
        try:
            with raising_os_errors(path):
                return operation()
        except (
            FileExistsError,
            FileNotFoundError,
            PermissionError,
            IsADirectoryError,
            RunFolderError,
        ):
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise

        time.sleep(wait * random.uniform(0.5, 1.0))
        wait *= 2

    with raising_os_errors(path):
        return operation()


@contextlib.contextmanager
def _failing_by_name(path: str) -> Iterator[None]:
    """Names the file of the run folder in the error if the block fails."""
    try:
        yield
    except OSError as error:
        raise errors.writing_failed(path, error) from error


def _file_system(path: str) -> tuple[Any, str]:
    file_system, inner = fsspec.url_to_fs(path, use_listings_cache=False)
    return file_system, inner


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
    for protocol in _PROTOCOL.findall(paths):
        try:
            check_protocol(f"{protocol}://")
        except MissingPackageError as error:
            raise UnreadableInputError(f"{flag}: {paths}: {error.strerror}") from error
        except UnknownProtocolError as error:
            raise UsageError(f"{flag}: {paths}: {error.strerror}") from error


def check_file_system(path: str) -> None:
    """Refuses a run folder on a file system that cannot create a file only if it is absent.

    Args:
        path: Path or URL of the run folder.

    Raises:
        RunFolderError: The file system cannot; the message names it.
    """
    if local_path(path) is not None:
        return

    # A class that inherits fsspec's default method accepts the mode but ignores it.
    file_system, _ = _file_system(path)
    kind = type(file_system)
    own_method = (
        kind._pipe_file
        if isinstance(file_system, AsyncFileSystem)
        else getattr(kind, "pipe_file", AbstractFileSystem.pipe_file)
    )
    inherited = own_method in (AsyncFileSystem._pipe_file, AbstractFileSystem.pipe_file)
    if inherited or "mode" not in inspect.signature(own_method).parameters:
        raise RunFolderError(
            f"{path}: the file system {kind.__name__} cannot create a file only if it does "
            "not exist, which a run folder needs; put the run folder on a local disk, gs:// or s3://"
        )


def exists(path: str) -> bool:
    """Returns whether a file exists now."""
    local = local_path(path)
    if local is not None:
        return os.path.exists(local)
    file_system, inner = _file_system(path)
    file_system.invalidate_cache()
    return bool(_patiently(path, lambda: file_system.exists(inner)))


def read_bytes(path: str) -> bytes:
    """Reads a file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    local = local_path(path)
    if local is not None:
        with open(local, "rb") as file:
            return file.read()
    file_system, inner = _file_system(path)
    return bytes(_patiently(path, lambda: file_system.cat_file(inner)))


def read_if_there(path: str) -> bytes | None:
    """Reads a file; None if there is no such file."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None


def open_committed(path: str) -> BinaryIO:
    """Opens a committed file for reading."""
    local = local_path(path)
    if local is not None:
        return open(local, "rb")
    file_system, inner = _file_system(path)
    return file_system.open(inner, "rb")


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _link(staged: str, target: str) -> bool:
    try:
        os.link(staged, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise RunFolderError(
                f"{target}: its file system has no hard links ({error.strerror}), which a "
                "commit needs to create a file only if it does not exist; put the run folder "
                "on another file system"
            ) from error
        raise
    _sync_folder(os.path.dirname(target))
    return True


@contextlib.contextmanager
def staged(path: str) -> Iterator[str]:
    """Yields a name on the local disk for the content that will be committed to `path`.

    For a local path the name is in the target's folder, so that committing copies nothing. The file
    is removed at the end of the block, committed or not.
    """
    local = local_path(path)
    if local is not None:
        folder = os.path.dirname(os.path.abspath(local))
        with _failing_by_name(path):
            os.makedirs(folder, exist_ok=True)
        name = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            yield name
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    else:
        with tempfile.TemporaryDirectory(prefix="datarater-") as folder:
            yield os.path.join(folder, "staged")


def commit_staged(staged_path: str, path: str) -> bool:
    """Commits a staged file under its final name.

    Args:
        staged_path: Name that `staged(path)` yielded; the file is written and closed.
        path: Final name.

    Returns:
        True if this commit won; False if the file existed already.

    Raises:
        RunFolderError: The file system failed, or cannot create a file only if it is absent;
            nothing is committed.
    """
    # On a local file system the content must be on the disk before its name is.
    local = local_path(path)
    if local is not None:
        with _failing_by_name(path):
            handle = os.open(staged_path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            return _link(staged_path, os.path.abspath(local))

    # Some object stores upload a file, others only bytes, under the condition that it is absent.
    check_file_system(path)
    file_system, inner = _file_system(path)
    own_put = getattr(type(file_system), "_put_file", None)
    with _failing_by_name(path):
        try:
            if own_put is not None and "mode" in inspect.signature(own_put).parameters:
                _patiently(path, lambda: file_system.put_file(staged_path, inner, mode="create"))
            else:
                with open(staged_path, "rb") as file:
                    data = file.read()
                _patiently(path, lambda: file_system.pipe_file(inner, data, mode="create"))
        except FileExistsError:
            return False
    return True


def commit_if_absent(path: str, data: bytes) -> bool:
    """Commits the content of a file, unless the file exists already.

    Args:
        path: Final name; missing folders are created.
        data: Content.

    Returns:
        True if this commit won; False if a file with other content existed already. (On an object
        store, two commits of the same bytes may both return True.)

    Raises:
        RunFolderError: The file system failed, or cannot create a file only if it is absent;
            nothing is committed.
    """
    if local_path(path) is None:
        check_file_system(path)
        file_system, inner = _file_system(path)
        with _failing_by_name(path):
            try:
                _patiently(path, lambda: file_system.pipe_file(inner, data, mode="create"))
            except FileExistsError:
                # The file is ours if a try succeeded whose answer from the store was lost.
                return read_if_there(path) == data
        return True
    with staged(path) as name:
        with _failing_by_name(path), open(name, "xb") as file:
            file.write(data)
        return commit_staged(name, path)


# Files that are not committed: leases and marks. No result depends on them.


class Entry(NamedTuple):
    """A file in a listing.

    Attributes:
        path: Path in the form that the other functions take.
        size: Size in bytes.
        modified: Time in seconds since 1970; 0 if the file system does not report it.
    """

    path: str
    size: int
    modified: float


def replace(path: str, data: bytes) -> None:
    """Writes a small file, replacing any other; readers see the old or the new content.

    Raises:
        RunFolderError: The file system failed.
    """
    local = local_path(path)
    with _failing_by_name(path):
        if local is None:
            file_system, inner = _file_system(path)
            _patiently(path, lambda: file_system.pipe_file(inner, data))
            return
        with staged(path) as name:
            with open(name, "xb") as file:
                file.write(data)
            os.replace(name, os.path.abspath(local))


def remove(path: str) -> None:
    """Removes a file if it exists.

    Raises:
        RunFolderError: The file system failed.
    """
    local = local_path(path)
    with _failing_by_name(path), contextlib.suppress(FileNotFoundError):
        if local is None:
            file_system, inner = _file_system(path)
            _patiently(path, lambda: file_system.rm_file(inner))
        else:
            os.unlink(local)


def sweep(folder: str) -> None:
    """Removes the unfinished files of killed writers, in a local folder and its subfolders.

    Call it only for a folder whose work is done: a writer that is still alive would lose its file.
    Object stores keep no unfinished files.
    """
    local = local_path(folder)
    if local is None:
        return
    for where, _, names in os.walk(local):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                # The file may belong to another user; it does no harm.
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(where, name))


def list_folder(folder: str) -> list[Entry]:
    """Lists the finished files in a folder, sorted; none if there is no such folder.

    Raises:
        OSError: The file system failed.
    """
    local = local_path(folder)
    entries: list[Entry] = []

    # A local file may disappear between the listing and the look at its size.
    if local is not None:
        with contextlib.suppress(FileNotFoundError), os.scandir(local) as items:
            for item in items:
                with contextlib.suppress(FileNotFoundError):
                    if item.is_file() and not item.name.startswith(TEMPORARY_PREFIX):
                        status = item.stat()
                        entries.append(
                            Entry(f"{folder}/{item.name}", status.st_size, status.st_mtime)
                        )
        return sorted(entries)

    # A remote listing may include the folder's own entry and subfolders.
    file_system, inner = _file_system(folder)
    file_system.invalidate_cache()
    try:
        details = _patiently(folder, lambda: file_system.ls(inner, detail=True))
    except FileNotFoundError:
        return []
    for item in details:
        name = item["name"].rstrip("/").rsplit("/", 1)[-1]
        if item.get("type") != "directory" and not name.startswith(TEMPORARY_PREFIX):
            entries.append(Entry(f"{folder}/{name}", int(item.get("size") or 0), _modified(item)))
    return sorted(entries)


def list_subfolders(folder: str) -> list[str]:
    """Lists the names of the subfolders of a folder, sorted; none if there is no such folder."""
    local = local_path(folder)
    if local is not None:
        with contextlib.suppress(FileNotFoundError), os.scandir(local) as items:
            return sorted(item.name for item in items if item.is_dir())
        return []

    file_system, inner = _file_system(folder)
    file_system.invalidate_cache()
    try:
        details = _patiently(folder, lambda: file_system.ls(inner, detail=True))
    except FileNotFoundError:
        return []
    return sorted(
        item["name"].rstrip("/").rsplit("/", 1)[-1]
        for item in details
        if item.get("type") == "directory"
    )


def read_tail(path: str, size: int, count: int) -> bytes:
    """Reads the last bytes of a file of known size, in one request."""
    start = max(0, size - count)
    local = local_path(path)
    if local is not None:
        with open(local, "rb") as file:
            file.seek(start)
            return file.read()
    file_system, inner = _file_system(path)
    return bytes(_patiently(path, lambda: file_system.cat_file(inner, start=start)))


def _modified(details: Mapping[str, Any]) -> float:
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        when = details.get(name)
        if isinstance(when, str):
            with contextlib.suppress(ValueError):
                when = datetime.datetime.fromisoformat(when)
        if isinstance(when, datetime.datetime):
            return when.timestamp()
        if isinstance(when, int | float):
            return float(when)
    return 0.0
