"""The metadata of a Parquet file in the files of kept rows."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.graph.record_writers import TableWriter, scored_table
from datarater.pipelines.graph.schema_metadata import kept_metadata
from datarater.rater_model.documents.json_lines import SCORE_FIELD


def copied(*tables: pa.Table) -> pa.Table:
    """Returns the file that tables are written to, each with its scores."""
    file = io.BytesIO()
    writer = TableWriter(file, row_group_bytes=1)
    for table in tables:
        writer.write_table(scored_table(table, np.arange(table.num_rows, dtype=np.float32)))
    writer.close()
    return pq.read_table(file)


def test_features_of_the_datasets_library_are_kept_with_one_for_the_score() -> None:
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
    }
    info = {"info": {"features": features}, "fingerprint": "of the rows"}
    table = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata(
        {"huggingface": json.dumps(info)}
    )
    kept = json.loads(copied(table).schema.metadata[b"huggingface"])
    assert kept == {
        "info": {"features": {**features, SCORE_FIELD: {"dtype": "float32", "_type": "Value"}}}
    }


def test_pandas_reads_the_types_of_kept_rows_and_an_index_that_is_a_column() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": ["a", "b", "c"], "kind": pd.Categorical(["x", "y", "x"])})
    whole = pa.Table.from_pandas(frame)
    read = copied(whole.take([0, 2])).to_pandas()
    assert read["kind"].dtype == "category"
    assert read.index.tolist() == [0, 1]
    assert read[SCORE_FIELD].tolist() == [0, 1]
    assert read.columns.tolist() == ["text", "kind", SCORE_FIELD]

    named = pa.Table.from_pandas(frame.set_index(pd.Index([10, 20, 30], name="number")))
    read = copied(named.take([0, 2])).to_pandas()
    assert read.index.tolist() == [10, 30]
    assert read.index.name == "number"
    again = copied(pa.Table.from_pandas(read)).to_pandas()
    assert again.columns.tolist() == ["text", "kind", SCORE_FIELD]


def test_spark_sees_the_score_and_bounds_of_the_input_are_left_out() -> None:
    spark = {"type": "struct", "fields": [{"name": "text", "type": "string", "nullable": True}]}
    geo = {"primary_column": "g", "columns": {"g": {"encoding": "WKB", "bbox": [0, 0, 1, 1]}}}
    kept = kept_metadata(
        {
            b"org.apache.spark.sql.parquet.row.metadata": json.dumps(spark).encode(),
            b"geo": json.dumps(geo).encode(),
            b"mine": b"anything",
        }
    )
    fields = json.loads(kept[b"org.apache.spark.sql.parquet.row.metadata"])["fields"]
    assert [field["name"] for field in fields] == ["text", SCORE_FIELD]
    assert json.loads(kept[b"geo"])["columns"] == {"g": {"encoding": "WKB"}}
    assert kept[b"mine"] == b"anything"


def test_damaged_metadata_is_left_out() -> None:
    damaged = (b"{", b"[]", b'{"columns": 1}', b'{"info": null}', b"\xff")
    for key in (b"pandas", b"huggingface", b"geo"):
        for value in damaged:
            assert kept_metadata({key: value}) == {}
    assert kept_metadata(None) == {}


def test_files_keep_what_all_of_their_inputs_agree_in() -> None:
    one = pa.table({"text": ["a"]}).replace_schema_metadata({"both": "1", "own": "1"})
    other = pa.table({"text": ["b"]}).replace_schema_metadata({"both": "1", "own": "2"})
    assert copied(one, other).schema.metadata == {b"both": b"1"}
    assert copied(one, pa.table({"text": ["b"]})).schema.metadata is None


def test_metadata_of_fields_is_kept() -> None:
    field = pa.field("text", pa.string(), metadata={"comment": "the text"})
    copy = copied(pa.table({"text": ["a"]}, pa.schema([field])))
    metadata = copy.schema.field("text").metadata
    assert metadata is not None
    assert metadata[b"comment"] == b"the text"
