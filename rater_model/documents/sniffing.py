"""Sniffs a file's format and compression from its first bytes."""

from __future__ import annotations

import io
import posixpath
import re
from typing import NamedTuple

from datarater.rater_model.documents.array_record import is_array_record
from datarater.rater_model.documents.decompression import (
    GZIP_MAGIC,
    is_bzip2,
    is_zstd,
    unpacked_head,
)
from datarater.rater_model.documents.files import open_file, read_head
from datarater.rater_model.documents.foreign_formats import foreign_format, is_named_text
from datarater.rater_model.documents.parquet import PARQUET_MAGIC
from datarater.rater_model.documents.records import BYTE_ORDER_MARK, Compression, Format
from datarater.rater_model.documents.tfrecord import is_tfrecord
from datarater.rater_model.documents.warc import is_warc

SNIFF_BYTES = 4096
_MIN_UNPACKED_BYTES = 512
# What a JSON object begins with; a text may begin with a brace too, as `{{Infobox` does.
_OBJECT = re.compile(rb'\{\s*(?:["}]|$)')
_SUFFIXES = {
    ".gz": Compression.GZIP,
    ".gzip": Compression.GZIP,
    ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
    ".bz2": Compression.BZIP2,
    ".bzip2": Compression.BZIP2,
}


class Sniffed(NamedTuple):
    """What a file is, by its first bytes.

    Attributes:
        format: Format to read it as; JSONL for any that is not known.
        compression: Compression of the whole file.
        foreign: Name of the format if it is one that is not read: reading the file gives one bad
            record that says so. None for all others.
    """

    format: Format
    compression: Compression
    foreign: str | None = None


def sniff(path: str) -> tuple[Format, Compression]:
    """Returns the format and compression of a file, by its first bytes.

    Args:
        path: Local path or URL.

    Raises:
        OSError: if the file cannot be read.
    """
    sniffed = sniff_head(path, read_head(path, SNIFF_BYTES))
    return sniffed.format, sniffed.compression


def sniff_head(path: str, head: bytes) -> Sniffed:
    """Returns what a file is, by its first `SNIFF_BYTES` bytes.

    Args:
        path: Local path or URL; more is read from there where the head unpacks to too little.
        head: First bytes, as stored.

    Raises:
        OSError: if the file cannot be read.
    """
    suffix = posixpath.splitext(path)[1].lower()
    if head[:4] in PARQUET_MAGIC or suffix in (".parquet", ".pq"):
        return Sniffed(Format.PARQUET, Compression.NONE)

    # Formats that their first bytes prove.
    compression = _compression_of(head)
    unpacked = _unpacked_head(path, head, compression)
    if is_warc(unpacked):
        return Sniffed(Format.WARC, compression)
    if is_tfrecord(unpacked):
        return Sniffed(Format.TFRECORD, compression)
    if is_array_record(head):
        return Sniffed(Format.ARRAY_RECORD, Compression.NONE)

    foreign = foreign_format(unpacked, path, compression)
    if foreign is not None:
        return Sniffed(Format.JSONL, compression, foreign)

    named = _SUFFIXES.get(suffix, Compression.NONE)
    if is_named_text(path):
        # Noise under a compressed name is a damaged stream; a text under one was unpacked on the
        # way.
        if compression is Compression.NONE and named is not Compression.NONE and not _is_utf8(head):
            return Sniffed(Format.TEXT, named)
        if _OBJECT.match(unpacked.removeprefix(BYTE_ORDER_MARK).lstrip()) is None:
            return Sniffed(Format.TEXT, compression)
    if compression is Compression.NONE and not _is_text(head):
        # A stream whose beginning is damaged or missing is one bad record, not one for every line
        # of noise.
        return Sniffed(Format.JSONL, named)
    return Sniffed(Format.JSONL, compression)


def _compression_of(head: bytes) -> Compression:
    if head.startswith(GZIP_MAGIC):
        return Compression.GZIP
    if is_zstd(head):
        return Compression.ZSTD
    return Compression.BZIP2 if is_bzip2(head) else Compression.NONE


def _unpacked_head(path: str, head: bytes, compression: Compression) -> bytes:
    """Returns the first unpacked bytes of a file; none if its beginning is damaged."""
    if compression is Compression.NONE:
        return head

    # A block of zstd or bzip2 may be longer than the head. So may a gzip header, or what little a
    # highly compressed head unpacks to.
    unpacked = b""
    if compression is Compression.GZIP:
        unpacked = unpacked_head(io.BytesIO(head), compression, SNIFF_BYTES)
        if len(unpacked) >= _MIN_UNPACKED_BYTES or len(head) < SNIFF_BYTES:
            return unpacked
    with open_file(path) as file:
        return unpacked_head(file, compression, SNIFF_BYTES)


def _is_utf8(head: bytes) -> bool:
    """Reports whether bytes are UTF-8, whose last character may be cut."""
    try:
        head[:-4].decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 8
    return True


def _is_text(head: bytes) -> bool:
    """Reports whether bytes begin like JSON."""
    return head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"[", b'"')
