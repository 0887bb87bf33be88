"""Watches the pages of a Parquet file while the library reads them, so that none fills the memory.

The library unpacks a page as a whole, and the size in a page's header may be anything up to 2 GiB
whatever the file's own size. So the bytes that the library reads pass through `PageWatch`, which
parses the headers among them and refuses a page that is too large before it is unpacked.

Source: github.com/apache/parquet-format, parquet.thrift; Thrift's compact protocol.
"""

from __future__ import annotations

import io
from typing import BinaryIO

_MAX_HEADER_BYTES = 16 * 2**20
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = (
    *(0, 1, 2, 3, 7, 8, 9, 10, 11, 12),
)
_INTEGERS = (4, 5, 6)
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = 2, 3
# Fields of the inner structs of a data page of version 1 and 2.
_INNER = 256
_NUMBERS_OF_VALUES = (5 * _INNER + 1, 8 * _INNER + 1)
_MAX_DEPTH = 20
_SMALLER_PAGES = "raise --max_record_bytes, or write the file with smaller pages"


class PageTooLargeError(Exception):
    """A page, or the pages of a batch of rows, unpack to more than the limit.

    Attributes:
        advice: What to do about it.
    """

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.advice = advice


class _IncompleteError(Exception):
    """A header continues past the bytes that are there."""


class _NotAHeaderError(Exception):
    """The bytes are not a page header; the library reports that."""


class _Compact:
    """Reads structs of Thrift's compact protocol, of which only integers are kept.

    An integer of an inner struct has the number of that struct times `_INNER`, plus its own.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """Returns the integers of a struct by the numbers of their fields."""
        if depth > _MAX_DEPTH:
            raise _NotAHeaderError
        integers: dict[int, int] = {}
        number = 0
        while (head := self._byte()) != _STOP:
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._zigzag()
            if kind in _INTEGERS:
                integers[number] = self._zigzag()
            elif kind == _STRUCT:
                inner = self.struct(depth + 1)
                integers |= {number * _INNER + field: value for field, value in inner.items()}
            else:
                self._skip(kind, depth + 1)
        return integers

    def _skip(self, kind: int, depth: int) -> None:
        """Passes over a value."""
        if kind in (_TRUE, _FALSE):
            return  # the type is the value
        if kind == _BINARY:
            self._forward(self._varint())
        elif kind == _STRUCT:
            self.struct(depth)
        elif kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 != 15 else self._varint()
            self._skip_elements([head & 15], count, depth)
        elif kind == _MAP:
            count = self._varint()
            if count:
                kinds = self._byte()
                self._skip_elements([kinds >> 4, kinds & 15], count, depth)
        else:
            self._skip_number(kind)

    def _skip_elements(self, kinds: list[int], count: int, depth: int) -> None:
        if depth > _MAX_DEPTH or count > len(self._data):
            raise _NotAHeaderError
        for _ in range(count):
            for kind in kinds:
                if kind in (_TRUE, _FALSE):
                    self._forward(1)
                else:
                    self._skip(kind, depth + 1)

    def _skip_number(self, kind: int) -> None:
        if kind in _INTEGERS:
            self._varint()
        elif kind in (_BYTE, _DOUBLE):
            self._forward(1 if kind == _BYTE else 8)
        else:
            raise _NotAHeaderError

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise _IncompleteError
        self.at += 1
        return self._data[self.at - 1]

    def _forward(self, count: int) -> None:
        if count > _MAX_HEADER_BYTES:
            raise _NotAHeaderError
        self.at += count
        if self.at > len(self._data):
            raise _IncompleteError

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise _NotAHeaderError

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


class _ColumnChunk:
    """Follows the pages of one column chunk, whose bytes arrive in order."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._in_page = 0
        self._lost = False

    def pages(self, data: bytes) -> list[tuple[int, int]]:
        """Returns the unpacked size and the values of each page whose header ends in some bytes.

        Args:
            data: The next bytes.
        """
        pages = []
        while data and not self._lost:
            # The rest of a page.
            passed = min(self._in_page, len(data))
            self._in_page -= passed
            data = data[passed:]
            if not data:
                break

            # The next header, which may have begun in earlier bytes.
            before = len(self._header)
            self._header += data[: _MAX_HEADER_BYTES - before]
            reader = _Compact(self._header)
            try:
                fields = reader.struct()
            except _IncompleteError:
                self._lost = len(self._header) >= _MAX_HEADER_BYTES
                break
            except _NotAHeaderError:
                self._lost = True
                break
            data = data[reader.at - before :]
            self._header.clear()
            self._in_page = max(fields.get(_COMPRESSED_SIZE, 0), 0)
            values = sum(max(fields.get(number, 0), 0) for number in _NUMBERS_OF_VALUES)
            pages.append((max(fields.get(_UNCOMPRESSED_SIZE, 0), 0), values))
        return pages


