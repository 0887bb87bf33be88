"""Files that cannot be read: the run ends, or is completed without them where that is asked for."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

import datarater
from datarater.pipelines.bad_splits import SPLIT_CHANGED, SPLIT_CRASHED, SPLIT_UNREADABLE
from datarater.pipelines.commands import curate, requests, running, score, select
from datarater.pipelines.commands.flags import parse
from datarater.pipelines.errors import (
    InputChangedError,
    PoisonSplitError,
    RejectedShareError,
    UnreadableInputError,
    UsageError,
)
from datarater.pipelines.graph.requests import ScoringRequest, Work
from datarater.pipelines.graph.score_split import ScoreSplit
from datarater.pipelines.run_folder.lease import process_id
from datarater.pipelines.run_folder.plan import SplitTask, read_group
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.run_folder.scored import read_scoring
from datarater.pipelines.run_folder.split_marks import Attempt, Mark
from datarater.pipelines.runners import choice
from datarater.rater_model import exit_codes
from tests.support.corpora import as_lines, make_records


class BrokenFileSystem(LocalFileSystem):
    """The local disk, on which some files cannot be read.

    Attributes:
        broken: names of these files, each with the number of times that opening it fails.
    """

    protocol = "broken"
    broken: dict[str, int] = {}  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).replace("broken://", "file://"))

    def unstrip_protocol(self, name: str) -> str:
        return "broken://" + name

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        name = os.path.basename(path)
        if self.broken.get(name, 0) > 0:
            self.broken[name] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return super()._open(path, mode, **kwargs)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five files of 20 documents on the broken disk; `bad` is whole."""
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    BrokenFileSystem.broken = {}
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        name = "bad" if number == 2 else f"good-{number}"
        (folder / f"{name}.jsonl").write_bytes(as_lines(make_records(20, number)))
    return folder


def flags(corpus: Path, rater: Path, output: Path, *more: str) -> list[str]:
    inputs = ["--input", f"broken://{corpus}/*.jsonl", "--rater", str(rater)]
    return [*inputs, "--output", str(output), *more]


