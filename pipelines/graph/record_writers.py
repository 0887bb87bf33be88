"""Record writers: write kept documents as they came, with their score added.

From JSONL:

- to JSONL: the line's own bytes with `,"datarater_score":S` before its last brace;
- to Parquet: a row of `id`, `text`, `source`, `metadata` (JSON of all other fields) and
  `datarater_score`.

From Parquet:

- to JSONL: a JSON object of the row, with bytes as base64, dates and times (in UTC) as text, and
  maps as pairs;
- to Parquet: the row itself with a column `datarater_score`.

From TFRecord or ArrayRecord to TFRecord: the example's own bytes, followed by a float feature
`datarater_score`.

From WARC to WARC: the record's own bytes with a header line `DataRater-Score: S`, each in a gzip
member or zstd frame of its own.

From any other format to JSONL or Parquet: the JSON line of everything in the record, or the row of
that line.

Two more formats carry no text, for mixing elsewhere. `attributes` are Dolma's: lines of `id` and
`attributes`, with one file for each input file. They contain the kept documents, so a selection of
everything is aligned with its input. `scores` is a Parquet file of `id`, `source`, `path`,
`position`, `tokens` and the score, for which the input is not read again.

By default the output has the format and the compression of the input. Plain text files are the
exception: they become JSONL.

An existing score is replaced. Scores are written as the shortest text that reads back as the same
float32. The same kept documents give the same bytes, whatever the runner or the workers.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import dataclasses
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from datarater.rater_model.documents.reading import json_line
from datarater.rater_model.documents.records import Compression, Document, Format, ReadOptions
from datarater.rater_model.documents.tfrecord import framed, with_float
from datarater.rater_model.documents.warc import with_field

SCORE_FIELD = "datarater_score"
SCORE_HEADER = "DataRater-Score"
_SUFFIX_OF = {
    Compression.NONE: "",
    Compression.GZIP: ".gz",
    Compression.ZSTD: ".zst",
    Compression.BZIP2: ".bz2",
}
_COMPRESSION_OF = {
    suffix.removeprefix("."): compression for compression, suffix in _SUFFIX_OF.items()
}
_WRITTEN_AS = {"warc": "warc", "tfrecord": "tfrecord", "array_record": "tfrecord"}

ROW_GROUP_BYTES = 64 * 2**20
_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3
_DEEP = 5000
_SCORE_NAME = SCORE_FIELD.encode()

SUFFIXES = {"attributes": "attributes.jsonl.gz", "scores": "scores.parquet"}
ATTRIBUTE = "datarater__score"

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
    kind, _, detail = layout.partition("/")
    if kind == Format.PARQUET:
        return "parquet"
    return _WRITTEN_AS.get(kind, "jsonl") + _SUFFIX_OF[Compression(detail)]


def file_class(layout: str, requested: str) -> str:
    """Returns the class of a split: splits of one class can share an output file."""
    if requested == "scores":
        return requested
    if requested == "attributes":
        return f"attributes {layout}"
    kind = layout.partition("/")[0]
    written = output_format(layout, requested)
    # Only unchanged Parquet rows tie a file to one schema.
    return (
        f"{written} {layout}"
        if kind == Format.PARQUET and written == "parquet"
        else f"{written} {kind}"
    )


def layout_for(layout: str, path: str, requested: str) -> str:
    """Returns the layout of a split's output; attributes need one file for each input file."""
    return f"{layout} {path}" if requested == "attributes" else layout


def id_of_key(key: str) -> Any:
    """Returns the id that a document's key was made from, or the digest that replaces it."""
    return key if key.startswith("sha256:") else _load(key.encode())


def attribute_line(key: str, characters: int, score: float) -> bytes:
    """Returns a line of a Dolma attributes file: the score of the whole text, as a span.

    Args:
        key: Key of the document.
        characters: Length of the text in characters.
        score: Score of the document.

    Example:
        >>> attribute_line('"a"', 12, 0.5)
        b'{"id":"a","attributes":{"datarater__score":[[0,12,0.5]]}}'
    """
    span = f"[[0,{characters},{score_text(score)}]]"
    return f'{{"id":{_dump(id_of_key(key))},"attributes":{{"{ATTRIBUTE}":{span}}}}}'.encode()


def scores_table(rows: pa.Table, path: str) -> pa.Table:
    """Returns rows of a score file with the columns of `SCORES_SCHEMA`.

    Args:
        rows: Rows of the score file.
        path: Path of the input file.
    """
    ids = [
        value if isinstance(value, str) else _dump(value)
        for value in map(id_of_key, rows["key"].to_pylist())
    ]

    columns = {
        "id": ids,
        "source": rows["source"].to_pylist(),
        "path": [path] * len(ids),
        "position": rows["position"],
        "tokens": rows["tokens"],
        SCORE_FIELD: rows["score"],
    }

    return pa.table(
        [
            pa.chunked_array([columns[field.name]], field.type)
            if isinstance(columns[field.name], list)
            else columns[field.name].cast(field.type)
            for field in SCORES_SCHEMA
        ],
        schema=SCORES_SCHEMA,
    )


