"""Reads documents and tables from Parquet files by row groups, in bounded memory.

Only the columns of the text, the id and the source are read for scoring, nested ones without the
fields around them. All columns are read to write rows. Both ways bound the size of a page
(`datarater.rater_model.documents.parquet_reader`) and what dictionaries expand to.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import errno
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datarater.rater_model.documents import files
from datarater.rater_model.documents.arrow_types import (
    cast_batch,
    expanded_bytes,
    has_list,
    is_nested_with_view,
    is_text,
    mapped_type,
    min_json_characters,
    without_view,
)
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.jsonl import document_of
from datarater.rater_model.documents.parquet_reader import (
    BATCH_BYTES,
    BrokenParquetError,
    ParquetReader,
    footer_bytes,
    max_page_bytes,
)
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    MAX_NAME_CHARACTERS,
    VIRTUAL_BYTES,
    BadRecord,
    Compression,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead

_MAGIC = (b"PAR1", b"PARE")
_MAX_EXPANDED_BYTES = 4 * BATCH_BYTES
_MAX_PLANNED_FOOTER_BYTES = 2**15
UNREADABLE_COLUMNS = b"datarater.unreadable_columns"
"""Key in the metadata of a batch: columns that are damaged, and null in the batch."""

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


@dataclasses.dataclass(frozen=True)
class _Unusable:
    """A text that cannot be used: it is not UTF-8, or it is too large to be held.

    Attributes:
        head: Its first bytes.
        size: Its length in bytes.
    """

    head: bytes
    size: int


def _column(batch: pa.RecordBatch, place: FieldPlace) -> pa.Array:
    """Returns the array of a field."""
    index, path, _ = place
    column = batch.column(index)
    for part in path:
        # Unlike StructArray.field, flatten gives null where the struct itself is null.
        column = column.flatten()[column.type.get_field_index(part)]
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


def _column_values(
    batch: pa.RecordBatch, place: FieldPlace | None, max_bytes: int | None = None
) -> list[Any]:
    """Returns the values of a field, one per row; None for each if there is no such field.

    Args:
        batch: Batch of rows.
        place: Place of the field in it.
        max_bytes: Maximum size of a text, for the field of the text; None for any other field.
    """
    if place is None:
        return [None] * batch.num_rows
    column = _column(batch, place)
    values_of = _names if max_bytes is None else _Texts(max_bytes)

    # Decode each entry of a dictionary once; rows share it.
    if pa.types.is_dictionary(column.type):
        codes_N = np.asarray(
            column.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64
        )
        used_K, places_N = np.unique(codes_N, return_inverse=True)
        known_K = used_K[used_K >= 0]
        values = values_of(column.dictionary.take(pa.array(known_K)))
        if len(known_K) < len(used_K):
            values = [None, *values]
        return [values[entry] for entry in places_N.tolist()]
    return values_of(column)


def _names(column: pa.Array) -> list[Any]:
    """Returns ids or sources of an array that is not dictionary-encoded.

    A list or map that is too long for a name is None. It may have millions of elements.
    """
    if has_list(column.type):
        is_long_R = min_json_characters(column) > MAX_NAME_CHARACTERS
        if is_long_R.any():
            return [
                None if is_long else _plain_values(column.slice(row, 1))[0]
                for row, is_long in enumerate(is_long_R.tolist())
            ]
    return _plain_values(column)


def _plain_values(column: pa.Array) -> list[Any]:
    """Returns the values of an array that is not dictionary-encoded."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        # Not UTF-8, or a date that Python cannot represent.
        try:
            bytes_or_text = pa.large_binary() if is_text(column.type) else pa.string()
            values = _without_views(column).cast(bytes_or_text).to_pylist()
        except (ValueError, pa.ArrowException):
            values = [None] * len(column)
    return values


