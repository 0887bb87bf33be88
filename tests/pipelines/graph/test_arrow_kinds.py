"""Columns of every Arrow type are kept, in every output format."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from datarater.pipelines.graph import record_writers
from datarater.pipelines.graph.second_read import KeptSplit
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.score_files import ScoreRows
from datarater.rater_model.documents.files import file_info
from datarater.rater_model.documents.json_lines import SCORE_FIELD
from datarater.rater_model.documents.parquet import Parquet
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import BadRecord, Document, ReadOptions, Split
from tests.support import arrow_kinds

OPTIONS = ReadOptions()
STORED = arrow_kinds.stored_columns()
OTHERS = arrow_kinds.other_columns()
TEXTS = ["a text", "another", "third one", "the last"]


def kept_split(path: str, kept: list[bool], options: ReadOptions = OPTIONS) -> KeptSplit:
    """Returns what is kept of a Parquet file, as if it had been scored."""
    records = list(read_file(path, options))
    number = sum(isinstance(record, Document) for record in records)
    rows = ScoreRows([path])
    rows.add(records, np.arange(number, dtype=np.float32), np.ones(number, np.int64))
    split = Split(path, "parquet")
    task = SplitTask(split, file_info(path).fingerprint, 0)
    table = pq.read_table(rows.to_parquet(task, Parquet().layout(split), "digest"))
    return KeptSplit(task, "", [(table, np.asarray(kept))], options)


def written(kept: KeptSplit, output_format: str) -> bytes:
    """Returns the output file of a split."""
    file = io.BytesIO()
    writer = record_writers.open_writer(file, output_format)
    assert writer.write(kept) == sum(kept_R.sum() for _, kept_R in kept.rows)
    writer.close()
    return file.getvalue()


def write_table(path: Path, column: pa.Array) -> pa.Table:
    """Writes a file with a column, and returns how the library reads it."""
    pq.write_table(pa.table({"text": TEXTS, "x": column}), path)
    return pq.read_table(path)


@pytest.mark.parametrize("kind", STORED)
def test_every_arrow_type_is_copied_to_parquet(tmp_path: Path, kind: str) -> None:
    table = write_table(tmp_path / "a.parquet", STORED[kind])
    kept = kept_split(str(tmp_path / "a.parquet"), [True, True, False, True])
    copy = pq.read_table(io.BytesIO(written(kept, "parquet")))
    assert copy["text"].to_pylist() == [TEXTS[0], TEXTS[1], TEXTS[3]]
    has_plain_form = "view" in kind and ("map" in kind or "list_view" in kind)
    assert copy["x"].type == table["x"].type or has_plain_form
    assert str(copy["x"].to_pylist()) == str(
        [value for row, value in enumerate(table["x"].to_pylist()) if row != 2]
    )
    assert copy[SCORE_FIELD].to_pylist() == [0, 1, 3]
    assert kept.incomplete == []


@pytest.mark.parametrize("kind", STORED)
def test_every_arrow_type_goes_through_every_other_format(tmp_path: Path, kind: str) -> None:
    write_table(tmp_path / "a.parquet", STORED[kind])
    kept = kept_split(str(tmp_path / "a.parquet"), [True, True, False, True])
    rows = [json.loads(line) for line in written(kept, "jsonl").splitlines()]
    assert [row["text"] for row in rows] == [TEXTS[0], TEXTS[1], TEXTS[3]]
    assert [row[SCORE_FIELD] for row in rows] == [0, 1, 3]
    is_null = STORED[kind].is_null().to_pylist()
    assert [row["x"] is None for row in rows] == [is_null[0], is_null[1], is_null[3]]

    lines = written(kept, "jsonl")
    assert gzip.decompress(written(kept, "jsonl.gz")) == lines
    assert bz2.decompress(written(kept, "jsonl.bz2")) == lines
    assert zstandard.decompress(written(kept, "jsonl.zst"), len(lines)) == lines
    assert len(gzip.decompress(written(kept, "attributes")).splitlines()) == 3
    scores = pq.read_table(io.BytesIO(written(kept, "scores")))
    assert scores[SCORE_FIELD].to_pylist() == [0, 1, 3]


@pytest.mark.parametrize("kind", OTHERS)
def test_a_type_without_a_form_in_parquet_becomes_json(kind: str) -> None:
    table = pa.table({"text": TEXTS, "x": OTHERS[kind]})
    rows = [json.loads(line) for line in record_writers.table_lines(table, np.zeros(4))]
    assert [row["x"] is None for row in rows] == [
        value is None for value in OTHERS[kind].to_pylist()
    ]


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_whose_footer_claims_any_type_is_copied(tmp_path: Path, kind: str) -> None:
    claimed = pa.schema([("text", pa.string()), ("x", OTHERS[kind].type)])
    metadata = {b"ARROW:schema": base64.b64encode(claimed.serialize())}
    table = pa.table({"text": TEXTS, "x": ["a", None, "b", "c"]})
    path = str(tmp_path / "a.parquet")
    pq.write_table(table.replace_schema_metadata(metadata), path, store_schema=False)
    copy = pq.read_table(io.BytesIO(written(kept_split(path, [True] * 4), "parquet")))
    assert copy["x"].to_pylist() == ["a", None, "b", "c"]


TEXT_KINDS = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
    *(pa.dictionary(pa.int32(), pa.binary()), pa.json_()),
]


@pytest.mark.parametrize("kind", TEXT_KINDS, ids=str)
@pytest.mark.parametrize("nested", [False, True])
def test_texts_of_every_type_are_scored_and_copied(
    tmp_path: Path, kind: pa.DataType, nested: bool
) -> None:
    values: pa.Array = pa.array(["é a", None, "b", " "])
    if isinstance(kind, pa.BaseExtensionType):
        values = pa.ExtensionArray.from_storage(kind, values)
    else:
        values = values.cast(pa.binary()).cast(kind) if "binary" in str(kind) else values.cast(kind)
    table = pa.table({"id": [1, 2, 3, 4], "text": values})
    if nested:
        table = pa.table({"m": table.to_struct_array()})
    pq.write_table(table, tmp_path / "a.parquet")

    path, options = str(tmp_path / "a.parquet"), OPTIONS
    if nested:
        options = ReadOptions(text_field="m.text", id_field="m.id")
    records = list(read_file(path, options))
    documents = [record for record in records if isinstance(record, Document)]
    assert [(one.key, one.text, one.size) for one in documents] == [("1", "é a", 4), ("3", "b", 1)]
    kept = kept_split(path, [True, False, True, False], options)
    copy = pq.read_table(io.BytesIO(written(kept, "parquet"))).flatten()
    assert copy["m.text" if nested else "text"].to_pylist() in (
        ["é a", "b"],
        ["é a".encode(), b"b"],
    )


def test_bytes_that_are_no_text_are_rejected_one_by_one(tmp_path: Path) -> None:
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        table = pa.table({"text": pa.array([b"good", b"\xff\xfeb\0", b"x" * 9], kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        good, bad, large = read_file(str(tmp_path / "a.parquet"), ReadOptions(max_record_bytes=8))
        assert isinstance(good, Document)
        assert isinstance(bad, BadRecord)
        assert isinstance(large, BadRecord)
        assert (bad.reason, large.reason) == ("text_not_unicode", "record_too_large")
