"""What the chunks of ArrayRecord files unpack to is known before the library unpacks them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from datarater.rater_model.documents.array_record import max_chunk_bytes
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import BadRecord, Document, ReadOptions, Reason
from datarater.rater_model.documents.riegeli import ChunkIndex, UnsafeFileError
from tests.support.file_formats import tfrecord_of

array_record_module = pytest.importorskip("array_record.python.array_record_module")

BLOCK, BLOCK_HEADER = 2**16, 24


def write(path: Path, records: Sequence[bytes], options: str) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


@contextmanager
def chunks_of(path: Path, max_bytes: int = 2**20) -> Iterator[ChunkIndex | None]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield ChunkIndex.of(file, max_bytes)
    finally:
        os.close(file)


@pytest.mark.parametrize(
    "options",
    ["", ",uncompressed", ",transpose:true", ",zstd:9,window_log:20", ",brotli", ",snappy"],
)
@pytest.mark.parametrize("group", [1, 2, 7])
def test_the_size_of_every_chunk_is_known(tmp_path: Path, group: int, options: str) -> None:
    rng = random.Random(group)
    # Headers of chunks lie anywhere, also across the headers of blocks.
    records = [rng.randbytes(rng.choice([0, 10, 40_000, 65_460])) for _ in range(61)]
    path = tmp_path / "a.array_record"
    write(path, records, f"group_size:{group}{options}")
    parts = [records[first : first + group] for first in range(0, len(records), group)]
    with chunks_of(path) as chunks:
        assert chunks is not None
        assert chunks.records_per_chunk == group
        found = [chunks.memory(number) for number in range(len(parts) + 1)]
        assert found == [8 * len(part) + sum(map(len, part)) for part in parts] + [0]

        # As much as fits is read at a time, and nothing is skipped.
        start, sizes = 0, []
        while start < len(records):
            stop = chunks.fitting(start, min(start + 20, len(records)), 10**6)
            numbers = range(start // group, -(-stop // group))
            sizes.append(sum(found[number] for number in numbers))
            assert start < stop
            start = stop
        assert max(sizes) <= 10**6


def test_a_chunk_that_is_too_large_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.array_record"
    example = tfrecord_of([{"text": "a text"}])[12:-4]
    large = b"a" * max_chunk_bytes(1)
    records = [example, example, large, example, example, example]
    write(path, records, "group_size:2,zstd")
    options = ReadOptions(max_record_bytes=100)
    first, second, lost, fifth, sixth = read_file(str(path), options)
    assert isinstance(lost, BadRecord)
    assert (lost.reason, lost.position, lost.records) == (Reason.RECORD_TOO_LARGE, 2, 2)
    assert "write the file with a smaller group_size" in lost.detail
    documents = [first, second, fifth, sixth]
    assert all(isinstance(record, Document) for record in documents)
    assert [record.position for record in documents] == [0, 1, 4, 5]


@pytest.mark.parametrize("options", ["uncompressed", "zstd", "brotli", "snappy"])
def test_a_footer_that_could_unpack_to_anything_is_refused(tmp_path: Path, options: str) -> None:
    path = tmp_path / "a.array_record"
    write(path, [b"record"] * 3, f"group_size:1,{options}")
    data = path.read_bytes()
    postscript = len(data) - BLOCK + BLOCK_HEADER
    (footer,) = (at for at in range(postscript) if data[at + 24 : at + 32] == b"r\x04\0\0\0\0\0\0")
    for place in (postscript, footer):
        bad = bytearray(data)
        bad[place + 32 : place + 40] = (2**40).to_bytes(8, "little")
        path.write_bytes(bad)
        with pytest.raises(UnsafeFileError, match="unpacks to 1099511"), chunks_of(path):
            pass
        (record,) = read_file(str(path))
        assert isinstance(record, BadRecord)
        assert record.reason is Reason.UNREADABLE_FILE
        assert "cannot be read in bounded memory" in record.detail


def test_damage_is_left_to_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.array_record"
    write(path, [b"record"] * 3, "group_size:1")
    data = path.read_bytes()
    for damaged in (data[:-BLOCK], data[:100], b"", data[:BLOCK] + bytes(BLOCK)):
        path.write_bytes(damaged)
        with chunks_of(path) as chunks:
            assert chunks is None
