"""Plans how to cut a file into splits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from datarater.rater_model.documents.array_record import count_records
from datarater.rater_model.documents.files import local_path, read_head
from datarater.rater_model.documents.member_boundaries import find_boundaries
from datarater.rater_model.documents.parquet import (
    BrokenParquetError,
    ParquetReader,
    check_text_column,
)
from datarater.rater_model.documents.records import (
    VIRTUAL_BYTES,
    Compression,
    FileInfo,
    Format,
    ReadOptions,
    Split,
)
from datarater.rater_model.documents.sniffing import SNIFF_BYTES, sniff_head
from datarater.rater_model.documents.warc import is_whole_record


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
    head = read_head(info.path, SNIFF_BYTES)
    file_format, compression, foreign = sniff_head(info.path, head)
    whole = Split(info.path, file_format, compression, size=info.size)

    if foreign is not None:
        return [whole]
    if file_format is Format.PARQUET:
        return _plan_parquet(whole, options, target_bytes)
    if file_format is Format.ARRAY_RECORD:
        return _plan_array_record(whole, target_bytes)
    if file_format in _MAY_BEGIN and compression in (Compression.GZIP, Compression.ZSTD):
        may_begin = _MAY_BEGIN[file_format]
        return _cut(
            whole,
            find_boundaries(info.path, info.size, compression, target_bytes, may_begin),
            virtual=True,
        )
    if file_format is not Format.JSONL or compression is not Compression.NONE:
        return [whole]

    count = max(1, -(-info.size // target_bytes))
    return _cut(whole, [info.size * index // count for index in range(1, count)])


def _cut(whole: Split, offsets: Sequence[int], virtual: bool = False) -> list[Split]:
    """Cuts a file at stored offsets.

    Args:
        whole: Split that covers the file.
        offsets: Stored offsets to cut at, increasing, 0 left out.
        virtual: Whether the splits get virtual offsets; stored offsets otherwise.
    """
    if not offsets:
        return [whole]
    unit = VIRTUAL_BYTES if virtual else 1
    return [
        # The last split has no end: the store may report too small a size.
        dataclasses.replace(
            whole,
            start=start * unit,
            end=end * unit if end < whole.size else None,
            size=end - start,
            virtual=virtual,
        )
        for start, end in itertools.pairwise([0, *offsets, whole.size])
    ]


# The formats whose compressed files are cut at members, each with a check of the first member of a
# split.
_MAY_BEGIN = {Format.JSONL: None, Format.WARC: is_whole_record}


def _plan_parquet(whole: Split, options: ReadOptions, target_bytes: int) -> list[Split]:
    try:
        with ParquetReader(whole.path) as reader:
            if check_text_column(reader, options) is not None:
                return [whole]
            sizes = [reader.group_bytes(group) for group in range(reader.metadata.num_row_groups)]
    except BrokenParquetError:
        return [whole]

    # Row groups are collected until a split has the target's share of the stored bytes.
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
            whole,
            start=start,
            end=end if end < total else None,
            size=whole.size * (end - start) // total,
        )
        for start, end in itertools.pairwise(cuts)
    ] or [whole]
