"""Parquet files: which columns are read, how much memory a page may take, and what damage costs."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater.rater_model.documents import files
from datarater.rater_model.documents.arrow_types import min_json_characters
from datarater.rater_model.documents.parquet import UNREADABLE_COLUMNS, Parquet
from datarater.rater_model.documents.parquet_pages import PageTooLargeError, PageWatch
from datarater.rater_model.documents.parquet_reader import (
    BrokenParquetError,
    ParquetReader,
    footer_bytes,
    max_page_bytes,
)
from datarater.rater_model.documents.reading import plan_file, read_file, read_split
from datarater.rater_model.documents.records import (
    BadRecord,
    Document,
    FileInfo,
    ReadOptions,
    Reason,
    Record,
    Split,
)

OPTIONS = ReadOptions()


def noise(count: int, seed: int = 0) -> bytes:
    """Returns bytes that cannot be compressed."""
    return random.Random(seed).randbytes(count)


def wide_table(rows: int = 60, size: int = 2000) -> pa.Table:
    return pa.table(
        {
            "before": [noise(size, row) for row in range(rows)],
            "id": [f"id {row}" for row in range(rows)],
            "m": [{"text": f"text {row}", "more": noise(size, row)} for row in range(rows)],
            "text": [f"text {row}" for row in range(rows)],
            "after": [[noise(size, row)] for row in range(rows)],
        }
    )


class CountingFile(io.FileIO):
    """A file that counts the bytes that are read."""

    served = 0

    def read(self, count: int | None = -1) -> bytes:
        data = super().read(count) or b""
        CountingFile.served += len(data)
        return data


def lost(records: list[Record]) -> list[tuple[Reason, int, int]]:
    return [
        (one.reason, one.position, one.records) for one in records if isinstance(one, BadRecord)
    ]


def damage(path: Path, group: int, column: str) -> None:
    """Overwrites bytes in the middle of a column chunk."""
    metadata = pq.read_metadata(path).row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    chunk = next(one for one in chunks if one.path_in_schema.startswith(column))
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[middle : middle + 30] = b"\xff" * 30
    path.write_bytes(content)


@pytest.mark.parametrize("text_field", ["text", "m.text"])
def test_scoring_reads_the_columns_of_its_fields_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_field: str
) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(wide_table(size=20_000), path, compression="none", use_dictionary=False)
    monkeypatch.setattr(files, "open_file", lambda path: CountingFile(path))
    CountingFile.served = 0
    records = list(read_file(path, ReadOptions(text_field=text_field)))
    assert [record.text for record in records if isinstance(record, Document)] == [
        f"text {row}" for row in range(60)
    ]
    # The library reads 64 KiB for the footer.
    assert CountingFile.served < 2**16 + 10_000
    assert Path(path).stat().st_size > 3_000_000


def big_value_file(path: Path, column: str, size: int, **settings: Any) -> None:
    """Writes 6 rows in two row groups, of which the fifth has one value of a large size."""
    rows: dict[str, list[str]] = {"text": [f"text {row}" for row in range(6)], "other": ["x"] * 6}
    rows[column][4] = "y" * size
    pq.write_table(pa.table(rows), path, row_group_size=3, compression="zstd", **settings)


@pytest.mark.parametrize("settings", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}])
def test_a_page_that_is_too_large_costs_the_rest_of_its_row_group(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = tmp_path / "a.parquet"
    big_value_file(path, "text", 66 * 2**20, **settings)
    assert path.stat().st_size < 20_000
    records = list(read_file(str(path), ReadOptions(max_record_bytes=1000)))
    assert lost(records) == [(Reason.RECORD_TOO_LARGE, 3, 3)]
    detail = records[-1].detail if isinstance(records[-1], BadRecord) else ""
    assert "more than the limit of 67108864" in detail
    assert "raise --max_record_bytes" in detail

    # With a higher limit the same file is read, and the text alone is rejected.
    records = list(read_file(str(path), ReadOptions(max_record_bytes=2**25)))
    assert lost(records) == [(Reason.RECORD_TOO_LARGE, 4, 1)]


def test_a_value_that_is_not_needed_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    big_value_file(path, "other", 66 * 2**20)
    records = list(read_file(str(path), ReadOptions(max_record_bytes=1000)))
    assert lost(records) == []
    assert len(records) == 6


def test_a_column_that_is_too_large_to_copy_is_null_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    big_value_file(path, "other", 66 * 2**20)
    options = ReadOptions(max_record_bytes=1000)
    batches = list(Parquet().read_tables(Split(str(path), "parquet"), options))
    values = [value for _, batch in batches for value in batch.column("other").to_pylist()]
    assert values == ["x", "x", "x", None, None, None]
    named = [(batch.schema.metadata or {}).get(UNREADABLE_COLUMNS) for _, batch in batches]
    assert set(named) == {None, b"other"}


def test_many_large_pages_for_a_few_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = pa.table({"text": [noise(2**19, row).hex() for row in range(6)]})
    settings = {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 1}
    pq.write_table(rows, path, compression="zstd", **settings)
    watch = PageWatch(files.open_file(str(path)), 2**21)
    file = pq.ParquetFile(watch, buffer_size=2**18, pre_buffer=False)
    watch.start_group(2)
    with pytest.raises(PageTooLargeError, match="for a few rows"):
        list(file.iter_batches(1024, use_threads=False))
    watch.start_group(2)
    sizes = []
    for batch in file.iter_batches(1, use_threads=False):
        watch.start_batch()
        sizes.append(batch.num_rows)
    assert sizes == [1] * 6


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_lists_of_too_many_values_cost_their_rows_and_not_those_before(
    tmp_path: Path, version: str
) -> None:
    path = tmp_path / "a.parquet"
    lists = [[1], [1, 2], [1] * 50_000, [1]]
    table = pa.table({"text": ["a", "b", "c", "d"], "id": lists, "n": range(4)})
    pq.write_table(table, path, row_group_size=2, data_page_version=version)
    assert path.stat().st_size < 4000
    with ParquetReader(str(path), max_values=(1000, 2000)) as reader:
        for columns in (["text", "id"], ["id"], None):
            assert [batch.num_rows for _, batch in reader.batches(0, columns)] == [2]
            with pytest.raises(BrokenParquetError, match=r"5000\d values in the pages") as raised:
                list(reader.batches(1, columns))
            assert raised.value.reason is Reason.RECORD_TOO_LARGE
        assert [batch.num_rows for _, batch in reader.batches(1, ["text", "n"])] == [2]


def test_flat_columns_have_any_number_of_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = 5000
    table = pa.table({"text": ["a"] * rows, "source": ["s"] * rows, "id": [[1]] * rows})
    pq.write_table(table, path, max_rows_per_page=rows)
    with ParquetReader(str(path), max_values=(100, rows)) as reader:
        assert sum(batch.num_rows for _, batch in reader.batches(0, ["text", "source"])) == rows
        assert sum(batch.num_rows for _, batch in reader.batches(0)) == rows


def test_a_list_that_is_too_long_for_an_id_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    names = [["a", "b"], ["c"] * 3000, ["d" * 20_000], [], None]
    pairs = [[("k", [1, 2])], [("k", [1] * 5000)], [], [("k", None)], None]
    table = pa.table(
        {
            "text": list("abcde"),
            "id": pa.array(names),
            "source": pa.array(pairs, pa.map_(pa.string(), pa.list_(pa.int8()))),
        }
    )
    pq.write_table(table, path)
    documents = [one for one in read_file(str(path)) if isinstance(one, Document)]
    assert [one.key for one in documents if not one.key.startswith("sha256:")] == ['["a","b"]']
    sources = [one.source for one in documents]
    assert sources == ['[["k",[1,2]]]', "", "[]", '[["k",null]]', ""]
    plain = [len(json.dumps(value, separators=(",", ":"))) for value in names]
    bounds = min_json_characters(pa.array(names)).tolist()
    assert all(bound <= number for bound, number in zip(bounds, plain, strict=True))
    assert [bound > 4096 for bound in bounds] == [False, True, True, False, False]


def test_a_row_that_expands_to_too_much_is_copied_without_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1400, pa.int32()), ["y" * 2**17])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 1399, 1400], pa.int32()), texts)
    table = pa.table({"text": ["a", "b", "c"], "more": lists, "n": [1, 2, 3]})
    pq.write_table(table, path, store_schema=False)
    options = ReadOptions(max_record_bytes=2**20)
    batches = [batch for _, batch in Parquet().read_tables(Split(str(path), "parquet"), options)]
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [(row["text"], row["n"]) for row in rows] == [("a", 1), ("b", 2), ("c", 3)]
    assert [row["more"] and len(row["more"]) for row in rows] == [1, None, 1]
    named = [(batch.schema.metadata or {}).get(UNREADABLE_COLUMNS) for batch in batches]
    assert named == [None, b"more", None]


def test_a_file_with_a_large_footer_is_cut_without_a_look_at_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {f"c{number}": [noise(9, number)] * 60 for number in range(60)}
    texts = [f"text {row} {noise(40 * (row % 7), row).hex()}" for row in range(60)]
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=2)
    size = path.stat().st_size
    assert footer_bytes(str(path)) > 2**15
    info = FileInfo(str(path), size, "print")
    for count in (1, 2, 7, 100):
        splits = plan_file(info, OPTIONS, -(-size // count))
        assert len(splits) in (count, count - 1)
        assert sum(split.size for split in splits) == size
        rows = [[record.position for record in read_split(one, OPTIONS)] for one in splits]
        assert [position for part in rows for position in part] == list(range(60))
        tables = [sum(b.num_rows for _, b in Parquet().read_tables(s, OPTIONS)) for s in splits]
        assert tables == [len(part) for part in rows]
        if count == 7:
            assert all(rows)

    # What cannot be read, or has no text, is counted once.
    splits = plan_file(info, OPTIONS, size // 4)
    other = ReadOptions(text_field="other")
    lost = [record for split in splits for record in read_split(split, other)]
    assert sum(record.records for record in lost if isinstance(record, BadRecord)) == 60
    data = bytearray(path.read_bytes())
    data[-2000:-100] = bytes(1900)
    path.write_bytes(data)
    (bad,) = (record for split in splits for record in read_split(split, OPTIONS))
    assert isinstance(bad, BadRecord)
    assert bad.reason is Reason.UNREADABLE_FILE


def test_the_limit_of_a_page_follows_that_of_a_record() -> None:
    assert max_page_bytes(2**26) == 2**28
    assert max_page_bytes(1) == 2**26


@pytest.mark.parametrize("column", ["before", "after", "m"])
def test_damage_in_a_column_that_is_not_needed_is_null_in_the_copy(
    tmp_path: Path, column: str
) -> None:
    path = tmp_path / "a.parquet"
    table = wide_table()
    pq.write_table(table, path, row_group_size=20, compression="gzip", use_dictionary=False)
    damage(path, 1, "m.more" if column == "m" else column)
    assert len([one for one in read_file(str(path)) if isinstance(one, Document)]) == 60
    batches = list(Parquet().read_tables(Split(str(path), "parquet"), OPTIONS))
    copy = pa.Table.from_batches([batch for _, batch in batches])
    assert copy.drop_columns([column]).equals(table.drop_columns([column]))
    values = copy[column].to_pylist()
    assert values[:20] + values[40:] == [
        value for row, value in enumerate(table[column].to_pylist()) if row < 20 or row >= 40
    ]
    assert values[20:40] == [None] * 20
    named = [(batch.schema.metadata or {}).get(UNREADABLE_COLUMNS) for _, batch in batches]
    assert column.encode() in named


def test_damage_that_forbids_a_copy_names_another_way(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(wide_table(), path, row_group_size=20, compression="gzip", use_dictionary=False)
    damage(path, 1, "m.more")
    options = ReadOptions(text_field="m.text")
    assert len(list(read_file(str(path), options))) == 60
    with pytest.raises(OSError, match="--output_format scores or attributes"):
        list(Parquet().read_tables(Split(str(path), "parquet"), options))

    schema = pa.schema([pa.field("text", pa.string()), pa.field("n", pa.binary(), nullable=False)])
    table = pa.table({"text": ["a"] * 20, "n": [noise(200, row) for row in range(20)]}, schema)
    pq.write_table(table, path, compression="gzip", use_dictionary=False)
    damage(path, 0, "n")
    with pytest.raises(OSError, match="the columns n are damaged and must not be null"):
        list(Parquet().read_tables(Split(str(path), "parquet"), OPTIONS))


def test_damage_of_the_text_is_left_out_of_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(wide_table(), path, row_group_size=20, compression="gzip", use_dictionary=False)
    damage(path, 1, "text")
    assert lost(list(read_file(str(path)))) == [(Reason.PAGE_CORRUPT, 20, 20)]
    batches = Parquet().read_tables(Split(str(path), "parquet"), OPTIONS)
    rows = [row for first, batch in batches for row in range(first, first + batch.num_rows)]
    assert rows == [*range(20), *range(40, 60)]


def test_a_huge_value_repeated_in_any_column_is_copied_a_few_rows_at_a_time(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "a.parquet")
    codes = pa.array([0] * 40, pa.int32())
    repeated = pa.DictionaryArray.from_arrays(codes, ["x" * 4_000_000])
    lists = pa.ListArray.from_arrays(pa.array(range(41), pa.int32()), repeated)
    table = pa.table({"text": ["a"] * 40, "one": repeated, "many": lists})
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=2**30)
    sizes = []
    for _, batch in Parquet().read_tables(Split(path, "parquet"), OPTIONS):
        assert batch.column("one").type == batch.column("many").type.value_type == pa.string()
        sizes.append(batch.nbytes)
    assert max(sizes) < 70_000_000
    assert sum(sizes) > 40 * 2 * 4_000_000


def test_a_footer_with_an_absurd_number_of_rows_is_one_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 3}), path)
    assert ParquetReader(str(path)).first_rows == [0, 3]
    # The footer's number of rows and the row group's are integers of one byte: 3 is stored as 6.
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    body, metadata = content[: -8 - footer], content[-8 - footer : -8]
    huge = b"\x80\x80\x80\x80\x80\x80\x80\x80\x02"
    at = metadata.rindex(b"\x16\x06", 0, metadata.index(b"ARROW:schema"))
    metadata = metadata[: at + 1] + huge + metadata[at + 2 :]
    path.write_bytes(body + metadata + len(metadata).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(BrokenParquetError, match="claims"):
        ParquetReader(str(path))
    assert lost(list(read_file(str(path)))) == [(Reason.UNREADABLE_FILE, 0, 1)]
