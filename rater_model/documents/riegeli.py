"""Finds out what the chunks of an ArrayRecord file unpack to, before the library unpacks them.

ArrayRecord files are Riegeli files. A block header of 24 bytes interrupts them every 64 KiB.
Between these headers lie chunks, each a header of 40 bytes and data:

| bytes | field of a chunk's header |
|---|---|
| 8 | hash of the header |
| 8 | stored bytes of the data |
| 8 | hash of the data |
| 1 | type: `r` for records one after another, `t` for transposed ones |
| 7 | number of records |
| 8 | bytes that the records unpack to, which the library does not exceed |

The last 64 KiB are the postscript: a chunk with the place of the footer, whose records name the
place of every chunk. Every chunk but the last has the same number of records. Integers are
little-endian. The data of a chunk of type `r` are a byte for the compression, the number of bytes
of the sizes, the sizes of the records and the records. Sizes and records are compressed by
themselves, after the number of bytes that they unpack to.

Sources: github.com/google/riegeli, doc/riegeli_records_file_format.md;
github.com/google/array_record, cpp/layout.proto.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datarater.rater_model.documents.tfrecord import NotAnExampleError, varint, wire_fields

_BLOCK_BYTES = 2**16
_BLOCK_HEADER_BYTES = 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")
_SIMPLE, _TRANSPOSED = ord("r"), ord("t")
_UNCOMPRESSED = 0
_CODECS = {ord("b"): "brotli", ord("z"): "zstd", ord("s"): "snappy"}
_BYTES_PER_RECORD = 8  # that the library takes besides the content


class UnsafeFileError(Exception):
    """Opening or reading the file could take any amount of memory."""


class _Chunk(NamedTuple):
    """The header of a chunk, and where its data begin."""

    stored: int
    kind: int
    records: int
    unpacked: int
    data: int

    @property
    def memory(self) -> int:
        """Bytes of memory that unpacking the chunk takes."""
        return self.unpacked + _BYTES_PER_RECORD * self.records


class ChunkIndex:
    """The chunks of a file.

    Args:
        file: Descriptor of the file, which stays open.
        records_per_chunk: Number of records in every chunk but the last.
        footer: Records of the footer that describe the chunks, one after another.
        ends_G: End of each of them.
    """

    def __init__(
        self, file: int, records_per_chunk: int, footer: bytes, ends_G: NDArray[np.int64]
    ) -> None:
        self._file = file
        self._size = os.fstat(file).st_size
        self.records_per_chunk = records_per_chunk
        self._footer = footer
        self._ends = [0, *ends_G.tolist()]

    @classmethod
    def of(cls, file: int, max_bytes: int) -> ChunkIndex | None:
        """Reads the footer of a file.

        Args:
            file: Descriptor of the file.
            max_bytes: Maximum number of bytes that the footer may take unpacked, if it is not
                stored in as many.

        Returns:
            The chunks; None if the file is damaged, which the library reports.

        Raises:
            UnsafeFileError: if opening the file could take any amount of memory.
        """
        size = os.fstat(file).st_size
        postscript = _records_at(file, size - _BLOCK_BYTES, "postscript", _BLOCK_BYTES)
        place = None if postscript is None else _fields(postscript[0]).get(1)
        if not isinstance(place, int):
            return None
        footer = _records_at(file, place, "footer", max_bytes)
        if footer is None:
            return None

        # The first record describes the file, all others describe a chunk each.
        records, ends_R = footer
        if not len(ends_R):
            return None
        first = int(ends_R[0])
        index = cls(file, 1, records[first:], ends_R[1:] - first)
        if len(ends_R) > 1:
            each = index._described(0).get(3)
            if not isinstance(each, int) or not each:
                return None
            index.records_per_chunk = each
        return index

    def _described(self, number: int) -> dict[int, int | bytes]:
        return _fields(self._footer[self._ends[number] : self._ends[number + 1]])

    def memory(self, number: int) -> int:
        """Returns the bytes of memory that unpacking a chunk takes; 0 if the file is damaged."""
        if number + 1 >= len(self._ends):
            return 0
        place = self._described(number).get(1)
        chunk = _chunk_at(self._file, place, self._size) if isinstance(place, int) else None
        return 0 if chunk is None else chunk.memory

    def fitting(self, start: int, stop: int, max_bytes: int) -> int:
        """Returns the record up to which reading takes no more memory than a limit.

        Args:
            start: Number of the first record.
            stop: Number of the record to stop before.
            max_bytes: The limit in bytes.

        Returns:
            The end of the chunks that fit, at most `stop`; `start` if not even the first fits.
        """
        total, each = 0, self.records_per_chunk
        for number in range(start // each, -(-stop // each)):
            total += self.memory(number)
            if total > max_bytes:
                return max(start, number * each)
        return stop


def _read(file: int, place: int, count: int) -> tuple[bytes, int]:
    """Reads bytes of a chunk, fewer at the end of the file, past the headers of blocks.

    Returns:
        The bytes, and the place after them.
    """
    parts = []
    if _BLOCK_HEADER_BYTES <= place % _BLOCK_BYTES <= _BLOCK_BYTES - count:
        data = os.pread(file, count, place)
        return data, place + len(data)
    while count:
        within = place % _BLOCK_BYTES
        if within < _BLOCK_HEADER_BYTES:
            place += _BLOCK_HEADER_BYTES - within
            within = _BLOCK_HEADER_BYTES
        part = os.pread(file, min(count, _BLOCK_BYTES - within), place)
        if not part:
            break
        parts.append(part)
        place += len(part)
        count -= len(part)
    return b"".join(parts), place


def _chunk_at(file: int, place: int, size: int) -> _Chunk | None:
    """Reads the header of a chunk; None if it is damaged, which the library finds by its hash.

    Args:
        file: Descriptor of the file.
        place: Place of the chunk.
        size: Size of the file.
    """
    if not 0 <= place < 2**63 - _BLOCK_BYTES:
        return None
    header, data = _read(file, place, _CHUNK_HEADER.size)
    if len(header) < _CHUNK_HEADER.size:
        return None
    _, stored, _, kind_and_records, unpacked = _CHUNK_HEADER.unpack(header)
    kind = kind_and_records & 0xFF
    if kind not in (_SIMPLE, _TRANSPOSED) or stored > size:
        return None
    return _Chunk(stored, kind, kind_and_records >> 8, unpacked, data)


def _records_at(
    file: int, place: int, what: str, max_bytes: int
) -> tuple[bytes, NDArray[np.int64]] | None:
    """Reads the records of a chunk of type `r`.

    Args:
        file: Descriptor of the file.
        place: Place of the chunk.
        what: Name of the chunk, for messages.
        max_bytes: Maximum number of bytes that it may unpack to, if it is not stored in as many.

    Returns:
        The records, one after another, and their ends; None if the file is damaged.

    Raises:
        UnsafeFileError: if the chunk is transposed, or could take any amount of memory.
    """
    chunk = _chunk_at(file, place, os.fstat(file).st_size)
    if chunk is None:
        return None
    limit = max(max_bytes, (1 + _BYTES_PER_RECORD) * chunk.stored)
    if chunk.memory > limit:
        raise UnsafeFileError(f"its {what} unpacks to {chunk.memory} bytes")
    data, _ = _read(file, chunk.data, chunk.stored)
    if len(data) < chunk.stored or not data:
        return None
    if chunk.kind == _TRANSPOSED:
        raise UnsafeFileError(f"its {what} is transposed, which ArrayRecord does not do")

    try:
        length, first = varint(data, 1)
        sizes = _unpacked(data[first : first + length], data[0], limit)
        records = _unpacked(data[first + length :], data[0], limit)
    except (NotAnExampleError, pa.ArrowException, OSError):
        return None
    sizes_R = _varints(np.frombuffer(sizes, np.uint8))
    ends_R = np.cumsum(sizes_R)
    if len(sizes_R) != chunk.records or (len(ends_R) and ends_R[-1] != len(records)):
        return None
    return records, ends_R


def _unpacked(data: bytes, compression: int, limit: int) -> bytes:
    """Returns what a part of a chunk unpacks to.

    Raises:
        UnsafeFileError: if it is larger than the limit.
        NotAnExampleError: if the compression or the size is invalid.
        OSError: if the data are damaged.
    """
    if compression == _UNCOMPRESSED:
        return data
    size, at = varint(data, 0)
    if size > limit:
        raise UnsafeFileError(f"a part of its footer unpacks to {size} bytes")
    codec = _CODECS.get(compression)
    if codec is None:
        raise NotAnExampleError(f"compression {compression}")
    if not size:
        return b""
    unpacked: bytes = pa.decompress(data[at:], decompressed_size=size, codec=codec, asbytes=True)
    return unpacked


def _varints(bytes_N: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Returns the integers of as many varints as end within some bytes; of 9 bytes at most."""
    ends_R = np.flatnonzero(bytes_N < 128)
    values_R = np.zeros(len(ends_R), np.int64)
    if not len(ends_R):
        return values_R
    starts_R = np.append(0, ends_R[:-1] + 1)
    for at in range(min(int((ends_R - starts_R).max()) + 1, 9)):
        has_R = starts_R + at <= ends_R
        digits_R = bytes_N[starts_R[has_R] + at].astype(np.int64) & 127
        values_R[has_R] |= digits_R << (7 * at)
    return values_R


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Returns the integers and inner messages of a protocol buffer; none if it is damaged."""
    try:
        return {number: value for number, _, value in wire_fields(message)}
    except NotAnExampleError:
        return {}
