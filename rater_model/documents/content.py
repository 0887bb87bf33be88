"""Digests of the stored bytes of splits: a second look at a file whose time has changed.

The fingerprint of a local file is its time of modification and its size, which `touch`, a copy or a
restored backup change although the content is the same. The digest decides then. Object stores
state a generation or entity tag, which changes with the content, so their files need no digest.
"""

from __future__ import annotations

import functools
import hashlib
import re

from datarater.rater_model.documents.files import local_path
from datarater.rater_model.documents.records import VIRTUAL_BYTES, Compression, Split

_CHUNK_BYTES = 2**20
_PAST_END_BYTES = 2**20
"""Bytes after a split that belong to its last record, at most."""
_BY_TIME = re.compile(r"mtime-\d+-(\d+)")


def may_be_the_same(fingerprint: str, other: str) -> bool:
    """Returns whether two fingerprints of a local file differ in the time of modification only."""
    sizes = [_BY_TIME.fullmatch(text) for text in (fingerprint, other)]
    return all(sizes) and len({match[1] for match in sizes if match is not None}) == 1


def content_digest(split: Split, fingerprint: str) -> str:
    """Returns a digest of the stored bytes that a split of a local file is read from.

    Args:
        split: The split.
        fingerprint: Fingerprint of its file as it is now.

    Returns:
        The digest in hexadecimal; "" for a file that is not local.

    Raises:
        OSError: if the file cannot be read.
    """
    path = local_path(split.path)
    if path is None:
        return ""

    # Splits of rows and of one stream have no range of bytes of their own.
    from datarater.rater_model.documents.formats import format_named  # loads pyarrow

    start, end = split.start, split.end
    if split.virtual and split.compression is not Compression.NONE:
        start, end = start // VIRTUAL_BYTES, None if end is None else end // VIRTUAL_BYTES
    elif split.compression is not Compression.NONE or format_named(split.format).unit != "bytes":
        return _whole_digest(path, fingerprint)
    return _range_digest(path, start, None if end is None else end + _PAST_END_BYTES)


@functools.lru_cache(maxsize=64)
def _whole_digest(path: str, fingerprint: str) -> str:
    """Returns the digest of a file; the splits of one file ask for it one after the other."""
    return _range_digest(path, 0, None)


def _range_digest(path: str, start: int, end: int | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        file.seek(start)
        left = float("inf") if end is None else end - start
        while left > 0 and (chunk := file.read(int(min(left, _CHUNK_BYTES)))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
