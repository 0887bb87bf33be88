"""Finds, names and opens files on every file system that fsspec knows.

Local files are opened without fsspec's layers, for speed.
"""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import functools
import glob
import io
import itertools
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import fsspec

from datarater.rater_model.documents import store_errors
from datarater.rater_model.documents.local_globs import local_matches
from datarater.rater_model.documents.object_pages import has_pages, objects_matching, objects_under
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.remote_file import (
    BLOCK_BYTES,
    RemoteFile,
    fetch_range,
    serves_ranges,
)
from datarater.rater_model.documents.same_files import SameFiles
from datarater.rater_model.documents.sorted_files import FileSorter
from datarater.rater_model.documents.store_errors import raising_os_errors

_HIDDEN = (".", "_")
_KINDS = (
    (stat.S_ISFIFO, "a stream"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_NOT_DATA = re.compile(r"(readme|licen[cs]e).*|.*\.(md|markdown)", re.IGNORECASE)
_DATA_SUFFIX = re.compile(
    r"\.(jsonl?|ndjson|parquet|pq|warc|wet|gz|gzip|zst|zstd|bz2|bzip2|tfrecord.*|array_record.*)$",
    re.IGNORECASE,
)


_held: dict[str, bytes] = {}


class NoInputError(ValueError):
    """A pattern matches no file."""


class MalformedPatternError(NoInputError):
    """A pattern is not a glob, such as `a**b`."""


def local_path(path: str) -> str | None:
    """Returns a local file's path without `file://`; None for a file that is not local."""
    for prefix in ("file://", "local://"):
        if path.startswith(prefix):
            return path[len(prefix) :]
    return None if "://" in path or "::" in path else path


def expand_home(path: str) -> str:
    """Returns a path with a leading `~` or `~user` replaced by the home folder.

    URLs, and users that do not exist, are left unchanged.

    Example:
        >>> expand_home("gs://bucket/~")
        'gs://bucket/~'
    """
    return os.path.expanduser(path) if local_path(path) == path else path


def file_system_of(path: str) -> tuple[Any, str]:
    """Returns the file system of a path or URL, and the path within it.

    Raises:
        MissingPackageError: if the package of a URL's file system is not installed.
        UnknownProtocolError: if there is no file system for a URL's protocol.
        OSError: if the file system cannot be reached.
    """
    check_protocol(path)
    if store_errors.protocol_of(path) in ("gs", "gcs"):
        # It logs a traceback for each failed try; we report the error that it raises in the end.
        logger = logging.getLogger("gcsfs")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
    with raising_os_errors(path):
        file_system, inner = fsspec.url_to_fs(path)
    return file_system, inner


def check_protocol(path: str) -> None:
    """Checks that the file system of a URL is known and installed, without a connection to it.

    Raises:
        MissingPackageError: if its package is not installed; the message names the extra.
        UnknownProtocolError: if there is no file system for the protocol.
    """
    protocol = store_errors.protocol_of(path)
    if not protocol:
        return
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise store_errors.missing_package(path, error) from error
    except ValueError as error:
        raise store_errors.unknown_protocol(path) from error


@contextlib.contextmanager
def held(path: str, content: bytes) -> Iterator[None]:
    """Opens a file from memory, without a request, while the block runs.

    Args:
        path: URL of the file.
        content: Its content, which was read before.
    """
    _held[path] = content
    try:
        yield
    finally:
        _held.pop(path, None)


def open_file(path: str, in_order_to: int | None = None) -> BinaryIO:
    """Opens a file for reading bytes.

    Args:
        path: Local path or any URL that fsspec knows.
        in_order_to: Offset up to which the file will be read in order, `WHOLE` for all of it; None
            if it will be read anywhere. Object stores are asked for fitting ranges; see
            `datarater.rater_model.documents.remote_file`.

    Raises:
        OSError: if the file does not exist or cannot be read.
    """
    content = _held.get(path)
    if content is not None:
        return io.BytesIO(content)
    local = local_path(path)
    if local is not None:
        return open(local, "rb")

    file_system, inner = file_system_of(path)
    with raising_os_errors(path):
        if "memory" in file_system.protocol:
            # Its handles on one file share their position, so that concurrent readers would
            # disturb each other.
            return io.BytesIO(file_system.cat_file(inner))
        if not serves_ranges(file_system):
            return cast(BinaryIO, file_system.open(inner, "rb", block_size=BLOCK_BYTES))

    fetch = functools.partial(fetch_range, file_system, inner, path)
    return cast(BinaryIO, RemoteFile(fetch, functools.partial(file_info, path), in_order_to))


def read_head(path: str, count: int) -> bytes:
    """Returns the first bytes of a file, fewer if the file is shorter."""
    return read_range(path, 0, count)


def read_range(path: str, start: int, count: int) -> bytes:
    """Returns a range of a file's bytes, fewer at its end; in one request if it is remote.

    Args:
        path: Local path or URL.
        start: Offset of the first byte.
        count: Number of bytes.

    Raises:
        OSError: if the file cannot be read.
    """
    content = _held.get(path)
    if content is not None:
        return content[start : start + count]
    local = local_path(path)
    if local is not None:
        with open(local, "rb") as file:
            file.seek(start)
            return file.read(count)

    file_system, inner = file_system_of(path)
    if serves_ranges(file_system):
        return fetch_range(file_system, inner, path, start, start + count)
    with raising_os_errors(path):
        if "memory" in file_system.protocol:
            return bytes(file_system.cat_file(inner, start=start, end=start + count))
        with file_system.open(inner, "rb", block_size=max(count, 2**16)) as file:
            file.seek(start)
            return bytes(file.read(count))


def file_info(path: str) -> FileInfo:
    """Looks a file up as it is now, so that a change since an earlier look can be seen.

    Raises:
        OSError: if the file does not exist.
    """
    if local_path(path) is not None:
        return info_of(path, {})

    file_system, inner = file_system_of(path)
    with raising_os_errors(path):
        file_system.invalidate_cache(inner)
        return info_of(path, file_system.info(inner))


def split_on_commas(text: str) -> list[str]:
    """Splits a comma-separated list of patterns; commas within braces do not separate.

    Example:
        >>> split_on_commas("a/*.{jsonl,parquet}, b.jsonl")
        ['a/*.{jsonl,parquet}', 'b.jsonl']
    """
    parts = [""]
    at = 0
    while at < len(text):
        brace = _brace(text, at) if text[at] == "{" else None
        end = brace[-1] + 1 if brace else at + 1
        if text[at] == ",":
            parts.append("")
        else:
            parts[-1] += text[at:end]
        at = end
    return [part.strip() for part in parts if part.strip()]


def expand_braces(pattern: str) -> list[str]:
    """Returns the patterns that a pattern with braces expands to, as in a shell.

    Braces without a comma, or without a partner, are ordinary characters.

    Example:
        >>> expand_braces("{train,valid}-*.jsonl{,.gz}")
        ['train-*.jsonl', 'train-*.jsonl.gz', 'valid-*.jsonl', 'valid-*.jsonl.gz']
        >>> expand_braces("{name}.jsonl")
        ['{name}.jsonl']
    """
    start = pattern.find("{")
    while start >= 0:
        bounds = _brace(pattern, start)
        if bounds is not None and len(bounds) > 2:
            tails = expand_braces(pattern[bounds[-1] + 1 :])
            return [
                pattern[:start] + middle + tail
                for left, right in itertools.pairwise(bounds)
                for middle in expand_braces(pattern[left + 1 : right])
                for tail in tails
            ]
        start = pattern.find("{", start + 1)
    return [pattern]


def list_files(patterns: Sequence[str]) -> list[FileInfo]:
    """Lists the input files, as `iter_files` does.

    Raises:
        NoInputError: if a pattern matches no file.
        OSError: if a file system cannot be reached or a folder cannot be read.

    Example:
        >>> list_files(["gs://crawl/{2024,2025}/*.jsonl.gz", "more/"])  # doctest: +SKIP
    """
    return list(iter_files(patterns))


def iter_files(patterns: Sequence[str]) -> Iterator[FileInfo]:
    """Yields the input files in bounded memory, however many they are.

    A folder is read with all folders below it, links included. Files whose path below it has a
    component that begins with `.` or `_` (`_SUCCESS`, `_temporary/`) are left out, and so are
    README, LICENSE and Markdown files. Wildcards leave out names that begin with `.` or `_` too,
    unless the pattern names them (`_*`, `.cache/*`). A path that exists is taken literally.
    Streams, sockets and devices are left out, and refused where they are named.

    Args:
        patterns: Paths, URLs, folders or globs (`*`, `?`, `[...]`, `{a,b}`, `**` for folders of any
            depth, `~` for the home folder); each may be several, separated by commas. Of a brace's
            alternatives, those without a wildcard must exist.

    Yields:
        The files, each once whatever its names, sorted by path.

    Raises:
        NoInputError: if a pattern matches no file, or a name is not UTF-8.
        OSError: if a file system cannot be reached or a folder cannot be read.
    """
    single = [part for pattern in patterns for part in _patterns_in(pattern)]
    if not single:
        raise NoInputError("no input was given; give at least one path, folder or glob")

    files = FileSorter()
    same_files = SameFiles(local_path)
    for pattern in single:
        for path, details in _matches(expand_home(pattern)):
            _check_name(path)
            same_files.add(path)
            files.add(info_of(path, details))
    yield from same_files.once(files.sorted())


def _check_name(path: str) -> None:
    """Refuses a name that no file of a run can contain.

    Raises:
        NoInputError: if the name is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise NoInputError(f"the name of the file {name} is not UTF-8; rename it") from error


def _check_kind(local: str) -> None:
    """Refuses what is no file: it could not be read a second time, or never ends.

    Raises:
        NoInputError: if the path names a stream, a socket or a device.
    """
    mode = os.stat(local).st_mode
    kind = next((name for test, name in _KINDS if test(mode)), None)
    if kind is None and os.path.abspath(local).startswith(("/dev/", "/proc/")):
        kind = "a name for an open file of this process"
    if kind is not None:
        raise NoInputError(
            f"{local!r} is {kind}, not a file; every input is read twice, by several processes: "
            "write it to a file first, such as with: cat > input.jsonl"
        )


def _patterns_in(text: str) -> list[str]:
    """Returns the patterns of a list with commas, which may be in a local file's name as well."""
    return [text] if os.path.exists(expand_home(text)) else split_on_commas(text)


def _brace(text: str, start: int) -> list[int] | None:
    """Returns the places of a brace, its own commas and its partner; None without a partner."""
    bounds = [start]
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "{":
            depth += 1
        elif text[at] == "," and depth == 1:
            bounds.append(at)
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return [*bounds, at]
    return None


def _matches(pattern: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the files that one pattern matches, each with what its file system says about it.

    Raises:
        NoInputError: if there is none.
    """
    file_system, inner = file_system_of(pattern)
    count = 0
    with raising_os_errors(pattern):
        file_system.invalidate_cache()
        exact = _exact_matches(file_system, pattern, inner)
        if exact is not None:
            yield from exact
            return

        for alternative in expand_braces(pattern):
            _, inner = file_system_of(alternative)
            files = _exact_matches(file_system, alternative, inner)
            if files is None:
                files = _glob_matches(file_system, inner, alternative, pattern)
            for match in files:
                count += 1
                yield match
    if not count:
        raise NoInputError(_no_match(pattern, pattern))


def _exact_matches(
    file_system: Any, pattern: str, inner: str
) -> Iterator[tuple[str, Mapping[str, Any]]] | None:
    """Returns the file of that very name or the files of that folder; None if there is neither."""
    is_local = local_path(pattern) is not None
    details: Mapping[str, Any] = {}
    if is_local:
        if not os.path.exists(inner):
            return None
        is_folder = os.path.isdir(inner)
        if not is_folder:
            _check_kind(inner)
    else:
        try:
            with raising_os_errors(pattern):
                details = store_errors.in_time(pattern, lambda: file_system.info(inner))
        except FileNotFoundError:
            return None
        is_folder = details.get("type") == "directory"
    if is_folder:
        return _folder_matches(file_system, pattern, inner)
    return iter([(_named(file_system, inner, is_local), details)])


def _folder_matches(
    file_system: Any, pattern: str, inner: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    is_local = local_path(pattern) is not None
    below = _local_files(inner) if is_local else _remote_files(file_system, pattern, inner)
    is_empty = True
    for name, entry in below:
        is_empty = False
        yield _named(file_system, name, is_local), entry
    if is_empty:
        raise NoInputError(
            f"the folder {pattern!r} has no data files; names that begin with '.' or '_', README, "
            "LICENSE and *.md files are left out: name such files themselves to read them"
        )


def _local_files(
    folder: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the data files below a local folder.

    Args:
        folder: Folder to read.
        above: Device and inode of each folder above, so that a link that leads back ends.
    """
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(_HIDDEN):
                continue
            if entry.is_dir():
                yield from _local_files(entry.path, above | {identity})
            elif _is_data(entry.name) and (entry.is_file() or not os.path.exists(entry.path)):
                # A dangling link is yielded too, so that it fails by name instead of vanishing.
                yield entry.path, {}


def _remote_files(
    file_system: Any, pattern: str, folder: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the data files below a folder that is not local."""
    root = folder.rstrip("/") + "/"
    if has_pages(pattern):
        entries = objects_under(file_system, pattern, root)
    else:
        entries = iter(file_system.find(folder, detail=True).items())
    for name, details in entries:
        parts = name.removeprefix(root).split("/")
        is_hidden = any(part.startswith(_HIDDEN) for part in parts)
        # Some stores list a folder as an empty object whose name ends with a slash.
        if details.get("type") != "directory" and not is_hidden and _is_data(parts[-1]):
            yield name, details


def _is_data(name: str) -> bool:
    """Reports whether a file in a folder is taken for data, by its name."""
    return bool(name) and (
        _NOT_DATA.fullmatch(name) is None or _DATA_SUFFIX.search(name) is not None
    )


def _glob_matches(
    file_system: Any, inner: str, alternative: str, pattern: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the files that a glob matches, which may be none.

    Args:
        file_system: File system of the pattern.
        inner: Glob within the file system, without braces.
        alternative: The same as a path or URL.
        pattern: Pattern as it was given, for messages.

    Raises:
        NoInputError: if the pattern has no wildcard, is malformed, or matches nothing but folders.
    """
    if not glob.has_magic(inner):
        raise NoInputError(_no_match(alternative, pattern))
    entries = _glob_entries(file_system, inner, pattern)
    is_local = local_path(pattern) is not None
    named = _named_parts(inner)
    files, folders = 0, 0
    for name, details in entries:
        if details.get("type") == "directory" or (is_local and os.path.isdir(name)):
            folders += 1
        elif is_local and os.path.exists(name) and not os.path.isfile(name):
            continue  # a stream, a socket or a device
        elif not _is_hidden(name, named):
            files += 1
            yield _named(file_system, name, is_local), details
    if folders and not files and "**" not in inner:
        raise NoInputError(
            f"no file matches {pattern!r}, only folders; add '/**' to read the files below them"
        )


def _glob_entries(
    file_system: Any, inner: str, pattern: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields what a glob matches, folders too."""
    try:
        with raising_os_errors(pattern):
            if local_path(pattern) is not None:
                yield from local_matches(inner)
            elif has_pages(pattern):
                yield from objects_matching(file_system, pattern, inner)
            else:
                yield from file_system.glob(inner, detail=True).items()
    except FileNotFoundError:
        return
    except ValueError as error:
        raise MalformedPatternError(
            f"{pattern!r} is not a valid glob ({error}); write ** as a whole path component, "
            "such as 'data/**/*.jsonl'"
        ) from error


def _named_parts(pattern: str) -> list[str]:
    """Returns the components of a pattern that may match a hidden name."""
    return [
        part
        for part in pattern.split("/")
        if part and part[0] not in "*?" and not part.startswith(("[!", "[^"))
    ]


def _is_hidden(name: str, named: Sequence[str]) -> bool:
    """Reports whether a path has a hidden component that no component of the pattern names."""
    return any(
        part.startswith(_HIDDEN) and not any(fnmatch.fnmatchcase(part, item) for item in named)
        for part in name.split("/")
    )


def _no_match(path: str, pattern: str) -> str:
    where = f" (from {pattern!r})" if path != pattern else ""
    return (
        f"no file matches {path!r}{where}; check the path, and quote a glob so that the shell does "
        "not expand it"
    )


def _named(file_system: Any, name: str, is_local: bool) -> str:
    """Returns the path or URL of a name within a file system."""
    return name if is_local else str(file_system.unstrip_protocol(name))


def info_of(path: str, details: Mapping[str, Any]) -> FileInfo:
    """Returns a file's size and fingerprint.

    Args:
        path: Local path, which is looked up, or URL.
        details: Answer of the URL's file system about the file.
    """
    local = local_path(path)
    if local is not None:
        status = os.stat(local)
        return FileInfo(path, status.st_size, f"mtime-{status.st_mtime_ns}-{status.st_size}")

    # A generation or digest changes with the content; a time is the second choice.
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
