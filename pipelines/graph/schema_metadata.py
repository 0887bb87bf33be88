"""Keeps what the metadata of a Parquet file says and still holds for some of its rows.

A kept file has other rows than its input, and a column of scores. What the datasets library,
pandas, Spark and GeoParquet write about columns is completed with that column; what they write
about rows is left out. Other entries are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from datarater.rater_model.documents.json_lines import SCORE_FIELD
from datarater.rater_model.documents.parquet import UNREADABLE_COLUMNS

_SPARK = b"org.apache.spark.sql.parquet.row.metadata"


def kept_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    """Returns what of a file's metadata holds for some of its rows with a column of scores.

    Args:
        metadata: Metadata of the input's schema.
    """
    kept: dict[bytes, bytes] = {}
    for key, value in (metadata or {}).items():
        change = _CHANGES.get(key)
        if change is None:
            kept[key] = value
            continue
        try:
            kept[key] = orjson.dumps(change(orjson.loads(value)))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError):
            continue  # damaged: nothing could read it
    kept.pop(UNREADABLE_COLUMNS, None)
    return kept


def _hugging_face(fields: dict[str, Any]) -> dict[str, Any]:
    """Keeps the features; the fingerprint is that of the input's rows."""
    features = dict(fields["info"]["features"])
    features[SCORE_FIELD] = {"dtype": "float32", "_type": "Value"}
    return {"info": {"features": features}}


def _pandas(fields: dict[str, Any]) -> dict[str, Any]:
    """Keeps the columns, and an index that is a column; a range is that of the input's rows."""
    columns = [column for column in fields["columns"] if column["name"] != SCORE_FIELD]
    score = {
        "name": SCORE_FIELD,
        "field_name": SCORE_FIELD,
        "pandas_type": "float32",
        "numpy_type": "float32",
        "metadata": None,
    }
    # Columns of the index come last.
    stored_index = [index for index in fields["index_columns"] if isinstance(index, str)]
    end = next(
        (at for at, column in enumerate(columns) if column["field_name"] in stored_index),
        len(columns),
    )
    columns.insert(end, score)
    return {**fields, "columns": columns, "index_columns": stored_index}


def _spark(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds the column of scores, which Spark would not show otherwise."""
    columns = [column for column in fields["fields"] if column["name"] != SCORE_FIELD]
    score = {"name": SCORE_FIELD, "type": "float", "nullable": True, "metadata": {}}
    return {**fields, "fields": [*columns, score]}


def _geo(fields: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the bounds of the input's rows."""
    columns = {
        name: {key: value for key, value in column.items() if key != "bbox"}
        for name, column in fields["columns"].items()
    }
    return {**fields, "columns": columns}


_CHANGES: dict[bytes, Callable[[dict[str, Any]], dict[str, Any]]] = {
    b"huggingface": _hugging_face,
    b"pandas": _pandas,
    _SPARK: _spark,
    b"geo": _geo,
}
