"""Marks of splits in progress, and the pool of workers of the Flink cluster on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datarater.pipelines.errors import PoisonSplitError
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest, Work
from datarater.pipelines.graph.score_split import ScoreSplit
from datarater.pipelines.run_folder import commits, split_marks
from datarater.pipelines.run_folder.layout import RunFolder, to_json
from datarater.pipelines.run_folder.lease import process_id
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.split_marks import Attempt
from datarater.pipelines.runners import flink
from datarater.pipelines.runners.flink import FlinkError
from datarater.rater_model.documents.records import FileInfo, Split
from deploy.flink import cluster
from tests.support import ROOT
from tests.support.run_folders import run_options

TASK = SplitTask(Split("gs://b/in.jsonl", "jsonl", start=100, end=1200, ordinal=7), "mtime-1", 0)
OTHER = SplitTask(Split("in.jsonl", "jsonl", ordinal=8), "print", 0)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    return RunFolder(
        {"local": f"{tmp_path}/run", "memory": f"memory:/{tmp_path}/run"}[request.param]
    )


def die_over(
    folder: RunFolder, launch: str, task: SplitTask = TASK, part: int | None = None
) -> None:
    """Leaves the mark of a worker that died while it scored the split, or a file of it."""
    with subprocess.Popen(["sleep", "60"]) as worker:
        process = process_id(worker.pid)
        worker.kill()
    before = {path for path, _ in split_marks.unfinished(folder)}
    with split_marks.taken(folder, task, launch) as attempt:
        assert attempt is not None
        assert attempt.file_by_file is (part is not None)
        if part is not None:
            attempt.begin(part, list(task.each())[part])
        ((path, mark),) = [
            found for found in split_marks.unfinished(folder) if found[0] not in before
        ]
    commits.replace(path, to_json(dataclasses.replace(mark, process=process)))


def test_a_mark_is_there_while_a_split_is_scored(folder: RunFolder) -> None:
    with split_marks.taken(folder, TASK, "one") as attempt:
        assert attempt is not None
        assert (attempt.bad, attempt.file_by_file) == (frozenset(), False)
        assert [mark.ordinal for _, mark in split_marks.unfinished(folder)] == [7]
        with split_marks.taken(folder, TASK, "one") as second:
            assert second is None
    with pytest.raises(ValueError, match="said"), split_marks.taken(folder, TASK, "one"):
        raise ValueError("said")
    assert split_marks.unfinished(folder) == []


def test_a_split_that_ends_three_workers_of_a_launch_is_named(folder: RunFolder) -> None:
    for _ in range(3):
        die_over(folder, "one")
    with (
        pytest.raises(
            PoisonSplitError, match=r"split 7 \(gs://b/in.jsonl, bytes 100 to 1,200\) crashed 3"
        ),
        split_marks.taken(folder, TASK, "one"),
    ):
        pytest.fail("it is not to be scored again")
    with split_marks.taken(folder, TASK, "two"):
        pass
    assert split_marks.clear_finished(folder) == {split_marks.describe(TASK): 3}
    commits.commit_if_absent(folder.score_path(7), b"")
    assert split_marks.clear_finished(folder) == {}
    assert split_marks.unfinished(folder) == []


def test_the_file_that_ends_workers_is_found_among_those_of_a_split(folder: RunFolder) -> None:
    packed = tuple(FileInfo(f"{number}.jsonl", 10, "print") for number in range(4))
    task = dataclasses.replace(OTHER, packed=packed)
    die_over(folder, "one", task)
    for part in (2, 2, 4, 4):
        die_over(folder, "one", task, part)
        named = f"split {8 + part} ({part - 1}.jsonl, the whole file)"
        (suspect,) = split_marks.clear_bystanders(folder, "one").items()
        assert suspect[0] == named
    with split_marks.taken(folder, task, "one") as attempt:
        assert attempt is not None
        assert (attempt.bad, attempt.file_by_file) == (frozenset({2, 4}), True)

    # Deaths that no file explains are those of the whole split.
    for part in (0, 1):
        die_over(folder, "one", task, part)
    with (
        pytest.raises(PoisonSplitError, match=r"split 8 \(in.jsonl and 4 files after it\)"),
        split_marks.taken(folder, task, "one"),
    ):
        pytest.fail("it is not to be scored again")


def test_the_living_are_no_suspects(folder: RunFolder) -> None:
    die_over(folder, "one")
    die_over(folder, "another")
    with split_marks.taken(folder, OTHER, "one"):
        assert split_marks.clear_bystanders(folder, "one") == {split_marks.describe(TASK): 1}
    assert {mark.launch for _, mark in split_marks.unfinished(folder)} == {"one", "another"}


def test_a_worker_that_a_runner_ends_counts_against_no_split(tmp_path: Path) -> None:
    request = ScoringRequest(Patterns(("x",)), "rater", str(tmp_path), run_options())
    work = Work(request).of_launch("job", elsewhere=True)
    assert work.scoring is not None
    seen: list[int] = []

    class Preempted(BaseException):
        """What a worker is ended by in the middle of a split."""

    class Scoring(ScoreSplit):
        def score(self, task: SplitTask, attempt: Attempt | None = None) -> None:
            seen.append(task.split.ordinal)
            assert split_marks.unfinished(request.folder) == []
            if len(seen) <= 5:
                raise Preempted

    for _ in range(5):
        with pytest.raises(Preempted):
            list(Scoring(work.scoring).process(TASK))
    assert list(Scoring(work.scoring).process(TASK)) == [(0, 7)]
    assert seen == [7] * 6


@pytest.mark.slow
def test_a_worker_pool_starts_workers_that_report_and_ends_with_what_started_it() -> None:
    address = f"127.0.0.1:{cluster._free_port(0)}"
    starter = subprocess.Popen(["sleep", "600"])
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        split_marks.WATCHED_PROCESS: json.dumps(dataclasses.asdict(process_id(starter.pid))),
    }
    command = [sys.executable, "-m", "deploy.flink.worker_pool", address]
    pool = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    try:
        end = time.monotonic() + 60
        while flink._refusal(address):
            assert time.monotonic() < end, "the pool did not listen"
            time.sleep(0.1)
        flink.check_worker_pool(address)
    finally:
        starter.kill()
        starter.wait()

    assert "is process" in pool.communicate(timeout=60)[1]
    with pytest.raises(FlinkError, match="no worker pool listens"):
        flink.check_worker_pool(address)
