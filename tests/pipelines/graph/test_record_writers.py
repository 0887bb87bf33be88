from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.graph import record_writers
from datarater.pipelines.graph.record_writers import (
    RecordWriter,
    TableWriter,
    document_row,
    output_format,
)
from datarater.rater_model.documents.json_lines import SCORE_FIELD, score_text, scored_line
from datarater.rater_model.documents.jsonl import LineParser
from datarater.rater_model.documents.records import Document, ReadOptions

SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# Hypothesis also draws the strings of our own code, so the name of the score may be a key here.
RECORDS = st.dictionaries(st.text() | st.just(SCORE_FIELD), JSON_VALUES, max_size=5)


def document(fields: dict[str, Any]) -> Document:
    text = str(fields.get("text", ""))
    return Document(
        '"key"',
        text,
        str(fields.get("source", "")),
        0,
        len(text.encode()),
        json.dumps(fields).encode(),
    )


def row_of(document: Document, options: ReadOptions | None = None) -> dict[str, Any]:
    return document_row(document.raw or b"", document, 0.5, options or ReadOptions())


@given(
    RECORDS, SCORES, st.sampled_from([None, 2]), st.sampled_from(["", "\r", " \t"]), st.booleans()
)
def test_a_lines_own_bytes_stay(
    record: dict[str, Any], score: float, indent: int | None, end: str, escaped: bool
) -> None:
    record.pop(SCORE_FIELD, None)
    line = (json.dumps(record, ensure_ascii=escaped).replace("\n", " ") + end).encode(
        "utf-8", "surrogatepass"
    )
    written = scored_line(line, score)

    body = line.rstrip()
    assert written.startswith(body[:-1])
    assert written.endswith(line[len(body) - 1 :])
    fields = json.loads(written.decode("utf-8", "surrogatepass"))
    assert np.float32(fields.pop(SCORE_FIELD)) == np.float32(score)
    assert fields == record
    assert b"\n" not in written


@given(RECORDS, SCORES)
def test_an_old_score_is_replaced(record: dict[str, Any], score: float) -> None:
    line = json.dumps({SCORE_FIELD: "old", **record, "last": 1}).encode()
    pairs = json.loads(scored_line(line, score), object_pairs_hook=list)
    assert [name for name, _ in pairs].count(SCORE_FIELD) == 1

    fields = json.loads(scored_line(line, score))
    assert np.float32(fields.pop(SCORE_FIELD)) == np.float32(score)
    record.pop(SCORE_FIELD, None)
    assert fields == {**record, "last": 1}


NAMES = st.sampled_from(
    ["text", "n", SCORE_FIELD, "datarater_scor\\u0065", "\\u0064atarater_score", "datarater_scores"]
)
VALUES = st.sampled_from(
    [
        *("1E5", "1.50", "NaN", "-1e400", "[1, {}]", "9" * 30, "null"),
        *('"a, \\"datarater_score\\": 1}"', '{"datarater_score": 1E5}', '"\\ud800"'),
    ]
)
SPACES = st.sampled_from(["", " ", "\t", "  "])


@given(st.lists(st.tuples(SPACES, NAMES, SPACES, SPACES, VALUES, SPACES), max_size=5), SCORES)
def test_a_line_gets_one_score_and_keeps_all_other_bytes(
    fields: list[tuple[str, str, str, str, str, str]], score: float
) -> None:
    parts = [
        (json.loads(f'"{name}"'), f'{first}"{name}"{before}:{after}{value}{last}')
        for first, name, before, after, value, last in fields
    ]
    line = "{" + ",".join(part for _, part in parts) + "}\r"
    written = scored_line(line.encode(), score).decode()

    kept = [part for name, part in parts if name != SCORE_FIELD]
    comma = "," if kept else ""
    end = f'{comma}"{SCORE_FIELD}":{score_text(score)}}}\r'
    assert written.endswith(end)
    body = written[1 : -len(end)]
    assert "".join(body.split()) == "".join(",".join(kept).split())
    for part in kept:
        assert part.strip() in body
    if len(kept) == len(parts):
        assert written == line[: line.rindex("}")] + end


def test_the_name_of_the_score_inside_a_text_is_no_score() -> None:
    line = b'{"text": "see \\"datarater_score\\": 1}"}'
    assert scored_line(line, 2.0) == line[:-1] + b',"datarater_score":2.0}'
    assert scored_line(b"{ }", 1.5) == b'{ "datarater_score":1.5}'


