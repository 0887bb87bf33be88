"""Writing: kept documents, as they came, with their score added.

| from, to | what a kept record becomes |
|---|---|
| JSONL, JSONL | the line's own bytes with `,"datarater_score":S` before its last brace |
| JSONL, Parquet | a row of `id`, `text`, `source`, `metadata` (JSON of all other fields), `datarater_score` |
| Parquet, JSONL | a JSON object of the row: bytes as base64, dates and times (in UTC) as text, maps as pairs |
| Parquet, Parquet | the row itself, and a column `datarater_score` |
| TFRecord, ArrayRecord; TFRecord | the example's own bytes, and a float feature `datarater_score` behind them |
| WARC, WARC | the record's own bytes with a header line `DataRater-Score: S`, a gzip member or zstd frame each |
| any other, JSONL or Parquet | the JSON line of all that the record holds, or the row of that line |

Two more formats are for mixing elsewhere, and hold no text. `attributes` are Dolma's: a line of
`id` and `attributes`, one file for each input file; the lines are those of the kept documents, so
that a selection of all is aligned with its input. `scores` is a Parquet file of `id`, `source`,
`path`, `position`, `tokens` and the score, for which the input is not read again.

By itself the output has the format and the compression of the input, plain text files excepted,
which become JSONL.

A score that is there already is replaced. Scores are written as short text that reads back as the
same float32. The same kept documents give the same bytes whatever the runner or workers.
"""

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
OUTPUT_FORMATS = (
    "same",
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "jsonl.bz2",
    "parquet",
    "attributes",
    "scores",
)
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


def output_format(layout: str, wanted: str) -> str:
    """The format in which documents of one layout are written.

    Args:
        layout: as score files name it: `jsonl/gzip`, `parquet/SCHEMA-DIGEST`.
        wanted: one of `OUTPUT_FORMATS`.
    """
    if wanted != "same":
        return wanted
    kind, _, detail = layout.partition("/")
    if kind == Format.PARQUET:
        return "parquet"
    return _WRITTEN_AS.get(kind, "jsonl") + _SUFFIX_OF[Compression(detail)]


def file_class(layout: str, wanted: str) -> str:
    """Names what can share an output file: splits whose class is the same."""
    if wanted == "scores":
        return wanted
    if wanted == "attributes":
        return f"attributes {layout}"
    kind = layout.partition("/")[0]
    written = output_format(layout, wanted)
    # Only rows written as they are bind a file to one schema.
    return (
        f"{written} {layout}"
        if kind == Format.PARQUET and written == "parquet"
        else f"{written} {kind}"
    )


def layout_for(layout: str, path: str, wanted: str) -> str:
    """The layout of a split's output: attributes stand in one file for each input file."""
    return f"{layout} {path}" if wanted == "attributes" else layout


def id_of_key(key: str) -> Any:
    """The id that a document's key was made of, or the digest that stands for it."""
    return key if key.startswith("sha256:") else _load(key.encode())


def attribute_line(key: str, characters: int, score: float) -> bytes:
    """A line of a Dolma attributes file: the score of the whole text, as a span of characters.

    Example:
        >>> attribute_line('"a"', 12, 0.5)
        b'{"id":"a","attributes":{"datarater__score":[[0,12,0.5]]}}'
    """
    span = f"[[0,{characters},{score_text(score)}]]"
    return f'{{"id":{_dump(id_of_key(key))},"attributes":{{"{ATTRIBUTE}":{span}}}}}'.encode()


def scores_table(rows: pa.Table, path: str) -> pa.Table:
    """Rows of a score file as they stand in a file of scores."""
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
    """The shortest text that reads back as the same float32, and is JSON."""
    return str(np.float32(score))


def _load(raw: bytes) -> Any:
    """Parses JSON, whole numbers of any size exactly."""
    return _at_any_depth(json.loads, raw)


