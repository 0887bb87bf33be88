from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datarater.pipelines.commands import status
from datarater.pipelines.errors import RejectedShareError
from datarater.pipelines.run_folder import commits, lease, progress, split_marks, summaries
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.layout import RunFolder, json_lines, to_json
from datarater.pipelines.run_folder.lease import Launch
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.progress import Status, Watcher
from datarater.pipelines.run_folder.score_files import ScoreRows
from datarater.pipelines.runners import progress_display
from datarater.rater_model.documents.records import BadRecord, Document, Reason, Split
from tests.support.run_folders import committed_identity, scoring

SPLITS_PER_GROUP = 3


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    return RunFolder(
        {"local": str(tmp_path / "run"), "memory": f"memory:/{tmp_path}/run"}[request.param]
    )


def task_of(ordinal: int) -> SplitTask:
    split = Split(
        "in.jsonl", "jsonl", start=ordinal * 100, end=ordinal * 100 + 100, ordinal=ordinal
    )
    return SplitTask(split, "mtime-1", ordinal // SPLITS_PER_GROUP)


def plan(folder: RunFolder, count: int) -> None:
    groups = -(-count // SPLITS_PER_GROUP)
    for group in range(groups):
        tasks = [
            task_of(ordinal) for ordinal in range(count) if ordinal // SPLITS_PER_GROUP == group
        ]
        commits.commit_if_absent(folder.old_splits_path("p", group), json_lines(tasks))
    commits.commit_if_absent(folder.identity_path, to_json(committed_identity(count, groups)))


def score(folder: RunFolder, ordinal: int) -> None:
    rows = ScoreRows()
    documents = [
        Document(f'"{ordinal}-{row}"', "some text", "s", ordinal * 100 + row, 9, None)
        for row in range(3)
    ]
    rows.add(
        [*documents, BadRecord(ordinal * 100 + 50, Reason.NOT_JSON, "no JSON", b"x")],
        np.asarray([0.5, 1.5, np.nan], np.float32),
        np.asarray([10, 20, 30]),
    )
    commits.commit_if_absent(
        folder.score_path(ordinal), rows.to_parquet(task_of(ordinal), "jsonl/none", "digest")
    )


def counts_of(files: int) -> Counts:
    rejected = Counter({"not_json": files, "score_not_finite": files} if files else {})
    return Counts(4 * files, 2 * files, 30 * files, 18 * files, rejected)


def test_status_is_what_lies_in_the_run_folder(folder: RunFolder) -> None:
    watcher = Watcher(folder, splits_per_group=SPLITS_PER_GROUP)
    assert watcher.look() is None
    assert "not planned" in progress.report(folder, None)[0]

    plan(folder, 8)
    for ordinal in range(8):
        seen = watcher.look()
        assert seen is not None
        assert (seen.splits, seen.splits_done, seen.exact, seen.finished) == (
            8,
            ordinal,
            True,
            False,
        )
        assert seen.counts == counts_of(ordinal)
        score(folder, ordinal)
        if ordinal == 5:
            summaries.summarise_group(folder, 1, [3, 4, 5])

    summaries.summarise_group(folder, 0, [0, 1, 2])
    assert Watcher(folder, splits_per_group=SPLITS_PER_GROUP).look() == watcher.look()

    commits.commit_if_absent(folder.scoring_path, to_json(scoring(counts_of(8))))
    seen = watcher.look()
    assert seen is not None
    assert (seen.finished, seen.splits_done, seen.counts) == (True, 8, counts_of(8))


def test_of_many_score_files_a_sample_is_read(folder: RunFolder) -> None:
    plan(folder, 20)
    for ordinal in range(10):
        score(folder, ordinal)
    seen = Watcher(folder, max_footers=4, splits_per_group=SPLITS_PER_GROUP).look()
    assert seen is not None
    assert (seen.splits_done, seen.exact, seen.counts) == (10, False, counts_of(10))
    assert "about 20 documents" in seen.line()


def test_rates_and_time_left_are_those_of_the_launch_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(str(tmp_path))
    plan(folder, 10)
    for ordinal in range(4):
        score(folder, ordinal)
    watcher = Watcher(folder, splits_per_group=SPLITS_PER_GROUP)
    seen = watcher.look()
    assert seen is not None
    assert (seen.splits_per_second, seen.seconds_left) == (0.0, None)
    assert any("no launch is working here" in line for line in progress.report(folder, seen))

    launch = Launch("l", "FnApiRunner", True, lease.process_id(), time.time() - 8)
    lease.take(folder.scoring_lease_path, launch)
    with split_marks.taken(folder, task_of(4), "l"):
        seen = watcher.look()
        assert seen is not None
        assert seen.splits_per_second == pytest.approx(0.5, rel=0.1)
        assert seen.documents_per_second == pytest.approx(1.0, rel=0.1)
        assert seen.tokens_per_second == pytest.approx(15.0, rel=0.1)
        assert seen.seconds_left == pytest.approx(12.0, rel=0.1)
        lines = progress.report(folder, seen)

    assert any(line.startswith("working") and "FnApiRunner" in line for line in lines)
    assert any(
        "being scored" in line and "split 4 (in.jsonl, bytes 400 to 500)" in line for line in lines
    )
    assert "8 rejected" in lines[1]


def test_the_command_prints_lines_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(str(tmp_path))
    assert status.main([folder.path]) == 0
    plan(folder, 2)
    score(folder, 0)
    assert status.main([folder.path, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (fields["splits"], fields["splits_done"], fields["counts"]["scored"]) == (2, 1, 2)
    with pytest.raises(SystemExit) as ended:
        status.main([])
    assert ended.value.code == 2


def test_a_folder_that_is_not_there_is_wrong_usage(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main([folder.path]) == 2
    assert f"RUN_DIR: {folder.path} does not exist" in capsys.readouterr().err
    assert status.main(["nowhere://run"]) == 2


def test_a_run_that_is_sure_to_reject_too_much_is_stopped() -> None:
    def look(read: int, rejected: int, done: int) -> Status:
        counts = Counts(read, read - rejected, rejected_by_reason=Counter(not_json=rejected))
        return Status(10, done, counts, exact=True, splits_per_second=1.0, finished=False)

    # 10,000 records are expected: the 900 may be the last ones.
    progress_display.check_rejected_share(look(1000, 900, 1), 0.1)
    progress_display.check_rejected_share(look(999, 999, 1), 0.01)  # too few to tell
    with pytest.raises(RejectedShareError, match=r"not_json 1,100.*--max_rejected_fraction 0\.099"):
        progress_display.check_rejected_share(look(1100, 1100, 1), 0.099)
    with pytest.raises(RejectedShareError):
        progress_display.check_rejected_share(look(10_000, 1001, 10), 0.1)