class PageWatch(io.RawIOBase):
    """A file that refuses to be read where a page is too large.

    The library reads each column chunk from its beginning in order, several of them in turns. A
    read that continues no earlier one therefore begins a column chunk.

    Args:
        file: File that can seek.
        max_page_bytes: Maximum unpacked size of a page.

    Attributes:
        failure: What went wrong while reading, to tell it from an error of the content: an error
            of the file, or `PageTooLargeError`.
    """

    def __init__(self, file: BinaryIO, max_page_bytes: int) -> None:
        super().__init__()
        self._file = file
        self._max_page_bytes = max_page_bytes
        self._chunks: dict[int, _ColumnChunk] | None = None
        self._at = 0
        self._in_batch = 0
        self._max_batch_bytes = 0
        self._values_in_batch = 0
        self._max_values: int | None = None
        self._flat_values = 0
        self.failure: Exception | None = None

    def start_group(self, pages: int, max_values: int | None = None, flat_values: int = 0) -> None:
        """Begins to watch: from now on only pages of a row group are read.

        Args:
            pages: Number of pages of maximum size that may be read for one batch of rows.
            max_values: Maximum number of values in the pages that are read for one batch of rows:
                in a list, a few bytes can stand for billions. None where no list is read, so that
                the number of rows decides how many values are unpacked.
            flat_values: Number of values up to which a page does not count, as it may be of a
                column without lists.
        """
        self._max_values, self._flat_values = max_values, flat_values
        self._chunks = {}
        self._max_batch_bytes = pages * self._max_page_bytes
        self.start_batch()

    def start_batch(self) -> None:
        """Begins to count the pages of the next batch of rows."""
        self._in_batch = self._values_in_batch = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to an offset, as `io.RawIOBase.seek` does."""
        try:
            self._at = self._file.seek(offset, whence)
        except Exception as error:
            self.failure = error
            raise
        return self._at

    def read(self, count: int = -1) -> bytes:
        """Reads bytes.

        Raises:
            PageTooLargeError: if a page among them is too large.
            OSError: if the file cannot be read.
        """
        # Clients of stores raise errors that are not an OSError: the content is not at fault.
        try:
            data = self._file.read(count)
        except Exception as error:
            self.failure = error
            raise
        start, self._at = self._at, self._at + len(data)
        if self._chunks is not None and data:
            chunk = self._chunks.pop(start, None) or _ColumnChunk()
            self._chunks[self._at] = chunk
            for size, values in chunk.pages(data):
                self._check(size, values if values > self._flat_values else 0)
        return data

    def _check(self, size: int, values: int) -> None:
        self._in_batch += size
        self._values_in_batch += values
        problem, advice = "", _SMALLER_PAGES
        if size > self._max_page_bytes:
            problem = f"a page of {size} bytes, more than the limit of {self._max_page_bytes}, "
            problem += "which follows max_record_bytes"
        elif self._in_batch > self._max_batch_bytes:
            problem = f"pages of {self._in_batch} bytes for a few rows, more than the limit of "
            problem += f"{self._max_batch_bytes}, which follows max_record_bytes"
        elif self._max_values is not None and self._values_in_batch > self._max_values:
            problem = f"{self._values_in_batch} values in the pages for a few rows, more than the "
            problem += f"limit of {self._max_values}"
            advice = "write the file with shorter lists or smaller pages"
        if problem:
            self.failure = PageTooLargeError(problem, advice)
            raise self.failure

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()
