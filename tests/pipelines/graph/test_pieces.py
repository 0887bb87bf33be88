"""The second read is bounded: output files are written in pieces, put together and published."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from datarater.pipelines.graph import kept_rows, output_files
from datarater.pipelines.graph.output_files import JoinPieces, ShardTask, WriteShard
from datarater.pipelines.graph.requests import SECOND_READ_BYTES, SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.kept_counts import COUNTS, GroupCounts, KeptCounts, KeptSplits
from datarater.pipelines.run_folder.layout import to_json
from datarater.pipelines.run_folder.plan import plan_of, read_group
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.pipelines.selection.descent import Cutoff
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import Threshold
from datarater.rater_model.json_codec import decode, to_plain
from tests.pipelines.graph.test_packing import request_for, scored
from tests.support.file_formats import tfrecord_of, wet_of

ROWS = [{"id": f"row-{n}", "text": f"text {n**5} of row {n}", "source": "web"} for n in range(90)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
POLICY = Policy(Threshold("1"))
CUTOFFS = Cutoffs.fixed(POLICY, Cutoff(Threshold("1").end))


# --- the plan ---


def test_keeping_little_of_a_big_corpus_is_spread_over_hundreds_of_elements() -> None:
    """Plans the second read of 100,000 documents out of 1.5 TB in 89,400 splits."""
    splits, corpus_bytes = 89_400, 1_500_000_000_000
    rng = np.random.default_rng(0)
    kept_S = rng.multinomial(100_000, np.full(splits, 1 / splits))
    counts = {name: np.zeros(splits, np.int64) for name in COUNTS}
    counts |= {"read": np.full(splits, 4000), "kept": kept_S, "kept_bytes": kept_S * 4000}
    sizes_S = np.where(kept_S > 0, corpus_bytes // splits, 0)
    whole = KeptSplits(
        np.arange(splits), ("jsonl/gzip",), np.zeros(splits, np.int32), counts, sizes_S
    )
    request = SelectionRequest("run", POLICY, 0, "same", 2**27)
    tasks = list(output_files.plan_shards_of(None, [GroupCounts(0, whole, {})], request))

    assert len(tasks) >= 500
    assert len({task.name for task in tasks}) == 3
    assert max(sum(task.input_bytes) for task in tasks) <= SECOND_READ_BYTES
    # Each split that keeps something is read by exactly one element, in order.
    read = [split for task in tasks for split in task.splits]
    assert read == [(n, k) for n, k in enumerate(kept_S.tolist()) if k]


@pytest.mark.parametrize("bound", [1, 10, 25, 100])
def test_pieces_are_runs_of_splits_within_the_bound_and_splits_are_never_cut(bound: int) -> None:
    task = ShardTask("part", "jsonl", "jsonl", tuple((n, n) for n in range(9)), (10, 5, 30) * 3)
    pieces = task.cut(bound)
    assert [split for piece in pieces for split in piece.splits] == list(task.splits)
    assert sum(piece.documents for piece in pieces) == task.documents
    assert all(sum(p.input_bytes) <= bound or len(p.splits) == 1 for p in pieces)
    assert [(p.piece, p.pieces) for p in pieces] == [(n, len(pieces)) for n in range(len(pieces))]
    assert task.cut(135) == [task]


def test_counts_of_version_0_1_0_have_no_sizes_and_are_not_cut() -> None:
    counts = decode(GroupCounts, to_json(GroupCounts(0, KeptSplits.of([]), {})))
    assert counts.splits.input_bytes_S.tolist() == []
    fields = to_plain(KeptSplits.of([(7, "jsonl/none", KeptCounts(1, 1))]))
    assert "input_bytes" not in fields
    assert KeptSplits.from_json(fields).input_bytes_S.tolist() == [0]
    (counted,) = KeptSplits.of([(7, "jsonl/none", KeptCounts(1, 1))], [5]).input_bytes_S
    assert counted == 5


# --- the second read ---


def lines(content: bytes) -> Any:
    return [json.loads(line) for line in content.splitlines()]


def table(content: bytes) -> Any:
    parsed = pq.read_table(io.BytesIO(content))
    return parsed.schema, parsed.to_pylist()


def unzstd(content: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as reader:
        return reader.read()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    parsed = pa.Table.from_pylist(rows).replace_schema_metadata({b"made by": b"a test"})
    pq.write_table(parsed, out, row_group_size=20)
    return out.getvalue()


# Name and content of the input, the output format, and what is read from an output file.
CASES: dict[str, tuple[str, bytes, str, Callable[[bytes], Any]]] = {
    "JSONL": ("a.jsonl", LINES, "same", lines),
    "gzip": ("a.jsonl.gz", gzip.compress(LINES), "same", lambda data: lines(gzip.decompress(data))),
    "zstd": ("a.jsonl.zst", zstandard.compress(LINES), "same", lambda data: lines(unzstd(data))),
    "bzip2": ("a.jsonl.bz2", bz2.compress(LINES), "same", lambda data: lines(bz2.decompress(data))),
    "Parquet": ("a.parquet", parquet_of(ROWS), "same", table),
    "JSONL to Parquet": ("a.jsonl", LINES, "parquet", table),
    "TFRecord": ("a.tfrecord", tfrecord_of(ROWS), "same", bytes),
    "WARC": ("a.wet", wet_of(ROWS), "same", bytes),
    "attributes": ("a.jsonl", LINES, "attributes", lambda data: lines(gzip.decompress(data))),
    "scores": ("a.jsonl", LINES, "scores", table),
}


@dataclasses.dataclass
class SecondRead:
    """A selection from a scored corpus, whose steps are taken one by one.

    Attributes:
        request: The selection.
        tasks: The tasks of its second read.
    """

    request: SelectionRequest
    tasks: list[ShardTask]

    @classmethod
    def of(cls, run: str, name: str, output_format: str, max_bytes: int | None) -> SecondRead:
        request = SelectionRequest(
            run, POLICY, 0, output_format, 2**20, name=name, second_read_bytes=max_bytes
        )
        groups = range(plan_of(request.folder).groups)
        counts = [kept_rows.count_group(request, group, CUTOFFS) for group in groups]
        return cls(request, list(output_files.plan_shards_of(None, counts, request)))

    def write(self, tasks: list[ShardTask]) -> Iterator[Any]:
        for task in tasks:
            yield from WriteShard(self.request).process(task, CUTOFFS)

    def finish(self) -> dict[str, bytes]:
        """Writes and joins all that is not there; returns the content of the files by name."""
        files, pieces = {}, dict[str, list[ShardTask]]()
        for result in self.write(self.tasks):
            if isinstance(result, beam.pvalue.TaggedOutput):
                name, task = result.value
                pieces.setdefault(name, []).append(task)
            else:
                files[result.name] = result
        for name, tasks in pieces.items():
            (files[name],) = JoinPieces(self.request).process((name, reversed(tasks)))
        output_files.remove_pieces(self.request.selection)

        contents = {}
        for name, file in files.items():
            contents[name] = commits.read_bytes(self.request.selection.kept_path(name))
            assert file.size == len(contents[name])
            documents = sum(task.documents for task in self.tasks if task.name == name)
            assert file.documents == documents
        return contents


def scored_run(tmp_path: Path, case: str) -> str:
    name, content, _, _ = CASES[case]
    (tmp_path / "in").mkdir()
    # Several small files, of which each is a split.
    for number in range(5):
        (tmp_path / "in" / f"{number}-{name}").write_bytes(content)
    request = request_for(tmp_path / "in", tmp_path / "run", files_per_split=1)
    scored(request)
    return request.output


@pytest.mark.parametrize("case", CASES)
def test_a_file_from_pieces_has_the_documents_of_one_written_at_once(
    tmp_path: Path, case: str
) -> None:
    run = scored_run(tmp_path, case)
    _, _, output_format, parsed = CASES[case]
    at_once = SecondRead.of(run, "at-once", output_format, None)
    in_pieces = SecondRead.of(run, "in-pieces", output_format, 1)
    assert all(task.pieces == 1 for task in at_once.tasks)
    if case != "attributes":  # which has a file for each input file
        assert [task.pieces for task in in_pieces.tasks] == [5] * 5

    expected, files = at_once.finish(), in_pieces.finish()
    assert files.keys() == expected.keys()
    for name, content in files.items():
        assert parsed(content) == parsed(expected[name])
    # The same pieces give the same bytes.
    assert SecondRead.of(run, "again", output_format, 1).finish() == files
    assert not (tmp_path / "run/selections/in-pieces/pieces").exists()


def test_a_killed_second_read_continues_from_its_pieces(tmp_path: Path) -> None:
    run = scored_run(tmp_path, "Parquet")
    undisturbed = SecondRead.of(run, "undisturbed", "same", 1).finish()
    killed = SecondRead.of(run, "killed", "same", 1)
    list(killed.write(killed.tasks[:3]))

    # The inputs of committed pieces are not read again: they may even be gone.
    for task in read_group(killed.request.folder, 0)[:3]:
        Path(task.split.path).unlink()
    assert killed.finish() == undisturbed

    # Once a file is there, none of its pieces is written again.
    list(killed.write(killed.tasks))
    assert commits.list_folder(killed.request.selection.pieces_folder) == []


def test_the_bound_is_an_option_of_the_selection_and_its_default_is_not_stored() -> None:
    request = SelectionRequest("run", POLICY, 0, "same", 2**20)
    assert b"second_read_bytes" not in to_json(request.options)
    bounded = dataclasses.replace(request, second_read_bytes=5)
    assert b'"second_read_bytes": 5' in to_json(bounded.options)
