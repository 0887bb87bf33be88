"""Record writers: write kept documents as they came, with their score added.

From JSONL:

- to JSONL: the line's own bytes with `,"datarater_score":S` before its last brace;
- to Parquet: a row of `id`, `text`, `source`, `metadata` (JSON of all other fields) and
  `datarater_score`.

From Parquet:

- to JSONL: a JSON object of the row, with bytes as base64, dates and times (in UTC) as text, and
  maps as pairs;
- to Parquet: the row itself with a column `datarater_score`, and what the file's metadata says that
  holds for the kept rows.

From TFRecord or ArrayRecord to TFRecord: the example's own bytes, followed by a float feature
`datarater_score`.

From WARC to WARC: the record's own bytes with a header line `DataRater-Score: S`, each in a gzip
member or zstd frame of its own.

From any other format to JSONL or Parquet: the JSON line of everything in the record, or the row of
that line.

Two more formats carry no text, for mixing elsewhere. `attributes` are Dolma's: lines of `id` and
`attributes`, with one file for each input file, named like it. They contain the kept documents, so
a selection of everything is aligned with its input. `scores` is a Parquet file of `id`, `source`,
`path`, `position`, `tokens` and the score, for which the input is not read again. In a run with a
student both say who scored: `datarater__by_student` is 1 or 0, and `scored_by` a name. In a
selection with a ranking `scores` also has the number that it ranks by, `ranked_by`, the tokens of
the rater's tokenizer, `rater_tokens`, and the columns of the joined tables that its rules use.

By default the output has the format and the compression of the input. Plain text files are the
exception: they become JSONL.

An existing score is replaced. Scores are written as the shortest text that reads back as the same
float32. The same kept documents give the same bytes, whatever the runner or the workers.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from datarater.pipelines.graph.mirrored_names import compression_of
from datarater.pipelines.graph.schema_metadata import kept_metadata
from datarater.pipelines.graph.second_read import IncompleteRows, KeptSplit
from datarater.pipelines.run_folder.score_files import OTHER_SCORE, RANKED_BY, SCORED_BY
from datarater.rater_model.documents.arrow_types import is_text, mapped_type, without_view
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.json_lines import (
    SCORE_FIELD,
    dump_json,
    id_of_key,
    id_text,
    load_json,
    score_text,
    scored_line,
    storable,
)
from datarater.rater_model.documents.records import Compression, Document, ReadOptions

ROW_GROUP_BYTES = 64 * 2**20
_MAX_ROWS = 2**17  # of a row group of documents, which are Python's objects until it is written
_GZIP_LEVEL = 6
_COPY_BYTES = 2**20
_ZSTD_LEVEL = 3
SUFFIXES = {"attributes": "attributes.jsonl.gz", "scores": "scores.parquet"}
ATTRIBUTE = "datarater__score"
BY_STUDENT_ATTRIBUTE = "datarater__by_student"

SCORES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field(SCORE_FIELD, pa.float32(), nullable=False),
    ]
)

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field(SCORE_FIELD, pa.float32(), nullable=False),
    ]
)


def output_format(layout: str, requested: str) -> str:
    """Returns the format in which documents of one layout are written.

    Args:
        layout: Layout from a score file, such as `jsonl/gzip` or `parquet/SCHEMA-DIGEST`.
        requested: A value of `--output_format`.
    """
    if requested != "same":
        return requested
    name, _, detail = layout.partition("/")
    return format_named(name).output_format(detail)


def file_class(layout: str, requested: str) -> str:
    """Returns the class of a split: splits of one class can share an output file."""
    if requested == "scores":
        return requested
    if requested == "attributes":
        return f"attributes {layout}"
    name, _, detail = layout.partition("/")
    written = output_format(layout, requested)
    return f"{written} {format_named(name).output_class(detail, written)}"


def layout_for(layout: str, path: str, requested: str) -> str:
    """Returns the layout of a split's output; attributes need one file for each input file."""
    return f"{layout} {path}" if requested == "attributes" else layout


def only_input(layout: str, requested: str) -> str:
    """Returns the path of the input file that an output file is for; "" if it is for several.

    Args:
        layout: Layout of a split's output (`layout_for`).
        requested: A value of `--output_format`.
    """
    return layout.partition(" ")[2] if requested == "attributes" else ""


def attribute_line(
    key: str, characters: int, score: float, by_student: bool | None = None
) -> bytes:
    """Returns a line of a Dolma attributes file: the score of the whole text, as a span.

    Args:
        key: Key of the document.
        characters: Length of the text in characters.
        score: Score of the document.
        by_student: Whether a student gave the score; None in a run without one.

    Example:
        >>> attribute_line('"a"', 12, 0.5)
        b'{"id":"a","attributes":{"datarater__score":[[0,12,0.5]]}}'
    """
    span = f"[[0,{characters},{score_text(score)}]]"
    spans = f'"{ATTRIBUTE}":{span}'
    if by_student is not None:
        spans += f',"{BY_STUDENT_ATTRIBUTE}":[[0,{characters},{int(by_student)}]]'
    return f'{{"id":{dump_json(id_of_key(key))},"attributes":{{{spans}}}}}'.encode()


