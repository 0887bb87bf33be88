"""Lists objects of a store page by page, so that millions of names are never in memory at once.

The file systems of fsspec gather a whole listing and keep it. The pages of gs:// and s3:// are read
here as they come, in the order of the names.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import fsspec.asyn
from fsspec.utils import glob_translate

from datarater.rater_model.documents import store_errors

Details = Mapping[str, Any]

PAGE_SIZE = 1000
"""Number of names in a page, the most that both stores send."""


def has_pages(path: str) -> bool:
    """Returns whether the store of a URL is listed page by page."""
    return store_errors.protocol_of(path) in _PAGE


def objects_under(
    file_system: Any, path: str, inner: str, delimiter: str = "", page_size: int = PAGE_SIZE
) -> Iterator[tuple[str, Details]]:
    """Yields the name and the details of all objects whose names have a prefix.

    Args:
        file_system: File system of the store.
        path: Any URL of the store.
        inner: The prefix within the file system: bucket, slash, prefix.
        delimiter: "/" to yield what lies below further slashes as folders; "" for all objects.
        page_size: Number of names in a page.

    Raises:
        Exception: whatever the store's client raises (`store_errors.raising_os_errors`).
    """
    page_of = _PAGE[store_errors.protocol_of(path)]
    bucket, _, prefix = inner.partition("/")
    token = ""
    while True:
        entries, folders, token = fsspec.asyn.sync(
            file_system.loop, page_of, file_system, bucket, prefix, delimiter, page_size, token
        )
        for name, details in entries:
            yield f"{bucket}/{name}", details
        for name in folders:
            yield f"{bucket}/{name.rstrip('/')}", {"type": "directory"}
        if not token:
            return


def objects_matching(file_system: Any, path: str, inner: str) -> Iterator[tuple[str, Details]]:
    """Yields the objects and folders that a glob matches.

    Args:
        file_system: File system of the store.
        path: Any URL of the store.
        inner: The glob within the file system.

    Raises:
        ValueError: if the glob is malformed.
    """
    matches = re.compile(glob_translate(inner)).match
    if "**" in inner:
        entries = objects_under(file_system, path, _fixed(inner))
        yield from (entry for entry in entries if matches(entry[0]))
    else:
        bucket, *parts = inner.split("/")
        yield from _below(file_system, path, bucket, parts)


def _below(
    file_system: Any, path: str, folder: str, parts: Sequence[str]
) -> Iterator[tuple[str, Details]]:
    """Yields what a glob of some parts matches in a folder; lists only folders that match."""
    part, *rest = parts
    if rest and not glob.has_magic(part):
        yield from _below(file_system, path, f"{folder}/{part}", rest)
        return
    is_match = re.compile(glob_translate(part)).match
    for name, details in objects_under(file_system, path, f"{folder}/{_fixed(part)}", "/"):
        if not is_match(name[len(folder) + 1 :]):
            continue
        if not rest:
            yield name, details
        elif details.get("type") == "directory":
            yield from _below(file_system, path, name, rest)


def _fixed(pattern: str) -> str:
    """Returns the beginning of a glob that has no wildcard."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


Page = tuple[list[tuple[str, Details]], list[str], str]


async def _s3_page(
    file_system: Any, bucket: str, prefix: str, delimiter: str, page_size: int, token: str
) -> Page:
    more = {"ContinuationToken": token} if token else {}
    answer = await file_system._call_s3(
        "list_objects_v2",
        Bucket=bucket,
        Prefix=prefix,
        Delimiter=delimiter,
        MaxKeys=page_size,
        **more,
    )
    entries: list[tuple[str, Details]] = [
        (entry["Key"], {"size": entry["Size"], "ETag": entry["ETag"]})
        for entry in answer.get("Contents", [])
    ]
    folders = [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
    return entries, folders, answer.get("NextContinuationToken", "")


async def _gs_page(
    file_system: Any, bucket: str, prefix: str, delimiter: str, page_size: int, token: str
) -> Page:
    more = {"pageToken": token} if token else {}
    answer = await file_system._call(
        "GET",
        "b/{}/o",
        bucket,
        prefix=prefix,
        delimiter=delimiter,
        maxResults=page_size,
        fields="nextPageToken,prefixes,items(name,size,generation)",
        json_out=True,
        **more,
    )
    entries: list[tuple[str, Details]] = [
        (entry["name"], {"size": int(entry["size"]), "generation": entry["generation"]})
        for entry in answer.get("items", [])
    ]
    return entries, answer.get("prefixes", []), answer.get("nextPageToken", "")


_PAGE: dict[str, Callable[..., Awaitable[Page]]] = {
    "s3": _s3_page,
    "s3a": _s3_page,
    "gs": _gs_page,
    "gcs": _gs_page,
}
