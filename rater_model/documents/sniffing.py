"""Looks at the first bytes of a file, by which its format and compression are recognized."""

from __future__ import annotations

import functools
import io
import posixpath

from datarater.rater_model.documents.decompression import (
    GZIP_MAGIC,
    is_bzip2,
    is_zstd,
    unpacked_head,
)
from datarater.rater_model.documents.files import open_file, read_head
from datarater.rater_model.documents.foreign_formats import foreign_format
from datarater.rater_model.documents.records import Compression

_HEAD_BYTES = 4096
_MIN_UNPACKED_BYTES = 512
_SUFFIXES = {
    ".gz": Compression.GZIP,
    ".gzip": Compression.GZIP,
    ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
    ".bz2": Compression.BZIP2,
    ".bzip2": Compression.BZIP2,
}


class FileHead:
    """The first bytes of a file, and what they and its name show.

    Args:
        path: Local path or URL.

    Raises:
        OSError: if the file cannot be read.

    Attributes:
        path: Local path or URL.
        stored: First bytes, as stored.
        suffix: Suffix of the name, in lower case, such as `.gz`.
        named: Compression that the name claims.
        compression: Compression that the first bytes prove.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stored = read_head(path, _HEAD_BYTES)
        self.suffix = posixpath.splitext(path)[1].lower()
        self.named = _SUFFIXES.get(self.suffix, Compression.NONE)
        self.compression = _compression_of(self.stored)

    @functools.cached_property
    def unpacked(self) -> bytes:
        """First unpacked bytes; none if the beginning is damaged.

        Raises:
            OSError: if the file cannot be read.
        """
        if self.compression is Compression.NONE:
            return self.stored

        # A block of zstd or bzip2 may be longer than the head. So may a gzip header, or what little
        # a highly compressed head unpacks to.
        if self.compression is Compression.GZIP:
            unpacked = unpacked_head(io.BytesIO(self.stored), self.compression, _HEAD_BYTES)
            if len(unpacked) >= _MIN_UNPACKED_BYTES or len(self.stored) < _HEAD_BYTES:
                return unpacked
        with open_file(self.path, in_order_to=0) as file:
            return unpacked_head(file, self.compression, _HEAD_BYTES)

    @functools.cached_property
    def foreign(self) -> str | None:
        """Name of the format if it is one that is not read; None for all others."""
        return foreign_format(self.unpacked, self.path, self.compression)


def _compression_of(head: bytes) -> Compression:
    if head.startswith(GZIP_MAGIC):
        return Compression.GZIP
    if is_zstd(head):
        return Compression.ZSTD
    return Compression.BZIP2 if is_bzip2(head) else Compression.NONE
