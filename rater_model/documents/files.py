"""Files on any file system that fsspec knows: finding, naming and opening them.

Local files are opened without fsspec's layers, for speed.
"""

import datetime
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, cast

import fsspec

from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.store_errors import raising_os_errors


class NoInputError(ValueError):
    """A pattern matches no file."""


def local_path(path: str) -> str | None:
    """Returns the path of a local file (`file://` taken away), or None for a file that lies elsewhere."""
    for prefix in ("file://", "local://"):
        if path.startswith(prefix):
            return path[len(prefix) :]
    return None if "://" in path or "::" in path else path


def open_file(path: str) -> BinaryIO:
    """Opens a file for reading bytes.

    Args:
        path: a local path or any URL that fsspec knows.

    Raises:
        OSError: if the file does not exist or may not be read.
    """
    local = local_path(path)
    if local is not None:
        return open(local, "rb")
    with raising_os_errors(path):
        file_system, inner = fsspec.url_to_fs(path)
        if "memory" in file_system.protocol:
            # Its handles on one file share their position: readers beside each other would disturb
            # each other.
            return io.BytesIO(file_system.cat_file(inner))
        return cast(BinaryIO, file_system.open(inner, "rb"))


def read_head(path: str, count: int) -> bytes:
    """Returns the first bytes of a file, fewer than `count` where the file is shorter."""
    with raising_os_errors(path), open_file(path) as file:
        return file.read(count)


def read_range(path: str, start: int, count: int) -> bytes:
    """Returns some bytes of a file, fewer at its end, in one request where it lies elsewhere.

    Args:
        path: local path or URL.
        start: offset of the first byte, within the file.
        count: how many bytes.

    Raises:
        OSError: if the file cannot be read.
    """
    local = local_path(path)
    if local is not None:
        with open(local, "rb") as file:
            file.seek(start)
            return file.read(count)
    with raising_os_errors(path):
        file_system, inner = fsspec.url_to_fs(path)
        return bytes(file_system.cat_file(inner, start=start, end=start + count))


def file_info(path: str) -> FileInfo:
    """Looks a file up as it is now, so that a change since an earlier look can be seen.

    Raises:
        OSError: if the file does not exist.
    """
    local = local_path(path)
    if local is not None:
        return _info(path, {})
    with raising_os_errors(path):
        file_system, inner = fsspec.url_to_fs(path)
        file_system.invalidate_cache(inner)
        return _info(path, file_system.info(inner))


def list_files(patterns: Sequence[str]) -> list[FileInfo]:
    """Finds the input files.

    Args:
        patterns: paths, URLs or globs (`*`, `?`, `[...]`, `**` for folders of any depth), each of
            which may be several joined by commas. A path that exists as it stands is not read as a
            glob.

    Returns:
        The files, each once, sorted by path.

    Raises:
        NoInputError: if a pattern matches no file.
        OSError: if a file system cannot be reached.

    Example:
        >>> list_files(["gs://crawl/2024/*.jsonl.gz,gs://crawl/2025/*.jsonl.gz"])  # doctest: +SKIP
    """
    found: dict[str, FileInfo] = {}
    wanted = [part.strip() for pattern in patterns for part in pattern.split(",") if part.strip()]
    if not wanted:
        raise NoInputError("no input was named; give at least one path or glob")
    for pattern in wanted:
        try:
            with raising_os_errors(pattern):
                matches = _matches(pattern)
        except FileNotFoundError as error:
            raise NoInputError(f"no file matches {pattern!r}: {error.strerror or error}") from error
        if not matches:
            raise NoInputError(
                f"no file matches {pattern!r}; check the path, and quote the glob so that the shell leaves it alone"
            )
        for path, details in matches.items():
            if path not in found:
                found[path] = _info(path, details)
    return [found[path] for path in sorted(found)]


def _matches(pattern: str) -> dict[str, Mapping[str, Any]]:
    file_system, inner = fsspec.url_to_fs(pattern)
    file_system.invalidate_cache()
    local = local_path(pattern) is not None
    entries: dict[str, Mapping[str, Any]]
    if file_system.exists(inner):
        if file_system.isdir(inner):
            raise NoInputError(
                f"{pattern!r} is a folder; name the files in it, such as {pattern.rstrip('/') + '/*'!r}"
            )
        entries = {inner: file_system.info(inner)}
    else:
        entries = file_system.glob(inner, detail=True)
    return {
        name if local else file_system.unstrip_protocol(name): details
        for name, details in entries.items()
        if details.get("type") != "directory" and not (local and os.path.isdir(name))
    }


def _info(path: str, details: Mapping[str, Any]) -> FileInfo:
    local = local_path(path)
    if local is not None:
        status = os.stat(local)
        return FileInfo(path, status.st_size, f"mtime-{status.st_mtime_ns}-{status.st_size}")
    size = int(details.get("size") or 0)
    for name in (
        "generation",
        "crc32c",
        "md5Hash",
        "etag",
        "ETag",
        "content_md5",
        "checksum",
        "blob_id",
    ):
        if details.get(name):
            value = str(details[name]).strip('"')
            return FileInfo(path, size, f"{name.lower()}-{value}")
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        when = details.get(name)
        if when is not None:
            if isinstance(when, datetime.datetime):
                when = when.timestamp()
            return FileInfo(path, size, f"{name.lower()}-{when}-{size}")
    return FileInfo(path, size, f"size-{size}")
