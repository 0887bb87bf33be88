"""Run folders in object stores, and on any other file system of fsspec."""

from __future__ import annotations

import contextlib
import datetime
import errno
import inspect
import operator
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem
from typing_extensions import override

from datarater.pipelines.errors import RunFolderError
from datarater.pipelines.run_folder.stores import TEMPORARY_PREFIX, Entry, Store, failing_by_name
from datarater.rater_model.documents.files import open_file
from datarater.rater_model.documents.store_errors import raising_os_errors

_TRIES = 5
_FIRST_WAIT_SECONDS = 0.2


class ObjectStore(Store):
    """Objects that are committed by the store's own atomic create mode."""

    @override
    def check_file_system(self, path: str) -> None:
        # A class that inherits fsspec's default method accepts the mode but ignores it.
        file_system, _ = _file_system(path)
        kind = type(file_system)
        own_method = (
            kind._pipe_file
            if isinstance(file_system, AsyncFileSystem)
            else getattr(kind, "pipe_file", AbstractFileSystem.pipe_file)
        )
        inherited = own_method in (AsyncFileSystem._pipe_file, AbstractFileSystem.pipe_file)
        if inherited or not _takes_mode(own_method):
            raise RunFolderError(
                f"{path}: the file system {kind.__name__} cannot create a file only if it does "
                "not exist, which a run folder needs; put the run folder on a local disk, gs:// or "
                "s3://"
            )

    @override
    def check_creates_once(self, path: str) -> None:
        self.check_file_system(path)
        probe = f"{path}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self.commit_if_absent(probe, b"created first")
            is_replaced = self.commit_if_absent(probe, b"created second")
        finally:
            with contextlib.suppress(RunFolderError):
                self.remove(probe)
        if is_replaced:
            file_system, _ = _file_system(path)
            raise RunFolderError(
                f"{path}: the store {_name(file_system)} replaced a file that it was asked to "
                "create only if it is absent, so two workers could both believe that theirs is the "
                "one; put the run folder on gs://, on an s3:// store that honors If-None-Match, or "
                "on a local disk"
            )

    @override
    def exists(self, path: str) -> bool:
        file_system, inner = _file_system(path)
        file_system.invalidate_cache()
        return bool(_patiently(path, lambda: file_system.exists(inner)))

    @override
    def read_bytes(self, path: str) -> bytes:
        file_system, inner = _file_system(path)
        return bytes(_patiently(path, lambda: file_system.cat_file(inner)))

    @override
    def read_head(self, path: str, count: int) -> bytes:
        file_system, inner = _file_system(path)
        return bytes(_patiently(path, lambda: file_system.cat_file(inner, start=0, end=count)))

    @override
    def read_tail(self, path: str, size: int, count: int) -> bytes:
        file_system, inner = _file_system(path)
        start = max(0, size - count)
        return bytes(_patiently(path, lambda: file_system.cat_file(inner, start=start)))

    @override
    def open_committed(self, path: str) -> BinaryIO:
        return open_file(path)

    @override
    @contextlib.contextmanager
    def staged(self, path: str) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="datarater-") as folder:
            yield os.path.join(folder, "staged")

    @override
    def commit_staged(self, path: str, staged_path: str) -> bool:
        # Some stores upload a file, others only bytes, under the condition that it is absent.
        self.check_file_system(path)
        file_system, inner = _file_system(path)
        own_put = getattr(type(file_system), "_put_file", None)
        with failing_by_name(path):
            try:
                if own_put is not None and _takes_mode(own_put):
                    _patiently(
                        path, lambda: file_system.put_file(staged_path, inner, mode="create")
                    )
                else:
                    with open(staged_path, "rb") as file:
                        data = file.read()
                    _patiently(path, lambda: file_system.pipe_file(inner, data, mode="create"))
            except FileExistsError:
                return False
        return True

    @override
    def commit_if_absent(self, path: str, data: bytes) -> bool:
        self.check_file_system(path)
        file_system, inner = _file_system(path)
        with failing_by_name(path):
            try:
                _patiently(path, lambda: file_system.pipe_file(inner, data, mode="create"))
            except FileExistsError:
                # The file is ours if a try succeeded whose answer from the store was lost.
                with contextlib.suppress(FileNotFoundError):
                    return self.read_bytes(path) == data
                return False
        return True

    @override
    def replace(self, path: str, data: bytes) -> None:
        file_system, inner = _file_system(path)
        with failing_by_name(path):
            _patiently(path, lambda: file_system.pipe_file(inner, data))

    @override
    def remove(self, path: str) -> None:
        file_system, inner = _file_system(path)
        with failing_by_name(path), contextlib.suppress(FileNotFoundError):
            _patiently(path, lambda: file_system.rm_file(inner))

    @override
    def list_folder(self, folder: str) -> list[Entry]:
        # A listing may include the folder's own entry and subfolders.
        return sorted(
            Entry(f"{folder}/{name}", int(item.get("size") or 0), _modified(item))
            for name, item in _list(folder)
            if item.get("type") != "directory" and not name.startswith(TEMPORARY_PREFIX)
        )

    @override
    def list_subfolders(self, folder: str) -> list[str]:
        return sorted(name for name, item in _list(folder) if item.get("type") == "directory")


def _file_system(path: str) -> tuple[Any, str]:
    file_system, inner = fsspec.url_to_fs(path, use_listings_cache=False)
    return file_system, inner


def _name(file_system: Any) -> str:
    """Returns the name of a file system, and its endpoint if it is not the usual one."""
    name = type(file_system).__name__
    for part in ("s3.meta.endpoint_url", "_endpoint", "endpoint_url"):
        with contextlib.suppress(AttributeError):
            endpoint = operator.attrgetter(part)(file_system)
            if endpoint:
                return f"{name} at {endpoint}"
    return name


def _takes_mode(method: Callable[..., Any]) -> bool:
    return "mode" in inspect.signature(method).parameters


def _list(folder: str) -> list[tuple[str, Mapping[str, Any]]]:
    file_system, inner = _file_system(folder)
    file_system.invalidate_cache()
    try:
        details = _patiently(folder, lambda: file_system.ls(inner, detail=True))
    except FileNotFoundError:
        return []
    return [(item["name"].rstrip("/").rsplit("/", 1)[-1], item) for item in details]


def _patiently(path: str, operation: Callable[[], Any]) -> Any:
    """Does something with retries: networks fail, and stores shed load.

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