@given(SCORES)
def test_scores_are_the_shortest_text_that_reads_back(score: float) -> None:
    text = score_text(score)
    assert np.float32(json.loads(text)) == np.float32(score)
    assert len(text) <= len("-1.1754944e-38") + 1


def test_a_document_becomes_a_row_with_everything_else_as_metadata() -> None:
    fields = {
        "id": 7,
        "text": "t",
        "source": ["a"],
        "n": 2**70,
        "m": {"text": "inner", "x": 1.0},
        "datarater_score": 3,
    }
    row = row_of(document(fields))
    assert row["id"] == "7"
    assert row["source"] == "['a']"
    assert json.loads(row["metadata"]) == {"n": 2**70, "m": {"text": "inner", "x": 1.0}}

    nested = row_of(document({"m": {"text": "t", "x": 1}}), ReadOptions(text_field="m.text"))
    assert json.loads(nested["metadata"]) == {"m": {"x": 1}}
    assert (nested["id"], nested["source"]) == (None, None)
    assert row_of(document({"text": "t"}))["metadata"] is None


@pytest.mark.parametrize(
    ("layout", "requested", "written"),
    [
        ("jsonl/none", "same", "jsonl"),
        ("jsonl/gzip", "same", "jsonl.gz"),
        ("jsonl/zstd", "same", "jsonl.zst"),
        ("parquet/12ab", "same", "parquet"),
        ("tfrecord/none", "same", "tfrecord"),
        ("array_record/none", "same", "tfrecord"),
        ("warc/gzip", "same", "warc.gz"),
        ("warc/bzip2", "jsonl", "jsonl"),
        ("text/zstd", "same", "jsonl.zst"),
        ("parquet/12ab", "jsonl.gz", "jsonl.gz"),
        ("jsonl/zstd", "parquet", "parquet"),
    ],
)
def test_the_output_follows_the_input_unless_asked_otherwise(
    layout: str, requested: str, written: str
) -> None:
    assert output_format(layout, requested) == written


def test_what_can_share_a_file() -> None:
    assert record_writers.file_class("jsonl/gzip", "same") != record_writers.file_class(
        "jsonl/none", "same"
    )
    assert record_writers.file_class("jsonl/gzip", "jsonl") == record_writers.file_class(
        "parquet/a", "jsonl"
    ).replace("parquet", "jsonl")
    assert record_writers.file_class("parquet/a", "same") != record_writers.file_class(
        "parquet/b", "same"
    )
    assert record_writers.file_class("jsonl/gzip", "parquet") != record_writers.file_class(
        "parquet/b", "parquet"
    )


