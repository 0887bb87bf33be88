from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import dataset

from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph import output_files, publishing
from datarater.pipelines.graph.output_files import WrittenShard, plan_shards
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.kept_counts import GroupCounts, KeptCounts, KeptSplits
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.score_files import (
    SCHEMA,
    SCORE_NOT_FINITE,
    ScoreFile,
    ScoreRows,
)
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.ranking import key_hash
from datarater.pipelines.selection.rules import KeepFraction
from datarater.rater_model.documents.records import (
    BadRecord,
    Document,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.json_codec import decode, to_plain
from tests.support.run_folders import scoring


def a_document(position: int, source: str) -> Document:
    return Document(f'"{position}"', "text é", source, position, 7, b"{}")


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["document", "bad"]),
        st.sampled_from(["", "a", "b"]),
        st.floats(width=32, min_value=-2, max_value=2)
        | st.sampled_from([float("nan"), float("inf")]),
    ),
    max_size=30,
)


def commit_rows(folder: RunFolder, ordinal: int, rows: list[tuple[str, str, float]]) -> None:
    records: list[Record] = []
    scores: list[float] = []
    for position, (kind, source, score) in enumerate(rows):
        if kind == "bad":
            lost = 1 + position % 3
            records.append(BadRecord(position, Reason.NOT_JSON, "no JSON", b"\xff{", lost))
        else:
            records.append(a_document(position, source))
            scores.append(score)

    task = SplitTask(Split(f"file-{ordinal}", "jsonl", ordinal=ordinal), "print", 0)
    collected = ScoreRows(task.paths)
    for first in range(0, len(records), 7):  # batches cut anywhere
        batch = records[first : first + 7]
        count = sum(isinstance(record, Document) for record in batch)
        collected.add(batch, np.asarray(scores[:count], np.float32), np.full(count, 3))
        del scores[:count]

    commits.commit_file(
        folder.score_path(ordinal), collected.to_parquet(task, "jsonl/none", "digest")
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_summaries_count_what_score_files_hold(
    tmp_path_factory: pytest.TempPathFactory, files: list
) -> None:
    folder = RunFolder(str(tmp_path_factory.mktemp("run")))
    for ordinal, rows in enumerate(files):
        commit_rows(folder, ordinal, rows)
    summaries.summarise_group(folder, 0, range(len(files)))
    summary = summaries.read_summary(folder, 0)

    rows = [row for file in files for row in file]
    scored = [row for row in rows if row[0] == "document" and np.isfinite(row[2])]
    not_finite = [row for row in rows if row[0] == "document" and not np.isfinite(row[2])]
    bad = sum(1 + at % 3 for file in files for at, row in enumerate(file) if row[0] == "bad")

    assert summary.counts.read == len(scored) + len(not_finite) + bad
    assert summary.counts.scored == len(scored) == summary.histogram().documents
    assert summary.counts.tokens == 3 * len(scored) == summary.histogram().tokens
    assert summary.counts.rejected_by_reason == +Counter(
        {"not_json": bad, SCORE_NOT_FINITE: len(not_finite)}
    )
    for source in ("a", "b"):
        if any(row[1] == source for row in rows if row[0] == "document"):
            assert summary.sources[source].scored == sum(row[1] == source for row in scored)

    data = commits.read_if_there(folder.rejected_path(0)) or b""
    rejected = [orjson.loads(line) for line in data.splitlines()]
    assert sum(row["records"] for row in rejected) == bad + len(not_finite)
    assert all(
        row["excerpt"] == ("\\xff{" if row["reason"] == "not_json" else "text é")
        for row in rejected
    )


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(list(Reason)[:3]), st.integers(1, 5)), max_size=80),
    st.integers(0, 20),
)
def test_bad_records_past_a_number_are_counted_and_not_listed(
    bad: list[tuple[Reason, int]], max_listed: int
) -> None:
    rows = ScoreRows(["file"], max_listed)
    records: list[Record] = [
        BadRecord(position, reason, "fault", b"{", number)
        for position, (reason, number) in enumerate(bad)
    ]
    records.append(a_document(1000, "a"))
    for first in range(0, len(records), 7):
        part = records[first : first + 7]
        count = sum(isinstance(record, Document) for record in part)
        rows.add(part, np.zeros(count, np.float32), np.full(count, 3))
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(path)
        task = SplitTask(Split("file", "jsonl", ordinal=0), "print", 0)
        commits.commit_file(folder.score_path(0), rows.to_parquet(task, "jsonl/none", ""))
        table = ScoreFile.read(folder, 0).table
        summaries.summarise_group(folder, 0, [0])
        counts = summaries.read_summary(folder, 0).counts
        listed = [
            orjson.loads(line)
            for line in (commits.read_if_there(folder.rejected_path(0)) or b"").splitlines()
        ]

    expected: Counter[str] = Counter()
    for reason, number in bad:
        expected[str(reason)] += number
    assert counts.rejected_by_reason == expected
    assert counts.read == expected.total() + 1
    assert sum(row["records"] for row in listed) == expected.total()
    assert table.num_rows - 1 == len(listed) <= max_listed + 3 * 10 + 3
    if len(bad) <= max_listed:
        assert [row["position"] for row in listed] == list(range(len(bad)))


