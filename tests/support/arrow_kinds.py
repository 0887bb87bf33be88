"""Columns of every Arrow type, for tests that send each of them through all formats."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

ROWS = 4

_DAY = datetime.date(2020, 1, 31)
_VALUES: dict[pa.DataType, list[Any]] = {
    pa.bool_(): [True, None, False, True],
    pa.float16(): [np.float16(0.5), None, np.float16(2), np.float16(3)],
    **{
        kind: [1, None, 2, 3]
        for kind in (
            *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
            *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
            *(pa.float32(), pa.float64()),
            *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
            *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
            *(pa.timestamp(unit, "Europe/Berlin") for unit in ("s", "ms", "us", "ns")),
            *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
        )
    },
    **{kind: [_DAY, None, _DAY, _DAY] for kind in (pa.date32(), pa.date64())},
    **{
        kind: [Decimal("1.10"), None, Decimal("-2.00"), Decimal("0.00")]
        for kind in (
            *(pa.decimal32(5, 2), pa.decimal64(5, 2)),
            *(pa.decimal128(5, 2), pa.decimal256(5, 2)),
        )
    },
    **{kind: ["é", None, "", "b"] for kind in (pa.string(), pa.large_string(), pa.string_view())},
    **{
        kind: [b"\xff", None, b"", b"b"]
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    },
    pa.binary(2): [b"ab", None, b"cd", b"ef"],
    pa.month_day_nano_interval(): [(1, 2, 3), None, (0, 0, 1), (0, 0, 0)],
}


def _nested(kind: pa.DataType, values: list[Any]) -> dict[str, pa.Array]:
    """Returns columns that contain values of a type."""
    lists = [[values[0], values[2]], None, [], [values[3]]]
    pairs = [(values[0], values[2])] * ROWS
    return {
        f"list {kind}": pa.array(lists, pa.list_(kind)),
        f"large_list {kind}": pa.array(lists, pa.large_list(kind)),
        f"fixed_size_list {kind}": pa.array(pairs, pa.list_(kind, 2)),
        f"list_view {kind}": pa.array(lists, pa.list_view(kind)),
        f"large_list_view {kind}": pa.array(lists, pa.large_list_view(kind)),
        f"struct {kind}": pa.array(
            [{"a": values[0]}, None, {"a": None}, {"a": values[3]}], pa.struct([("a", kind)])
        ),
        f"map {kind}": pa.array(
            [[(values[0], values[2])], None, [], [(values[2], None)]], pa.map_(kind, kind)
        ),
        f"list of list {kind}": pa.array([[item] for item in lists], pa.list_(pa.list_(kind))),
    }


def stored_columns() -> dict[str, pa.Array]:
    """Returns a column of every type that a Parquet file can store, by a name of the type."""
    columns = {
        str(kind): pa.array(values, kind)
        for kind, values in _VALUES.items()
        if kind != pa.month_day_nano_interval()
    }
    columns["null"] = pa.nulls(ROWS)

    strings = ["é", None, "", "b"]
    plain = (pa.int64(), pa.string(), pa.timestamp("ns"))
    for kind in (*plain, pa.string_view(), pa.binary_view()):
        columns |= _nested(kind, _VALUES.get(kind, strings))

    # Encodings and extensions.
    columns["dictionary"] = pa.array(strings).dictionary_encode()
    columns["dictionary of bytes"] = pa.array(_VALUES[pa.binary()]).dictionary_encode()
    columns["dictionary of large strings"] = pa.array(
        strings, pa.large_string()
    ).dictionary_encode()
    columns["dictionary of numbers"] = pa.array([1, None, 1, 2]).dictionary_encode()
    columns["list of dictionary"] = pa.ListArray.from_arrays([0, 1, 1, 3, 4], columns["dictionary"])
    extensions = {
        pa.uuid(): pa.array([b"0" * 16, None, b"1" * 16, b"2" * 16], pa.binary(16)),
        pa.json_(): pa.array(['{"a":1}', None, "[]", "1"]),
        pa.bool8(): pa.array([1, None, 0, 1], pa.int8()),
        pa.fixed_shape_tensor(pa.int32(), (2,)): pa.array([[1, 2]] * ROWS, pa.list_(pa.int32(), 2)),
        pa.opaque(pa.string_view(), "a", "b"): pa.array(strings, pa.string_view()),
    }
    for kind, storage in extensions.items():
        columns[str(kind)] = pa.ExtensionArray.from_storage(kind, storage)
    return columns


def other_columns() -> dict[str, pa.Array]:
    """Returns a column of every type that Parquet has no form for."""
    strings = pa.array(["a", "b"])
    ids, numbers = pa.array([0, 1, 0, 1], pa.int8()), pa.array([1, 2, 3, 4])
    interval = pa.month_day_nano_interval()
    return {
        str(interval): pa.array(_VALUES[interval], interval),
        "run_end_encoded": pa.RunEndEncodedArray.from_arrays(pa.array([1, 4], pa.int32()), strings),
        "dense_union": pa.UnionArray.from_dense(
            ids, pa.array([0, 0, 1, 1], pa.int32()), [numbers, strings]
        ),
        "sparse_union": pa.UnionArray.from_sparse(ids, [numbers, pa.array(["a", "b", "c", "d"])]),
        "dictionary of views": pa.DictionaryArray.from_arrays(
            pa.array([0, None, 1, 0], pa.int32()), strings.cast(pa.string_view())
        ),
    }