@pytest.mark.parametrize("written", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_lines_are_written_the_same_at_every_time(written: str) -> None:
    files = []
    for _ in range(2):
        buffer = io.BytesIO()
        writer = record_writers.open_writer(buffer, written)
        assert isinstance(writer, RecordWriter)
        assert writer.write_records(b"%d" % index for index in range(1000)) == 1000
        writer.close()
        files.append(buffer.getvalue())
    assert files[0] == files[1]
    unpackers: dict[str, Callable[[bytes], bytes]] = {
        "jsonl": bytes,
        "jsonl.gz": gzip.decompress,
        "jsonl.zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    }
    assert unpackers[written](files[0]) == b"".join(b"%d\n" % index for index in range(1000))


def test_parquet_is_written_in_bounded_row_groups() -> None:
    buffer = io.BytesIO()
    writer = TableWriter(buffer, row_group_bytes=1000)
    for index in range(100):
        row = {
            "id": str(index),
            "text": "x" * 100,
            "source": "s",
            "metadata": None,
            SCORE_FIELD: 0.5,
        }
        writer.write_row(row)
    writer.close()
    file = pq.ParquetFile(buffer)
    assert file.metadata.num_row_groups == 10
    assert file.read().column("id").to_pylist() == [str(index) for index in range(100)]


def test_a_record_that_only_lenient_readers_take_goes_through_every_format() -> None:
    raw = (
        rb'{"id": "\ud800", "text": "t", "source": "\udfff", "n": NaN, "big": 1e400, "s": "\ud800"}'
    )
    parsed = LineParser(ReadOptions())(raw, 0)
    assert isinstance(parsed, Document)
    assert scored_line(raw, 0.5) == raw[:-1] + b',"datarater_score":0.5}'
    line = record_writers.attribute_line(parsed.key, 1, 0.5)
    assert json.loads(line)["id"] == json.loads(raw)["id"]

    row = row_of(parsed)
    table = pa.Table.from_pylist([row], record_writers.DOCUMENT_SCHEMA)
    assert (row["id"], row["source"]) == (r"\ud800", r"\udfff")
    assert table["metadata"].to_pylist() == [r'{"n":NaN,"big":Infinity,"s":"\ud800"}']
    rows = pa.table({"key": [parsed.key], "source": [parsed.source], "position": [0]})
    rows = rows.append_column("tokens", [[1]]).append_column("score", [[0.5]])
    assert record_writers.scores_table(rows, "a").to_pylist()[0]["id"] == r"\ud800"


def test_integers_past_64_bits_are_exact_in_attributes() -> None:
    for number in range(2**64, 2**64 + 4):
        parsed = LineParser(ReadOptions())(b'{"id": %d, "text": "t"}' % number, 0)
        assert isinstance(parsed, Document)
        line = record_writers.attribute_line(parsed.key, 1, 0.5)
        assert line.startswith(b'{"id":%d,' % number)


def test_an_old_column_of_scores_is_replaced() -> None:
    table = pa.table({SCORE_FIELD: ["a", "b"], "text": ["x", "y"]}).replace_schema_metadata(
        {"pandas": "{}", "mine": "1"}
    )
    scored = record_writers.scored_table(table, np.asarray([1, 2], np.float32))
    assert scored.to_pylist() == [{"text": "x", SCORE_FIELD: 1.0}, {"text": "y", SCORE_FIELD: 2.0}]
    assert scored.schema.metadata == {b"mine": b"1"}


def test_a_row_of_any_types_becomes_json() -> None:
    instant = pa.timestamp("ns", "Europe/Berlin")
    bad = pa.array([b"a\xff"]).view(pa.string())
    arrays = {
        "far": pa.array([2**61], pa.timestamp("us")),
        "day": pa.array([2**30], pa.date32()),
        "time": pa.array([1], pa.time64("ns")),
        "lasts": pa.array([5], pa.duration("s")),
        "instants": pa.array([[1]], pa.list_(instant)),
        "by_name": pa.array([[("k", {"t": 1})]], pa.map_(pa.string(), pa.struct([("t", instant)]))),
        "coded": pa.array(["x"]).dictionary_encode(),
        "decimal": pa.array(["1.10"]).cast(pa.decimal128(5, 2)),
        "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        "half": pa.array([0.5], pa.float16()),
        "big": pa.array([2**64 - 1], pa.uint64()),
        "broken": bad,
        "broken_inside": pa.StructArray.from_arrays([bad, pa.array([b"\x00"])], ["text", "blob"]),
        "nothing": pa.nulls(1),
    }
    (line,) = record_writers.table_lines(pa.table(arrays), np.asarray([0.5], np.float32))

    row = json.loads(line)
    assert list(row) == [*arrays, SCORE_FIELD]
    assert row["instants"] == ["1970-01-01 00:00:00.000000001"]
    assert row["by_name"] == [["k", {"t": "1970-01-01 00:00:00.000000001"}]]
    assert (row["time"], row["lasts"], row["coded"], row["decimal"]) == (
        "00:00:00.000000001",
        5,
        "x",
        "1.10",
    )
    assert (row["half"], row["big"], row["broken"], row["nothing"]) == (
        0.5,
        2**64 - 1,
        "a\\xff",
        None,
    )


def test_columns_of_one_name_do_not_stop_the_writing() -> None:
    table = pa.Table.from_arrays(
        [pa.array([1]), pa.array([2]), pa.array([3])], ["a", "a", SCORE_FIELD]
    )
    scores_N = np.asarray([0.5], np.float32)
    assert [json.loads(line) for line in record_writers.table_lines(table, scores_N)] == [
        {"a": 2, SCORE_FIELD: 0.5}
    ]
    assert record_writers.scored_table(table, scores_N).schema.names == ["a", "a", SCORE_FIELD]


def test_a_line_as_deep_as_can_be_read_can_be_written() -> None:
    deep = orjson.loads(b"[" * 1000 + b"]" * 1000)
    raw = b'{"text":"t","datarater_score":1,"deep":' + b"[" * 1000 + b"]" * 1000 + b"}"
    written = scored_line(raw, 2.0)
    assert orjson.loads(written)["deep"] == deep
    assert written.endswith(b',"datarater_score":2.0}')
    row = row_of(Document('"k"', "t", "", 0, 1, raw))
    assert orjson.loads(row["metadata"])["deep"] == deep
