"""Reads a small file whole: its content and its fingerprint from one answer of its store."""

from __future__ import annotations

import errno
import os
from typing import Any

import fsspec.asyn

from datarater.rater_model.documents import store_errors
from datarater.rater_model.documents.files import file_info, file_system_of, info_of, local_path
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.store_errors import raising_os_errors


def read_whole(path: str) -> tuple[FileInfo, bytes]:
    """Reads a file whole.

    On gs:// and s3:// one request answers with the content and with the generation or entity tag
    of that very content. Elsewhere the file is looked up before and after it is read.

    Args:
        path: Local path or URL.

    Returns:
        The file as it was read, with a fingerprint as in a listing, and its content.

    Raises:
        OSError: if the file cannot be read, or changes while it is read.
    """
    local = local_path(path)
    if local is not None:
        with open(local, "rb") as file:
            content = file.read()
            status = os.fstat(file.fileno())
        return FileInfo(path, len(content), f"mtime-{status.st_mtime_ns}-{status.st_size}"), content

    file_system, inner = file_system_of(path)
    get = _GET.get(store_errors.protocol_of(path))
    if get is not None:
        with raising_os_errors(path):
            content, details = fsspec.asyn.sync(file_system.loop, get, file_system, inner)
        if any(details.values()):
            return info_of(path, {**details, "size": len(content)}), content

    before = file_info(path)
    with raising_os_errors(path):
        content = bytes(file_system.cat_file(inner))
    if file_info(path) != before:
        raise OSError(errno.EAGAIN, "changed while it was read", path)
    return before, content


async def _get_s3(file_system: Any, inner: str) -> tuple[bytes, dict[str, Any]]:
    bucket, key, _ = file_system.split_path(inner)
    answer = await file_system._call_s3("get_object", Bucket=bucket, Key=key, **file_system.req_kw)
    try:
        return await answer["Body"].read(), {"ETag": answer.get("ETag")}
    finally:
        answer["Body"].close()


async def _get_gs(file_system: Any, inner: str) -> tuple[bytes, dict[str, Any]]:
    headers, content = await file_system._call("GET", file_system.url(inner))
    return content, {"generation": headers.get("X-Goog-Generation")}


_GET = {"s3": _get_s3, "s3a": _get_s3, "gs": _get_gs, "gcs": _get_gs}
