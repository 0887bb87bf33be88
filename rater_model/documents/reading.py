"""Reads documents from files of every format, on every file system.

    for info in list_files(["corpus/*.jsonl.gz"]):
        for split in plan_file(info, options, target_bytes=64 * 2**20):
            for record in read_split(split, options):
                ...

Bad content never raises and never vanishes: a record that cannot be read as a document is yielded
as a `BadRecord`. An `OSError` means that a file is not available (it does not exist, may not be
read, a disk or connection fails) and that trying again may help.

The format of a file follows from its content, not from its name: a plain file with a `.gz` name,
as left by servers that unpack on the way, is read as plain. Names decide in four cases: a
file named `.parquet` is never read as lines; one named `.gz`, `.zst` or `.bz2` that is neither that
nor text is a damaged stream; one named `.txt` (or `.txt.gz` and so on) that does not begin like a
JSON object is one plain text; and one named `.csv` or `.tsv` that is not JSON is reported as such.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from datarater.rater_model.documents.array_record import read_array_record
from datarater.rater_model.documents.files import NoInputError, file_info, list_files, open_file
from datarater.rater_model.documents.jsonl import read_jsonl
from datarater.rater_model.documents.parquet import read_parquet, read_parquet_table
from datarater.rater_model.documents.plain_text import as_line, read_plain_text
from datarater.rater_model.documents.planning import plan_file
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    Document,
    FileInfo,
    Format,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import sniff
from datarater.rater_model.documents.tfrecord import example_line, read_tfrecord
from datarater.rater_model.documents.warc import read_warc, warc_line

__all__ = [
    "EXCERPT_BYTES",
    "BadRecord",
    "Compression",
    "Document",
    "FileInfo",
    "Format",
    "NoInputError",
    "ReadOptions",
    "Reason",
    "Record",
    "Split",
    "file_info",
    "json_line",
    "list_files",
    "open_file",
    "plan_file",
    "read_file",
    "read_parquet_table",
    "read_split",
    "sniff",
]


def read_split(split: Split, options: ReadOptions) -> Iterator[Record]:
    """Reads the records of a split.

    The records come in the order of their positions, which are unique, and are the same at every
    reading. Memory is bounded by `options.max_record_bytes` for JSONL and by a batch of rows for
    Parquet. Blank lines are not records; a byte order mark at the beginning of a file is dropped.

    Args:
        split: Split, as planned by `plan_file`.
        options: Options, the same as for planning.

    Yields:
        A `Document` for each good record and a `BadRecord` for each bad one. Everything after
        damage that cannot be skipped is one `BadRecord`.

    Raises:
        OSError: if the file cannot be read.
    """
    return _READERS[split.format](split, options)


_READERS = {
    Format.JSONL: read_jsonl,
    Format.PARQUET: read_parquet,
    Format.WARC: read_warc,
    Format.TFRECORD: read_tfrecord,
    Format.ARRAY_RECORD: read_array_record,
    Format.TEXT: read_plain_text,
}


def json_line(document: Document, file_format: Format, options: ReadOptions) -> bytes:
    """Returns a document as a JSON line with all fields of its record; its own line if it has one.

    Args:
        document: Document as it was read.
        file_format: Format of its file; not Parquet, whose rows are read as tables
            (`read_parquet_table`).
        options: Options that it was read with.
    """
    if document.raw is None:
        return as_line(options, orjson.loads(document.key), document.text, {})
    if file_format in (Format.TFRECORD, Format.ARRAY_RECORD):
        return example_line(document.raw)
    return (
        warc_line(document.raw, document.text, options)
        if file_format is Format.WARC
        else document.raw
    )


def read_file(path: str, options: ReadOptions | None = None) -> Iterator[Record]:
    """Reads all records of a file; see `read_split`.

    Args:
        path: Local path or URL.
        options: Options to read with; the defaults if None.

    Raises:
        OSError: if the file cannot be read.
    """
    file_format, compression = sniff(path)
    return read_split(Split(path, file_format, compression), options or ReadOptions())
