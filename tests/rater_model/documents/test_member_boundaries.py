"""Splits at gzip members and zstd frames give every record once, in order, wherever they cut."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datarater.rater_model.documents import member_boundaries
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.member_boundaries import (
    FalseBoundaryError,
    find_boundaries,
)
from datarater.rater_model.documents.reading import plan_file, read_file, read_split
from datarater.rater_model.documents.records import (
    VIRTUAL_BYTES,
    BadRecord,
    Compression,
    Document,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from tests.support.corpora import make_records
from tests.support.file_formats import wet_of

OPTIONS = ReadOptions(max_record_bytes=500)
SUFFIXES = {Compression.GZIP: ".jsonl.gz", Compression.ZSTD: ".jsonl.zst"}
BOTH = pytest.mark.parametrize("compression", list(SUFFIXES))


def member(content: bytes, compression: Compression, level: int = 6) -> bytes:
    if compression is Compression.GZIP:
        return gzip.compress(content, level, mtime=0)
    if level == 0:
        return raw_frame(content)
    # As from a pipe or from a file: without or with its size in the header.
    compressor = zstandard.ZstdCompressor(
        level, write_content_size=level > 3, write_checksum=level % 2 == 0
    )
    return compressor.compress(content)


def raw_frame(content: bytes) -> bytes:
    """Returns a frame of raw blocks, which contain the bytes unchanged (RFC 8878, 3.1.1)."""
    blocks = [content[start : start + 2**17] for start in range(0, len(content), 2**17)] or [b""]
    out = b"\x28\xb5\x2f\xfd\x00\x60"  # no size, no checksum, a window of 4 MiB
    for number, block in enumerate(blocks, 1):
        out += (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") + block
    return out


def splits_of(path: Path, target: int) -> list[Split]:
    (info,) = list_files([str(path)])
    return plan_file(info, OPTIONS, target)


def read(splits: Sequence[Split]) -> list[Record]:
    return [record for split in splits for record in read_split(split, OPTIONS)]


def content_of(record: Record) -> tuple[object, ...]:
    """Returns a record without its position."""
    if isinstance(record, Document):
        return record.key, record.text, record.source, record.size, record.raw
    return record.reason, record.detail, record.excerpt


def assert_same_records(splits: Sequence[Split], path: Path) -> None:
    found = read(splits)
    assert [content_of(record) for record in found] == [
        content_of(record) for record in read_file(str(path), OPTIONS)
    ]
    positions = [record.position for record in found]
    assert positions == sorted(set(positions))
    for split in splits:
        for record in read_split(split, OPTIONS):
            # `tail -c +STORED | zcat` begins at the split, and the record at the rest of its
            # position.
            assert split.start <= record.position
            assert split.end is None or record.position < split.end


def unpacked(data: bytes, compression: Compression) -> bytes:
    if compression is Compression.GZIP:
        return gzip.decompress(data)
    with zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(data), read_across_frames=True
    ) as reader:
        return reader.read()


EMBEDDED = [
    gzip.compress(b"payload", mtime=0),
    gzip.compress(b"", mtime=0),
    zstandard.compress(b"payload"),
    b"\x1f\x8b\x08\x00",
    b"\x28\xb5\x2f\xfd",
]
LINES = st.sampled_from(
    [
        b'{"id": 1, "text": "some words"}',
        b'{"text": "\xc3\xa9"}\r',
        b"",
        b"no json",
        b"x" * 600,
        b'{"text": "' + b"long " * 60 + b'"}',
        *EMBEDDED,
    ]
)


@BOTH
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, max_size=30),
    ends_in_newline=st.booleans(),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    levels=st.lists(st.sampled_from([0, 1, 6]), min_size=13, max_size=13),
    target=st.integers(20, 400),
)
def test_splits_at_members_give_the_records_of_the_whole(
    tmp_path: Path,
    compression: Compression,
    lines: list[bytes],
    ends_in_newline: bool,
    cuts: list[int],
    levels: list[int],
    target: int,
) -> None:
    content = b"\n".join(lines) + b"\n" * ends_in_newline
    bounds = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    parts = [content[start:end] for start, end in itertools.pairwise(bounds)]
    packed = [member(part, compression, level) for part, level in zip(parts, levels, strict=False)]
    path = tmp_path / f"a{SUFFIXES[compression]}"
    path.write_bytes(b"".join(packed))
    splits = splits_of(path, target)
    begins = {sum(map(len, packed[:index])) for index in range(len(packed))}
    assert all(
        split.start % VIRTUAL_BYTES == 0 and split.start // VIRTUAL_BYTES in begins
        for split in splits
    )
    assert_same_records(splits, path)


def write_members(
    path: Path, compression: Compression, lines_each: int = 20, count: int = 100
) -> None:
    rng = random.Random(0)
    lines = [
        json.dumps({"id": number, "text": f"{rng.getrandbits(8 * rng.randint(1, 150)):x}"}).encode()
        + b"\n"
        for number in range(lines_each * count)
    ]
    path.write_bytes(
        b"".join(
            member(b"".join(lines[start : start + lines_each]), compression)
            for start in range(0, len(lines), lines_each)
        )
    )


@BOTH
@pytest.mark.parametrize("target", [3000, 20_000, 100_000])
def test_parts_are_about_equal_and_positions_lead_to_their_records(
    tmp_path: Path, compression: Compression, target: int
) -> None:
    path = tmp_path / f"a{SUFFIXES[compression]}"
    write_members(path, compression)
    data = path.read_bytes()
    splits = splits_of(path, target)
    assert len(splits) > len(data) / target * 0.6
    assert max(split.size for split in splits) < 2.5 * target
    assert sum(split.size for split in splits) == len(data)
    assert_same_records(splits, path)
    for split in splits[:: max(1, len(splits) // 5)]:
        stored = split.start // VIRTUAL_BYTES
        text = unpacked(data[stored:], compression)
        for record in read_split(split, OPTIONS):
            assert isinstance(record, Document)
            assert record.raw is not None
            assert text[record.position - stored * VIRTUAL_BYTES :].startswith(record.raw + b"\n")


@BOTH
def test_whole_files_inside_of_blocks_are_no_boundaries(
    tmp_path: Path, compression: Compression
) -> None:
    """Returns an archive with stored files: each consists of members that are not the archive's."""
    inner = member(b'{"text": "within"}\n' * 3, compression) * 300
    rng = random.Random(0)
    parts = []
    for number in range(30):
        noise = rng.randbytes(30_000).replace(b"\n", b"")
        parts.append(b'{"text": "%d"}\n' % number + noise + inner + b"\n")
    packed = [member(part, compression, level=0) for part in parts]
    path = tmp_path / f"a{SUFFIXES[compression]}"
    path.write_bytes(b"".join(packed))
    begins = {sum(map(len, packed[:index])) for index in range(len(packed))}
    whole = Split(str(path), "jsonl", compression, size=path.stat().st_size)
    boundaries = find_boundaries(whole.path, whole.size, compression, 60_000, window_bytes=10_000)
    assert len(boundaries) > 9
    assert begins.issuperset(boundaries)
    assert_same_records(whole.cut_at(boundaries, virtual=True), path)


