"""Run folders on local disks."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from typing import BinaryIO

from typing_extensions import override

from datarater.pipelines.errors import RunFolderError
from datarater.pipelines.run_folder.stores import TEMPORARY_PREFIX, Entry, Store, failing_by_name
from datarater.rater_model.documents.files import local_path

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class LocalFiles(Store):
    """Files that are committed by linking a synced temporary file to the final name."""

    @override
    def exists(self, path: str) -> bool:
        return os.path.exists(_local(path))

    @override
    def read_bytes(self, path: str) -> bytes:
        with self.open_committed(path) as file:
            return file.read()

    @override
    def read_head(self, path: str, count: int) -> bytes:
        with self.open_committed(path) as file:
            return file.read(count)

    @override
    def read_tail(self, path: str, size: int, count: int) -> bytes:
        with self.open_committed(path) as file:
            file.seek(max(0, size - count))
            return file.read()

    @override
    def open_committed(self, path: str) -> BinaryIO:
        return open(_local(path), "rb")

    @override
    @contextlib.contextmanager
    def staged(self, path: str) -> Iterator[str]:
        folder = os.path.dirname(os.path.abspath(_local(path)))
        with failing_by_name(path):
            os.makedirs(folder, exist_ok=True)
        name = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        try:
            yield name
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    @override
    def commit_staged(self, path: str, staged_path: str) -> bool:
        # The content must be on the disk before its name is.
        with failing_by_name(path):
            _sync(staged_path)
            return _link(staged_path, os.path.abspath(_local(path)))

    @override
    def commit_if_absent(self, path: str, data: bytes) -> bool:
        with self._written(path, data) as name:
            return self.commit_staged(path, name)

    @override
    def replace(self, path: str, data: bytes) -> None:
        with self._written(path, data) as name, failing_by_name(path):
            os.replace(name, os.path.abspath(_local(path)))

    @contextlib.contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[str]:
        with self.staged(path) as name:
            with failing_by_name(path), open(name, "xb") as file:
                file.write(data)
            yield name

    @override
    def remove(self, path: str) -> None:
        with failing_by_name(path), contextlib.suppress(FileNotFoundError):
            os.unlink(_local(path))

    @override
    def sweep(self, folder: str) -> None:
        for where, _, names in os.walk(_local(folder)):
            for name in names:
                if name.startswith(TEMPORARY_PREFIX):
                    # The file may belong to another user; it does no harm.
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(where, name))

    @override
    def list_folder(self, folder: str) -> list[Entry]:
        entries: list[Entry] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(_local(folder)) as items:
            for item in items:
                # A file may disappear between the listing and the look at its size.
                with contextlib.suppress(FileNotFoundError):
                    if item.is_file() and not item.name.startswith(TEMPORARY_PREFIX):
                        status = item.stat()
                        entries.append(
                            Entry(f"{folder}/{item.name}", status.st_size, status.st_mtime)
                        )
        return sorted(entries)

    @override
    def list_subfolders(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(_local(folder)) as items:
            return sorted(item.name for item in items if item.is_dir())
        return []


def _local(path: str) -> str:
    local = local_path(path)
    assert local is not None
    return local


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
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

    try:
        _sync(os.path.dirname(target))
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    return True
