"""Sniffing: tells a file's format and compression by its first bytes."""

import bz2
import contextlib
import io
import posixpath

from datarater.rater_model.documents.array_record import is_array_record
from datarater.rater_model.documents.decompression import (
    GZIP_MAGIC,
    StreamError,
    decompressed_chunks,
    is_bzip2,
    is_zstd,
)
from datarater.rater_model.documents.files import open_file, read_head
from datarater.rater_model.documents.jsonl import BYTE_ORDER_MARK, foreign_format
from datarater.rater_model.documents.parquet import (
    PARQUET_MAGIC,
)
from datarater.rater_model.documents.records import (
    Compression,
    Format,
)
from datarater.rater_model.documents.tfrecord import is_tfrecord
from datarater.rater_model.documents.warc import WARC_MAGIC

SNIFF_BYTES = 4096
_BZIP2_BLOCK_BYTES = 2**20


def sniff(path: str) -> tuple[Format, Compression]:
    """Finds out what stands in a file, by its first bytes.

    Args:
        path: local path or URL.

    Raises:
        OSError: if the file cannot be read.
    """
    return sniff_head(path, read_head(path, SNIFF_BYTES))


def sniff_head(path: str, head: bytes) -> tuple[Format, Compression]:
    suffix = posixpath.splitext(path)[1].lower()
    if head[:4] in PARQUET_MAGIC or suffix in (".parquet", ".pq"):
        return Format.PARQUET, Compression.NONE
    compression = _compression_of(head)
    unpacked = _unpacked_head(path, head, compression)
    if unpacked.startswith(WARC_MAGIC):
        return Format.WARC, compression
    if is_tfrecord(unpacked):
        return Format.TFRECORD, compression
    if is_array_record(head):
        return Format.ARRAY_RECORD, Compression.NONE
    stem = posixpath.splitext(path)[0] if suffix in _SUFFIXES else path
    if (
        posixpath.splitext(stem)[1].lower() in (".txt", ".text")
        and foreign_format(unpacked) is None
    ):
        named = _SUFFIXES.get(suffix, Compression.NONE)
        # Noise under a compressed name is a damaged stream; a text under one was unpacked on the
        # way.
        if compression is Compression.NONE and named is not Compression.NONE and not _is_utf8(head):
            return Format.TEXT, named
        if not unpacked.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{"):
            return Format.TEXT, compression
    if compression is not Compression.NONE:
        return Format.JSONL, compression
    if not _is_text(head) and foreign_format(head) is None:
        # A stream whose beginning is damaged, or missing, is one bad record and not one for every
        # line of noise.
        return Format.JSONL, _SUFFIXES.get(suffix, Compression.NONE)
    return Format.JSONL, Compression.NONE


_SUFFIXES = {
    ".gz": Compression.GZIP,
    ".gzip": Compression.GZIP,
    ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
    ".bz2": Compression.BZIP2,
    ".bzip2": Compression.BZIP2,
}


def _compression_of(head: bytes) -> Compression:
    if head.startswith(GZIP_MAGIC):
        return Compression.GZIP
    if is_zstd(head):
        return Compression.ZSTD
    return Compression.BZIP2 if is_bzip2(head) else Compression.NONE


def _unpacked_head(path: str, head: bytes, compression: Compression) -> bytes:
    """The first unpacked bytes, or none where the beginning is damaged."""
    if compression is Compression.NONE:
        return head
    if compression is Compression.BZIP2:
        with contextlib.suppress(OSError, ValueError, EOFError):
            # Nothing comes out of bzip2 before a whole block, of 900 KB unpacked at most, is in.
            return bz2.BZ2Decompressor().decompress(
                read_head(path, _BZIP2_BLOCK_BYTES), SNIFF_BYTES
            )
        return b""
    unpacked = b""
    # A member may be short, or hold nothing. A zstd block may be longer than the head.
    with (
        contextlib.suppress(StreamError),
        io.BytesIO(head) if compression is Compression.GZIP else open_file(path) as file,
    ):
        for chunk in decompressed_chunks(file, compression):
            unpacked += chunk[: SNIFF_BYTES - len(unpacked)]
            if len(unpacked) == SNIFF_BYTES:
                break
    return unpacked


def _is_utf8(head: bytes) -> bool:
    try:
        head[:-4].decode()  # the last character may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 8
    return True


def _is_text(head: bytes) -> bool:
    return head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"[", b'"')