def score_text(score: float) -> str:
    """Returns the shortest JSON text that reads back as the same float32."""
    return str(np.float32(score))


def _load(raw: bytes) -> Any:
    """Parses JSON, with whole numbers of any size exact."""
    return _at_any_depth(json.loads, raw)


def _dump(value: Any) -> str:
    text: str = _at_any_depth(lambda: json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return text


def _at_any_depth(step: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return step(*arguments)
    except RecursionError:
        # Documents are read up to 1024 levels deep; Python's own limit is a little lower.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEEP))
        return step(*arguments)


def scored_line(raw: bytes, score: float) -> bytes:
    r"""Returns a JSONL line with its score added and all other bytes unchanged.

    Args:
        raw: The line without its `\n`: one JSON object.
        score: Score of the document.

    Example:
        >>> scored_line(b'{"text": "a"}\r', 0.5)
        b'{"text": "a","datarater_score":0.5}\r'
    """
    if _SCORE_NAME in raw:
        fields = _load(raw)
        if SCORE_FIELD in fields:
            del fields[SCORE_FIELD]
            raw = _dump(fields).encode("utf-8") + raw[len(raw.rstrip()) :]
    brace = raw.rindex(b"}")
    comma = b"" if raw[:brace].rstrip().endswith(b"{") else b","
    return b'%s%s"%s":%s%s' % (
        raw[:brace],
        comma,
        _SCORE_NAME,
        score_text(score).encode(),
        raw[brace:],
    )


def _take(fields: dict[str, Any], path: str, file_format: Format = Format.JSONL) -> Any:
    """Removes a field, which may be a dotted path, and returns its value."""
    if path in fields:
        return fields.pop(path)

    # TensorFlow Datasets name the nested features of an example with slashes.
    nested = path.replace(".", "/")
    if file_format in (Format.TFRECORD, Format.ARRAY_RECORD) and nested in fields:
        return fields.pop(nested)

    name, dot, rest = path.partition(".")
    inner = fields.get(name)
    return _take(inner, rest) if dot and isinstance(inner, dict) else None


def document_row(
    document: Document, score: float, options: ReadOptions, file_format: Format = Format.JSONL
) -> dict[str, Any]:
    """Returns a document with a JSON line as a row of `DOCUMENT_SCHEMA`.

    An id that is not a string is written as JSON text.

    Args:
        document: The document; its raw bytes are the JSON line.
        score: Score of the document.
        options: How the document was read.
        file_format: Format of the input file.
    """
    fields = _load(document.raw or b"{}")
    _take(fields, options.text_field, file_format)
    identifier = _take(fields, options.id_field, file_format)
    source = _take(fields, options.source_field, file_format)
    fields.pop(SCORE_FIELD, None)

    if identifier is not None and not isinstance(identifier, str):
        identifier = _dump(identifier)
    return {
        "id": identifier,
        "text": document.text,
        "source": None if source is None else document.source,
        "metadata": _dump(fields) if fields else None,
        SCORE_FIELD: score,
    }


def write_document(
    writer: Writer,
    written: str,
    document: Document,
    file_format: Format,
    score: float,
    options: ReadOptions,
) -> None:
    """Writes a document that was not a row of a table.

    Args:
        writer: Writer of the output file.
        written: Format of the output file.
        document: The document.
        file_format: Format of the input file.
        score: Score of the document.
        options: How the document was read.
    """
    kind = written.partition(".")[0]
    if kind == "tfrecord" and document.raw is not None:
        writer.write_record(with_float(document.raw, SCORE_FIELD, score))
    elif kind == "warc" and document.raw is not None:
        writer.write_record(with_field(document.raw, SCORE_HEADER, score_text(score)))
    else:
        line = json_line(document, file_format, options)
        if kind == "parquet":
            writer.write_row(
                document_row(dataclasses.replace(document, raw=line), score, options, file_format)
            )
        else:
            writer.write_record(scored_line(line, score))


def _mapped(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Returns a type with `leaf` applied to the innermost types of lists, structs and maps."""
    if pa.types.is_dictionary(kind):
        return _mapped(kind.value_type, leaf)
    if pa.types.is_map(kind):
        return pa.map_(_mapped(kind.key_type, leaf), _mapped(kind.item_type, leaf))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_mapped(field.type, leaf)) for field in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(_mapped(kind.value_type, leaf))
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_mapped(kind.value_type, leaf))
    return leaf(kind)


def _without_zone(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _printed(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_date(kind):
        return pa.string()
    return pa.int64() if pa.types.is_duration(kind) else kind


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    return pa.large_binary() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else kind


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
    for leaf in (_without_zone, _printed):
        json_type = _mapped(column.type, leaf)
        if json_type != column.type:
            column = column.cast(json_type)

    # Strings that are not valid UTF-8 are read as bytes, and their bad bytes escaped.
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [
            _decoded(value) for value in column.cast(_mapped(column.type, _as_bytes)).to_pylist()
        ]
    return values


def _json_value(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def table_lines(table: pa.Table, scores_N: np.ndarray) -> Iterator[bytes]:
    """Yields the rows of a table as JSONL lines with their scores."""
    names = table.schema.names
    columns = [_plain_values(table.column(index).combine_chunks()) for index in range(len(names))]
    for *values, score in zip(*columns, scores_N, strict=True):
        row = dict(zip(names, values, strict=True))
        row.pop(SCORE_FIELD, None)
        yield scored_line(orjson.dumps(row, default=_json_value), float(score))


def scored_table(table: pa.Table, scores_N: np.ndarray) -> pa.Table:
    """Returns a table with a column of scores added at the end."""
    table = table.select(
        [index for index, name in enumerate(table.schema.names) if name != SCORE_FIELD]
    )
    # The schema's metadata describes the input file (row numbers, digests), not the kept rows.
    return table.append_column(
        pa.field(SCORE_FIELD, pa.float32(), nullable=False), pa.array(scores_N, pa.float32())
    ).replace_schema_metadata(None)


class Writer(Protocol):
    """Writes one output file; each format accepts some of records, rows and tables."""

    def write_record(self, data: bytes) -> None:
        """Adds a record's own bytes: a line, an example, a WARC record."""

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of `DOCUMENT_SCHEMA`."""

    def write_table(self, table: pa.Table) -> None:
        """Adds the rows of a table."""

    def close(self) -> None:
        """Completes the file, which stays open."""


class RecordWriter:
    """Writes records one after another, plain or compressed.

    Args:
        file: Binary file to write to; it stays open.
        compression: Compression of the file.
        frame: Returns the bytes that represent a record in the file.
        by_record: Whether each record is a gzip member, zstd frame or bzip2 stream of its own.
    """

    def __init__(
        self,
        file: BinaryIO,
        compression: Compression,
        frame: Callable[[bytes], bytes],
        by_record: bool = False,
    ):
        self._stack = contextlib.ExitStack()
        self._out: Any = file
        self._frame = frame
        if by_record and compression is not Compression.NONE:
            pack = _PACK[compression]
            self._frame = lambda data: pack(frame(data))
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

    def write_record(self, data: bytes) -> None:
        """Adds a record."""
        self._out.write(self._frame(data))

    def write_row(self, row: dict[str, Any]) -> None:
        """Raises a TypeError: rows have to become lines first."""
        raise TypeError("this file takes records")

    def write_table(self, table: pa.Table) -> None:
        """Raises a TypeError: tables have to become lines first."""
        raise TypeError("this file takes records")

    def close(self) -> None:
        """Completes the compressed stream."""
        self._stack.close()


_PACK: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: lambda data: gzip.compress(data, _GZIP_LEVEL, mtime=0),
    Compression.ZSTD: lambda data: zstandard.ZstdCompressor(
        level=_ZSTD_LEVEL, write_checksum=True
    ).compress(data),
    Compression.BZIP2: bz2.compress,
}


def _line(data: bytes) -> bytes:
    return data + b"\n"


def _warc_record(data: bytes) -> bytes:
    return data + b"\r\n\r\n"


class TableWriter:
    """Writes Parquet, in row groups of bounded size."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._tables: list[pa.Table] = []
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write_record(self, data: bytes) -> None:
        """Raises a TypeError: records have to become rows first."""
        raise TypeError("a Parquet file takes rows")

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of `DOCUMENT_SCHEMA`."""
        self._rows.append(row)
        self._add_bytes(len(row["text"]) + len(row["metadata"] or ""))

    def write_table(self, table: pa.Table) -> None:
        """Adds the rows of a table; all tables of a file have one schema."""
        self._tables.append(table)
        self._add_bytes(table.nbytes)

    def _add_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= ROW_GROUP_BYTES:
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
            self._writer.close()


def open_writer(file: BinaryIO, written: str) -> Writer:
    """Returns a writer for a format.

    Args:
        file: Binary file to write to; it stays open.
        written: Format from `output_format`.
    """
    if written in ("parquet", "scores"):
        return TableWriter(file)
    if written == "attributes":
        return RecordWriter(file, Compression.GZIP, _line)
    kind, _, suffix = written.partition(".")
    frame = {"jsonl": _line, "tfrecord": framed, "warc": _warc_record}[kind]
    return RecordWriter(file, _COMPRESSION_OF[suffix], frame, by_record=kind == "warc")
