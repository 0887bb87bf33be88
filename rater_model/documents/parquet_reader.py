"""Opens Parquet files and reads their row groups in batches of rows, in bounded memory.

A row group is read in small batches of rows, each column through its own buffer, so that a few
pages of every column that is read are in memory at a time. Pages have a maximum size, which
`PageWatch` checks before a page is unpacked. Columns of strings and bytes can stay
dictionary-encoded while they are read: a small page that repeats one huge text a million times (the
Parquet form of a decompression bomb) then costs that text once.
"""

from __future__ import annotations

import errno
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datarater.rater_model.counted import counted
from datarater.rater_model.documents import files
from datarater.rater_model.documents.arrow_types import has_list
from datarater.rater_model.documents.parquet_pages import PageTooLargeError, PageWatch
from datarater.rater_model.documents.records import Reason
from datarater.rater_model.documents.remote_file import RemoteFile
from datarater.rater_model.documents.store_errors import one_line, os_error

MAX_ROWS = 2**40
"""A footer that claims more rows than this is damaged: rows that are lost are counted by it."""
BATCH_BYTES = 16 * 2**20
"""Approximate uncompressed bytes that are decoded at a time."""
BATCH_ROWS = 1024
MAX_LISTED_VALUES = (2**24, 2**26)
"""Maximum number of values that are decoded at a time where lists are among the columns.

The first is for the columns that scoring reads, the second for all columns of a file.
"""
_MIN_PAGE_BYTES = 64 * 2**20
# Buffers of all columns together, and of one. What a buffer holds is counted as if it were unpacked
# at once (`PageWatch`), so they are small.
_BUFFERS_BYTES = 2**24
_COLUMN_BUFFER_BYTES = (2**14, 2**20)
_MAGIC = b"PAR1"
_FOOTER_BYTES = 2**14
_END_BYTES = 8
_MAX_KEPT_FOOTERS = 2
_MAX_KEPT_FOOTER_BYTES = 2**24

# The errors that the Parquet library raises for content that it cannot read.
_CONTENT_ERRORS = (
    *(OSError, pa.ArrowException, ValueError, OverflowError, MemoryError, RuntimeError),
    PageTooLargeError,
)


def max_page_bytes(max_record_bytes: int) -> int:
    """Returns the maximum unpacked size of a page: 4 records of maximum size, at least 64 MiB."""
    return max(_MIN_PAGE_BYTES, 4 * max_record_bytes)


def last_rows(number: int) -> str:
    """Describes the last rows of a row group, up to the verb."""
    return "its last row is" if number == 1 else f"its last {number:,} rows are"


