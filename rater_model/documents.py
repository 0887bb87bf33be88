"""Reading documents: the one door to files of every format, on every file system.

    for info in list_files(["corpus/*.jsonl.gz"]):
        for split in plan_file(info, options, target_bytes=64 * 2**20):
            for record in read_split(split, options):
                ...

Bad content never raises and never vanishes: what cannot be read as a document comes as a `BadRecord` in its place.
An `OSError` means that a file is not to be had (it does not exist, may not be read, a disk or connection fails), and
that trying again may help.

What stands in a file is told by its content, not by its name: a plain file under a `.gz` name, which servers that
unpack on the way leave behind, is read as plain. Names decide in two cases: a file named `.parquet` is never taken
for lines, and what is named `.gz` or `.zst` and is neither that nor text counts as a damaged stream.
"""

import dataclasses
import itertools
import posixpath
from collections.abc import Iterator

from rater_model import streams
from rater_model.files import NoInputError, file_info, list_files, open_file, read_head
from rater_model.jsonl import BYTE_ORDER_MARK, foreign_format, read_jsonl
from rater_model.parquet import (
    PARQUET_MAGIC,
    BrokenParquetError,
    ParquetReader,
    check_text_column,
    read_parquet,
    read_parquet_table,
)
from rater_model.records import (
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
    "list_files",
    "open_file",
    "plan_file",
    "read_file",
    "read_parquet_table",
    "read_split",
    "sniff",
]

_SNIFF_BYTES = 4096


def sniff(path: str) -> tuple[Format, Compression]:
    """Finds out what stands in a file, by its first bytes.

    Args:
        path: local path or URL.

    Raises:
        OSError: if the file cannot be read.
    """
    return _sniff(path, read_head(path, _SNIFF_BYTES))


def _sniff(path: str, head: bytes) -> tuple[Format, Compression]:
    suffix = posixpath.splitext(path)[1].lower()
    if head[:4] in PARQUET_MAGIC or suffix in (".parquet", ".pq"):
        return Format.PARQUET, Compression.NONE
    if head.startswith(streams.GZIP_MAGIC):
        return Format.JSONL, Compression.GZIP
    if streams.is_zstd(head):
        return Format.JSONL, Compression.ZSTD
    if not _is_text(head) and foreign_format(head) is None:
        # A stream whose beginning is damaged, or missing, is one bad record and not one for every line of noise.
        if suffix in (".gz", ".gzip"):
            return Format.JSONL, Compression.GZIP
        if suffix in (".zst", ".zstd"):
            return Format.JSONL, Compression.ZSTD
    return Format.JSONL, Compression.NONE


def _is_text(head: bytes) -> bool:
    return head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"[", b'"')


def plan_file(info: FileInfo, options: ReadOptions, target_bytes: int) -> list[Split]:
    """Cuts a file into splits of about equal size.

    Plain JSONL is cut at byte offsets, Parquet between row groups; a compressed stream is one split. A file that
    cannot be planned is one split too, and reading that says what is wrong.

    Args:
        info: the file.
        options: how it will be read.
        target_bytes: how many stored bytes a split should have; a row group is never cut.

    Returns:
        At least one split, in order, covering the file; none has an ordinal yet.

    Raises:
        OSError: if the file cannot be read.
    """
    if target_bytes < 1:
        raise ValueError(f"target_bytes must be above 0, not {target_bytes}")
    head = read_head(info.path, _SNIFF_BYTES)
    file_format, compression = _sniff(info.path, head)
    whole = Split(info.path, file_format, compression, size=info.size)
    if file_format is Format.PARQUET:
        return _plan_parquet(whole, options, target_bytes)
    if compression is not Compression.NONE or foreign_format(head) is not None:
        return [whole]
    count = max(1, -(-info.size // target_bytes))
    cuts = [info.size * index // count for index in range(count + 1)]
    return [
        # The last split is open, so that it holds whatever the store says too little of.
        dataclasses.replace(whole, start=start, end=end if end < info.size else None, size=end - start)
        for start, end in itertools.pairwise(cuts)
    ]


def _plan_parquet(whole: Split, options: ReadOptions, target_bytes: int) -> list[Split]:
    try:
        with ParquetReader(whole.path) as reader:
            if check_text_column(reader, options) is not None:
                return [whole]
            sizes = [reader.group_bytes(group) for group in range(reader.metadata.num_row_groups)]
    except BrokenParquetError:
        return [whole]
    total = max(sum(sizes), 1)
    splits: list[Split] = []
    start = size = 0
    for group, group_size in enumerate(sizes):
        size += whole.size * group_size // total
        if size >= target_bytes or group == len(sizes) - 1:
            splits.append(dataclasses.replace(whole, start=start, end=group + 1, size=size))
            start, size = group + 1, 0
    return splits or [whole]


def read_split(split: Split, options: ReadOptions) -> Iterator[Record]:
    """Reads the records of a split.

    The records come in the order of their positions, which differ from each other, and are the same at every reading.
    Memory is bounded by `options.max_record_bytes` for JSONL and by a batch of rows for Parquet. Blank lines are no
    records; a byte order mark at the beginning of a file is dropped.

    Args:
        split: as planned by `plan_file`.
        options: the same as for planning.

    Yields:
        A `Document` for each good record and a `BadRecord` for each bad one. What lies behind damage that cannot be
        passed is one `BadRecord`.

    Raises:
        OSError: if the file cannot be read.
    """
    if split.format is Format.PARQUET:
        return read_parquet(split, options)
    return read_jsonl(split, options)


def read_file(path: str, options: ReadOptions | None = None) -> Iterator[Record]:
    """Reads all records of a file; see `read_split`.

    Args:
        path: local path or URL.
        options: the default options if None.

    Raises:
        OSError: if the file cannot be read.
    """
    file_format, compression = sniff(path)
    return read_split(Split(path, file_format, compression), options or ReadOptions())