def _dump(value: Any) -> str:
    text: str = _at_any_depth(lambda: json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return text


def _at_any_depth(step: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return step(*arguments)
    except RecursionError:
        # What reads documents goes as deep as 1024 levels; Python's own limit is a little less.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEEP))
        return step(*arguments)


def scored_line(raw: bytes, score: float) -> bytes:
    r"""A JSONL line with its score added; all other bytes untouched.

    Args:
        raw: the line without its `\n`: one JSON object.
        score: the document's score.

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
    nested = path.replace(".", "/")  # as TensorFlow Datasets name the features of an example
    if file_format in (Format.TFRECORD, Format.ARRAY_RECORD) and nested in fields:
        return fields.pop(nested)
    name, dot, rest = path.partition(".")
    inner = fields.get(name)
    return _take(inner, rest) if dot and isinstance(inner, dict) else None


def document_row(
    document: Document, score: float, options: ReadOptions, file_format: Format = Format.JSONL
) -> dict[str, Any]:
    """A document of a JSON line as a row of `DOCUMENT_SCHEMA`; an id or source that is no string as JSON text."""
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
    writer: "Writer",
    written: str,
    document: Document,
    file_format: Format,
    score: float,
    options: ReadOptions,
) -> None:
    """Writes a document that was no row of a table.

    Args:
        writer: of the output file.
        written: its format.
        document: as it was read.
        file_format: of the file that it was read from.
        score: the document's score.
        options: as it was read with.
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
    """A type with `leaf` applied to all that lists, structs and maps are made of in the end."""
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
    """A column's values as JSON can hold them, whatever they are.

    Times go through Arrow's own printing: Python's reach neither its range nor its nanoseconds.
    """
    for leaf in (_without_zone, _printed):
        wanted = _mapped(column.type, leaf)
        if wanted != column.type:
            column = column.cast(wanted)
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
    """The rows of a table as JSONL lines with their scores."""
    names = table.schema.names
    columns = [_plain_values(table.column(index).combine_chunks()) for index in range(len(names))]
    for *values, score in zip(*columns, scores_N, strict=True):
        row = dict(zip(names, values, strict=True))
        row.pop(SCORE_FIELD, None)
        yield scored_line(orjson.dumps(row, default=_json_value), float(score))


def scored_table(table: pa.Table, scores_N: np.ndarray) -> pa.Table:
    """A table with the column of scores at its end."""
    table = table.select(
        [index for index, name in enumerate(table.schema.names) if name != SCORE_FIELD]
    )
    # Metadata of the whole schema speaks of the file it came from (row numbers, digests), not of
    # the rows kept.
    return table.append_column(
        pa.field(SCORE_FIELD, pa.float32(), nullable=False), pa.array(scores_N, pa.float32())
    ).replace_schema_metadata(None)


class Writer(Protocol):
    """Writes one output file. Each format takes what it can: records, rows or tables."""

    def write_record(self, data: bytes) -> None:
        """Adds a record's own bytes: a line, an example, a WARC record."""

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of `DOCUMENT_SCHEMA`."""

    def write_table(self, table: pa.Table) -> None:
        """Adds the rows of a table."""

    def close(self) -> None:
        """Ends the file."""


class RecordWriter:
    """Writes records one after another, plain or compressed.

    Args:
        file: where to write; it stays open.
        compression: what the file is wrapped in.
        frame: a record's bytes as they stand in the file.
        by_record: whether each record is a gzip member, zstd frame or bzip2 stream of its own.
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
            # No time and no name in the header: the same documents give the same bytes.
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
        """Rows become lines first."""
        raise TypeError("this file takes records")

    def write_table(self, table: pa.Table) -> None:
        """Tables become lines first."""
        raise TypeError("this file takes records")

    def close(self) -> None:
        """Ends the compressed stream."""
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
        """Records become rows first."""
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
        """Writes what waits, and the footer."""
        self._flush()
        if self._writer is not None:
            self._writer.close()


def open_writer(file: BinaryIO, written: str) -> Writer:
    """A writer for a format.

    Args:
        file: where to write; it stays open.
        written: as `output_format` names it.
    """
    if written in ("parquet", "scores"):
        return TableWriter(file)
    if written == "attributes":
        return RecordWriter(file, Compression.GZIP, _line)
    kind, _, suffix = written.partition(".")
    frame = {"jsonl": _line, "tfrecord": framed, "warc": _warc_record}[kind]
    return RecordWriter(file, _COMPRESSION_OF[suffix], frame, by_record=kind == "warc")