def test_many_bad_records_take_little_memory() -> None:
    rows = ScoreRows(["file"])
    tracemalloc.start()
    try:
        for first in range(0, 50_000, 1000):
            batch = [
                BadRecord(position, Reason.NOT_JSON, f"bad at {position}", b"x" * 200)
                for position in range(first, first + 1000)
            ]
            rows.add(batch, np.zeros(0, np.float32), np.zeros(0, np.int64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20
    file = rows.to_parquet(SplitTask(Split("file", "jsonl", ordinal=0), "", 0), "jsonl/none", "")
    assert file.seek(0, os.SEEK_END) < 100_000
    last = pq.read_table(file).to_pylist()[-1]
    assert (last["records"], last["position"]) == (49_000, 1000)
    assert last["detail"] == "49,000 more records with this reason, of which the first: bad at 1000"


def test_memory_does_not_grow_with_the_documents_of_a_split(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    rows = ScoreRows(["file"], row_group_bytes=2**19)
    documents, batch = 60_000, 4096
    peak, before = 0, pa.total_allocated_bytes()
    for first in range(0, documents, batch):
        records = [
            Document(f'"{position:064}"', "t", "s", position, 1, None)
            for position in range(first, min(first + batch, documents))
        ]
        rows.add(records, np.zeros(len(records), np.float32), np.ones(len(records), np.int64))
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 4 * 2**20 < documents * 100
    commits.commit_file(
        folder.score_path(0),
        rows.to_parquet(SplitTask(Split("file", "jsonl", ordinal=0), "", 0), "jsonl/none", ""),
    )

    parts = [(part.table.num_rows, part.table.nbytes) for part in ScoreFile.in_chunks(folder, 0)]
    assert sum(number for number, _ in parts) == documents
    assert max(size for _, size in parts) < 2 * 2**20
    assert ScoreFile.read(folder, 0).column("position").tolist() == list(range(documents))


def test_a_score_file_tells_its_split_and_its_keys(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    commit_rows(folder, 5, [("document", "a", 0.5), ("bad", "", 0.0), ("document", "b", -0.25)])
    file = ScoreFile.read(folder, 5)
    assert (file.task.split.ordinal, file.task.fingerprint, file.layout) == (
        5,
        "print",
        "jsonl/none",
    )
    assert file.scored_rows().tolist() == [0, 2]
    keys = file.rank_keys(seed=1)
    assert keys.positions_N.tolist() == [0, 2]
    assert file.column("key_hash").tolist() == [key_hash('"0"'), 0, key_hash('"2"')]


def test_a_row_of_an_earlier_version_stands_for_one_record(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    commit_rows(folder, 0, [("document", "a", 0.5), ("bad", "", 0.0)])
    table = pq.read_table(folder.score_path(0)).drop_columns(["records"])
    earlier = RunFolder(str(tmp_path / "earlier"))
    commits.commit_if_absent(earlier.score_path(0), b"")
    pq.write_table(table, earlier.score_path(0))
    for columns in (None, ["score", "records"]):
        assert ScoreFile.read(earlier, 0, columns).column("records").tolist() == [1, 1]
    summaries.summarise_group(earlier, 0, [0])
    assert summaries.read_summary(earlier, 0).counts.read == 2


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_missing_or_damaged_score_file_is_named(tmp_path: Path, damage: bytes | None) -> None:
    folder = RunFolder(str(tmp_path))
    if damage is not None:
        commits.commit_if_absent(folder.score_path(3), damage)
    with pytest.raises(CountsError, match=r"00000003\.parquet"):
        ScoreFile.read(folder, 3)


def commit_unlike_files(folder: RunFolder) -> None:
    """Commits files with other sources each: without rejects, with rejects alone, and empty."""
    commit_rows(folder, 0, [("document", "a", 0.5), ("bad", "", 0.0), ("document", "b", -0.25)])
    commit_rows(folder, 1, [("document", "c", 0.75)])
    commit_rows(folder, 2, [("bad", "", 0.0), ("bad", "", 0.0)])
    commit_rows(folder, 3, [])
    summaries.summarise_group(folder, 0, range(4))


def test_all_score_files_read_as_one_table(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    commit_unlike_files(folder)
    scores = tmp_path / "scores"
    rows = {("a", 0.5), ("b", -0.25), ("c", 0.75), ("", None)}

    table = pq.read_table(scores)
    assert table.num_rows == dataset.dataset(scores).count_rows() == 6
    assert table.schema.equals(SCHEMA)
    assert {(row["source"], row["score"]) for row in table.to_pylist()} == rows
    assert dataset.dataset(scores).to_table().num_rows == 6


def test_pandas_reads_all_score_files(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    commit_unlike_files(RunFolder(str(tmp_path)))
    frame = pandas.read_parquet(tmp_path / "scores")
    assert len(frame) == 6
    assert set(frame["source"]) == {"", "a", "b", "c"}
    assert frame["score"].sum() == 1.0


@pytest.mark.slow
def test_other_libraries_read_all_score_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = RunFolder(str(tmp_path / "run"))
    commit_unlike_files(folder)
    files = f"{folder.path}/scores/**/*.parquet"

    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=tmp_path / "cache"
    )
    assert sorted(loaded["source"]) == ["", "", "", "a", "b", "c"]
    loaded = datasets.load_dataset(
        f"{folder.path}/scores", split="train", cache_dir=tmp_path / "cache"
    )
    assert loaded.num_rows == 6


def test_duckdb_reads_all_score_files(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    commit_unlike_files(RunFolder(str(tmp_path)))
    query = (
        f"select count(*), sum(score), count(distinct source) from '{tmp_path}/scores/*/*.parquet'"
    )
    assert duckdb.sql(query).fetchall() == [(6, 1.0, 4)]


# --- Output files and counts ---

LAYOUTS = st.sampled_from(["jsonl/none", "jsonl/gzip", "parquet/aa", "parquet/bb"])
SPLIT_COUNTS = st.lists(st.tuples(LAYOUTS, st.integers(0, 3)), max_size=30).map(
    lambda rows: [
        (ordinal, layout, KeptCounts(read=kept + 1, kept=kept, dropped=1, kept_bytes=kept * 10))
        for ordinal, (layout, kept) in enumerate(rows)
    ]
)


@given(
    SPLIT_COUNTS,
    st.integers(1, 4),
    st.sampled_from(["same", "jsonl", "parquet"]),
    st.integers(1, 100),
)
def test_output_files_are_contiguous_runs_that_hold_all_that_is_kept(
    rows: list[tuple[int, str, KeptCounts]], groups: int, output_format: str, shard_bytes: int
) -> None:
    parts = [KeptSplits.of(rows[group::groups]) for group in reversed(range(groups))]
    tasks = list(plan_shards(KeptSplits.merge(parts), output_format, shard_bytes))
    flat = [pair for task in tasks for pair in task.splits]
    assert flat == [(ordinal, counts.kept) for ordinal, _, counts in rows if counts.kept]
    for number, task in enumerate(tasks):
        assert task.name == f"part-{number:05d}-of-{len(tasks):05d}.{task.written}"
        assert sum(kept for _, kept in task.splits[:-1]) * 10 < shard_bytes
        layouts = {rows[ordinal][1] for ordinal, _ in task.splits}
        assert len(layouts) == 1 or (
            output_format == "jsonl" or {x.split("/")[0] for x in layouts} == {"jsonl"}
        )


@given(SPLIT_COUNTS)
def test_counts_of_a_group_survive_json(rows: list[tuple[int, str, KeptCounts]]) -> None:
    group = GroupCounts(3, KeptSplits.of(rows), {"a": KeptCounts(read=1, dropped=1)})
    again = decode(GroupCounts, orjson.dumps(to_plain(group)))
    assert to_plain(again) == to_plain(group)
    total = KeptCounts()
    for _, _, counts in rows:
        total.add(counts)
    assert again.splits.total() == total


def a_balanced_selection() -> dict:
    counts = [KeptCounts(10, 4, 5, 1, 12, 28), KeptCounts(6, 3, 2, 1, 9, 21)]
    splits = KeptSplits.of((index, "jsonl/none", count) for index, count in enumerate(counts))
    keys = Histogram(np.asarray([1, 9], np.uint64), np.asarray([7, 7]), np.asarray([21, 21]))
    cutoffs = Cutoffs.begin(Policy(KeepFraction("0.5")), keys, {"a": (9, 27), "b": (5, 15)})

    return {
        "request": SelectionRequest(
            "run",
            Policy(KeepFraction("0.5")),
            seed=0,
            output_format="same",
            output_shard_bytes=1000,
        ),
        "scoring": scoring(
            Counts(read=16, scored=14, tokens=42, rejected_by_reason=Counter(not_json=2)), splits=2
        ),
        "cutoffs": cutoffs,
        "splits": splits,
        "sources": {"a": counts[0], "b": counts[1]},
        "written": [
            WrittenShard(task.name, task.written, task.documents, 1, "")
            for task in plan_shards(splits, "same", 1000)
        ],
    }


def test_counts_that_add_up_pass() -> None:
    assert publishing.reconcile_counts(**a_balanced_selection()) == KeptCounts(16, 7, 7, 2, 21, 49)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda s: s["splits"].counts["kept"].__setitem__(0, 5),
            "split 0: 10 documents read, but 5 kept",
        ),
        (lambda s: s["sources"].pop("b"), "the sources add up"),
        (lambda s: s["scoring"].counts.add(Counts(read=1)), "records read: 16, but 17"),
        (
            lambda s: s["scoring"].counts.rejected_by_reason.update(x=1),
            "records rejected: 2, but 3",
        ),
        (lambda s: s.update(scoring=scoring(s["scoring"].counts, splits=3)), "splits: 2, but 3"),
        (lambda s: s["written"].clear(), "output files and splits differ"),
        (lambda s: s.update(request=a_request_for("0.25")), "documents kept by"),
    ],
)
def test_counts_that_do_not_add_up_are_named(spoil, says: str) -> None:  # type: ignore[no-untyped-def]
    selection = a_balanced_selection()
    spoil(selection)
    with pytest.raises(CountsError, match=says):
        publishing.reconcile_counts(**selection)


def a_request_for(fraction: str) -> SelectionRequest:
    return SelectionRequest(
        "run", Policy(KeepFraction(fraction)), seed=0, output_format="same", output_shard_bytes=1000
    )


def test_shards_module_and_selection_agree_on_names() -> None:
    task = output_files.ShardTask("part", "jsonl", "jsonl", ((0, 2), (4, 3)))
    assert task.documents == 5