@BOTH
def test_a_planned_boundary_that_is_none_stops_the_run(
    tmp_path: Path, compression: Compression
) -> None:
    inner = member(b'\n{"text": "within"}\n', compression, 1)
    outer = member(b'{"text": "a"}\n' + inner + b'\n{"text": "b"}\n', compression, 0)
    path = tmp_path / f"a{SUFFIXES[compression]}"
    path.write_bytes(outer + member(b'{"text": "c"}\n', compression))
    false = outer.index(inner) * VIRTUAL_BYTES
    with pytest.raises(
        FalseBoundaryError, match=f"at byte {false // VIRTUAL_BYTES} lies within another"
    ):
        list(read_split(Split(str(path), "jsonl", compression, 0, false, virtual=True), OPTIONS))


@BOTH
def test_damage_costs_the_rest_of_its_split_and_no_other(
    tmp_path: Path, compression: Compression
) -> None:
    path = tmp_path / f"a{SUFFIXES[compression]}"
    write_members(path, compression)
    data = bytearray(path.read_bytes())
    splits = splits_of(path, 20_000)
    sound = [list(read_split(split, OPTIONS)) for split in splits]
    middle = splits[2].start // VIRTUAL_BYTES + splits[2].size // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    found = [list(read_split(split, OPTIONS)) for split in splits]
    assert found[:2] + found[3:] == sound[:2] + sound[3:]
    *before, bad = found[2]
    intact = len(before) - 20  # deflate notices damage late: the lines of that member may be noise
    assert before[:intact] == sound[2][:intact]
    assert isinstance(bad, BadRecord)
    assert bad.reason is Reason.STREAM_CORRUPT
    # A plan made after the damage misses nothing that a reading of the whole file finds.
    whole = [
        content_of(record)
        for record in read_file(str(path), OPTIONS)
        if isinstance(record, Document)
    ]
    assert [content_of(record) for record in read(splits_of(path, 20_000))][: len(whole)] == whole


