"""Joined tables: their types, their files, and how rows and documents meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.errors import InputChangedError, UnreadableInputError
from datarater.pipelines.graph import joined_tables
from datarater.pipelines.graph.joined_tables import JoinError, Lookup
from datarater.pipelines.run_folder.identity import InputsDigest
from datarater.pipelines.run_folder.ranking_options import ColumnType, JoinedTable

HALVES = st.integers(0, 3)
HASHES = st.tuples(HALVES, HALVES)


def table_of(key: str = "key", **columns: ColumnType) -> JoinedTable:
    return JoinedTable(
        name="t", patterns=(), key=key, columns=columns, inputs=InputsDigest(1, 1, "")
    )


@given(
    st.lists(st.lists(st.tuples(HASHES, st.integers(0, 50)), max_size=12), max_size=5),
    st.lists(HASHES, max_size=20),
)
def test_a_lookup_finds_the_first_row_of_each_key_also_where_halves_of_hashes_collide(
    chunks: list[list[tuple[tuple[int, int], int]]], wanted: list[tuple[int, int]]
) -> None:
    # Each place is the place of one row.
    placed = [(hashes, place, n) for n, rows in enumerate(chunks) for hashes, place in rows]
    distinct = {place: (hashes, place, n) for hashes, place, n in placed}.values()
    rows_of = [[row for row in distinct if row[2] == n] for n in range(len(chunks))]
    lookup = Lookup.of(
        [
            (
                np.asarray([row[0] for row in rows], np.uint64).reshape(-1, 2).tobytes(),
                np.asarray([row[1] for row in rows], np.int64).tobytes(),
                orjson.dumps([[row[1] for row in rows]]),
            )
            for rows in rows_of
        ],
        columns=1,
    )
    first: dict[tuple[int, int], int] = {}
    for hashes, place, _ in sorted(distinct, key=lambda row: row[1]):
        first.setdefault(hashes, place)
    assert lookup.duplicates == len(distinct) - len(first)

    found_N = lookup.find(np.asarray(wanted, np.uint64).reshape(-1, 2))
    values = [None if row < 0 else lookup.columns[0][row] for row in found_N.tolist()]
    assert values == [first.get(hashes) for hashes in wanted]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int8(), ColumnType.INTEGER),
        (pa.uint32(), ColumnType.INTEGER),
        (pa.uint64(), ColumnType.NUMBER),
        (pa.float16(), ColumnType.NUMBER),
        (pa.decimal128(5, 2), ColumnType.NUMBER),
        (pa.bool_(), ColumnType.TRUTH),
        (pa.large_string(), ColumnType.TEXT),
        (pa.string_view(), ColumnType.TEXT),
        (pa.dictionary(pa.int8(), pa.string()), ColumnType.TEXT),
        (pa.list_(pa.int8()), None),
        (pa.timestamp("s"), None),
        (pa.binary(), None),
    ],
)
def test_types_are_read_as_numbers_texts_and_truths(
    kind: pa.DataType, expected: ColumnType | None
) -> None:
    assert joined_tables.column_type(kind) is expected


def test_numbers_that_are_not_finite_are_missing() -> None:
    column = pa.chunked_array([pa.array([1.5, float("nan"), float("inf"), None], pa.float32())])
    values = joined_tables.normalized(column, ColumnType.NUMBER).to_pylist()
    assert values == [1.5, None, None, None]
    integers = pa.chunked_array([pa.array([2**53 + 1, None], pa.int64())])
    assert joined_tables.normalized(integers, ColumnType.INTEGER).to_pylist() == [2**53 + 1, None]
    labels = pa.chunked_array([pa.array(["a", None, "a"]).dictionary_encode()])
    assert joined_tables.normalized(labels, ColumnType.TEXT).to_pylist() == ["a", None, "a"]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Any:
    pq.write_table(pa.table(columns), path, **options)
    return next(iter(joined_tables.files_of("t", [str(path)])))


@pytest.mark.parametrize("part_bytes", [1, 200, 10**9])
def test_the_parts_of_a_file_have_each_row_once(tmp_path: Path, part_bytes: int) -> None:
    keys = [f'"{number % 17}"' for number in range(50)]
    file = write(tmp_path / "t.parquet", {"key": keys, "v": range(50)}, row_group_size=7)
    table = table_of(v=ColumnType.INTEGER)
    parts = joined_tables.parts_of(table, file, 4, part_bytes)
    assert len(parts) == {1: 8, 10**9: 1}.get(part_bytes, len(parts))
    rows = [joined_tables.read_part(table, part) for part in parts]
    assert [row for part in rows for row in part.column("v").to_pylist()] == list(range(50))

    chunks = [joined_tables.chunks_of(table, part, 3) for part in parts]
    lookup = Lookup.of([chunk for some, _ in chunks for _, chunk in some], 1)
    assert sorted(lookup.columns[0]) == list(range(17))  # the first row of each key
    assert sum(counts.duplicates for _, counts in chunks) + lookup.duplicates == 50 - 17
    for some, _ in chunks:
        for bucket, (hashes, _, _) in some:
            assert set(np.frombuffer(hashes, np.uint64)[1::2] % np.uint64(3)) == {bucket}


def test_ids_are_found_as_scores_files_write_them() -> None:
    keys = ['"a"', "7", '"7"', '"\\ud800"', "sha256:0f", '{"a":1}']
    texts = ["a", "7", "7", "\\ud800", "sha256:0f", '{"a": 1}']
    by_id = joined_tables.document_hashes(keys, by_id=True)
    assert (by_id[:5] == joined_tables.hashes_of(texts[:5])).all()
    assert len(np.unique(joined_tables.document_hashes(keys, by_id=False), axis=0)) == len(keys)


@pytest.mark.parametrize("encoded", [False, True])
def test_ids_of_unsigned_integers_are_found_to_the_last_digit(
    tmp_path: Path, encoded: bool
) -> None:
    ids = [2**64 - 1, 2**64 - 2, None]
    column = pa.array(ids, pa.uint64())
    column = column.dictionary_encode() if encoded else column
    file = write(tmp_path / "t.parquet", {"id": column, "": pa.array([1, 2, 3])})
    table = table_of(key="id", **{"": ColumnType.INTEGER})  # a name like any other
    (part,) = joined_tables.parts_of(table, file, 0)
    chunks, counts = joined_tables.chunks_of(table, part, 1)
    lookup = Lookup.of([chunk for _, chunk in chunks], 1)
    rows = lookup.find(joined_tables.document_hashes(map(str, ids[:2]), by_id=True))
    assert [lookup.columns[0][row] for row in rows] == [1, 2]
    assert counts.without_key == 1


def test_a_file_whose_keys_are_all_missing_has_no_rows_to_join(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", {"key": pa.nulls(2), "v": [1, 2]})
    table = table_of(v=ColumnType.INTEGER)
    (part,) = joined_tables.parts_of(table, file, 0)
    chunks, counts = joined_tables.chunks_of(table, part, 1)
    assert not chunks
    assert (counts.rows, counts.without_key) == (2, 2)


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    table = table_of(v=ColumnType.INTEGER)
    cases: dict[str, dict[str, Any]] = {
        "has no column 'v'": {"key": ["a"]},
        "has no column 'key'": {"v": [1]},
        "the key column 'key' of .* is of type double": {"key": [1.5], "v": [1]},
        "the column 'v' of .* is of type string, but of type integer": {"key": ["a"], "v": ["b"]},
    }
    for number, (message, columns) in enumerate(cases.items()):
        file = write(tmp_path / f"{number}.parquet", columns)
        (part,) = joined_tables.parts_of(table, file, 0)
        with pytest.raises(JoinError, match=f"--join t: .*{message}"):
            joined_tables.read_part(table, part)

    # Integers fit into a column of numbers, and nulls into any.
    file = write(tmp_path / "fits.parquet", {"key": ["a"], "v": [1], "w": [None]})
    (part,) = joined_tables.parts_of(table, file, 0)
    fitting = table_of(v=ColumnType.NUMBER, w=ColumnType.TRUTH)
    assert joined_tables.read_part(fitting, part).to_pylist() == [{"key": "a", "v": 1.0, "w": None}]


def test_a_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    twice = pa.table([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["key", "v", "v"])
    pq.write_table(twice, tmp_path / "t.parquet")
    table = table_of(v=ColumnType.INTEGER)
    with pytest.raises(JoinError, match=r"t\.parquet has 2 columns 'v'; give each a name"):
        joined_tables.check_columns(table, str(tmp_path / "t.parquet"), twice.schema)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"not a table at all")
    with (
        pytest.raises(JoinError, match=r"--join t: .*bad\.parquet is not a Parquet file"),
        joined_tables.opened("t", str(tmp_path / "bad.parquet")),
    ):
        pass
    with (
        pytest.raises(UnreadableInputError, match=r"gone\.parquet"),
        joined_tables.opened("t", str(tmp_path / "gone.parquet")),
    ):
        pass


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    table = table_of(v=ColumnType.INTEGER)
    file = write(tmp_path / "t.parquet", {"key": ["a"], "v": [1]})
    (part,) = joined_tables.parts_of(table, file, 0)
    write(tmp_path / "t.parquet", {"key": ["a", "b"], "v": [1, 2]})
    with pytest.raises(InputChangedError, match=r"--join t: .* was modified"):
        joined_tables.read_part(table, part)