def scores_table(rows: pa.Table, path: str) -> pa.Table:
    """Returns rows of a score file with the columns of `SCORES_SCHEMA`, and `scored_by` if any.

    Rows of a run with several raters have their scores too. Rows of a ranking also have the number
    that they are ranked by and all signals.

    Args:
        rows: Rows of the score file.
        path: Path of the input file.
    """
    ids = [id_text(key) for key in rows["key"].to_pylist()]

    columns = {
        "id": ids,
        "source": rows["source"].to_pylist(),
        "path": [path] * len(ids),
        "position": rows["position"],
        "tokens": rows["tokens"],
        SCORE_FIELD: rows["score"],
    }

    table = pa.table(
        [
            pa.chunked_array([columns[field.name]], field.type)
            if isinstance(columns[field.name], list)
            else columns[field.name].cast(field.type)
            for field in SCORES_SCHEMA
        ],
        schema=SCORES_SCHEMA,
    )
    if SCORED_BY in rows.schema.names:
        table = table.append_column(SCORED_BY, rows[SCORED_BY].cast(pa.string()))
    names = rows.schema.names
    for name in names:
        if name.startswith(OTHER_SCORE):
            table = table.append_column(name, rows[name])
    if RANKED_BY in names:
        for name in names[names.index(RANKED_BY) :]:
            table = table.append_column(name, rows[name])
    return table


def take_field(fields: dict[str, Any], path: str, separator: str = ".") -> Any:
    """Removes a field, which may be a dotted path, and returns its value; None if it is missing.

    Args:
        fields: Fields of a record, which are changed.
        path: Name of the field, or its dotted path.
        separator: What separates the names of nested fields, apart from dots.
    """
    for name in (path, path.replace(".", separator)):
        if name in fields:
            return fields.pop(name)

    name, dot, rest = path.partition(".")
    inner = fields.get(name)
    return take_field(inner, rest) if dot and isinstance(inner, dict) else None


def document_row(
    line: bytes, document: Document, score: float, options: ReadOptions, separator: str = "."
) -> dict[str, Any]:
    """Returns a document as a row of `DOCUMENT_SCHEMA`.

    An id that is not a string is written as JSON text.

    Args:
        line: JSON line of the document.
        document: The document.
        score: Score of the document.
        options: How the document was read.
        separator: What separates the names of nested fields, apart from dots.
    """
    fields = load_json(line)
    take_field(fields, options.text_field, separator)
    identifier = take_field(fields, options.id_field, separator)
    source = take_field(fields, options.source_field, separator)
    fields.pop(SCORE_FIELD, None)

    if identifier is not None and not isinstance(identifier, str):
        identifier = dump_json(identifier)
    return {
        "id": None if identifier is None else storable(identifier),
        "text": document.text,
        "source": None if source is None else document.source,
        "metadata": dump_json(fields) if fields else None,
        SCORE_FIELD: score,
    }


