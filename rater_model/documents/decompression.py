"""Reads compressed streams in bounded memory; reports damage as cut, corrupt or trailing bytes.

At most a few chunks are in memory, however much a stream expands.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import io
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    MAX_ZSTD_WINDOW_BYTES,
    Compression,
    Reason,
)

CHUNK_BYTES = 2**20
_GZIP_INPUT_BYTES = 2**16
# A block of zstd has at least 4 bytes and unpacks to at most 128 KiB, and the decoder returns all
# that it can at once: this bounds its output to 32 MiB per call.
_ZSTD_INPUT_BYTES = 2**10
_SAMPLE_UNPACKED_BYTES = 2**27
_FIRST_SAMPLE_BYTES = 2**14
_SAMPLE_STEP_BYTES = 2**10
_MAX_BLOCK_BYTES = 2**20  # stored bytes of a block of bzip2, the largest of all
_MAX_HEAD_BYTES = 2**22
_FRAME_HEADER_BYTES = 18
_STATED_MAY_DIFFER = 0.05
_ESTIMATE_MAY_DIFFER = 1.25

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MEMBER_END = b""
"""Marks the end of a member in `member_chunks`; chunks are never empty."""


def is_zstd(head: bytes) -> bool:
    """Reports whether bytes begin a zstd frame, or a skippable frame that may precede one."""
    return head[:4] == ZSTD_MAGIC or (
        len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"
    )


def decompressed_chunks(
    file: BinaryIO,
    compression: Compression,
    chunk_bytes: int = CHUNK_BYTES,
    max_window_bytes: int = MAX_ZSTD_WINDOW_BYTES,
) -> Iterator[bytes]:
    """Reads a file to its end as a stream of decompressed, non-empty chunks.

    All members of a gzip file and all frames of a zstd file are read. NUL bytes after the last gzip
    member are padding, as for the gzip program.

    Args:
        file: File, opened at its beginning or where a member begins; a plain file anywhere.
        compression: Compression of the whole file.
        chunk_bytes: Maximum size of a chunk of a plain or gzip file.
        max_window_bytes: Maximum window of a zstd frame. The decoder touches only as much of it as
            the stream fills.

    Raises:
        StreamError: after the last chunk, if the stream is damaged.
        OSError: if the file cannot be read.
    """
    if compression in (Compression.GZIP, Compression.ZSTD):
        return filter(None, member_chunks(file, compression, chunk_bytes, max_window_bytes))
    if compression is Compression.BZIP2:
        return bzip2_chunks(file)
    return iter(lambda: file.read(chunk_bytes), b"")


def unpacked_head(file: BinaryIO, compression: Compression, count: int) -> bytes:
    """Returns the first unpacked bytes of a file, fewer if it is short or damaged.

    At most a few megabytes are read, however little they unpack to.

    Args:
        file: File, opened at its beginning.
        compression: Compression of the whole file.
        count: Number of unpacked bytes.

    Raises:
        OSError: if the file cannot be read.
    """
    head = b""
    with contextlib.suppress(StreamError):
        for chunk in decompressed_chunks(file, compression):
            head += chunk[: count - len(head)]
            if len(head) == count or file.tell() > _MAX_HEAD_BYTES:
                break
    return head


def member_chunks(
    file: BinaryIO,
    compression: Compression,
    chunk_bytes: int = CHUNK_BYTES,
    max_window_bytes: int = MAX_ZSTD_WINDOW_BYTES,
) -> Iterator[bytes]:
    """Reads like `decompressed_chunks`, with `MEMBER_END` after each gzip member or zstd frame.

    Args:
        file: File, opened where a member begins.
        compression: Gzip or zstd.
        chunk_bytes: Maximum size of a chunk of a gzip file.
        max_window_bytes: Maximum window of a zstd frame.

    Raises:
        StreamError: after the last chunk, if the stream is damaged.
        OSError: if the file cannot be read.
    """
    if compression is Compression.GZIP:
        return _gzip_chunks(file, chunk_bytes)
    return _zstd_chunks(file, max_window_bytes)


def unpacked_size(
    file: BinaryIO, compression: Compression, size: int, sample_bytes: int = 8 * 2**20
) -> int:
    """Estimates how many bytes a compressed stream unpacks to, from its beginning and its end.

    The ratio of the beginning is applied to the whole. If a gzip file's last bytes, or a zstd
    file's first, state a length that agrees with it, that length is exact and is returned.

    Args:
        file: File that can seek, opened at its beginning.
        compression: Compression of the whole file.
        size: Stored size of the file, in bytes.
        sample_bytes: Stored bytes that are unpacked to find the ratio; more only up to the end of
            the first block.

    Returns:
        The estimate in bytes; 0 if the beginning is damaged or unpacks to nothing.

    Raises:
        OSError: if the file cannot be read.
    """
    # Unpack more and more of the beginning; a short file is unpacked whole.
    prefix, count = b"", min(_FIRST_SAMPLE_BYTES, sample_bytes)
    while True:
        prefix += _read_at(file, len(prefix), count - len(prefix))
        unpacked, read, damage = _unpacked_prefix(prefix, compression)
        if len(prefix) < count or len(prefix) >= size:
            return 0 if damage is not None else unpacked
        if damage in (Reason.STREAM_CORRUPT, Reason.WINDOW_TOO_LARGE):
            return 0

        # Mostly the stated length fits the very beginning, and no more has to be read.
        if unpacked:
            estimate = unpacked * size // read
            stated = stated_size(compression, size, estimate, functools.partial(_read_at, file))
            if stated is not None:
                return stated
            if count >= sample_bytes or unpacked >= _SAMPLE_UNPACKED_BYTES:
                break
            count = min(4 * count, sample_bytes)
        elif count < _MAX_BLOCK_BYTES:
            count *= 2  # to the end of the first block
        else:
            return 0

    # Gzip states the length modulo 2**32 at its end, zstd may state it at its beginning.
    stated = estimate
    if compression is Compression.GZIP and size >= 4:
        file.seek(size - 4)
        modulo = int.from_bytes(file.read(4), "little")
        stated = modulo + max(0, round((estimate - modulo) / 2**32)) * 2**32
    elif compression is Compression.ZSTD:
        file.seek(0)
        head = file.read(_FRAME_HEADER_BYTES)
        with contextlib.suppress(zstandard.ZstdError):
            stated = zstandard.get_frame_parameters(head).content_size
    return stated if abs(stated - estimate) <= estimate * _STATED_MAY_DIFFER else estimate


def stated_size(
    compression: Compression,
    size: int,
    estimate: int,
    read_range: Callable[[int, int], bytes],
    may_differ: float = _ESTIMATE_MAY_DIFFER,
) -> int | None:
    """Returns the unpacked size that a stream of one member states, if it fits an estimate.

    A gzip member states its length at its end, modulo 2**32; a zstd frame may state it in its
    header. In a file of several members, that is the length of one, which is mostly much too short.

    Args:
        compression: Compression of the whole file.
        size: Stored size of the file, in bytes.
        estimate: Estimated unpacked size of the whole file, in bytes.
        read_range: Returns stored bytes from an offset and a number of bytes.
        may_differ: Factor by which the estimate may differ.

    Returns:
        The size in bytes; None if none is stated, or none that fits.
    """
    stated = 0
    if compression is Compression.GZIP and size >= 4 and estimate < 2**31:
        stated = int.from_bytes(read_range(size - 4, 4), "little")
    elif compression is Compression.ZSTD:
        with contextlib.suppress(zstandard.ZstdError):
            header = read_range(0, _FRAME_HEADER_BYTES)
            stated = zstandard.get_frame_parameters(header).content_size
    fits = estimate <= stated * may_differ and stated <= estimate * may_differ
    return stated if stated and fits else None


class _Slowly(io.BytesIO):
    """Returns few bytes at a time, so that its offset shows what has been unpacked."""

    def read(self, count: int | None = -1, /) -> bytes:
        """Returns the next bytes."""
        return super().read(_SAMPLE_STEP_BYTES)


def _unpacked_prefix(prefix: bytes, compression: Compression) -> tuple[int, int, Reason | None]:
    """Unpacks the beginning of a stream.

    Returns:
        The number of bytes that it unpacks to, of how many bytes, and the damage that ended it:
        that it is cut off, for most beginnings.
    """
    file = _Slowly(prefix)
    unpacked = read = 0
    try:
        for chunk in decompressed_chunks(file, compression):
            unpacked += len(chunk)
            read = file.tell()
            if unpacked >= _SAMPLE_UNPACKED_BYTES:
                break
    except StreamError as error:
        return unpacked, read, error.reason
    return unpacked, read, None


def _read_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _gzip_chunks(file: BinaryIO, chunk_bytes: int) -> Iterator[bytes]:
    """Yields the chunks and member ends of a gzip file."""
    pending = file.read(_GZIP_INPUT_BYTES)
    members = 0
    while True:
        # After a member comes NUL padding, another member, the end or garbage.
        if members:
            while pending and not pending.strip(b"\0"):
                pending = file.read(_GZIP_INPUT_BYTES)
            if not pending:
                return
            pending = pending.lstrip(b"\0")
            if len(pending) < len(GZIP_MAGIC):
                pending += file.read(_GZIP_INPUT_BYTES)
            if pending[:2] != GZIP_MAGIC:
                raise garbage(pending, "gzip member")

        decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not decoder.eof:
            before = decoder.copy()
            try:
                chunk = decoder.decompress(pending, chunk_bytes)
            except zlib.error as error:
                yield from _up_to_damage(before, pending)
                raise corrupt("gzip", error) from error
            pending = decoder.unconsumed_tail
            if chunk:
                yield chunk
            # A full chunk may leave output inside the decoder even when it has taken all of its
            # input.
            if not decoder.eof and not pending and len(chunk) < chunk_bytes:
                pending = file.read(_GZIP_INPUT_BYTES)
                if not pending:
                    raise truncated("gzip")

        yield MEMBER_END
        pending = decoder.unused_data or file.read(_GZIP_INPUT_BYTES)
        members += 1


def _up_to_damage(decoder: zlib._Decompress, pending: bytes) -> Iterator[bytes]:
    """Yields the bytes before the damage in a failed call, which zlib does not return."""
    for place in range(len(pending)):
        try:
            chunk = decoder.decompress(pending[place : place + 1])
        except zlib.error:
            return
        if chunk:
            yield chunk


def _zstd_chunks(file: BinaryIO, max_window_bytes: int) -> Iterator[bytes]:
    """Yields the chunks and frame ends of a zstd file."""
    pending = b""
    frames = 0
    while True:
        while len(pending) < 4:
            more = file.read(_ZSTD_INPUT_BYTES)
            if not more:
                break
            pending += more
        if frames:
            if not pending:
                return
            if not is_zstd(pending):
                raise garbage(pending, "zstd frame")

        decoder = zstandard.ZstdDecompressor(max_window_size=max_window_bytes).decompressobj()
        header = b""
        while not decoder.eof:
            if not pending:
                pending = file.read(_ZSTD_INPUT_BYTES)
                if not pending:
                    raise truncated("zstd")
            if len(header) < _FRAME_HEADER_BYTES:
                header += pending[: _FRAME_HEADER_BYTES - len(header)]
            try:
                chunk = decoder.decompress(pending)
            except zstandard.ZstdError as error:
                raise _zstd_failure(header, max_window_bytes, error) from error
            pending = b""
            if chunk:
                yield chunk

        yield MEMBER_END
        pending = decoder.unused_data
        frames += 1


def _zstd_failure(header: bytes, max_window_bytes: int, error: Exception) -> StreamError:
    """Returns the error for a frame that cannot be decoded; `header` is its beginning."""
    window = 0
    with contextlib.suppress(zstandard.ZstdError):
        window = zstandard.get_frame_parameters(header).window_size
    if window <= max_window_bytes:
        return corrupt("zstd", error)
    return StreamError(
        Reason.WINDOW_TOO_LARGE,
        f"a zstd frame needs a window of {window} bytes, more than the limit of "
        f"{max_window_bytes}; it and all after it are lost; raise --max_zstd_window_bytes, which "
        "every worker needs as memory",
    )


BZIP2_MAGIC = b"BZh"
_BZIP2_INPUT_BYTES = 2**16
_BZIP2_OUTPUT_BYTES = 2**20


def is_bzip2(head: bytes) -> bool:
    """Reports whether bytes begin a bzip2 stream."""
    return (
        head.startswith(BZIP2_MAGIC)
        and head[3:4] in b"123456789"
        and head[4:10]
        in (
            b"1AY&SY",
            b"\x17rE8P\x90",  # the end of an empty stream
        )
    )


def bzip2_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Reads all streams of a bzip2 file as decompressed, non-empty chunks.

    Args:
        file: File, opened at its beginning.

    Raises:
        StreamError: after the last chunk, if the file is damaged.
        OSError: if the file cannot be read.
    """
    pending = file.read(_BZIP2_INPUT_BYTES)
    streams = 0
    while True:
        if streams:
            if not pending:
                return
            if len(pending) < len(BZIP2_MAGIC):
                pending += file.read(_BZIP2_INPUT_BYTES)
            if not pending.startswith(BZIP2_MAGIC):
                raise garbage(pending, "bzip2 stream")

        decoder = bz2.BZ2Decompressor()
        while not decoder.eof:
            if decoder.needs_input and not pending:
                pending = file.read(_BZIP2_INPUT_BYTES)
                if not pending:
                    raise truncated("bzip2")
            try:
                # The library raises OSError for bad data. No call here touches a file, so none is
                # one of the file system.
                chunk = decoder.decompress(pending, _BZIP2_OUTPUT_BYTES)
            except (OSError, ValueError) as error:
                raise corrupt("bzip2", error) from error
            pending = b""
            if chunk:
                yield chunk

        pending = decoder.unused_data or file.read(_BZIP2_INPUT_BYTES)
        streams += 1


