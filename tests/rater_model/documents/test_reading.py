"""Reading gives the records of every kind of file, whole and in splits, sound and damaged."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datarater.rater_model import json_codec
from datarater.rater_model.documents.files import NoInputError, file_info, list_files
from datarater.rater_model.documents.jsonl import Jsonl
from datarater.rater_model.documents.parquet import Parquet
from datarater.rater_model.documents.reading import plan_file, read_file, read_split, sniff
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    Document,
    FileInfo,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from tests.support import ROOT

OPTIONS = ReadOptions()


def reuse_folder(examples: int) -> settings:
    """Returns settings for tests whose examples all write their file to the same folder."""
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def line(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def texts(records: list[Record]) -> list[str]:
    return [record.text for record in records if isinstance(record, Document)]


def reasons(records: list[Record]) -> list[Reason]:
    return [record.reason for record in records if isinstance(record, BadRecord)]


def number_of(records: list[Record]) -> int:
    return sum(record.records if isinstance(record, BadRecord) else 1 for record in records)


def assert_sound(records: list[Record]) -> None:
    """Asserts what every reading guarantees, whatever it reads."""
    positions = [record.position for record in records]
    assert positions == sorted(set(positions))
    for record in records:
        if isinstance(record, Document):
            assert record.text.strip()
            assert record.size == len(record.text.encode())
            assert record.key
        else:
            assert isinstance(record.reason, Reason)
            assert record.detail
            assert "\n" not in record.detail
            assert len(record.excerpt) <= EXCERPT_BYTES


# One document


def test_a_document_holds_what_its_line_says(tmp_path: Path) -> None:
    first = b'{"id": "a", "text": "na\xc3\xafve", "source": "web", "more": [1,  2]}\r'
    path = write(tmp_path / "one.jsonl", first + b'\n{"id": 1, "text": "x"}')
    assert list(read_file(path)) == [
        Document('"a"', "naïve", "web", 0, 6, first),
        Document("1", "x", "", len(first) + 1, 1, b'{"id": 1, "text": "x"}'),
    ]


@pytest.mark.parametrize(
    ("identifier", "key"),
    [
        ("1", '"1"'),
        (1, "1"),
        (0, "0"),
        (False, "false"),
        ("é", '"é"'),
        ({"b": 1, "a": [2]}, '{"a":[2],"b":1}'),
        ("", None),
        (None, None),
        ([], None),
        ({}, None),
    ],
)
def test_keys_are_canonical_json_or_the_texts_digest(
    tmp_path: Path, identifier: Any, key: str | None
) -> None:
    digest = "sha256:" + hashlib.sha256(b"some text").hexdigest()
    path = write(
        tmp_path / "a.jsonl", line(id=identifier, text="some text") + line(text="some text")
    )
    with_id, without = read_file(path)
    assert isinstance(with_id, Document)
    assert with_id.key == (key or digest)
    assert isinstance(without, Document)
    assert without.key == digest


@pytest.mark.parametrize(
    "more", ["NaN", "-Infinity", "1e400", "-1e400", "9" * 400, r'"\ud800"', r'{"\udfff": [NaN]}']
)
def test_what_other_writers_take_for_json_costs_no_document(tmp_path: Path, more: str) -> None:
    raw = f'{{"text": "x", "id": "a", "other": {more}}}'.encode()
    (record,) = read_file(write(tmp_path / "a.jsonl", raw))
    assert record == Document('"a"', "x", "", 0, 1, raw)


def test_a_lone_surrogate_in_the_text_is_named_with_its_field(tmp_path: Path) -> None:
    (record,) = read_file(write(tmp_path / "a.jsonl", rb'{"text": "\ud800 alone", "n": NaN}'))
    assert isinstance(record, BadRecord)
    assert record.detail == "the field 'text' has a lone surrogate, which UTF-8 cannot express"


def test_ids_and_sources_with_lone_surrogates_are_escaped(tmp_path: Path) -> None:
    line_ = rb'{"text": "x", "id": "\ud800", "source": "b\udfff"}'
    (record,) = read_file(write(tmp_path / "a.jsonl", line_))
    assert isinstance(record, Document)
    assert (record.key, record.source) == (r'"\ud800"', r"b\udfff")


def test_integers_of_any_size_are_exact_in_keys(tmp_path: Path) -> None:
    numbers = [2**63, 2**64 - 1, *range(2**64, 2**64 + 4), -(2**70), 10**300]
    nested = [{"text": "x", "id": [{"n": number}, "a"]} for number in numbers]
    lines = [*({"text": "x", "id": number} for number in numbers), *nested]
    path = write(tmp_path / "a.jsonl", b"".join(line(**fields) for fields in lines))
    keys = [record.key for record in read_file(path) if isinstance(record, Document)]
    expected = [str(number) for number in numbers]
    assert keys == [*expected, *(f'[{{"n":{number}}},"a"]' for number in expected)]


def test_numbers_that_are_no_integers_have_the_keys_that_they_had(tmp_path: Path) -> None:
    lines = [
        b'{"text": "x", "id": %s}\n' % number for number in (b"1.5", b"1E5", b"1e300", b"-0.0")
    ]
    records = read_file(write(tmp_path / "a.jsonl", b"".join(lines)))
    keys = [record.key for record in records if isinstance(record, Document)]
    assert keys == ["1.5", "100000.0", "1e+300", "-0.0"]


def test_an_id_that_is_too_long_counts_as_none_and_a_source_is_cut(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"text": "x", "id": "i" * 4096, "source": "s" * 4096},
        {"text": "x", "id": "i" * 4097, "source": "s" * 4097},
        {"text": "x", "id": ["i"] * 2000, "source": ["s"] * 2000},
    ]
    path = write(tmp_path / "a.jsonl", b"".join(line(**fields) for fields in lines))
    records = [record for record in read_file(path) if isinstance(record, Document)]
    assert [record.key[:7] for record in records] == ['"iiiiii', "sha256:", "sha256:"]
    assert [len(record.source) for record in records] == [4096] * 3


def test_an_id_too_deep_to_be_written_counts_as_none(tmp_path: Path) -> None:
    deep = "[" * 600 + "]" * 600
    path = write(tmp_path / "a.jsonl", f'{{"text": "x", "id": {deep}, "source": {deep}}}'.encode())
    (record,) = read_file(path)
    assert isinstance(record, Document)
    assert record.key.startswith("sha256:")
    assert record.source == ""


def test_dotted_fields_reach_into_objects_and_whole_names_win(tmp_path: Path) -> None:
    options = ReadOptions(text_field="meta.text", id_field="meta.id", source_field="meta.from.name")
    lines: list[dict[str, Any]] = [
        {"meta": {"text": "a", "id": 1, "from": {"name": "web"}}},
        {"meta.text": "b", "meta": {"text": "c", "from": "flat"}},
        {"meta": "no object"},
    ]
    records = list(
        read_file(
            write(tmp_path / "a.jsonl", b"".join(line(**fields) for fields in lines)), options
        )
    )
    assert texts(records) == ["a", "b"]
    assert isinstance(records[0], Document)
    assert (records[0].key, records[0].source) == ("1", "web")
    assert reasons(records) == [Reason.NO_TEXT]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "cut', Reason.NOT_JSON),
        (b'{"text": NaN}', Reason.TEXT_NOT_A_STRING),
        (b'{"text": "x", "n": nan}', Reason.NOT_JSON),
        (b'{"text": "x", "n": NaN', Reason.NOT_JSON),
        (b'{"text": "x", "n": %s}' % (b"9" * 5000), Reason.NOT_JSON),
        (b'{"text": "raw \x00 NUL"}', Reason.NOT_JSON),
        (b"\x00" * 512, Reason.NOT_JSON),
        (b"[" * 100_000, Reason.NOT_JSON),
        (b'{"text": "\xff"}', Reason.NOT_UTF8),
        (b'{"text": "\xed\xa0\x80"}', Reason.NOT_UTF8),
        (b'["text"]', Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
        (b"{}", Reason.NO_TEXT),
        (b'{"text": null}', Reason.NO_TEXT),
        (b'{"text": ["x"]}', Reason.TEXT_NOT_A_STRING),
        (b'{"text": ""}', Reason.TEXT_EMPTY),
        (b'{"text": " \\n\\u00a0"}', Reason.TEXT_EMPTY),
        (b'{"text": "\\ud800 alone"}', Reason.TEXT_NOT_UNICODE),
    ],
)
def test_every_bad_line_has_its_reason_and_costs_no_other(
    tmp_path: Path, content: bytes, reason: Reason
) -> None:
    good = line(text="good")
    records = list(read_file(write(tmp_path / "a.jsonl", good + content + b"\n" + good)))
    assert_sound(records)
    assert texts(records) == ["good", "good"]
    bad = records[1]
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.position, bad.excerpt) == (reason, len(good), content[:200])


def test_zero_width_characters_and_surrogate_pairs_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "\\u200b"}\n{"text": "\\ud83d\\ude00"}\n')
    assert texts(list(read_file(path))) == ["\u200b", "😀"]


# Splits


LINES = st.sampled_from(
    [
        b'{"id": 1, "text": "some words"}',
        b'{"text": "\xc3\xa9\xe2\x80\xa8"}\r',
        b'{"text": "a longer line than the others, so that small limits refuse it"}',
        b"",
        b"  \t\r",
        b"\r",
        b"no json",
        b'{"text": ""}',
        b'{"text": "\xff"}',
        b"\xef\xbb\xbf",
        b"x" * 300,
    ]
)


@st.composite
def jsonl_content(draw: st.DrawFn) -> bytes:
    content = b"\n".join(draw(st.lists(LINES, max_size=12)))
    return (
        draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
        + content
        + draw(st.sampled_from([b"", b"\n"]))
    )


@reuse_folder(300)
@given(
    content=jsonl_content(),
    cuts=st.lists(st.integers(0, 600), max_size=6),
    limit=st.sampled_from([40, 250, 2**20]),
    chunk_bytes=st.sampled_from([1, 7, 64, 2**20]),
    compression=st.sampled_from(list(Compression)),
)
def test_splitting_anywhere_gives_the_records_of_the_whole(
    tmp_path: Path,
    content: bytes,
    cuts: list[int],
    limit: int,
    chunk_bytes: int,
    compression: Compression,
) -> None:
    options = ReadOptions(max_record_bytes=limit)
    packed = {
        Compression.NONE: lambda: content,
        Compression.GZIP: lambda: gzip.compress(content),
        Compression.ZSTD: lambda: zstandard.compress(content),
        Compression.BZIP2: lambda: bz2.compress(content),
    }[compression]()
    path = write(tmp_path / "a.jsonl", packed)
    whole = list(read_split(Split(path, "jsonl", compression), options))
    assert_sound(whole)
    assert [record.position for record in whole] == expected_positions(content, limit)
    bounds: list[int] = sorted({0, *cuts})
    ends: list[int | None] = [*bounds[1:], None]
    parts = [
        record
        for start, end in zip(bounds, ends, strict=True)
        for record in Jsonl(chunk_bytes).read(
            Split(path, "jsonl", compression, start, end), options
        )
    ]
    assert parts == whole


def expected_positions(content: bytes, limit: int) -> list[int]:
    r"""Returns the offsets of the lines that are not blank, in the simplest way."""
    positions, position = [], 0
    for item in content.split(b"\n"):
        bare = item.removeprefix(b"\xef\xbb\xbf") if position == 0 else item
        if bare.strip() or len(item) > limit:
            positions.append(position)
        position += len(item) + 1
    return positions


@reuse_folder(100)
@given(target=st.integers(1, 400), content=jsonl_content())
def test_a_plan_covers_the_file_once(tmp_path: Path, target: int, content: bytes) -> None:
    path = write(tmp_path / "a.jsonl", content)
    (info,) = list_files([path])
    splits = plan_file(info, OPTIONS, target)
    assert splits[0].start == 0
    assert splits[-1].end is None
    assert [split.end for split in splits[:-1]] == [split.start for split in splits[1:]]
    assert sum(split.size for split in splits) == info.size
    read = [record for split in splits for record in read_split(split, OPTIONS)]
    assert read == list(read_file(path))


# Streams


BODY = b"".join(
    line(id=number, text=f"document {number} " + "words " * (number % 7)) for number in range(60)
)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@reuse_folder(60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_stream_keeps_its_whole_lines(tmp_path: Path, suffix: str, share: float) -> None:
    packed = pack(BODY, suffix)
    path = write(tmp_path / f"cut{suffix}", packed[: int(len(packed) * share)])
    whole = list(read_split(Split(write(tmp_path / "whole.jsonl", BODY), "jsonl"), OPTIONS))
    *kept, last = read_file(path)
    assert kept == whole[: len(kept)]
    assert isinstance(last, BadRecord)
    assert last.reason is Reason.STREAM_TRUNCATED
    assert last.position == (whole[len(kept)].position if len(kept) < len(whole) else len(BODY))
    assert BODY[last.position :].startswith(last.excerpt)


def pack(content: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    output = io.BytesIO()
    writer = zstandard.ZstdCompressor().stream_writer(output, closefd=False)
    for start in range(
        0, len(content), 500
    ):  # small blocks, so that a cut leaves some of them whole
        writer.write(content[start : start + 500])
        writer.flush(zstandard.FLUSH_BLOCK)
    writer.close()
    return output.getvalue()


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_members_and_frames_are_read_as_one_stream(tmp_path: Path, suffix: str) -> None:
    parts = [BODY[:1000], BODY[1000:1001], b"", BODY[1001:]]
    path = write(tmp_path / f"a{suffix}", b"".join(pack(part, suffix) for part in parts))
    plain = write(tmp_path / "a.jsonl", BODY)
    assert list(read_file(path)) == list(read_file(plain))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("garbage", [b"g", b"garbage, much of it" * 1000, b"\x1f", b"\x28\xb5"])
def test_garbage_behind_a_stream_is_one_bad_record(
    tmp_path: Path, suffix: str, garbage: bytes
) -> None:
    content = BODY + b'{"text": "no newline"}'
    path = write(tmp_path / f"a{suffix}", pack(content, suffix) + garbage)
    *kept, last = read_file(path)
    assert kept == list(read_file(write(tmp_path / "plain.jsonl", content)))
    assert isinstance(last, BadRecord)
    assert (last.reason, last.position, last.excerpt) == (
        Reason.TRAILING_GARBAGE,
        len(content),
        garbage[:200],
    )


def test_nul_padding_behind_gzip_is_no_garbage(tmp_path: Path) -> None:
    padded = gzip.compress(BODY) + b"\0" * 200_000 + gzip.compress(line(text="after")) + b"\0"
    records = list(read_file(write(tmp_path / "a.jsonl.gz", padded)))
    assert len(records) == 61
    assert not reasons(records)


@reuse_folder(50)
@given(place=st.integers(10, len(gzip.compress(BODY)) - 20))
def test_damage_within_gzip_keeps_what_stands_before_it(tmp_path: Path, place: int) -> None:
    sound = gzip.compress(BODY, 1)
    place = min(place, len(sound) - 20)
    damaged = bytearray(sound)
    damaged[place : place + 8] = b"\xff" * 8
    records = list(read_file(write(tmp_path / "a.jsonl.gz", bytes(damaged))))
    cut = list(read_file(write(tmp_path / "cut.jsonl.gz", sound[:place])))
    assert records[: len(cut) - 1] == cut[:-1]
    assert isinstance(records[-1], BadRecord)
    assert records[-1].reason in (
        Reason.STREAM_CORRUPT,
        Reason.STREAM_TRUNCATED,
        Reason.TRAILING_GARBAGE,
    )


def test_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(BODY))
    packed[-8] ^= 1
    records = list(read_file(write(tmp_path / "a.jsonl.gz", bytes(packed))))
    assert len(texts(records)) == 60
    assert reasons(records) == [Reason.STREAM_CORRUPT]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@reuse_folder(100)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 5))
def test_flipped_bytes_never_raise(tmp_path: Path, suffix: str, seed: int, flips: int) -> None:
    content = bytearray(BODY if suffix == ".jsonl" else pack(BODY, suffix))
    dice = random.Random(seed)
    for _ in range(flips):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path = write(tmp_path / f"a{suffix}", bytes(content))
    records = list(read_file(path))
    assert_sound(records)
    assert records == list(read_file(path))


def zstd_frame(content: bytes, window_log: int) -> bytes:
    """Returns a frame that states its window and not its length."""
    settings_ = zstandard.ZstdCompressionParameters(window_log=window_log)
    packer = zstandard.ZstdCompressor(compression_params=settings_).compressobj()
    return packer.compress(content) + packer.flush()


def test_a_window_past_the_limit_is_rejected_with_the_flag_that_allows_it(tmp_path: Path) -> None:
    frames = zstd_frame(line(text="small"), 27) + zstd_frame(line(text="large"), 28)
    path = write(tmp_path / "a.jsonl.zst", frames)
    document, bad = read_file(path)
    assert isinstance(document, Document)
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.position) == (Reason.WINDOW_TOO_LARGE, len(line(text="small")))
    assert "268435456 bytes, more than the limit of 134217728" in bad.detail
    assert "--max_zstd_window_bytes" in bad.detail
    options = ReadOptions(max_zstd_window_bytes=2**28)
    assert texts(list(read_file(path, options))) == ["small", "large"]
    for size in (0, 2**31 + 1):
        with pytest.raises(ValueError, match="max_zstd_window_bytes must be a whole number"):
            ReadOptions(max_zstd_window_bytes=size)


def test_options_of_earlier_versions_have_their_window() -> None:
    earlier = json_codec.decode(ReadOptions, b'{"text_field":"t"}')
    assert earlier.max_zstd_window_bytes == 2**31
    assert "max_zstd_window_bytes" not in json_codec.to_plain(earlier)


# Kinds of file


def test_content_tells_the_kind_of_file_and_names_only_help(tmp_path: Path) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"]}), table)
    cases = [
        ("a.jsonl", BODY, "jsonl", Compression.NONE),
        ("a.gz", BODY, "jsonl", Compression.NONE),
        ("a.zst", BODY, "jsonl", Compression.NONE),
        ("a.jsonl", gzip.compress(BODY), "jsonl", Compression.GZIP),
        ("a", zstandard.compress(BODY), "jsonl", Compression.ZSTD),
        ("a.txt", bz2.compress(BODY), "jsonl", Compression.BZIP2),
        ("a.jsonl.bz2", b"\0noise", "jsonl", Compression.BZIP2),
        ("a.txt", b"plain", "text", Compression.NONE),
        ("a.txt.gz", b"plain", "text", Compression.NONE),
        ("a.txt.gz", gzip.compress(b"plain"), "text", Compression.GZIP),
        ("a.gz", gzip.compress(b"WARC/1.1\r\n"), "warc", Compression.GZIP),
        ("a.bz2", bz2.compress(b"WARC/1.1\r\n" * 100_000), "warc", Compression.BZIP2),
        ("a.zst", zstandard.compress(b"WARC/1.1\r\n"), "warc", Compression.ZSTD),
        ("a.json", table.getvalue(), "parquet", Compression.NONE),
        ("a.parquet", BODY, "parquet", Compression.NONE),
        ("a.jsonl.gz", b"\0noise", "jsonl", Compression.GZIP),
        ("a.jsonl.zst", b"\0noise", "jsonl", Compression.ZSTD),
    ]
    for name, content, file_format, compression in cases:
        assert sniff(write(tmp_path / name, content)) == (file_format, compression), name


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.xz", b"\xfd7zXZ\0" + b"\n\xff" * 100)
    (info,) = list_files([path])
    (split,) = plan_file(info, OPTIONS, 10)
    (record,) = read_split(split, OPTIONS)
    assert isinstance(record, BadRecord)
    assert record.reason is Reason.UNREADABLE_FILE
    assert "xz" in record.detail


def test_a_file_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(OSError, match=name):
            list(read_file(str(tmp_path / name)))
        with pytest.raises(OSError, match=name):
            list(
                read_split(
                    Split(str(tmp_path / name), "jsonl" if "json" in name else "parquet"),
                    OPTIONS,
                )
            )


# Parquet


def table_of(rows: int) -> pa.Table:
    return pa.table(
        {
            "id": [f"id-{row}" for row in range(rows)],
            "text": [f"text of row {row} " + "words " * (row % 50) for row in range(rows)],
            "source": pa.array(["web", "book"] * (rows // 2)).dictionary_encode(),
            "numbers": [[row, row + 1] for row in range(rows)],
        }
    )


@pytest.mark.parametrize("settings_", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}])
def test_parquet_reads_like_jsonl_and_splits_between_row_groups(
    tmp_path: Path, settings_: dict[str, Any]
) -> None:
    table = table_of(500)
    path = str(tmp_path / "a.parquet")
    pq.write_table(table, path, row_group_size=64, **settings_)
    lines = write(tmp_path / "a.jsonl", b"".join(line(**row) for row in table.to_pylist()))
    rows = list(read_file(path))
    assert_sound(rows)
    assert [record.position for record in rows] == list(range(500))
    keep = ("key", "text", "source", "size")
    assert [[getattr(row, name) for name in keep] for row in rows] == [
        [getattr(record, name) for name in keep] for record in read_file(lines)
    ]
    (info,) = list_files([path])
    for target, count in [(1, 8), (info.size * 2, 1)]:
        splits = plan_file(info, OPTIONS, target)
        assert len(splits) == count
        assert [record for split in splits for record in read_split(split, OPTIONS)] == rows
        batches = [batch for split in splits for batch in Parquet().read_tables(split, OPTIONS)]
        assert pa.Table.from_batches([batch for _, batch in batches]).equals(table)
        assert [
            row for first, batch in batches for row in range(first, first + batch.num_rows)
        ] == list(range(500))


def test_parquet_rows_have_reasons_of_their_own(tmp_path: Path) -> None:
    values = pa.array([b"good", None, b" ", b"\xff bad", b"a long text", b"last"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(values), values.buffers())
    path = str(tmp_path / "a.parquet")
    for dictionary in (False, True):
        pq.write_table(pa.table({"text": text}), path, use_dictionary=dictionary)
        records = list(read_file(path, ReadOptions(max_record_bytes=8)))
        assert_sound(records)
        assert texts(records) == ["good", "last"]
        assert reasons(records) == [
            Reason.NO_TEXT,
            Reason.TEXT_EMPTY,
            Reason.TEXT_NOT_UNICODE,
            Reason.RECORD_TOO_LARGE,
        ]
        ((first, batch),) = Parquet().read_tables(Split(path, "parquet"), OPTIONS)
        assert (first, batch.num_rows) == (0, 6)
        assert batch.column(0).cast(pa.binary()).equals(values)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_columns_of_every_string_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = str(tmp_path / "a.parquet")
    table = pa.table({"text": pa.array(["é", "b", None]).cast(kind)})
    pq.write_table(table, path)
    assert texts(list(read_file(path))) == ["é", "b"]
    ((_, batch),) = Parquet().read_tables(Split(path, "parquet"), OPTIONS)
    assert batch.schema.field("text").type == pq.read_schema(path).field("text").type


def test_text_within_a_struct_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    table = pa.table(
        {"meta": [{"text": "a", "n": 1}, None, {"text": None, "n": 2}, {"text": "b", "n": 3}]}
    )
    pq.write_table(table, path)
    options = ReadOptions(text_field="meta.text", id_field="meta.n")
    records = list(read_file(path, options))
    assert texts(records) == ["a", "b"]
    assert isinstance(records[3], Document)
    assert records[3].key == "3"
    ((_, batch),) = Parquet().read_tables(Split(path, "parquet"), options)
    assert pa.Table.from_batches([batch]).equals(table)


def test_ids_of_every_type_become_keys(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    far = pa.array([2**52], pa.timestamp("ms"))  # beyond what Python's dates can hold
    for identifiers in (
        pa.array([b"\xff"]),
        pa.array([1.5]),
        pa.array([[1]]),
        pa.array([True]),
        far,
    ):
        pq.write_table(pa.table({"text": ["x"], "id": identifiers}), path)
        (record,) = read_file(path)
        assert isinstance(record, Document)
        assert record.key


@pytest.mark.parametrize("column", ["text", "id"])
def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path, column: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        table_of(400), path, row_group_size=100, compression="gzip", use_dictionary=False
    )
    metadata = pq.read_metadata(path).row_group(1)
    number = next(
        i
        for i in range(metadata.num_columns)
        if metadata.column(i).path_in_schema.startswith(column)
    )
    damaged = metadata.column(number)
    middle = damaged.data_page_offset + damaged.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[middle : middle + 30] = b"\xff" * 30
    path.write_bytes(content)
    records = list(read_file(str(path)))
    assert_sound(records)
    (bad,) = [record for record in records if isinstance(record, BadRecord)]
    assert (bad.position, bad.reason) == (100, Reason.PAGE_CORRUPT)
    assert "100 rows are lost" in bad.detail
    assert bad.records == 100
    assert [record.position for record in records] == [*range(101), *range(200, 400)]
    assert number_of(records) == 400
    written = [
        row
        for first, batch in Parquet().read_tables(Split(str(path), "parquet"), OPTIONS)
        for row in range(first, first + batch.num_rows)
    ]
    assert written == [*range(100), *range(200, 400)]


@pytest.mark.parametrize("column", ["content", "numbers"])
def test_every_row_of_a_parquet_file_without_the_text_is_counted(
    tmp_path: Path, column: str
) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(table_of(500).rename_columns(["id", "content", "source", "numbers"]), path)
    options = ReadOptions(text_field=column if column == "numbers" else "text")
    (bad,) = read_file(path, options)
    assert isinstance(bad, BadRecord)
    assert (bad.position, bad.records) == (0, 500)
    assert "its 500 rows are lost" in bad.detail
    assert not list(read_split(Split(path, "parquet", start=1), options))


@reuse_folder(300)
@given(
    seed=st.integers(0, 2**32),
    flips=st.integers(1, 4),
    tail=st.booleans(),
    dictionary=st.booleans(),
)
def test_flipped_bytes_in_parquet_never_raise(
    tmp_path: Path, seed: int, flips: int, tail: bool, dictionary: bool
) -> None:
    sound = tmp_path / f"sound-{dictionary}.parquet"
    if not sound.exists():
        pq.write_table(table_of(200), sound, row_group_size=50, use_dictionary=dictionary)
    content = bytearray(sound.read_bytes())
    dice = random.Random(seed)
    for _ in range(flips):
        # The footer, where a flip does most, is a small part of a file.
        place = len(content) - 1 - dice.randrange(2500) if tail else dice.randrange(len(content))
        content[place] ^= 1 << dice.randrange(8)
    path = write(tmp_path / "a.parquet", bytes(content))
    records = list(read_file(path))
    assert_sound(records)
    (info,) = list_files([path])
    parts = [
        record for split in plan_file(info, OPTIONS, 2000) for record in read_split(split, OPTIONS)
    ]
    assert parts == records
    of_file = {
        Reason.UNREADABLE_FILE,
        Reason.NO_TEXT_COLUMN,
        Reason.TEXT_NOT_A_STRING,
        Reason.PAGE_CORRUPT,
    }
    rows = [r.position for r in records if isinstance(r, Document) or r.reason not in of_file]
    written = [
        row
        for first, batch in Parquet().read_tables(Split(path, "parquet"), OPTIONS)
        for row in range(first, first + batch.num_rows)
    ]
    assert written == rows


# Memory


MEASURE = """
import resource, sys
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import BadRecord
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = []
for record in read_file(sys.argv[1]):
    seen.append(str(record.reason) if isinstance(record, BadRecord) else "document")
    if len(seen) == 50:
        break
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, *seen)
"""


def measured(path: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    mebibytes, *seen = done.stdout.split()
    return int(mebibytes), seen


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_huge_line_is_passed_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb{suffix}"
    with gzip.open(path, "wb", 1) if suffix.endswith(".gz") else zstandard.open(path, "wb") as file:
        file.write(line(text="before") + b'{"text": "')
        for _ in range(1024):
            file.write(b"a" * 2**20)
        file.write(b'"}\n' + line(text="after"))
    mebibytes, seen = measured(str(path))
    assert seen == ["document", "record_too_large", "document"]
    assert mebibytes < 300


@pytest.mark.slow
def test_a_huge_text_repeated_by_a_parquet_dictionary_is_read_in_bounded_memory(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "bomb.parquet")
    codes = pa.array([0] * 5000, pa.int32())
    table = pa.table({"text": pa.DictionaryArray.from_arrays(codes, ["x" * 20_000_000])})  # 100 GB
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=2**30)
    mebibytes, seen = measured(path)
    assert seen == ["document"] * 50
    assert mebibytes < 500


# Finding files


def test_files_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.gz", "sub/d.jsonl", "odd[1].jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = list_files([f"{tmp_path}/b.jsonl,{tmp_path}/*.jsonl", f"file://{tmp_path}/**/d.jsonl"])
    assert [Path(info.path).name for info in found] == [
        "a.jsonl",
        "b.jsonl",
        "odd[1].jsonl",
        "d.jsonl",
    ]
    assert [info.size for info in found] == [7, 7, 12, 11]
    assert [info.path for info in list_files([f"{tmp_path}/odd[1].jsonl"])] == [
        f"{tmp_path}/odd[1].jsonl"
    ]


def test_a_pattern_without_a_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b"")
    with pytest.raises(NoInputError, match=r"missing-\*\.gz"):
        list_files([f"{tmp_path}/*.jsonl", f"{tmp_path}/missing-*.gz"])
    with pytest.raises(NoInputError, match="no input"):
        list_files([" , "])


def test_fingerprints_change_with_the_file_and_only_then(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"one")
    (before,) = list_files([path])
    assert file_info(path) == before
    write(tmp_path / "a.jsonl", b"two")
    os.utime(path, ns=(1, 1))
    assert file_info(path) != before


@pytest.fixture
def remote() -> Iterator[str]:
    file_system = fsspec.filesystem("memory")
    yield "memory://documents-test"
    file_system.rm("/documents-test", recursive=True)


def test_other_file_systems_work_alike(remote: str, tmp_path: Path) -> None:
    table = io.BytesIO()
    pq.write_table(table_of(20), table, row_group_size=5)
    contents = {
        "a.jsonl.gz": gzip.compress(BODY),
        "b.jsonl": BODY,
        "c.parquet": table.getvalue(),
        "d.parquet": b"?",
    }
    for name, content in contents.items():
        with fsspec.open(f"{remote}/{name}", "wb") as file:
            file.write(content)
        write(tmp_path / name, content)
    found = list_files([f"{remote}/*"])
    assert [Path(info.path).name for info in found] == sorted(contents)
    for info in found:
        assert info.path.startswith("memory://")
        assert file_info(info.path) == info
        local = str(tmp_path / Path(info.path).name)
        read = [
            record
            for split in plan_file(info, OPTIONS, 1000)
            for record in read_split(split, OPTIONS)
        ]
        assert read == list(read_file(local))


# Options and splits travel as JSON


@pytest.mark.parametrize(
    "value",
    [
        ReadOptions(text_field="a.b", max_record_bytes=5),
        Split("gs://b/c", "jsonl", Compression.GZIP, 3, None, 7, 100),
        FileInfo("gs://b/c", 3, "generation-5"),
    ],
)
def test_options_files_and_splits_survive_json(value: object) -> None:
    assert json_codec.decode(type(value), json.dumps(json_codec.to_plain(value)).encode()) == value


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no format 'xml', only unreadable, jsonl"):
        read_split(Split("a.xml", "xml"), OPTIONS)
    with pytest.raises(json_codec.DecodingError, match="unknown field txt"):
        json_codec.from_plain(ReadOptions, {"txt": 1})
    with pytest.raises(json_codec.DecodingError, match="max_record_bytes must be a whole number"):
        json_codec.from_plain(ReadOptions, {"max_record_bytes": 0})
    with pytest.raises(ValueError, match="max_record_bytes"):
        ReadOptions(max_record_bytes=0)
    with pytest.raises(ValueError, match="text_field"):
        ReadOptions(text_field="")


# The hostile corpus, against its table

HOSTILE: dict[str, tuple[int, dict[str, int]]] = {
    "truncated.jsonl.gz": (23, {"stream_truncated": 1}),
    "not_gzip.jsonl.gz": (3, {}),
    "gzip_trailing_garbage.jsonl.gz": (4, {"trailing_garbage": 1}),
    "gzip_two_members.jsonl.gz": (7, {}),
    "empty.jsonl": (0, {}),
    "empty.jsonl.gz": (0, {"stream_truncated": 1}),
    "blank_lines.jsonl": (3, {}),
    "invalid_utf8.jsonl": (6, {"not_utf8": 6}),
    "not_json.jsonl": (12, {"not_json": 7, "not_an_object": 4, "text_not_a_string": 1}),
    "missing_text.jsonl": (3, {"no_text": 6}),
    "text_wrong_type.jsonl": (8, {"no_text": 1, "text_not_a_string": 7}),
    "empty_text.jsonl": (6, {"text_empty": 4}),
    "only_bad_lines.jsonl": (0, {"not_json": 1, "no_text": 2, "text_empty": 1}),
    "huge_document.jsonl": (3, {}),
    "million_a.jsonl": (3, {}),
    "duplicate_ids.jsonl": (9, {}),
    "nul_bytes.jsonl": (3, {"not_json": 2}),
    "bom.jsonl": (3, {}),
    "crlf.jsonl": (4, {}),
    "no_final_newline.jsonl": (3, {}),
    "line_separators.jsonl": (2, {}),
    "mixed_scripts.jsonl": (2, {}),
    "array.json": (0, {"not_json": 3}),
    "random_bytes.jsonl": (0, {"not_utf8": 74}),
    "valid.jsonl.zst": (20, {}),
    "truncated.jsonl.zst": (0, {"stream_truncated": 1}),  # all 20 lie in one block, which is cut
    "not_zstd.jsonl.zst": (2, {}),  # text under a compressed name is read, as with gzip
    "valid.parquet": (6, {}),
    "wrong_schema.parquet": (0, {"no_text_column": 6}),
    "text_binary.parquet": (0, {"text_not_unicode": 6}),
    "text_nulls.parquet": (3, {"no_text": 2, "text_empty": 1}),
    "no_rows.parquet": (0, {}),
    "truncated.parquet": (0, {"unreadable_file": 1}),
    "not_parquet.parquet": (0, {"unreadable_file": 1}),
    "empty.parquet": (0, {"unreadable_file": 1}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(corpora: Path, name: str) -> None:
    path = str(corpora / "hostile" / name)
    records = list(read_file(path))
    assert_sound(records)
    rejected: Counter[str] = Counter()
    for record in records:
        if isinstance(record, BadRecord):
            rejected[str(record.reason)] += record.records
    assert (len(texts(records)), rejected) == HOSTILE[name]
    (info,) = list_files([path])
    for target in (1000, 10**9):
        splits = plan_file(info, OPTIONS, target)
        found = [record for split in splits for record in read_split(split, OPTIONS)]
        assert_sound(found)
        if splits[0].virtual:  # positions count from members
            found = [
                dataclasses.replace(record, position=whole.position)
                for record, whole in zip(found, records, strict=True)
            ]
        assert found == records


def test_the_hostile_table_is_complete(corpora: Path) -> None:
    assert {path.name for path in (corpora / "hostile").iterdir()} == set(HOSTILE)


@pytest.mark.drill
def test_the_development_corpus_is_read_whole(corpora: Path) -> None:
    count = size = 0
    for info in list_files([f"{corpora}/dev/*.jsonl.gz"]):
        for record in read_file(info.path):
            assert isinstance(record, Document)
            count += 1
            size += record.size
    assert (count, size) == (13_157, 39_639_348)
