"""Reads files of object stores by ranges, so that a store serves little more than what is needed.

The handles of fsspec read ahead by a fixed size, up to 50 MiB, even for a few bytes. A `RemoteFile`
decides by how it is read:

- In order up to a known offset (`in_order_to`): blocks of `BLOCK_BYTES`, none beyond the offset.
  Past it, a reader looks for the end of a record: blocks of 16 KiB at first, then twice as large.
- Anywhere: exactly the ranges that are asked for. Where they follow each other, as the column
  chunks of a Parquet file do that is read whole, up to a tenth more is read ahead. So at most 1.1
  times the bytes are served, and the number of requests does not grow with that of the columns.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AsyncFileSystem

from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.store_errors import is_past_end, raising_os_errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 8 * 2**20
WHOLE = 2**63 - 1
"""Value of `in_order_to` for a file that is read to its end."""
_FIRST_BYTES_BEYOND = 16 * 2**10
_READ_AHEAD_SHARE = 10


def serves_ranges(file_system: Any) -> bool:
    """Reports whether a file system answers a request for a range with that range alone."""
    # A web server may ignore the range and answer with the whole file.
    protocol = file_system.protocol
    protocols = {protocol} if isinstance(protocol, str) else set(protocol)
    return isinstance(file_system, AsyncFileSystem) and not protocols & {"http", "https"}


def fetch_range(file_system: Any, inner: str, path: str, start: int, end: int) -> bytes:
    """Returns a range of a file's bytes in one request, fewer at its end, none beyond it.

    Args:
        file_system: File system for which `serves_ranges` is true.
        inner: Path of the file within the file system.
        path: URL of the file, for messages.
        start: Offset of the first byte.
        end: Offset after the last byte.

    Raises:
        OSError: if the file cannot be read.
    """
    if start >= end:
        return b""
    try:
        with raising_os_errors(path):
            return bytes(file_system.cat_file(inner, start=start, end=end))
    except OSError as error:
        if is_past_end(error):
            return b""
        raise


class RemoteFile(io.RawIOBase):
    """A file in an object store, opened for reading.

    Args:
        fetch: Returns the bytes between two offsets, fewer at the end of the file.
        look_up: Looks the file up; called at most once, where its size is needed.
        in_order_to: Offset up to which the file will be read in order, `WHOLE` for all of it; None
            if it will be read anywhere.
        block_bytes: Maximum number of bytes to read ahead.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        look_up: Callable[[], FileInfo],
        in_order_to: int | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        super().__init__()
        self._fetch = fetch
        self._look_up = look_up
        self._info: FileInfo | None = None
        self._size: int | None = None
        self._in_order_to = in_order_to
        self._block_bytes = block_bytes
        self._at = 0
        self._start = 0
        self._buffer = memoryview(b"")
        self._served = 0
        self._delivered = 0
        self._beyond = min(_FIRST_BYTES_BEYOND, block_bytes)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset from the beginning, the present offset or the end."""
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence == io.SEEK_END:
            offset += self.info.size
        if offset < 0:
            raise ValueError(f"the offset {offset} is before the beginning of the file")
        self._at = offset
        return offset

    @property
    def info(self) -> FileInfo:
        """Size and fingerprint of the file when it was first looked up."""
        if self._info is None:
            self._info = self._look_up()
            self._size = self._info.size
        return self._info

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fills a buffer; returns the number of bytes, fewer at the end of the file."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Returns all bytes that are left."""
        parts = []
        while data := self.read(self._block_bytes):
            parts.append(data)
        return b"".join(parts)

    def read(self, count: int | None = -1) -> bytes:
        """Returns the next bytes, fewer at the end of the file, none after it.

        Beyond `in_order_to` it may return fewer than asked for: those that are there after one
        request.

        Args:
            count: Maximum number of bytes; all that are left if it is negative or None.
        """
        if count is None or count < 0:
            return self.readall()
        parts: list[bytes] = []
        left = count
        while left:
            part = self._buffered(left)
            if not part:
                if parts and self._is_beyond():
                    break
                self._fill(left)
                part = self._buffered(left)
                if not part:
                    break
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _is_beyond(self) -> bool:
        return self._in_order_to is not None and self._at >= self._in_order_to

    def _buffered(self, count: int) -> bytes:
        """Takes bytes from the buffer; none if it has not the next ones."""
        offset = self._at - self._start
        if not 0 <= offset < len(self._buffer):
            return b""
        part = bytes(self._buffer[offset : offset + count])
        self._at += len(part)
        self._delivered += len(part)
        return part

    def _fill(self, count: int) -> None:
        """Fetches the next bytes, of which `count` are needed."""
        follows = self._at == self._start + len(self._buffer)
        if self._in_order_to is None:
            # What was read ahead and skipped is taken from what may be read ahead.
            skipped = self._served - self._delivered
            allowed = (self._delivered + count) // _READ_AHEAD_SHARE - skipped
            want = count + (max(0, min(self._block_bytes, allowed)) if follows else 0)
        elif self._at < self._in_order_to:
            want = min(max(count, self._block_bytes), self._in_order_to - self._at)
        else:
            want = self._beyond
            self._beyond = min(2 * self._beyond, self._block_bytes)

        end = self._at + want
        if self._size is not None:
            end = min(end, self._size)
        data = self._fetch(self._at, end) if end > self._at else b""
        self._served += len(data)
        if len(data) < end - self._at:
            self._size = self._at + len(data)
        self._start, self._buffer = self._at, memoryview(data)
