"""Small files share splits, and nothing else changes: not a document, not its rank, not a count."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datarater.pipelines.errors import InputChangedError
from datarater.pipelines.graph import kept_rows, output_files, planning
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.output_files import WriteShard
from datarater.pipelines.graph.planning import FilePlan, pack
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.graph.score_split import score_split
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.kept_counts import KeptSplits
from datarater.pipelines.run_folder.plan import plan_of, plans_of, read_group
from datarater.pipelines.run_folder.progress import Watcher
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.selection.cutoffs import Cutoffs, merge_answers
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.ranking import RankKeys
from datarater.pipelines.selection.rules import KeepFraction
from datarater.rater_model.documents.records import Compression, FileInfo
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer
from tests.support.run_folders import run_options


@dataclasses.dataclass(frozen=True)
class Listing:
    """Inputs that were listed before."""

    infos: tuple[FileInfo, ...]

    def files(self) -> Iterator[FileInfo]:
        yield from self.infos


class ScorerOfDigests(TextScorer):
    """Scores a text by its digest, in so few steps that scores are often tied."""

    digest = "digest"

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        scores = [hashlib.sha256(text.encode()).digest()[0] % 4 for text in texts]
        return ScoredTexts(
            scores_N=np.asarray(scores, np.float32), tokens_N=np.full(len(texts), 3, np.int64)
        )


def request_for(corpus: Path, output: Path, **changes: Any) -> ScoringRequest:
    request = ScoringRequest(Patterns((str(corpus),)), "rater", str(output), run_options())
    return dataclasses.replace(request, **changes)


def scored(request: ScoringRequest) -> list[ScoreFile]:
    """Plans and scores a corpus; returns its score files in order."""
    planning.plan_now(request)
    files = []
    for group in range(plan_of(request.folder).groups):
        tasks = read_group(request.folder, group)
        for task in tasks:
            content = score_split(task, request.options.read, ScorerOfDigests())
            commits.commit_file(request.folder.score_path(task.split.ordinal), content)
            files.append(ScoreFile.read(request.folder, task.split.ordinal))
        summaries.summarise_group(request.folder, group, [task.split.ordinal for task in tasks])
    return files


def written(request: ScoringRequest, output_format: str, fraction: str) -> dict[str, bytes]:
    """Selects from a scored corpus; returns the content of every output file."""
    policy = Policy(KeepFraction(fraction))
    selection = SelectionRequest(request.output, policy, 0, output_format, 2**20)
    folder, groups = request.folder, range(plan_of(request.folder).groups)
    total = summaries.Summary()
    for group in groups:
        total.add(summaries.read_summary(folder, group))
    sources = {name: (counts.scored, counts.tokens) for name, counts in total.sources.items()}
    cutoffs = Cutoffs.begin(policy, total.histogram(), sources)
    while not cutoffs.done:
        files = [
            ScoreFile.read(folder, task.split.ordinal)
            for group in groups
            for task in read_group(folder, group)
        ]
        answers = [cutoffs.answers(*kept_rows.keys_by_source(file, 0)) for file in files]
        cutoffs = cutoffs.advance(merge_answers(answers))

    counts = [kept_rows.count_group(selection, group, cutoffs) for group in groups]
    splits = KeptSplits.merge(group.splits for group in counts)
    splits.check()
    assert splits.splits == plan_of(folder).splits
    name_of = output_files.names_of(selection, selection.options_over(1))
    contents = {}
    for task in output_files.plan_shards(splits, output_format, 2**20, name_of):
        (shard,) = WriteShard(selection).process(task, cutoffs)
        assert shard.documents == task.documents
        contents[task.name] = commits.read_bytes(selection.selection.kept_path(task.name))
    return contents


def unpacked(request: ScoringRequest, output: Path) -> ScoringRequest:
    return dataclasses.replace(request, output=str(output), files_per_split=1)


# --- the plan ---

SIZES = st.lists(st.integers(0, 30) | st.integers(31, 300), max_size=40)


@given(SIZES, st.integers(1, 100), st.integers(1, 9))
def test_every_part_of_a_file_is_planned_once_in_order_however_files_are_packed(
    sizes: list[int], max_bytes: int, max_files: int
) -> None:
    plans = [
        FilePlan.of(FileInfo(f"{number:03d}", size, f"print-{number}"), run_options().read, 2**20)
        if size <= 30
        else FilePlan(
            FileInfo(f"{number:03d}", size, f"print-{number}"),
            "jsonl",
            Compression.NONE,
            np.asarray([(start, start + 100, 100) for start in range(0, size, 100)]),
        )
        for number, size in enumerate(sizes)
    ]
    tasks = list(pack(plans, max_bytes, max_files))
    parts = [part for task in tasks for part in task.each()]

    assert [part.split.ordinal for part in parts] == list(range(len(parts)))
    alone = [part for task in pack(plans, max_bytes, 1) for part in task.each()]
    assert [dataclasses.replace(part, group=0) for part in parts] == alone
    for task in tasks:
        assert task.parts <= max_files
        if task.packed:
            assert task.size <= max_bytes
            assert all(part.split.size <= 30 for part in task.each())
    assert sum(task.size for task in pack(plans, 10**9, 10**9)) == sum(task.size for task in tasks)


def test_a_thousand_tiny_files_are_a_few_splits_and_are_not_opened_to_be_planned(
    tmp_path: Path,
) -> None:
    request = request_for(tmp_path, tmp_path / "run", files_per_split=300)
    infos = [FileInfo(f"not there/{number:04d}.jsonl", 20, "print") for number in range(1000)]
    request = dataclasses.replace(request, inputs=Listing(tuple(infos)))
    planning.plan_now(request)
    tasks = read_group(request.folder, 0)
    assert [task.parts for task in tasks] == [300, 300, 300, 100]
    assert [task.split.ordinal for task in tasks] == [0, 300, 600, 900]
    assert plan_of(request.folder).splits == 4


def test_groups_are_bounded_by_the_files_in_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(50):
        (tmp_path / "in" / f"{number:04d}.jsonl").write_text('{"text": "one line"}\n')
    request = request_for(tmp_path / "in", tmp_path / "run", files_per_split=5, parts_per_group=12)
    planning.plan_now(request)
    plan = plan_of(request.folder)
    groups = [read_group(request.folder, group) for group in range(plan.groups)]
    assert [sum(task.parts for task in group) for group in groups] == [10] * 5
    plans = plans_of(request.folder)
    (index,) = plans.indices
    assert (index.first_ordinals, index.splits, index.end) == ((0, 10, 20, 30, 40), (2,) * 5, 50)
    assert [plans.group_of(ordinal) for ordinal in (0, 5, 9, 10, 49)] == [0, 0, 0, 1, 4]
    assert plans.ordinals_of([9, 0, 3]) == [45, 0, 15]


def test_few_workers_get_large_splits_and_many_get_small_ones(tmp_path: Path) -> None:
    request = request_for(tmp_path, tmp_path / "run")
    for workers, expected in ((1, 2**24), (100, 2**30 // 400), (10**9, 2**16)):
        filled = dataclasses.replace(request, workers_to_fill=workers)
        assert filled.pack_bytes(2**30) == expected


# --- score files ---


def write_mixed(folder: Path, files: list[list[str]]) -> None:
    """Writes files of one line for each text, of kinds that take turns."""
    folder.mkdir()
    for number, texts in enumerate(files):
        rows = [{"id": text, "text": text, "source": text[:1]} for text in texts]
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path = folder / f"{number:03d}"
        if number % 3 == 2:
            columns: Any = rows or {name: pa.array([], pa.string()) for name in ("id", "text")}
            table = pa.Table.from_pylist(columns) if rows else pa.table(columns)
            pq.write_table(table, path.with_suffix(".parquet"))
        elif number % 3 == 1:
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(data + b"no json\n"))
        else:
            path.with_suffix(".jsonl").write_bytes(data)


TEXTS = st.sampled_from(["a", "b", "aa", "bb", "a b", "b a b", " "])
CORPORA = st.lists(st.lists(TEXTS, max_size=5), min_size=1, max_size=8)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(CORPORA, st.integers(2, 9))
def test_packed_files_score_and_rank_as_they_do_alone(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], per_split: int
) -> None:
    folder = tmp_path_factory.mktemp("packing")
    write_mixed(folder / "in", files)
    request = request_for(folder / "in", folder / "packed", files_per_split=per_split)
    packed, alone = scored(request), scored(unpacked(request, folder / "alone"))

    sections = [section for file in packed for section in file.sections()]
    assert [section.task for section in sections] == [file.task for file in alone]
    for section, file in zip(sections, alone, strict=True):
        assert section.layout == file.layout
        assert section.table.to_pylist() == file.table.to_pylist()
        assert section.sources()[1].shape == file.sources()[1].shape
        assert set(section.table["file"].to_pylist()) <= {section.task.split.path}

    keys = [RankKeys.concatenate(file.rank_keys(7) for file in run) for run in (packed, alone)]
    assert [keys[0].key(row) for row in range(len(keys[0]))] == [
        keys[1].key(row) for row in range(len(keys[1]))
    ]
    rejected = [
        sorted(line for path in (folder / name).glob("rejected/*") for line in path.open())
        for name in ("packed", "alone")
    ]
    assert rejected[0] == rejected[1]


@pytest.mark.parametrize("per_split", [1, 9])
def test_score_files_of_many_row_groups_select_the_same(tmp_path: Path, per_split: int) -> None:
    texts = [" ".join(letters) for letters in itertools.product("ab", "ab", "abc")]
    write_mixed(tmp_path / "in", [texts, texts[3:], [], texts[5:], texts[:4], ["b"]])
    request = request_for(tmp_path / "in", tmp_path / "run", files_per_split=per_split)
    scored(request)
    cut = dataclasses.replace(request, output=str(tmp_path / "cut"))
    shutil.copytree(request.output, cut.output)

    # Cut the score files, and summarize them anew.
    for path in (tmp_path / "cut" / "scores").rglob("*.parquet"):
        table = pq.read_table(path)
        if not table.num_rows:
            continue
        pq.write_table(table, path, row_group_size=2)
        assert pq.ParquetFile(path).metadata.num_row_groups == -(-table.num_rows // 2)
    for summary in (tmp_path / "cut").glob("*/summaries/*"):
        summary.unlink()
    for rejects in (tmp_path / "cut").glob("rejected/*"):
        rejects.unlink()
    ordinals = [task.split.ordinal for task in read_group(cut.folder, 0)]
    summaries.summarise_group(cut.folder, 0, ordinals)

    for name in (cut.folder.summary_path(0), cut.folder.rejected_path(0)):
        whole = commits.read_bytes(name.replace(cut.output, request.output))
        assert commits.read_bytes(name) == whole
    for output_format in ("same", "jsonl.gz", "parquet", "attributes", "scores"):
        for run in ("run", "cut"):
            shutil.rmtree(tmp_path / run / "selections", ignore_errors=True)
        kept = written(request, output_format, "0.4")
        assert written(cut, output_format, "0.4") == kept
        assert len(kept) >= 1


def records_in(files: dict[str, bytes]) -> list[str]:
    """Returns the records of output files, sorted."""
    records: list[str] = []
    for name, content in files.items():
        if name.endswith(".parquet"):
            records += map(repr, pq.read_table(pa.BufferReader(content)).to_pylist())
        else:
            data = gzip.decompress(content) if name.endswith(".gz") else content
            records += data.decode().splitlines()
    return sorted(records)


@pytest.mark.parametrize("output_format", ["same", "jsonl", "parquet", "scores", "attributes"])
def test_the_same_documents_are_kept_and_written_however_files_are_packed(
    tmp_path: Path, output_format: str
) -> None:
    write_mixed(tmp_path / "in", [[f"{number} {row}" for row in range(5)] for number in range(9)])
    request = request_for(tmp_path / "in", tmp_path / "packed", files_per_split=4)
    alone = unpacked(request, tmp_path / "alone")
    assert len(scored(request)) == 3 < len(scored(alone)) == 9

    packed_files = written(request, output_format, "0.5")
    alone_files = written(alone, output_format, "0.5")
    assert records_in(packed_files) == records_in(alone_files)
    if output_format in ("scores", "attributes"):
        assert packed_files == alone_files


def test_files_of_one_format_give_the_same_bytes_however_they_are_packed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(9):
        rows = [json.dumps({"text": f"{number} {row}"}) + "\n" for row in range(5)]
        (tmp_path / "in" / f"{number}.jsonl").write_text("".join(rows))
    request = request_for(tmp_path / "in", tmp_path / "packed", files_per_split=4)
    alone = unpacked(request, tmp_path / "alone")
    assert len(scored(request)) == 3 < len(scored(alone)) == 9
    assert written(request, "same", "0.5") == written(alone, "same", "0.5")


def test_files_of_which_nothing_is_kept_are_not_read_again(tmp_path: Path) -> None:
    write_mixed(tmp_path / "in", [[f"{number} {row}" for row in range(3)] for number in range(9)])
    request = request_for(tmp_path / "in", tmp_path / "run", files_per_split=4)
    rows = [row for file in scored(request) for row in file.table.to_pylist()]
    documents = [row for row in rows if row["score"] is not None]
    best = [row for row in documents if row["score"] == 3]
    without_best = {row["file"] for row in rows} - {row["file"] for row in best}
    assert without_best
    for path in without_best:
        Path(path).unlink()
    assert written(request, "jsonl", f"{len(best) / len(documents):.6f}")


def test_bad_records_past_the_listed_ones_are_counted_in_packed_files_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in (("a", "bad\n" * 1500), ("b", '{"text": "one"}\n' * 2), ("c", "bad\n" * 20)):
        (tmp_path / "in" / f"{name}.jsonl").write_text(data)
    request = request_for(tmp_path / "in", tmp_path / "run")
    (file,) = scored(request)
    assert file.table.num_rows == 1003
    assert [section.table.num_rows for section in file.sections()] == [1000, 2, 1]
    last = file.table.to_pylist()[-1]
    assert (Path(last["file"]).name, last["records"]) == ("a.jsonl", 520)
    counts = summaries.read_summary(request.folder, 0).counts
    assert (counts.read, counts.scored, counts.rejected) == (1522, 2, 1520)
    assert len(records_in(written(request, "jsonl", "1"))) == 2


def test_a_packed_file_that_changed_is_named(tmp_path: Path) -> None:
    write_mixed(tmp_path / "in", [["a"], ["b"], ["c"]])
    request = request_for(tmp_path / "in", tmp_path / "run")
    planning.plan_now(request)
    (task,) = read_group(request.folder, 0)
    (tmp_path / "in" / "001.jsonl.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(InputChangedError, match=r"001\.jsonl\.gz was modified"):
        score_split(task, request.options.read, ScorerOfDigests())


def test_status_counts_splits_whose_footers_name_many_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(600):
        name = f"{number:04d}-{'long' * 40}.jsonl"
        (tmp_path / "in" / name).write_text('{"text": "one line"}\n')
    request = request_for(tmp_path / "in", tmp_path / "run", files_per_split=500)
    planning.plan_now(request)
    (first, _) = read_group(request.folder, 0)
    content = score_split(first, request.options.read, ScorerOfDigests())
    commits.commit_file(request.folder.score_path(first.split.ordinal), content)
    status = Watcher(request.folder).look()
    assert status is not None
    assert (status.splits, status.splits_done, status.counts.scored) == (2, 1, 500)
    assert status.exact
