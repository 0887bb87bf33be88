"""Reading documents: the one door to files of every format, on every file system.

    for info in list_files(["corpus/*.jsonl.gz"]):
        for split in plan_file(info, options, target_bytes=64 * 2**20):
            for record in read_split(split, options):
                ...

Bad content never raises and never vanishes: what cannot be read as a document comes as a `BadRecord` in its place.
An `OSError` means that a file is not to be had (it does not exist, may not be read, a disk or connection fails), and
that trying again may help.

What stands in a file is told by its content, not by its name: a plain file under a `.gz` name, which servers that
unpack on the way leave behind, is read as plain. Names decide in three cases: a file named `.parquet` is never taken
for lines; what is named `.gz`, `.zst` or `.bz2` and is neither that nor text counts as a damaged stream; and a file
named `.txt`, or `.txt.gz` and so on, that does not begin like a JSON object is one plain text.
"""

import bz2
import contextlib
import dataclasses
import io
import itertools
import posixpath
from collections.abc import Iterator, Sequence

import orjson

from rater_model import streams
from rater_model.array_record import count_records, is_array_record, read_array_record
from rater_model.bzip2 import is_bzip2
from rater_model.files import NoInputError, file_info, list_files, local_path, open_file, read_head
from rater_model.jsonl import BYTE_ORDER_MARK, foreign_format, read_jsonl
from rater_model.members import find_boundaries
from rater_model.parquet import (
    PARQUET_MAGIC,
    BrokenParquetError,
    ParquetReader,
    check_text_column,
    read_parquet,
    read_parquet_table,
)
from rater_model.plain_text import as_line, read_plain_text
from rater_model.records import (
    EXCERPT_BYTES,
    VIRTUAL_BYTES,
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
from rater_model.stream_errors import StreamError
from rater_model.tfrecord import example_line, is_tfrecord, read_tfrecord
from rater_model.warc import WARC_MAGIC, is_whole_record, read_warc, warc_line

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

_SNIFF_BYTES = 4096
_BZIP2_BLOCK_BYTES = 2**20


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
    compression = _compression_of(head)
    unpacked = _unpacked_head(path, head, compression)
    if unpacked.startswith(WARC_MAGIC):
        return Format.WARC, compression
    if is_tfrecord(unpacked):
        return Format.TFRECORD, compression
    if is_array_record(head):
        return Format.ARRAY_RECORD, Compression.NONE
    stem = posixpath.splitext(path)[0] if suffix in _SUFFIXES else path
    if posixpath.splitext(stem)[1].lower() in (".txt", ".text") and foreign_format(unpacked) is None:
        named = _SUFFIXES.get(suffix, Compression.NONE)
        # Noise under a compressed name is a damaged stream; a text under one was unpacked on the way.
        if compression is Compression.NONE and named is not Compression.NONE and not _is_utf8(head):
            return Format.TEXT, named
        if not unpacked.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{"):
            return Format.TEXT, compression
    if compression is not Compression.NONE:
        return Format.JSONL, compression
    if not _is_text(head) and foreign_format(head) is None:
        # A stream whose beginning is damaged, or missing, is one bad record and not one for every line of noise.
        return Format.JSONL, _SUFFIXES.get(suffix, Compression.NONE)
    return Format.JSONL, Compression.NONE


_SUFFIXES = {
    ".gz": Compression.GZIP,
    ".gzip": Compression.GZIP,
    ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
    ".bz2": Compression.BZIP2,
    ".bzip2": Compression.BZIP2,
}


def _compression_of(head: bytes) -> Compression:
    if head.startswith(streams.GZIP_MAGIC):
        return Compression.GZIP
    if streams.is_zstd(head):
        return Compression.ZSTD
    return Compression.BZIP2 if is_bzip2(head) else Compression.NONE


def _unpacked_head(path: str, head: bytes, compression: Compression) -> bytes:
    """The first unpacked bytes, or none where the beginning is damaged."""
    if compression is Compression.NONE:
        return head
    if compression is Compression.BZIP2:
        with contextlib.suppress(OSError, ValueError, EOFError):
            # Nothing comes out of bzip2 before a whole block, of 900 KB unpacked at most, is in.
            return bz2.BZ2Decompressor().decompress(read_head(path, _BZIP2_BLOCK_BYTES), _SNIFF_BYTES)
        return b""
    unpacked = b""
    # A member may be short, or hold nothing. A zstd block may be longer than the head.
    with (
        contextlib.suppress(StreamError),
        io.BytesIO(head) if compression is Compression.GZIP else open_file(path) as file,
    ):
        for chunk in streams.decompressed_chunks(file, compression):
            unpacked += chunk[: _SNIFF_BYTES - len(unpacked)]
            if len(unpacked) == _SNIFF_BYTES:
                break
    return unpacked


def _is_utf8(head: bytes) -> bool:
    try:
        head[:-4].decode()  # the last character may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 8
    return True


def _is_text(head: bytes) -> bool:
    return head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"[", b'"')


def plan_file(info: FileInfo, options: ReadOptions, target_bytes: int) -> list[Split]:
    """Cuts a file into splits of about equal size.

    Plain JSONL is cut at byte offsets, Parquet between row groups, ArrayRecord on this machine by records, JSONL and
    WARC in gzip or zstd between members or frames where there are many. Any other file is one split. A file that
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
    if file_format is Format.ARRAY_RECORD:
        return _plan_array_record(whole, target_bytes)
    if file_format in _MAY_BEGIN and compression in (Compression.GZIP, Compression.ZSTD):
        may_begin = _MAY_BEGIN[file_format]
        return _cut(whole, find_boundaries(info.path, info.size, compression, target_bytes, may_begin), virtual=True)
    if file_format is not Format.JSONL or compression is not Compression.NONE or foreign_format(head) is not None:
        return [whole]
    count = max(1, -(-info.size // target_bytes))
    return _cut(whole, [info.size * index // count for index in range(1, count)])


def _cut(whole: Split, offsets: Sequence[int], virtual: bool = False) -> list[Split]:
    """Cuts a file at stored offsets, which are positions of its records too unless they are to be virtual."""
    if not offsets:
        return [whole]
    unit = VIRTUAL_BYTES if virtual else 1
    return [
        # The last split is open, so that it holds whatever the store says too little of.
        dataclasses.replace(
            whole,
            start=start * unit,
            end=end * unit if end < whole.size else None,
            size=end - start,
            virtual=virtual,
        )
        for start, end in itertools.pairwise([0, *offsets, whole.size])
    ]


# The formats whose compressed files are cut at members, each with what the first member of a split must be like.
_MAY_BEGIN = {Format.JSONL: None, Format.WARC: is_whole_record}


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


def _plan_array_record(whole: Split, target_bytes: int) -> list[Split]:
    count = -(-whole.size // target_bytes)
    if count < 2 or local_path(whole.path) is None:
        return [whole]
    total = count_records(whole.path)
    cuts = sorted({total * index // count for index in range(count + 1)})
    return [
        dataclasses.replace(
            whole, start=start, end=end if end < total else None, size=whole.size * (end - start) // total
        )
        for start, end in itertools.pairwise(cuts)
    ] or [whole]


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
    """A document as the JSON line of all that its record holds; its own bytes where it was one.

    Args:
        document: as it was read.
        file_format: of its file; not Parquet, whose rows are read as tables (`read_parquet_table`).
        options: as it was read with.
    """
    if document.raw is None:
        return as_line(options, orjson.loads(document.key), document.text, {})
    if file_format in (Format.TFRECORD, Format.ARRAY_RECORD):
        return example_line(document.raw)
    return warc_line(document.raw, document.text, options) if file_format is Format.WARC else document.raw


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