def _without_zone(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _printed(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date(kind):
        return pa.string()
    return pa.int64() if pa.types.is_duration(kind) else kind


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    is_string = is_text(kind) and not pa.types.is_binary(without_view(kind))
    return pa.large_binary() if is_string else kind


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list | tuple):
        return [_decoded(inner) for inner in value]
    return (
        {name: _decoded(inner) for name, inner in value.items()}
        if isinstance(value, dict)
        else value
    )


def _plain_values(column: pa.Array) -> list[Any]:
    """Returns a column's values as JSON can represent them, whatever their type.

    Arrow prints the times: Python's have neither its range nor its nanoseconds.
    """
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    for leaf in (_without_zone, _printed):
        json_type = mapped_type(column.type, leaf)
        if json_type != column.type:
            # What cannot be cast has a plain value in Python.
            with contextlib.suppress(pa.ArrowNotImplementedError):
                column = column.cast(json_type)

    # Strings that are not valid UTF-8 are read as bytes, and their bad bytes escaped.
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [
            _decoded(value)
            for value in column.cast(mapped_type(column.type, _as_bytes)).to_pylist()
        ]
    return values


def _json_value(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def table_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table, without an old score, as `row_json` takes them."""
    names = table.schema.names
    columns = [_plain_values(table.column(index).combine_chunks()) for index in range(len(names))]
    for index in range(table.num_rows):
        row = {name: values[index] for name, values in zip(names, columns, strict=True)}
        row.pop(SCORE_FIELD, None)
        yield row


def row_json(row: dict[str, Any]) -> bytes:
    """Returns a row as a JSON object."""
    return orjson.dumps(row, default=_json_value)


def table_lines(table: pa.Table, scores_N: np.ndarray) -> Iterator[bytes]:
    """Yields the rows of a table as JSONL lines with their scores."""
    for row, score in zip(table_rows(table), scores_N, strict=True):
        yield scored_line(row_json(row), float(score))


def scored_table(table: pa.Table, scores_N: np.ndarray) -> pa.Table:
    """Returns a table with a column of scores added at the end."""
    table = table.select(
        [index for index, name in enumerate(table.schema.names) if name != SCORE_FIELD]
    )
    return table.append_column(
        pa.field(SCORE_FIELD, pa.float32(), nullable=False), pa.array(scores_N, pa.float32())
    ).replace_schema_metadata(kept_metadata(table.schema.metadata))


class Writer(Protocol):
    """Writes one output file.

    Attributes:
        incomplete: Rows that were written without columns that cannot be read.
    """

    incomplete: list[IncompleteRows]

    def write(self, kept: KeptSplit) -> int:
        """Adds the kept documents of a split; returns how many there were.

        Raises:
            InputChangedError: The input has changed since it was scored.
        """

    def close(self) -> None:
        """Completes the file, which stays open."""


class RecordWriter:
    """Writes records one after another, plain or compressed.

    Args:
        file: Binary file to write to; it stays open.
        target: Format of the records.
        compression: Compression of the file.
    """

    def __init__(self, file: BinaryIO, target: FileFormat, compression: Compression):
        self.incomplete: list[IncompleteRows] = []
        self._stack = contextlib.ExitStack()
        self._out: Any = file
        self._target = target
        self._frame = target.frame
        if target.compresses_by_record and compression is not Compression.NONE:
            pack = _PACK[compression]
            self._frame = lambda record: pack(target.frame(record))
        elif compression is Compression.GZIP:
            # Without a time and a name in the header, the same documents give the same bytes.
            self._out = self._stack.enter_context(
                gzip.GzipFile(
                    filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0
                )
            )
        elif compression is Compression.ZSTD:
            compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
            self._out = self._stack.enter_context(compressor.stream_writer(file, closefd=False))
        elif compression is Compression.BZIP2:
            self._out = self._stack.enter_context(bz2.BZ2File(file, "wb"))

    def write(self, kept: KeptSplit) -> int:
        """Adds the documents of a split, as records of their own format or as JSON lines."""
        return self.write_records(self._records(kept))

    def write_records(self, records: Iterable[bytes]) -> int:
        """Adds records; returns how many there were."""
        write, frame = self._out.write, self._frame
        count = 0
        for record in records:
            write(frame(record))
            count += 1
        return count

    def _records(self, kept: KeptSplit) -> Iterator[bytes]:
        source, options = kept.source, kept.options
        if source.is_table:
            for table, scores_N in kept.tables():
                yield from table_lines(table, scores_N)
            self.incomplete += kept.incomplete
        elif source.written_as == self._target.name:
            as_record = source.scored_record
            for document, score in kept.documents():
                yield as_record(document, score, options)
        else:
            as_line = source.json_line
            for document, score in kept.documents():
                yield scored_line(as_line(document, options), score)

    def close(self) -> None:
        """Completes the compressed stream."""
        self._stack.close()


class AttributesWriter(RecordWriter):
    """Writes a Dolma attributes file.

    Args:
        file: Binary file to write to; it stays open.
        compression: Compression of the file.
    """

    def __init__(self, file: BinaryIO, compression: Compression):
        super().__init__(file, format_named("jsonl"), compression)

    def _records(self, kept: KeptSplit) -> Iterator[bytes]:
        for document, score, by_student in kept.judged_documents():
            yield attribute_line(document.key, len(document.text), score, by_student)


_PACK: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: lambda data: gzip.compress(data, _GZIP_LEVEL, mtime=0),
    Compression.ZSTD: lambda data: zstandard.ZstdCompressor(
        level=_ZSTD_LEVEL, write_checksum=True
    ).compress(data),
    Compression.BZIP2: bz2.compress,
}


class TableWriter:
    """Writes Parquet, in row groups of bounded size.

    Args:
        file: Binary file to write to; it stays open.
        row_group_bytes: Approximate uncompressed size of a row group.
    """

    def __init__(self, file: BinaryIO, row_group_bytes: int = ROW_GROUP_BYTES):
        self.incomplete: list[IncompleteRows] = []
        self._file = file
        self._row_group_bytes = row_group_bytes
        self._writer: pq.ParquetWriter | None = None
        self._tables: list[pa.Table] = []
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._metadata: dict[bytes, bytes] | None = None

    def write(self, kept: KeptSplit) -> int:
        """Adds the documents of a split, as their own rows or as rows of `DOCUMENT_SCHEMA`."""
        source, options = kept.source, kept.options
        count = 0
        if source.is_table:
            for table, scores_N in kept.tables():
                self.write_table(scored_table(table, scores_N))
                count += table.num_rows
            self.incomplete += kept.incomplete
            return count

        as_line, separator = source.json_line, source.nested_separator
        for document, score in kept.documents():
            line = as_line(document, options)
            self.write_row(document_row(line, document, score, options, separator))
            count += 1
        return count

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of `DOCUMENT_SCHEMA`."""
        self._rows.append(row)
        self._add_bytes(len(row["text"]) + len(row["metadata"] or ""))
        if len(self._rows) >= _MAX_ROWS:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Adds the rows of a table; all tables of a file have one schema.

        The file gets what the metadata of all of them agrees in.
        """
        metadata = table.schema.metadata or {}
        known = self._metadata
        self._metadata = (
            metadata
            if known is None
            else {key: value for key, value in known.items() if metadata.get(key) == value}
        )
        self._tables.append(table.replace_schema_metadata(None))
        self._add_bytes(table.nbytes)

    def _add_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= self._row_group_bytes:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, DOCUMENT_SCHEMA))
            self._rows = []
        if self._tables:
            table = pa.concat_tables(self._tables)
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd")
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._tables, self._bytes = [], 0

    def close(self) -> None:
        """Writes the waiting rows and the footer."""
        self._flush()
        if self._writer is not None:
            # What all tables agree in is known only now. Arrow reads it from its own entry.
            if self._metadata:
                schema = self._writer.schema.with_metadata(self._metadata).serialize()
                self._writer.add_key_value_metadata(
                    {**self._metadata, b"ARROW:schema": base64.b64encode(schema)}
                )
            self._writer.close()


class ScoresWriter(TableWriter):
    """Writes the scores alone; the input is not read."""

    def write(self, kept: KeptSplit) -> int:
        """Adds the scores of the documents of a split."""
        count = 0
        for rows in kept.score_rows():
            self.write_table(scores_table(rows, kept.task.split.path))
            count += rows.num_rows
        return count


_WITHOUT_TEXT = ("attributes", "scores")


class PieceJoiner(Protocol):
    """Puts the pieces of an output file together."""

    def add(self, piece: BinaryIO) -> None:
        """Adds the content of the next piece.

        Raises:
            OSError: The piece cannot be read.
        """

    def close(self) -> None:
        """Completes the file, which stays open."""


class RecordJoiner:
    """Joins records one after another: compressed members, frames and streams may follow too.

    Args:
        file: Binary file to write to; it stays open.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    def add(self, piece: BinaryIO) -> None:
        """Copies a piece."""
        shutil.copyfileobj(piece, self._file, _COPY_BYTES)

    def close(self) -> None:
        """Does nothing: the last piece completes the file."""


class TableJoiner:
    """Writes the row groups of Parquet files anew, so that small ones are merged.

    Args:
        file: Binary file to write to; it stays open.
    """

    def __init__(self, file: BinaryIO):
        self._writer = TableWriter(file)

    def add(self, piece: BinaryIO) -> None:
        """Adds the row groups of a piece, one in memory at a time."""
        with pq.ParquetFile(piece) as parquet:
            for group in range(parquet.metadata.num_row_groups):
                self._writer.write_table(parquet.read_row_group(group, use_threads=False))

    def close(self) -> None:
        """Writes the waiting rows and the footer."""
        self._writer.close()


def piece_joiner(file: BinaryIO, written: str) -> PieceJoiner:
    """Returns a joiner of pieces for a format.

    Args:
        file: Binary file to write to; it stays open.
        written: Format from `output_format`.
    """
    is_table = written == "scores" or (
        written not in _WITHOUT_TEXT and format_named(written.partition(".")[0]).is_table
    )
    return TableJoiner(file) if is_table else RecordJoiner(file)


def open_writer(file: BinaryIO, written: str, name: str = SUFFIXES["attributes"]) -> Writer:
    """Returns a writer for a format.

    Args:
        file: Binary file to write to; it stays open.
        written: Format from `output_format`.
        name: Name of the output file, which says how attributes are compressed.
    """
    if written == "attributes":
        return AttributesWriter(file, compression_of(name))
    if written == "scores":
        return ScoresWriter(file)
    name, dot, suffix = written.partition(".")
    target = format_named(name)
    return (
        TableWriter(file)
        if target.is_table
        else RecordWriter(file, target, Compression.of_suffix(dot + suffix))
    )