def _without_views(column: pa.Array) -> pa.Array:
    kind = mapped_type(column.type, without_view)
    return column if kind == column.type else column.cast(kind)


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Gets texts out of an array of strings or bytes without copying those that are too large."""

    max_bytes: int

    def __call__(self, column: pa.Array) -> list[Any]:
        column = _without_views(column)
        lengths = pc.binary_length(column)
        too_large = pc.greater(lengths, self.max_bytes)
        large: dict[int, _Unusable] = {}
        if pc.any(too_large).as_py():
            as_bytes = column.cast(pa.large_binary())
            rows = np.flatnonzero(too_large.fill_null(False).to_numpy(zero_copy_only=False))
            for row in rows.tolist():
                (head,) = pc.binary_slice(as_bytes.slice(row, 1), 0, EXCERPT_BYTES).to_pylist()
                large[row] = _Unusable(head, lengths[row].as_py())
            column = pc.if_else(too_large, pa.scalar(None, column.type), column)

        try:
            values: list[Any] = column.to_pylist()
        except UnicodeDecodeError:
            values = column.cast(pa.large_binary()).to_pylist()
        values = [_decoded(value) if isinstance(value, bytes) else value for value in values]
        for row, text in large.items():
            values[row] = text
        return values


def _decoded(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _Unusable(value[:EXCERPT_BYTES], 0)


def _fields(options: ReadOptions) -> tuple[str, str, str]:
    return options.text_field, options.id_field, options.source_field


def check_text_column(schema: pa.Schema, options: ReadOptions) -> tuple[Reason, str] | None:
    """Returns why a file has no text column, as a reason and a sentence; None if it has one."""
    place = find_column(schema, options.text_field)
    if place is None:
        columns = ", ".join(schema.names[:50])
        return (
            Reason.NO_TEXT_COLUMN,
            f"the file has no column {options.text_field!r} (text_field); its columns are: "
            f"{columns}",
        )
    if not is_text(place[2]):
        return (
            Reason.TEXT_NOT_A_STRING,
            f"the column {options.text_field!r} (text_field) has type {place[2]}, not strings",
        )
    return None


def _opened(path: str, options: ReadOptions, every_column: bool) -> ParquetReader:
    """Opens a file with the columns of strings and bytes that are read dictionary-encoded.

    Args:
        path: Local path or URL.
        options: Options to read with.
        every_column: Whether all columns are read, or those of the fields alone.

    Raises:
        OSError: if the file cannot be read at all.
        BrokenParquetError: if the content is not a readable Parquet file.
    """
    reader = ParquetReader(path, max_page_bytes(options.max_record_bytes))
    schema = reader.schema
    places = {field: find_column(schema, field) for field in _fields(options)}
    columns = {field for field, place in places.items() if place is not None and is_text(place[2])}
    # The texts of lists too, except where they cannot be changed back.
    read = set(schema.names) if every_column else set()
    read |= {schema.names[place[0]] for place in places.values() if place is not None}
    read -= {field.name for field in schema if is_nested_with_view(field.type)}
    if not every_column:
        read = {name for name in read if has_list(schema.field(name).type)}
    columns |= {leaf for leaf in reader.leaves() if leaf.partition(".")[0] in read}
    count = len(reader.metadata.schema) if every_column else len(places)
    reader.keep_dictionaries(sorted(columns), count)
    return reader


def _groups(reader: ParquetReader, split: Split) -> range:
    count = reader.metadata.num_row_groups
    if split.virtual:
        places = reader.places()
        start, end = split.start // VIRTUAL_BYTES, split.end
        first = bisect.bisect_left(places, start)
        return range(
            first, count if end is None else bisect.bisect_left(places, end // VIRTUAL_BYTES)
        )
    return range(min(split.start, count), count if split.end is None else min(split.end, count))


def _record(text: Any, identifier: Any, source: Any, row: int, options: ReadOptions) -> Record:
    """Returns the record of a row."""
    if isinstance(text, _Unusable):
        if text.size:
            reason, detail = (
                Reason.RECORD_TOO_LARGE,
                f"the text has {text.size} bytes, more than the limit of "
                f"{options.max_record_bytes} (max_record_bytes)",
            )
        else:
            reason = Reason.TEXT_NOT_UNICODE
            detail = f"the value of {options.text_field!r} is not UTF-8"
        return BadRecord(row, reason, detail, text.head)
    return document_of(text, identifier, source, row, None, options)


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yields a batch in parts that do not expand to too much."""
    size = sum(expanded_bytes(column) for column in batch.columns)
    if size <= _MAX_EXPANDED_BYTES or batch.num_rows == 1:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _bounded(batch.slice(0, half))
    yield from _bounded(batch.slice(half))


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
        """Cuts a file between row groups; in equal parts if its footer is large.

        In equal parts, a split finds its row groups when it is read, as it reads the footer anyway.
        """
        try:
            footer = footer_bytes(whole.path)
        except BrokenParquetError:
            return [whole]
        if footer > _MAX_PLANNED_FOOTER_BYTES:
            count = max(1, -(-whole.size // target))
            places = [whole.size * index // count for index in range(1, count)]
            return whole.cut_at(places, virtual=True)

        try:
            with ParquetReader(whole.path) as reader:
                if check_text_column(reader.schema, options) is not None:
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
        """Reads the rows of a split: the columns of the fields, and no other."""
        try:
            reader = _opened(split.path, options, every_column=False)
        except BrokenParquetError as error:
            # Of the splits of a file that is not looked at before, one reports it.
            if not split.virtual or not split.start:
                head = files.read_head(split.path, EXCERPT_BYTES)
                yield BadRecord(0, Reason.UNREADABLE_FILE, str(error), head)
            return

        with reader:
            groups = _groups(reader, split)
            problem = check_text_column(reader.schema, options)
            if problem is not None:
                reason, detail = problem
                first, last = reader.first_rows[groups.start], reader.first_rows[groups.stop]
                rows = "only row is" if last - first == 1 else f"{last - first:,} rows are"
                detail = f"{detail}; its {rows} lost"
                if last > first:
                    yield BadRecord(first, reason, detail, b"", last - first)
                return

            for group in groups:
                row = reader.first_rows[group]
                try:
                    for first, batch in reader.batches(group, _fields(options)):
                        row = first
                        for part in _bounded(batch):
                            yield from _records(part, row, options)
                            row += part.num_rows
                except BrokenParquetError as error:
                    lost = reader.first_rows[group + 1] - row
                    yield BadRecord(row, error.reason, str(error), b"", lost)

    def read_tables(
        self, split: Split, options: ReadOptions
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Reads all columns of a split's rows.

        Left out are a damaged row group from some row on, and a file without a text column. Where
        columns are damaged that `read` does not read, they are null, and the metadata of the batch
        names them under `UNREADABLE_COLUMNS`.
        """
        try:
            reader = _opened(split.path, options, every_column=True)
        except BrokenParquetError:
            return

        with reader:
            if check_text_column(reader.schema, options) is not None:
                return
            for group in _groups(reader, split):
                row = reader.first_rows[group]
                try:
                    for first, batch in reader.batches(group):
                        yield from _tables(batch, first, reader.schema, options)
                        row = first + batch.num_rows
                except BrokenParquetError:
                    yield from _salvaged(reader, group, row, options)

    def narrowed(self, split: Split, positions: Sequence[int]) -> list[Split]:
        """Returns the row groups with the rows at the positions."""
        try:
            with ParquetReader(split.path) as reader:
                first_rows = reader.first_rows
        except BrokenParquetError:
            return [split]
        groups = sorted({bisect.bisect_right(first_rows, at) - 1 for at in positions})
        return [
            dataclasses.replace(split, start=group, end=group + 1, virtual=False)
            for group in groups
        ]

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


def _records(batch: pa.RecordBatch, first: int, options: ReadOptions) -> Iterator[Record]:
    """Yields the records of a batch whose first row has the number `first`."""
    text, identifier, source = (find_column(batch.schema, field) for field in _fields(options))
    rows = zip(
        _column_values(batch, text, options.max_record_bytes),
        _column_values(batch, identifier),
        _column_values(batch, source),
        strict=True,
    )
    for row, values in enumerate(rows, first):
        yield _record(*values, row, options)


def _tables(
    batch: pa.RecordBatch, first: int, schema: pa.Schema, options: ReadOptions
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields a batch in parts of bounded size, with the types of the file's schema."""
    limit = 2 * max_page_bytes(options.max_record_bytes)
    for part in _bounded(batch):
        large = []
        if part.num_rows == 1:
            large = [at for at, one in enumerate(part.columns) if expanded_bytes(one) > limit]
        yield first, _without(part, first, large, schema) if large else cast_batch(part, schema)
        first += part.num_rows


def _without(
    row: pa.RecordBatch, number: int, large: list[int], schema: pa.Schema
) -> pa.RecordBatch:
    """Returns a row with nulls for columns that are too large, which the metadata names.

    Args:
        row: Row.
        number: Its number in the file.
        large: Numbers of the columns.
        schema: Schema of the file.

    Raises:
        OSError: if one of the columns must not be null.
    """
    names = ", ".join(schema.names[at] for at in large)
    if not all(schema.field(at).nullable for at in large):
        raise _cannot_copy(
            f"row {number}", f"the columns {names} are too large and must not be null"
        )
    known = (schema.metadata or {}).get(UNREADABLE_COLUMNS, b"").decode()
    unreadable = ", ".join(filter(None, [known, names])).encode()
    schema = schema.with_metadata({**(schema.metadata or {}), UNREADABLE_COLUMNS: unreadable})
    sound = row.select([at for at in range(row.num_columns) if at not in large])
    return cast_batch(_with_nulls(sound, schema, large), schema)


def _salvaged(
    reader: ParquetReader, group: int, start: int, options: ReadOptions
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Reads the rest of a row group in which a column is damaged that is not needed for scoring.

    Args:
        reader: Open file.
        group: Number of the row group.
        start: First row that could not be read with all columns.
        options: Options to read with.

    Raises:
        OSError: if a damaged column must not be null, or rows that were scored cannot be read.
    """
    needed = {find_column(reader.schema, field) for field in _fields(options)}
    numbers = {place[0] for place in needed if place is not None}
    damaged = [
        number
        for number, field in enumerate(reader.schema)
        if number not in numbers and not _is_readable(reader, group, field.name)
    ]
    sound = [name for at, name in enumerate(reader.schema.names) if at not in damaged]
    names = ", ".join(reader.schema.names[number] for number in damaged)
    if not all(reader.schema.field(number).nullable for number in damaged):
        raise _cannot_copy(
            f"the rows of row group {group}",
            f"the columns {names} are damaged and must not be null",
        )

    metadata = {**(reader.schema.metadata or {}), UNREADABLE_COLUMNS: names.encode()}
    schema = reader.schema.with_metadata(metadata)
    try:
        for first, batch in reader.batches(group, sound):
            skipped = min(max(start - first, 0), batch.num_rows)
            if skipped < batch.num_rows:
                rest = _with_nulls(batch.slice(skipped), reader.schema, damaged)
                yield from _tables(rest, first + skipped, schema, options)
                start = first + batch.num_rows
    except BrokenParquetError as error:
        # `read` reports damage of its own columns, beginning with the same row.
        scored = reader.first_rows[group]
        with contextlib.suppress(BrokenParquetError):
            for first, batch in reader.batches(group, _fields(options)):
                scored = first + batch.num_rows
        if scored > start:
            raise _cannot_copy(f"the rows of row group {group}", str(error)) from error


def _cannot_copy(rows: str, problem: str) -> OSError:
    return OSError(
        errno.EIO,
        f"{rows} cannot be copied ({problem}); select with "
        "--output_format scores or attributes, which do not need the other columns",
    )


def _is_readable(reader: ParquetReader, group: int, column: str) -> bool:
    try:
        for _ in reader.batches(group, [column]):
            pass
    except BrokenParquetError:
        return False
    return True


def _with_nulls(batch: pa.RecordBatch, schema: pa.Schema, missing: list[int]) -> pa.RecordBatch:
    """Returns a batch with nulls for the missing columns of a schema."""
    columns = iter(batch.columns)
    arrays = [
        pa.nulls(batch.num_rows, field.type) if number in missing else next(columns)
        for number, field in enumerate(schema)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema.names)