def request_of(corpus: Path, rater: Path, output: Path, *more: str) -> ScoringRequest:
    args, _ = parse(score.make_parser(), flags(corpus, rater, output, *more))
    return dataclasses.replace(requests.scoring_of(args, choice.choose([], 1)), retry_seconds=())


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_cannot_be_read_ends_the_run_or_is_rejected_whole(
    corpus: Path, rater: Path, tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    BrokenFileSystem.broken = {"bad.jsonl": 1000}
    small = [] if packed else ["--split_bytes", "2000"]
    args = flags(corpus, rater, output, *small)
    assert score.main(args) == exit_codes.UNREADABLE_INPUT
    assert "bad.jsonl cannot be read: Input/output error" in capsys.readouterr().err

    rejecting = request_of(corpus, rater, output, "--on_bad_split", "reject", *small)
    running.run(Work(rejecting), choice.choose([], 1))
    scoring = read_scoring(rejecting.folder)
    assert (scoring.splits == 1) is packed
    counts = scoring.counts
    assert (counts.read, counts.scored) == (81, 80)
    assert dict(counts.rejected_by_reason) == {SPLIT_UNREADABLE: 1}
    (row,) = map(json.loads, (output / "rejected/000000.jsonl").read_bytes().splitlines())
    assert row["file"].endswith("/bad.jsonl")
    assert (row["reason"], row["records"]) == (SPLIT_UNREADABLE, 1)
    assert row["detail"].endswith("/in/bad.jsonl cannot be read: Input/output error")

    # A selection from it, and every rerun, say that something is missing; all counts agree.
    keep = ["--output", str(output), "--keep_fraction", "0.5"]
    assert select.main(keep) == exit_codes.BAD_SPLITS
    assert "1 file or split was rejected whole (split_unreadable 1)" in capsys.readouterr().err
    manifest = json.loads((output / "selections/keep-0.5/manifest.json").read_bytes())
    numbers = {name: manifest["counts"][name] for name in ("read", "kept", "dropped", "rejected")}
    assert numbers == {"read": 81, "kept": 40, "dropped": 40, "rejected": 1}
    assert (output / "selections/keep-0.5/_SUCCESS").exists()
    again = [*args, "--on_bad_split", "reject", "--keep_fraction", "0.5"]
    assert curate.main(again) == exit_codes.BAD_SPLITS


@pytest.fixture
def scored(corpus: Path, rater: Path, tmp_path: Path) -> ScoringRequest:
    """A run of the corpus in one split, whose score file has been removed again."""
    request = request_of(corpus, rater, tmp_path / "run", "--on_bad_split", "reject")
    running.run(Work(request), choice.choose([], 1))
    Path(request.folder.score_path(0)).unlink()
    return request


def rows_by_file(request: ScoringRequest) -> list[tuple[str, int]]:
    """Scores the split; returns the status of the first row, and the number of rows, by file."""
    (task,) = read_group(request.folder, 0)
    list(ScoreSplit(request).process(task))
    sections = [file.table for file in ScoreFile.read(request.folder, 0).sections()]
    return [(table["status"][0].as_py(), table.num_rows) for table in sections]


@pytest.mark.parametrize(("failures", "first"), [(2, ("scored", 20)), (3, (SPLIT_UNREADABLE, 1))])
def test_a_store_that_answers_again_costs_no_file(
    scored: ScoringRequest, failures: int, first: tuple[str, int]
) -> None:
    BrokenFileSystem.broken = {"bad.jsonl": failures}
    patient = dataclasses.replace(scored, retry_seconds=(0.0, 0.0))
    assert rows_by_file(patient) == [first, *[("scored", 20)] * 4]


def test_a_file_that_was_unreadable_when_the_run_was_planned_is_not_read_later(
    corpus: Path, rater: Path, tmp_path: Path
) -> None:
    BrokenFileSystem.broken = {"bad.jsonl": 1}
    more = ("--on_bad_split", "reject", "--split_bytes", "2000")
    request = request_of(corpus, rater, tmp_path / "run", *more)
    running.run(Work(request), choice.choose([], 1))
    assert BrokenFileSystem.broken == {"bad.jsonl": 0}
    (row,) = map(json.loads, (tmp_path / "run/rejected/000000.jsonl").read_bytes().splitlines())
    assert row["detail"].endswith("it could not be read when the run was planned")


def test_of_several_bad_files_in_a_split_each_is_rejected_with_its_own_reason(
    scored: ScoringRequest, corpus: Path
) -> None:
    BrokenFileSystem.broken = {"bad.jsonl": 1000}
    (corpus / "good-1.jsonl").unlink()
    (corpus / "good-4.jsonl").write_bytes(as_lines(make_records(20, 7)))
    with pytest.raises(UnreadableInputError):
        rows_by_file(dataclasses.replace(scored, on_bad_split="fail"))
    BrokenFileSystem.broken = {}
    with pytest.raises(InputChangedError):
        rows_by_file(dataclasses.replace(scored, on_bad_split="fail"))

    BrokenFileSystem.broken = {"bad.jsonl": 1000}
    assert rows_by_file(scored) == [
        (SPLIT_UNREADABLE, 1),
        ("scored", 20),
        (SPLIT_CHANGED, 1),
        ("scored", 20),
        (SPLIT_CHANGED, 1),
    ]


def test_more_rejected_files_than_allowed_still_end_the_run(
    corpus: Path, rater: Path, tmp_path: Path
) -> None:
    BrokenFileSystem.broken = {"bad.jsonl": 1000}
    more = ("--on_bad_split", "reject", "--max_rejected_fraction", "0")
    request = request_of(corpus, rater, tmp_path / "run", *more)
    with pytest.raises(RejectedShareError, match="split_unreadable 1"):
        running.run(Work(request), choice.choose([], 1))


def test_a_wrong_value_is_wrong_usage(corpus: Path, rater: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        score.main(flags(corpus, rater, tmp_path / "run", "--on_bad_split", "skip"))
    assert ended.value.code == exit_codes.WRONG_USAGE
    with pytest.raises(UsageError, match="on_bad_split: 'skip' is not one of fail, reject"):
        datarater.score(str(corpus), rater, tmp_path / "run", on_bad_split="skip")


@pytest.mark.parametrize("rejects", [True, False])
def test_a_file_that_ends_its_worker_costs_no_other_file_of_its_split(
    scored: ScoringRequest, rejects: bool
) -> None:
    (task,) = read_group(scored.folder, 0)
    names = [Path(part.split.path).stem for part in task.each()]
    begun: list[str] = []

    class Marked(Attempt):
        def begin(self, number: int, part: SplitTask) -> None:
            begun.append(names[number])
            assert part.split.path.endswith(f"{names[number]}.jsonl")

    bad = frozenset({names.index("bad")})
    attempt = Marked(bad, True, "", Mark("launch", 0, "", process_id(), 0.0))
    if not rejects:
        failing = ScoreSplit(dataclasses.replace(scored, on_bad_split="fail"))
        with pytest.raises(PoisonSplitError, match=r"bad\.jsonl, the whole file\) crashed 3"):
            failing.score(task, attempt)
        return

    ScoreSplit(scored).score(task, attempt)
    assert begun == [name for name in names if name != "bad"]
    sections = [file.table for file in ScoreFile.read(scored.folder, 0).sections()]
    assert [(table["status"][0].as_py(), table.num_rows) for table in sections] == [
        (SPLIT_CRASHED, 1) if name == "bad" else ("scored", 20) for name in names
    ]