class StreamError(Exception):
    """A compressed stream cannot be read further; everything before the damage was yielded.

    Attributes:
        reason: `STREAM_CORRUPT`, `WINDOW_TOO_LARGE`, `STREAM_TRUNCATED` or `TRAILING_GARBAGE`.
        detail: Explanation in one sentence, for a person.
        excerpt: First bytes of the garbage, if there is any.
    """

    def __init__(self, reason: Reason, detail: str, excerpt: bytes = b"") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.excerpt = excerpt


def corrupt(name: str, error: object) -> StreamError:
    """Returns the error for damage within a stream.

    Args:
        name: Name of the compression.
        error: Error of the decoder, or a description.
    """
    return StreamError(
        Reason.STREAM_CORRUPT,
        f"the {name} stream is damaged ({error}); the records that could be decompressed were "
        "read, the rest is lost",
    )


def truncated(name: str) -> StreamError:
    """Returns the error for a stream that ends early."""
    return StreamError(
        Reason.STREAM_TRUNCATED,
        f"the {name} stream ends early; whole records before the cut were read, the rest is lost",
    )


def garbage(pending: bytes, name: str) -> StreamError:
    """Returns the error for bytes after a complete stream that are not another one.

    Args:
        pending: First of these bytes.
        name: Name of the part that could have followed, such as `gzip member`.
    """
    return StreamError(
        Reason.TRAILING_GARBAGE,
        f"the bytes after the last {name} are not a {name}; all records before them were read",
        pending[:EXCERPT_BYTES],
    )
