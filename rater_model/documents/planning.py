"""Planning: cuts a file into splits."""

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

    Plain JSONL is cut at byte offsets, Parquet between row groups, ArrayRecord on this machine by
    records, JSONL and WARC in gzip or zstd between members or frames where there are many. Any
    other file is one split. A file that cannot be planned is one split too, and reading that says
    what is wrong.

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


# The formats whose compressed files are cut at members, each with what the first member of a split
# must be like.
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
            whole,
            start=start,
            end=end if end < total else None,
            size=whole.size * (end - start) // total,
        )
        for start, end in itertools.pairwise(cuts)
    ] or [whole]