class ParquetReader:
    """An open Parquet file.

    Args:
        path: Local path or URL.
        page_bytes: Maximum unpacked size of a page.
        max_values: Maximum numbers of values, as `MAX_LISTED_VALUES`.

    Raises:
        OSError: if the file cannot be read at all.
        BrokenParquetError: if the content is not a readable Parquet file.
    """

    def __init__(
        self,
        path: str,
        page_bytes: int = _MIN_PAGE_BYTES,
        max_values: tuple[int, int] = MAX_LISTED_VALUES,
    ) -> None:
        self._path = path
        self._max_values = max_values
        file = files.open_file(path)
        self._watch = PageWatch(file, page_bytes)
        footer = _footer(path, file)

        try:
            self._file = self._open(footer, (), 1)
            self.schema: pa.Schema = self._file.schema_arrow
            self.metadata: pq.FileMetaData = self._file.metadata
            self.first_rows = [0]
            for group in range(self.metadata.num_row_groups):
                rows = self.metadata.row_group(group).num_rows
                if rows < 0:
                    raise ValueError(f"row group {group} claims {counted(rows, 'row')}")
                self.first_rows.append(self.first_rows[-1] + rows)
            if self.first_rows[-1] > MAX_ROWS:
                raise ValueError(f"the footer claims {counted(self.first_rows[-1], 'row')}")
        except _CONTENT_ERRORS as error:
            self._watch.close()
            self._raise_if_file_system()
            raise BrokenParquetError(
                f"the file is not a readable Parquet file: {one_line(error)}"
            ) from error

    def _open(
        self, metadata: pq.FileMetaData | None, dictionary: Sequence[str], columns: int
    ) -> pq.ParquetFile:
        """Opens the file for reading a number of columns at a time."""
        smallest, largest = _COLUMN_BUFFER_BYTES
        return pq.ParquetFile(
            self._watch,
            metadata=metadata,
            buffer_size=max(smallest, min(largest, _BUFFERS_BYTES // max(columns, 1))),
            pre_buffer=False,
            read_dictionary=list(dictionary) or None,
            page_checksum_verification=True,
        )

    def keep_dictionaries(self, columns: Sequence[str], count: int) -> None:
        """Reads columns of strings or bytes dictionary-encoded from now on.

        Args:
            columns: Dotted paths of these columns, as `leaves` returns them.
            count: Number of columns that are read at a time, nested ones included.

        Raises:
            BrokenParquetError: if the content is not a readable Parquet file.
        """
        try:
            self._file = self._open(self.metadata, columns, count)
        except _CONTENT_ERRORS as error:
            self._raise_if_file_system()
            raise BrokenParquetError(
                f"the file is not a readable Parquet file: {one_line(error)}"
            ) from error

    def _has_lists(self, column: str) -> bool:
        """Returns whether a column, given by its name or dotted path, is or contains a list."""
        name = column if column in self.schema.names else column.partition(".")[0]
        return name in self.schema.names and has_list(self.schema.field(name).type)

    def leaves(self) -> list[str]:
        """Returns the dotted paths of all columns of strings and bytes, nested ones included."""
        columns = self._file.schema
        return [
            columns.column(index).path
            for index in range(len(columns))
            if columns.column(index).physical_type == "BYTE_ARRAY"
        ]

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close(force=True)
        self._watch.close()

    def _raise_if_file_system(self) -> None:
        """Raises the error of a failing disk or a lost connection, if reading met one."""
        failure = self._watch.failure
        if isinstance(failure, OSError):
            raise failure
        if failure is not None and not isinstance(failure, PageTooLargeError):
            lost = OSError(errno.EIO, f"the store failed ({one_line(failure)})", self._path)
            raise (os_error(self._path, failure) or lost) from failure

    def group_bytes(self, group: int) -> int:
        """Returns a row group's uncompressed bytes, according to the footer."""
        # Reading the columns' metadata instead would end the process on some damaged footers: the
        # binding does not catch the C++ library's exception there.
        return max(int(self.metadata.row_group(group).total_byte_size), 0)

    def places(self) -> list[int]:
        """Returns where each row group begins, in stored bytes.

        The place is approximate, the share of the uncompressed bytes before it, and does not
        decrease from one row group to the next.
        """
        sizes = [self.group_bytes(group) for group in range(self.metadata.num_row_groups)]
        stored = self._watch.seek(0, io.SEEK_END)
        before = itertools.accumulate(sizes, initial=0)
        return [
            stored * place // max(sum(sizes), 1) for place, _ in zip(before, sizes, strict=False)
        ]

    def batches(
        self, group: int, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Reads the rows of a row group.

        Args:
            group: Number of the row group.
            columns: Names of columns, or dotted paths into structs; None for all columns.

        Yields:
            The number of the batch's first row in the file, and the batch with the columns.

        Raises:
            BrokenParquetError: after the last batch that could be read, if the row group is
                damaged.
            OSError: if the file system fails.
        """
        row, last = self.first_rows[group], self.first_rows[group + 1]
        if row == last:
            return

        # The number of rows does not depend on the columns, so that damage ends all readings of a
        # column at the same row.
        claimed = self.group_bytes(group)
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * (last - row) // max(claimed, 1)))
        names = self.schema.names if columns is None else columns
        few, all_columns = self._max_values
        max_values = None
        if any(map(self._has_lists, names)):
            max_values = all_columns if columns is None else few
        # Among few columns those without lists have few values at a time.
        flat_values = min(last - row, all_columns) if columns is None else 0
        self._watch.start_group(2 if columns is not None else 4, max_values, flat_values)
        try:
            for batch in self._file.iter_batches(
                batch_rows,
                row_groups=[group],
                columns=None if columns is None else list(columns),
                use_threads=False,
            ):
                batch = batch.slice(0, last - row)
                _check(batch)
                if batch.num_rows:
                    yield row, batch
                row += batch.num_rows
                self._watch.start_batch()
        except _CONTENT_ERRORS as error:
            self._raise_if_file_system()
            failure = self._watch.failure
            if isinstance(failure, PageTooLargeError):
                self._watch.failure = None
                raise BrokenParquetError(
                    f"row group {group} has {failure}: {last_rows(last - row)} lost; "
                    f"{failure.advice}",
                    Reason.RECORD_TOO_LARGE,
                ) from error
            raise BrokenParquetError(
                f"row group {group} is damaged ({one_line(error)}): {last_rows(last - row)} lost"
            ) from error
        if row < last:
            raise BrokenParquetError(f"row group {group} ends early: {last_rows(last - row)} lost")


class BrokenParquetError(Exception):
    """A Parquet file, or one of its row groups, cannot be read.

    Attributes:
        reason: Reason for the bad record.
    """

    def __init__(self, detail: str, reason: Reason = Reason.PAGE_CORRUPT) -> None:
        super().__init__(detail)
        self.reason = reason


def footer_bytes(path: str) -> int:
    """Returns the size of a file's footer, from its last bytes.

    Raises:
        OSError: if the file cannot be read.
        BrokenParquetError: if the file has no footer.
    """
    with files.open_file(path) as file:
        size = file.seek(0, io.SEEK_END)
        start = file.seek(max(0, size - _END_BYTES))
        end = file.read(size - start)
    length = int.from_bytes(end[:4], "little") + _END_BYTES
    if len(end) < _END_BYTES or length > size:
        raise BrokenParquetError("the file is not a readable Parquet file: it has no footer")
    return length


_footers: dict[tuple[str, str], pq.FileMetaData] = {}
"""The last footers of remote files, by path and fingerprint: a file has many splits."""


def _footer(path: str, file: BinaryIO) -> pq.FileMetaData | None:
    """Returns the footer of a remote file, from one or two reads of little more than its size.

    The library itself would read 64 KiB first, for every split.

    Args:
        path: URL of the file.
        file: The file.

    Returns:
        The footer; None if the file is local or the footer is damaged: then the library reads it.

    Raises:
        OSError: if the file cannot be read.
    """
    if not isinstance(file, RemoteFile):
        return None
    key = (path, file.info.fingerprint)
    known = _footers.get(key)
    if known is not None:
        return known

    size = file.info.size
    start = file.seek(max(0, size - _FOOTER_BYTES))
    tail = file.read(size - start)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != _MAGIC or length > size:
        return None
    if length > len(tail):
        file.seek(size - length)
        tail = file.read(length - len(tail)) + tail
    try:
        footer = pq.read_metadata(io.BytesIO(_MAGIC + tail[-length:]))
    except _CONTENT_ERRORS:
        return None

    # A size alone would not show that the file has changed.
    if not file.info.fingerprint.startswith("size-") and length <= _MAX_KEPT_FOOTER_BYTES:
        while len(_footers) >= _MAX_KEPT_FOOTERS:
            _footers.pop(next(iter(_footers)), None)
        _footers[key] = footer
    return footer


def _check(batch: pa.RecordBatch) -> None:
    """Raises ArrowInvalid for damage that decoding misses, such as codes outside a dictionary."""
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and len(column) > column.null_count:
            bounds = pc.min_max(column.indices)
            if bounds["min"].as_py() < 0 or bounds["max"].as_py() >= len(column.dictionary):
                raise pa.ArrowInvalid("a value points outside its dictionary")
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            # A text that is not UTF-8 costs its own row only.
            if "UTF8" not in str(error):
                raise