@BOTH
def test_a_last_member_cut_short_or_followed_by_garbage_is_told_once(
    tmp_path: Path, compression: Compression
) -> None:
    path = tmp_path / f"a{SUFFIXES[compression]}"
    write_members(path, compression)
    sound = path.read_bytes()
    for data, reason in (
        (sound[:-20], Reason.STREAM_TRUNCATED),
        (sound + b"garbage", Reason.TRAILING_GARBAGE),
    ):
        path.write_bytes(data)
        splits = splits_of(path, 20_000)
        bad = [record for record in read(splits) if isinstance(record, BadRecord)]
        assert [record.reason for record in bad] == [reason]
        assert_same_records(splits, path)


def test_one_long_member_and_members_far_apart_are_left_to_strides(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(20_000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines))
    assert len(splits_of(path, 5000)) == 1
    path.write_bytes(
        gzip.compress(lines[:1000]) + gzip.compress(lines) + gzip.compress(lines[:1000])
    )
    assert len(splits_of(path, 2000)) == 1


def test_padding_and_skippable_frames_between_members_are_passed(tmp_path: Path) -> None:
    texts = [b'{"text": "%d %d"}\n' % (number, number**9) for number in range(500)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        b"".join(gzip.compress(text) + bytes(number % 40) for number, text in enumerate(texts))
    )
    assert len(splits_of(path, 2000)) > 5
    assert_same_records(splits_of(path, 2000), path)
    path = tmp_path / "a.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0size"  # as pzstd writes them
    path.write_bytes(b"".join(skippable + zstandard.compress(text) for text in texts))
    assert len(splits_of(path, 2000)) > 5
    assert_same_records(splits_of(path, 2000), path)


def test_crawls_are_cut_at_records_and_only_there(tmp_path: Path) -> None:
    records = make_records(200, 1)
    header, *rest = wet_of(records).split(b"WARC/1.0\r\n")[1:]
    stored = [gzip.compress(b"WARC/1.0\r\n" + record) for record in (header, *rest)]
    path = tmp_path / "a.warc.wet.gz"
    path.write_bytes(b"".join(stored))
    splits = splits_of(path, 3000)
    assert len(splits) > 10
    assert len(read(splits)) == 200
    assert_same_records(splits, path)
    # Packed again in blocks of any bytes, as by bgzip: some begin like a record, but none is one.
    data = wet_of(records)
    path.write_bytes(
        b"".join(gzip.compress(data[start : start + 400]) for start in range(0, len(data), 400))
    )
    assert len(splits_of(path, 3000)) == 1


def test_a_zstd_frame_at_the_end_of_a_payload_is_no_boundary(tmp_path: Path) -> None:
    """Its bytes lie in a raw block, and unpack to the end of the file."""
    path = tmp_path / "a.jsonl.zst"
    first = zstandard.compress(b'{"text": "one"}\n')
    payload = random.Random(0).randbytes(400) + zstandard.compress(b"payload")
    path.write_bytes(first + zstandard.compress(payload))
    assert path.read_bytes().endswith(zstandard.compress(b"payload"))
    assert [split.start for split in splits_of(path, path.stat().st_size // 2)] == [0]


def test_frames_of_every_kind_are_passed_over(tmp_path: Path) -> None:
    """With and without checksums, sizes and windows; skippable, empty and repeated bytes."""
    rng = random.Random(1)
    contents = [b"", b"a" * 300_000, rng.randbytes(200_000), b"text " * 50]
    frames = [
        zstandard.ZstdCompressor(level, write_checksum=checksum, write_content_size=sized).compress(
            content
        )
        for content in contents
        for level in (1, 19)
        for checksum in (True, False)
        for sized in (True, False)
    ]
    frames.insert(3, (0x184D2A53).to_bytes(4, "little") + (7).to_bytes(4, "little") + b"skipped")
    path = tmp_path / "a.zst"
    path.write_bytes(b"".join(frames))
    size = path.stat().st_size
    ends = list(itertools.accumulate(map(len, frames)))
    for end in ends:
        stored = member_boundaries._Stored(str(path), size, 0, 2**20)
        assert member_boundaries._frames_lead_to(stored, 0, end)
        stored = member_boundaries._Stored(str(path), size, 0, 2**20)
        assert end + 1 in ends or not member_boundaries._frames_lead_to(stored, 0, end + 1)
