"""Files of object stores: what is read is right, and little more is fetched."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.remote_file import WHOLE, RemoteFile

CONTENT = random.Random(0).randbytes(300_000)


class Store:
    """A file that counts what is fetched of it."""

    def __init__(self, content: bytes = CONTENT):
        self.content = content
        self.fetched: list[tuple[int, int]] = []
        self.looked_up = 0

    def fetch(self, start: int, end: int) -> bytes:
        data = self.content[start:end]
        self.fetched.append((start, len(data)))
        return data

    def look_up(self) -> FileInfo:
        self.looked_up += 1
        return FileInfo("s3://bucket/file", len(self.content), "etag-1")

    def open(self, in_order_to: int | None = None, block_bytes: int = 64_000) -> RemoteFile:
        return RemoteFile(self.fetch, self.look_up, in_order_to, block_bytes)

    @property
    def served(self) -> int:
        return sum(count for _, count in self.fetched)


def read_in_order(file: RemoteFile, step: int, until: int) -> bytes:
    parts = []
    while file.tell() < until and (part := file.read(min(step, until - file.tell()))):
        parts.append(part)
    return b"".join(parts)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 310_000), st.integers(0, 40_000)), max_size=12),
    st.sampled_from([None, 0, 1000, 150_000, WHOLE]),
)
def test_every_read_returns_the_bytes_at_its_offset(
    reads: list[tuple[int, int]], in_order_to: int | None
) -> None:
    file = Store().open(in_order_to)
    for offset, count in reads:
        file.seek(offset)
        data = file.read(count)
        assert data == CONTENT[offset : offset + len(data)]
        assert file.tell() == offset + len(data)
        if in_order_to is None or offset + count <= in_order_to:
            assert len(data) == len(CONTENT[offset : offset + count])
        assert data or not CONTENT[offset : offset + count]


def test_a_whole_file_is_read_in_blocks_and_each_byte_is_served_once() -> None:
    store = Store()
    assert read_in_order(store.open(WHOLE), 1000, WHOLE) == CONTENT
    assert store.served == len(CONTENT)
    assert len(store.fetched) == -(-len(CONTENT) // 64_000)
    assert not store.looked_up


def test_nothing_is_fetched_beyond_the_end_of_a_part_but_what_its_last_record_needs() -> None:
    store = Store()
    file = store.open(150_000)
    assert read_in_order(file, 1000, 150_000) == CONTENT[:150_000]
    assert store.served == 150_000
    assert file.read(50_000) == CONTENT[150_000:][: 16 * 2**10]
    assert store.served == 150_000 + 16 * 2**10


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 20_000)), min_size=1, max_size=5))
def test_reading_ranges_anywhere_costs_at_most_a_tenth_more(runs: list[tuple[int, int]]) -> None:
    store = Store()
    file, read = store.open(), 0
    for offset, count in runs:
        file.seek(offset)
        for _ in range(4):
            read += len(file.read(count))
    assert store.served <= 1.1 * read


def test_many_ranges_in_a_row_take_few_requests() -> None:
    store = Store()
    file = store.open()
    while file.read(300):
        pass
    assert len(store.fetched) < 100 < len(CONTENT) / 300
    assert store.served == len(CONTENT)


def test_the_size_is_looked_up_once_and_only_to_seek_from_the_end() -> None:
    store = Store()
    file = store.open()
    for _ in range(2):
        assert file.seek(-8, io.SEEK_END) == len(CONTENT) - 8
        assert file.read() == CONTENT[-8:]
    assert store.looked_up == 1
    with pytest.raises(ValueError, match="before the beginning"):
        file.seek(-1)


def test_an_empty_file_and_the_end_of_a_file_read_as_nothing() -> None:
    for in_order_to in (None, 0, WHOLE):
        file = Store(b"").open(in_order_to)
        assert file.read(10) == b"" == file.read()
        file = Store(b"abc").open(in_order_to)
        assert file.read() == b"abc"
        assert file.read(1) == b""
        assert bytearray(file.readall()) == b""
