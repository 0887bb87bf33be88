"""Reads documents and tables from Parquet files by row groups, in bounded memory.

A row group is read in small batches of rows, each column through its own buffer, so that a few
pages of every column are in memory at a time. Text columns stay dictionary-encoded while they are
read: a small page that repeats one huge text a million times (the Parquet form of a decompression
bomb) costs that text once.

Two bounds are checked in the footer before a row group is read: its columns may have at most
`MAX_GROUP_BYTES` uncompressed, and the file at most `MAX_ROWS` rows. A false page header may
still make the Parquet library reserve up to 2 GiB briefly, the format's own bound for a page.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datarater.rater_model.documents import files
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.jsonl import document_of, utf8_size
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead
from datarater.rater_model.documents.store_errors import one_line, os_error

_MAGIC = (b"PAR1", b"PARE")
MAX_GROUP_BYTES = 16 * 2**30
"""A row group of more uncompressed bytes than this is rejected unread."""
MAX_ROWS = 2**40
"""A footer that claims more rows than this is damaged: rows that are lost are counted by it."""
BATCH_BYTES = 16 * 2**20
"""Approximate uncompressed bytes that are decoded at a time."""
BATCH_ROWS = 1024
_COLUMN_BUFFER_BYTES = 2**20

# The errors that the Parquet library raises for content that it cannot read. OSError is among them:
# see `ParquetReader.raise_if_file_system`.
_CONTENT_ERRORS = (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError, RuntimeError)


class _RemoteFile:
    """A file handle that remembers its own failure, to tell it from an error of the content."""

    def __init__(self, path: str) -> None:
        self._file = files.open_file(path)
        self.failure: Exception | None = None

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._remember(self._file.seek, offset, whence)

    def read(self, count: int = -1) -> bytes:
        return self._remember(self._file.read, count)

    def _remember(self, call: Callable[..., Any], *args: int) -> Any:
        try:
            return call(*args)
        except Exception as error:
            # Clients of stores raise errors that are not an OSError: the content is not at fault.
            self.failure = error
            raise


class ParquetReader:
    """An open Parquet file.

    Args:
        path: Local path or URL.
        dictionary: Dotted paths of the string columns that stay dictionary-encoded.

    Raises:
        OSError: if the file cannot be read at all.
        BrokenParquetError: if the content is not a readable Parquet file.
    """

    def __init__(self, path: str, dictionary: list[str] | None = None) -> None:
        self._path = path
        self._local = files.local_path(path)
        self._handle = None if self._local is not None else _RemoteFile(path)
        if self._local is not None:
            with open(self._local, "rb"):
                pass  # an OSError from here comes from the file system

        try:
            self._file = pq.ParquetFile(
                self._local if self._local is not None else self._handle,
                buffer_size=_COLUMN_BUFFER_BYTES,
                pre_buffer=False,
                read_dictionary=dictionary,
                page_checksum_verification=True,
            )
            self.schema: pa.Schema = self._file.schema_arrow
            self.metadata: pq.FileMetaData = self._file.metadata
            self.first_rows = [0]
            for group in range(self.metadata.num_row_groups):
                rows = self.metadata.row_group(group).num_rows
                if rows < 0:
                    raise ValueError(f"row group {group} claims {rows} rows")
                self.first_rows.append(self.first_rows[-1] + rows)
            if self.first_rows[-1] > MAX_ROWS:
                raise ValueError(f"the footer claims {self.first_rows[-1]} rows")
        except _CONTENT_ERRORS as error:
            self.close()
            self.raise_if_file_system(error)
            raise BrokenParquetError(
                f"the file is not a readable Parquet file: {one_line(error)}"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        if self._handle is not None:
            self._handle.close()

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close(force=True)
        self.close()

    def raise_if_file_system(self, error: BaseException) -> None:
        """Raises the error of a failing disk or a lost connection, if an error comes from one."""
        if self._handle is not None:
            failure = self._handle.failure
            if isinstance(failure, OSError):
                raise failure
            if failure is not None:
                lost = OSError(errno.EIO, f"the store failed ({one_line(failure)})", self._path)
                raise (os_error(self._path, failure) or lost) from failure
        elif isinstance(error, OSError) and error.errno is not None and error.errno != errno.EINVAL:
            raise error

    def group_bytes(self, group: int) -> int:
        """Returns a row group's uncompressed bytes, according to the footer."""
        # Reading the columns' metadata instead would end the process on some damaged footers: the
        # binding does not catch the C++ library's exception there.
        return max(int(self.metadata.row_group(group).total_byte_size), 0)

    def batches(self, group: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Reads the rows of a row group.

        Yields:
            The number of the batch's first row in the file, and the batch with all columns.

        Raises:
            BrokenParquetError: after the last batch that could be read, if the row group is
                damaged.
            OSError: if the file system fails.
        """
        row, last = self.first_rows[group], self.first_rows[group + 1]
        claimed = self.group_bytes(group)
        if claimed > MAX_GROUP_BYTES:
            raise BrokenParquetError(
                f"row group {group} has {claimed} uncompressed bytes, more than the limit of "
                f"{MAX_GROUP_BYTES}; write the file with smaller row groups",
                Reason.RECORD_TOO_LARGE,
            )
        if row == last:
            return

        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * (last - row) // max(claimed, 1)))
        try:
            for batch in self._file.iter_batches(batch_rows, row_groups=[group], use_threads=False):
                batch = batch.slice(0, last - row)
                _check(batch)
                if batch.num_rows:
                    yield row, batch
                row += batch.num_rows
        except _CONTENT_ERRORS as error:
            self.raise_if_file_system(error)
            raise BrokenParquetError(
                f"row group {group} is damaged ({one_line(error)}): its last {last - row} rows "
                "are lost"
            ) from error
        if row < last:
            raise BrokenParquetError(
                f"row group {group} ends early: its last {last - row} rows are lost"
            )


class BrokenParquetError(Exception):
    """A Parquet file, or one of its row groups, cannot be read.

    Attributes:
        reason: Reason for the bad record.
    """

    def __init__(self, detail: str, reason: Reason = Reason.PAGE_CORRUPT) -> None:
        super().__init__(detail)
        self.reason = reason


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


FieldPlace = tuple[int, tuple[str, ...], pa.DataType]
"""Place of a field: number of the column, names of the struct fields within it, and its type."""


def find_column(schema: pa.Schema, field: str) -> FieldPlace | None:
    """Finds a field by its name, or by its dotted path into structs.

    Returns:
        The place of the field; None if there is no such field.
    """
    if field in schema.names:
        index = schema.names.index(field)
        return index, (), schema.field(index).type
    parts = field.split(".")
    if parts[0] not in schema.names:
        return None
    index = schema.names.index(parts[0])
    data_type = schema.field(index).type
    for part in parts[1:]:
        if not pa.types.is_struct(data_type) or data_type.get_field_index(part) < 0:
            return None
        data_type = data_type.field(part).type
    return index, tuple(parts[1:]), data_type


def _is_string(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return bool(
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_string_view(data_type)
    )


class _Undecodable:
    """A value that is not UTF-8."""

    def __init__(self, value: bytes) -> None:
        self.value = value


def _column(batch: pa.RecordBatch, place: FieldPlace) -> pa.Array:
    """Returns the array of a field."""
    index, path, _ = place
    column = batch.column(index)
    for part in path:
        # Unlike StructArray.field, flatten gives null where the struct itself is null.
        column = column.flatten()[column.type.get_field_index(part)]
    return column


def _column_values(batch: pa.RecordBatch, place: FieldPlace | None) -> list[Any]:
    """Returns the values of a field, one per row; None for each if there is no such field."""
    if place is None:
        return [None] * batch.num_rows
    column = _column(batch, place)

    # Decode each entry of a dictionary once; rows share it.
    if pa.types.is_dictionary(column.type):
        codes_N = np.asarray(
            column.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64
        )
        used_K, places_N = np.unique(codes_N, return_inverse=True)
        known_K = used_K[used_K >= 0]
        values = _plain_values(column.dictionary.take(pa.array(known_K)))
        if len(known_K) < len(used_K):
            values = [None, *values]
        return [values[entry] for entry in places_N.tolist()]
    return _plain_values(column)


def _plain_values(column: pa.Array) -> list[Any]:
    """Returns the values of an array that is not dictionary-encoded."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        # Not UTF-8, or a date that Python cannot represent.
        if _is_string(column.type):
            binary_type = (
                pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
            )
            if pa.types.is_string_view(column.type):
                binary_type = pa.binary_view()
            return [_decoded(value) for value in column.view(binary_type).to_pylist()]

        try:
            values = column.cast(pa.string()).to_pylist()
        except (ValueError, pa.ArrowException):
            values = [None] * len(column)
    return values


def _decoded(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _Undecodable(value)


def _fields(options: ReadOptions) -> tuple[str, str, str]:
    return options.text_field, options.id_field, options.source_field


def dictionary_columns(schema: pa.Schema, options: ReadOptions) -> list[str]:
    """Returns the paths of the string columns among the fields that are read."""
    places = {field: find_column(schema, field) for field in _fields(options)}
    return [field for field, place in places.items() if place is not None and _is_string(place[2])]


def check_text_column(reader: ParquetReader, options: ReadOptions) -> tuple[Reason, str] | None:
    """Returns why a file has no text column, as a reason and a sentence; None if it has one."""
    place = find_column(reader.schema, options.text_field)
    if place is None:
        columns = ", ".join(reader.schema.names[:50])
        return (
            Reason.NO_TEXT_COLUMN,
            f"the file has no column {options.text_field!r} (text_field); its columns are: "
            f"{columns}",
        )
    if not _is_string(place[2]):
        return (
            Reason.TEXT_NOT_A_STRING,
            f"the column {options.text_field!r} (text_field) has type {place[2]}, not strings",
        )
    return None


def open_for_records(path: str, options: ReadOptions) -> tuple[ParquetReader, pa.Schema]:
    """Opens a Parquet file for reading documents from it.

    Returns:
        The reader, which keeps strings dictionary-encoded, and the file's own schema.

    Raises:
        OSError: if the file cannot be read at all.
        BrokenParquetError: if the content is not a readable Parquet file.
    """
    with ParquetReader(path) as reader:
        schema = reader.schema
    return ParquetReader(path, dictionary_columns(schema, options)), schema


def _groups(reader: ParquetReader, split: Split) -> range:
    count = reader.metadata.num_row_groups
    return range(min(split.start, count), count if split.end is None else min(split.end, count))


def _record(text: Any, identifier: Any, source: Any, row: int, options: ReadOptions) -> Record:
    """Returns the record of a row."""
    if isinstance(text, _Undecodable):
        detail = f"the value of {options.text_field!r} is not UTF-8"
        return BadRecord(row, Reason.TEXT_NOT_UNICODE, detail, text.value[:EXCERPT_BYTES])
    if isinstance(identifier, _Undecodable):
        identifier = identifier.value
    if isinstance(source, _Undecodable):
        source = source.value

    # A character has at most 4 bytes, so most texts need no exact count.
    if type(text) is str and len(text) * 4 > options.max_record_bytes:
        size = utf8_size(text)
        if size > options.max_record_bytes:
            detail = (
                f"the text has {size} bytes, more than the limit of {options.max_record_bytes} "
                "(max_record_bytes)"
            )
            return BadRecord(
                row, Reason.RECORD_TOO_LARGE, detail, text[:EXCERPT_BYTES].encode()[:EXCERPT_BYTES]
            )
    return document_of(text, identifier, source, row, None, options)


def _rows_at_once(batch: pa.RecordBatch, columns: list[FieldPlace]) -> int:
    """Returns how many rows can be expanded from their dictionaries without filling the memory."""
    longest = 1
    for place in columns:
        column = _column(batch, place)
        if pa.types.is_dictionary(column.type) and len(column.dictionary):
            length = pc.max(pc.binary_length(column.dictionary)).as_py()
            longest = max(longest, length or 0)
    return max(1, 4 * BATCH_BYTES // longest)


class Parquet(FileFormat):
    """Parquet files: rows, which are written untouched."""

    name = "parquet"
    unit = "row groups"
    is_table = True
    written_as = "parquet"

    def sniff(self, head: FileHead) -> Compression | None:
        """Recognizes a file by its first bytes or its name."""
        is_parquet = head.stored[:4] in _MAGIC or head.suffix in (".parquet", ".pq")
        return Compression.NONE if is_parquet else None

    def plan(self, whole: Split, head: FileHead, options: ReadOptions, target: int) -> list[Split]:
        """Cuts a file between row groups."""
        try:
            with ParquetReader(whole.path) as reader:
                if check_text_column(reader, options) is not None:
                    return [whole]
                groups = range(reader.metadata.num_row_groups)
                sizes = [reader.group_bytes(group) for group in groups]
        except BrokenParquetError:
            return [whole]

        # Row groups are collected until a split has the target's share of the stored bytes.
        total = max(sum(sizes), 1)
        splits: list[Split] = []
        start = size = 0
        for group, group_size in enumerate(sizes):
            size += whole.size * group_size // total
            if size >= target or group == len(sizes) - 1:
                splits.append(dataclasses.replace(whole, start=start, end=group + 1, size=size))
                start, size = group + 1, 0
        return splits or [whole]

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Reads the rows of a split."""
        try:
            reader, _ = open_for_records(split.path, options)
        except BrokenParquetError as error:
            yield BadRecord(
                0, Reason.UNREADABLE_FILE, str(error), files.read_head(split.path, EXCERPT_BYTES)
            )
            return

        with reader:
            groups = _groups(reader, split)
            problem = check_text_column(reader, options)
            if problem is not None:
                reason, detail = problem
                first, last = reader.first_rows[groups.start], reader.first_rows[groups.stop]
                detail = f"{detail}; its {last - first} rows are lost"
                if last > first:
                    yield BadRecord(first, reason, detail, b"", last - first)
                return

            columns = [find_column(reader.schema, field) for field in _fields(options)]
            for group in groups:
                row = reader.first_rows[group]
                try:
                    for first, batch in reader.batches(group):
                        texts, ids, sources = (_column_values(batch, column) for column in columns)
                        for row, (text, identifier, source) in enumerate(
                            zip(texts, ids, sources, strict=True), first
                        ):
                            yield _record(text, identifier, source, row, options)
                        row = first + batch.num_rows
                except BrokenParquetError as error:
                    lost = reader.first_rows[group + 1] - row
                    yield BadRecord(row, error.reason, str(error), b"", lost)

    def read_tables(
        self, split: Split, options: ReadOptions
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Reads all columns of a split's rows.

        Left out are a damaged row group from some row on, and a file without a text column.
        """
        try:
            # Opened as for reading documents: another way of decoding may detect other damage.
            reader, schema = open_for_records(split.path, options)
        except BrokenParquetError:
            return

        with reader:
            if check_text_column(reader, options) is not None:
                return
            columns = [
                place for field in _fields(options) if (place := find_column(reader.schema, field))
            ]
            for group in _groups(reader, split):
                try:
                    for first, batch in reader.batches(group):
                        step = _rows_at_once(batch, columns)
                        for start in range(0, batch.num_rows, step):
                            yield first + start, batch.slice(start, step).cast(schema)
                except BrokenParquetError:
                    continue  # reported by `read`

    def count_records(self, path: str) -> int | None:
        """Returns the number of rows by the footer; None if it is damaged."""
        try:
            with ParquetReader(path) as reader:
                return int(reader.metadata.num_rows)
        except BrokenParquetError:
            return None

    def layout(self, split: Split) -> str:
        """Returns the name and a digest of the columns, because a file has one schema."""
        try:
            with ParquetReader(split.path) as reader:
                text = reader.schema.to_string(
                    show_field_metadata=False, show_schema_metadata=False
                )
        except BrokenParquetError:
            return f"{self.name}/unreadable"
        return f"{self.name}/{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def output_format(self, detail: str) -> str:
        """Returns Parquet, which compresses its own pages."""
        return self.name

    def output_class(self, detail: str, written: str) -> str:
        """Returns the layout for unchanged rows, which tie an output file to one schema."""
        return f"{self.name}/{detail}" if written == self.name else self.name
