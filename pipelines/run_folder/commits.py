"""Files of the run folder: created once, whole, and never replaced. The first commit wins.

A runner may run the same step twice: retried, speculatively, or by a worker that it has given up
but which still lives. So a step writes its file under its final name only if nothing is there yet,
in one indivisible operation, and "already exists" means that the step is done. What a loser
computed is thrown away; readers see one content for ever.

- Local file systems: a temporary file in the same folder, synced, then linked to its name. A link
  never replaces. A process killed in between leaves a file named `.tmp-*`, which nothing reads and
  `sweep` removes.
- Object stores: the file system's own create mode (a generation precondition on gs://,
  If-None-Match on s3://), all or nothing by nature.
"""

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
from datarater.pipelines.errors import RunFolderError, UsageError
from datarater.rater_model.documents.files import local_path
from datarater.rater_model.documents.store_errors import raising_os_errors

TEMPORARY_PREFIX = ".tmp-"
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TRIES = 5
_FIRST_WAIT_SECONDS = 0.2
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


def _patiently(path: str, operation: Callable[[], Any]) -> Any:
    """Does something on a remote file system, again after a pause where it fails: networks do, and stores shed load.

    A create that failed on the way back may have happened. Then the next try finds the file there,
    which means that it is done.
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
    """Says of a failure which file of the run folder it is about."""
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
        flag: what the message is to name.
        paths: a path or URL, or several in one string.

    Raises:
        UsageError: naming the flag and the package to install.
    """
    for protocol in _PROTOCOL.findall(paths):
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            raise UsageError(f"{flag}: {paths}: {' '.join(str(error).split())}") from error
        except ValueError as error:
            raise UsageError(
                f"{flag}: {paths}: there is no file system {protocol}://; give a local path, gs:// or s3://, or "
                "install the fsspec package that knows it"
            ) from error


def check_file_system(path: str) -> None:
    """Refuses a run folder on a file system that cannot create a file only if it is absent.

    Args:
        path: the run folder.

    Raises:
        RunFolderError: naming the file system.
    """
    if local_path(path) is not None:
        return
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
            f"{path}: the file system {kind.__name__} cannot create a file only where there is none, which "
            "a run folder needs; put the run folder on a local disk, gs:// or s3://"
        )


def exists(path: str) -> bool:
    """Whether a file is there now."""
    local = local_path(path)
    if local is not None:
        return os.path.exists(local)
    file_system, inner = _file_system(path)
    file_system.invalidate_cache()
    return bool(_patiently(path, lambda: file_system.exists(inner)))


def read_bytes(path: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: it is not there.
    """
    local = local_path(path)
    if local is not None:
        with open(local, "rb") as file:
            return file.read()
    file_system, inner = _file_system(path)
    return bytes(_patiently(path, lambda: file_system.cat_file(inner)))


def read_if_there(path: str) -> bytes | None:
    """The content of a file, or None where there is none."""
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
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network file systems cannot sync a folder
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
                f"{target}: the file system under it has no hard links ({error.strerror}), by which a file is "
                "created only where there is none; put the run folder on another file system"
            ) from error
        raise
    _sync_folder(os.path.dirname(target))
    return True


@contextlib.contextmanager
def staged(path: str) -> Iterator[str]:
    """A name on the local disk under which to write what is to be committed to `path`.

    For a local path it lies in the target's folder, so that committing copies nothing. The file is
    removed at the end, committed or not.
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
        staged_path: a name that `staged(path)` gave, written and closed.
        path: the final name.

    Returns:
        True if this commit won; False if the file was there already.

    Raises:
        RunFolderError: the file system failed, or has no way to create only if absent; nothing is
            committed.
    """
    local = local_path(path)
    if local is not None:
        with _failing_by_name(path):
            handle = os.open(staged_path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            return _link(staged_path, os.path.abspath(local))
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
    """Commits a file's content, if no content was committed before.

    Args:
        path: the final name; missing folders are made.
        data: the content.

    Returns:
        True if this commit won; False if a file with another content was there already. (On an
        object store, two that commit the same bytes may both be told that they won.)

    Raises:
        RunFolderError: the file system failed, or has no way to create only if absent; nothing is
            committed.
    """
    if local_path(path) is None:
        check_file_system(path)
        file_system, inner = _file_system(path)
        with _failing_by_name(path):
            try:
                _patiently(path, lambda: file_system.pipe_file(inner, data, mode="create"))
            except FileExistsError:
                # Ours, if the store's answer to a try that had succeeded was lost on the way.
                return read_if_there(path) == data
        return True
    with staged(path) as name:
        with _failing_by_name(path), open(name, "xb") as file:
            file.write(data)
        return commit_staged(name, path)


# --- what is not committed: leases and marks, which are for people and never for the books
# --------------


class Entry(NamedTuple):
    """A file in a listing.

    Attributes:
        path: in the form that the other functions take.
        size: in bytes.
        modified: seconds since 1970; 0 where the file system does not say.
    """

    path: str
    size: int
    modified: float


def replace(path: str, data: bytes) -> None:
    """Writes a small file over whatever is there; readers see the old content or the new one.

    Raises:
        RunFolderError: the file system failed.
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
    """Removes a file, if it is there.

    Raises:
        RunFolderError: the file system failed.
    """
    local = local_path(path)
    with _failing_by_name(path), contextlib.suppress(FileNotFoundError):
        if local is None:
            file_system, inner = _file_system(path)
            _patiently(path, lambda: file_system.rm_file(inner))
        else:
            os.unlink(local)


def sweep(folder: str) -> None:
    """Removes what writers that were killed left half written, in a local folder and those under it.

    Only for a folder whose work is done: a writer that still lives loses what it was writing.
    Object stores keep nothing half written.
    """
    local = local_path(folder)
    if local is None:
        return
    for where, _, names in os.walk(local):
        for name in names:
            if name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(OSError):  # another user's, perhaps: it does no harm
                    os.unlink(os.path.join(where, name))


def list_folder(folder: str) -> list[Entry]:
    """The files in a folder, without those that are not whole yet; none if there is no such folder.

    Raises:
        OSError: the file system failed.
    """
    local = local_path(folder)
    entries: list[Entry] = []
    if local is not None:
        with contextlib.suppress(FileNotFoundError), os.scandir(local) as found:
            for item in found:
                with contextlib.suppress(FileNotFoundError):
                    if item.is_file() and not item.name.startswith(TEMPORARY_PREFIX):
                        status = item.stat()
                        entries.append(
                            Entry(f"{folder}/{item.name}", status.st_size, status.st_mtime)
                        )
        return sorted(entries)
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
    """The names of the folders in a folder; none if there is no such folder."""
    local = local_path(folder)
    if local is not None:
        with contextlib.suppress(FileNotFoundError), os.scandir(local) as found:
            return sorted(item.name for item in found if item.is_dir())
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
    """The last bytes of a file whose size is known, in one request."""
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
