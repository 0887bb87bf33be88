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

import dataclasses
from collections.abc import Iterator

from datarater.rater_model.documents.formats import format_named, sniff_file
from datarater.rater_model.documents.records import (
    DEFAULT_ZSTD_WINDOW_BYTES,
    UNKNOWN_FORMAT,
    Compression,
    FileInfo,
    ReadOptions,
    Record,
    Split,
)


def sniff(path: str) -> tuple[str, Compression]:
    """Returns the name of a file's format and its compression, by its first bytes.

    Args:
        path: Local path or URL.

    Raises:
        OSError: if the file cannot be read.
    """
    file_format, compression, _ = sniff_file(path)
    return file_format.name, compression


def recognized(split: Split) -> Split:
    """Returns a split with the format and compression of its file, which may have been unknown.

    Raises:
        OSError: if the file cannot be read.
    """
    if split.format != UNKNOWN_FORMAT:
        return split
    file_format, compression = sniff(split.path)
    return dataclasses.replace(split, format=file_format, compression=compression)


def plan_file(info: FileInfo, options: ReadOptions, target_bytes: int) -> list[Split]:
    """Cuts a file into splits of about equal size.

    Plain JSONL is cut at byte offsets, Parquet between row groups, local ArrayRecord files between
    records, and JSONL and WARC in gzip or zstd between members or frames if there are many. Any
    other file is one split. So is a file that cannot be planned, and reading it reports the fault.

    Args:
        info: File to cut.
        options: Options that the file will be read with.
        target_bytes: Stored bytes that a split should have; a row group is never cut.

    Returns:
        At least one split, in order, covering the file; none has an ordinal yet.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if `target_bytes` is not above 0.
    """
    if target_bytes < 1:
        raise ValueError(f"target_bytes must be above 0, not {target_bytes}")
    file_format, compression, head = sniff_file(info.path)
    whole = Split(info.path, file_format.name, compression, size=info.size)
    return file_format.plan(whole, head, options, target_bytes)


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
    return format_named(split.format).read(split, options)


def read_file(path: str, options: ReadOptions | None = None) -> Iterator[Record]:
    """Reads all records of a file; see `read_split`.

    Args:
        path: Local path or URL.
        options: Options to read with; if None, the defaults of the commands.

    Raises:
        OSError: if the file cannot be read.
    """
    if options is None:
        options = ReadOptions(max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES)
    return read_split(Split(path, *sniff(path)), options)
