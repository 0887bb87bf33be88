from __future__ import annotations

import bz2
import gzip
import json
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.pipelines.commands import status
from datarater.pipelines.errors import CurationError, RejectedShareError
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.planning import plan_now
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.run_folder import commits, lease, progress, split_marks, summaries
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.duplicates_progress import (
    DeduplicationPhase,
    DeduplicationStatus,
)
from datarater.pipelines.run_folder.layout import RunFolder, json_lines, to_json
from datarater.pipelines.run_folder.lease import Launch
from datarater.pipelines.run_folder.plan import CommittedPlans, SplitTask, find_plans
from datarater.pipelines.run_folder.progress import Status, Watcher
from datarater.pipelines.run_folder.score_files import ScoreRows
from datarater.pipelines.run_folder.selection_progress import Phase, SecondRead, SelectionStatus
from datarater.pipelines.run_folder.upper_bound import max_documents
from datarater.pipelines.runners import progress_display
from datarater.rater_model.documents.records import BadRecord, Document, Reason, Split
from datarater.rater_model.documents.store_errors import in_time
from tests.support.run_folders import committed_identity, run_options, scoring

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
    rows = ScoreRows(task_of(ordinal).paths)
    documents = [
        Document(f'"{ordinal}-{row}"', "some text", "s", ordinal * 100 + row, 9, None)
        for row in range(3)
    ]
    rows.add(
        [*documents, BadRecord(ordinal * 100 + 50, Reason.NOT_JSON, "no JSON", b"x")],
        np.asarray([0.5, 1.5, np.nan], np.float32),
        np.asarray([10, 20, 30]),
    )
    scored = rows.to_parquet(task_of(ordinal), "jsonl/none", "digest")
    commits.commit_file(folder.score_path(ordinal), scored)


def watcher_at(now: float, folder: RunFolder) -> Watcher:
    """Returns a watcher whose clock stands still: rates do not depend on how long commits take."""
    return Watcher(folder, splits_per_group=SPLITS_PER_GROUP, clock=lambda: now)


def launch_before(now: float, runner: str) -> Launch:
    """Returns a launch of this process that began 8 seconds earlier."""
    return Launch("l", runner, True, lease.process_id(), now - 8)


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
    now = time.time()
    watcher = watcher_at(now, folder)
    seen = watcher.look()
    assert seen is not None
    assert (seen.splits_per_second, seen.seconds_left) == (0.0, None)
    assert any("no launch is working here" in line for line in progress.report(folder, seen))

    lease.take(folder.scoring_lease_path, launch_before(now, "FnApiRunner"))
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
    lease.take(folder.scoring_lease_path, Launch("l", "FnApiRunner", True, lease.process_id(), 0))
    assert status.main([folder.path]) == 0
    assert "not planned yet" in capsys.readouterr().out
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


def test_a_folder_that_is_no_run_folder_is_wrong_usage(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    commits.commit_if_absent(f"{folder.path}/in/a.jsonl", b"{}")
    for flags in ([], ["--json"], ["--watch", "1"]):
        assert status.main([folder.path, *flags]) == 2
        assert f"{folder.path} is not a run folder; give the --output" in capsys.readouterr().err


def test_a_selection_is_followed_until_it_is_published(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(folder, 8)
    commits.commit_if_absent(folder.scoring_path, to_json(scoring(counts_of(8))))
    now = time.time()
    watcher = watcher_at(now, folder)
    scored_only = watcher.look()
    assert scored_only is not None
    assert scored_only.finished

    def look() -> SelectionStatus:
        seen = watcher.look()
        assert seen is not None
        assert seen.scored
        assert seen.finished == (seen.selections[0].phase is Phase.PUBLISHED)
        return seen.selections[0]

    # The launch that holds the lease will select, although it has written nothing.
    lease.take(folder.selection_lease_path("half"), launch_before(now, "DataflowRunner"))
    assert look().phase is Phase.SEARCHING
    selection = folder.selection("half")
    commits.commit_if_absent(selection.rule_path, b"{}")
    assert look().line() == "selection half: finding the cutoff"

    for group in range(2):
        commits.commit_if_absent(selection.counts_path(group), b"{}")
    counting = look()
    assert (counting.phase, counting.steps_done, counting.steps) == (Phase.COUNTING, 2, 3)
    assert counting.steps_per_second == pytest.approx(0.25, rel=0.1)
    assert counting.line() == "selection half: counted 2 of 3 groups of splits, 4 s left"

    # One file in one go, and one of four pieces, which are put together.
    commits.commit_if_absent(selection.second_read_path, to_json(SecondRead(6, 100, 6_000_000)))
    commits.commit_if_absent(selection.kept_path("part-0"), b"x")
    for piece in range(2):
        commits.commit_if_absent(selection.piece_path("part-1", piece, 4), b"x")
    commits.commit_if_absent(f"{selection.piece_path('part-1', 0, 4)}.incomplete.jsonl", b"x")
    writing = look()
    assert (writing.phase, writing.steps_done, writing.steps) == (Phase.WRITING, 3, 6)
    assert "selection half: wrote 3 of 6 files and pieces of kept documents" in writing.line()
    assert writing.seconds_left is not None
    assert writing.to_json()["bytes_per_second"] == writing.steps_per_second * 1e6

    assert status.main([folder.path, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["scored"], fields["finished"]) == (True, False)
    assert fields["selections"][0]["phase"] == "writing"

    commits.commit_if_absent(selection.manifest_path, b"{}")
    assert look().steps_done == 6
    commits.commit_if_absent(selection.success_path, b"")
    assert look().line() == "selection half: published"
    assert status.main([folder.path, "--watch", "1"]) == 0
    assert f"selection half: published, {selection.manifest_path}" in capsys.readouterr().out


def test_a_deduplication_is_followed_until_it_is_complete(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(folder, 4)
    commits.commit_if_absent(folder.scoring_path, to_json(scoring(counts_of(4))))
    now = time.time()
    watcher = watcher_at(now, folder)
    duplicates = folder.duplicates("it")
    lease.take(folder.duplicates_lease_path("it"), launch_before(now, "DataflowRunner"))
    commits.commit_if_absent(duplicates.options_path, b"{}")

    def look() -> DeduplicationStatus:
        seen = watcher.look()
        assert seen is not None
        (one,) = seen.deduplications
        assert seen.finished == one.finished == (one.phase is DeduplicationPhase.COMPLETE)
        return one

    for ordinal in range(2):
        commits.commit_if_absent(duplicates.signatures_path(ordinal), b"x")
    assert look().line() == "duplicates it: signed 2 of 4 splits, 8 s left"
    for ordinal in range(2, 4):
        commits.commit_if_absent(duplicates.signatures_path(ordinal), b"x")
    assert look().line() == "duplicates it: comparing the documents of 4 splits"
    commits.commit_if_absent(duplicates.documents_path(0), b"x")
    assert look().line() == "duplicates it: committed 1 of 4 splits, 24 s left"
    assert status.main([folder.path]) == 0
    printed = capsys.readouterr().out
    assert "duplicates it: committed 1 of 4 splits" in printed
    assert "working, finding duplicates it: launch l" in printed

    commits.commit_if_absent(duplicates.summary_path, b"{}")
    assert look().line().startswith("duplicates it: committed 1 of 4 splits")
    commits.commit_if_absent(duplicates.success_path, b"")
    assert look().line() == "duplicates it: complete"
    assert status.main([folder.path, "--watch", "1", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert [one["phase"] for one in fields["duplicates"]] == ["complete"]


def test_a_watch_ends_once_nobody_continues_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(str(tmp_path))
    plan(folder, 2)
    score(folder, 0)

    def watch(stalled_seconds: float) -> None:
        status.run([folder.path, "--watch", "0.1"], stalled_seconds)

    with pytest.raises(CurationError, match="no launch is working here, and nothing has moved for"):
        watch(0.0)
    assert capsys.readouterr().out.count("scored 1 of 2 splits") == 1

    # A selection that nobody continues is no different.
    score(folder, 1)
    commits.commit_if_absent(folder.scoring_path, to_json(scoring(counts_of(2))))
    commits.commit_if_absent(folder.selection("half").rule_path, b"{}")
    with pytest.raises(CurationError, match="run the same command again to continue"):
        watch(0.2)
    reports = capsys.readouterr().out
    assert reports.count("selection half: finding the cutoff") >= 2

    # While a launch works, the watch waits for it.
    launch = Launch.new("plain", local=True)
    errors: list[CurationError] = []

    def finish() -> None:
        time.sleep(0.5)
        commits.commit_if_absent(folder.selection("half").manifest_path, b"{}")
        commits.commit_if_absent(folder.selection("half").success_path, b"")

    with lease.Lease([folder.selection_lease_path("half")], launch, errors.append):
        finisher = threading.Thread(target=finish)
        finisher.start()
        watch(0.2)
        finisher.join()
    assert "selection half: published" in capsys.readouterr().out
    assert not errors


def test_the_progress_of_a_launch_covers_all_of_its_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(str(tmp_path))
    plan(folder, 2)
    score(folder, 0)
    shown = progress_display.Progress(
        folder, duplicates="it", selection="half", look_seconds=0.01, log_seconds=0.0
    )
    with shown:
        wait_for(capsys, "scored 1 of 2 splits, 2 documents")
        score(folder, 1)
        wait_for(capsys, "scored 2 of 2 splits, 4 documents")
        commits.commit_if_absent(folder.scoring_path, to_json(scoring(counts_of(2))))
        commits.commit_if_absent(folder.duplicates("it").options_path, b"{}")
        wait_for(capsys, "duplicates it: signed 0 of 2 splits")
        commits.commit_if_absent(folder.duplicates("it").success_path, b"")
        commits.commit_if_absent(folder.selection("half").rule_path, b"{}")
        wait_for(capsys, "selection half: finding the cutoff")
        commits.commit_if_absent(folder.selection("half").counts_path(0), b"{}")
        wait_for(capsys, "selection half: counted 1 of 1 group of splits")


def wait_for(capsys: pytest.CaptureFixture[str], text: str) -> None:
    seen, until = "", time.monotonic() + 20
    while text not in seen:
        assert time.monotonic() < until, seen
        time.sleep(0.01)
        seen += capsys.readouterr().err


def test_a_store_that_does_not_answer_is_given_up_in_time() -> None:
    never = threading.Event()
    with pytest.raises(OSError, match=r"no answer from gs:// in 0\.01 s; check the network"):
        in_time("gs://bucket/run", never.wait, seconds=0.01)
    with pytest.raises(PermissionError):
        in_time("gs://bucket/run", lambda: commits.read_bytes(_raise(PermissionError())))
    assert in_time("gs://bucket/run", lambda: 5) == 5
    assert in_time("/run", lambda: threading.get_ident()) == threading.get_ident()


def _raise(error: Exception) -> str:
    raise error


def seen(read: int, rejected: int, *, exact: bool = True) -> Status:
    counts = Counts(read, read - rejected, rejected_by_reason=Counter(not_json=rejected))
    return Status(10, 1, counts, exact=exact, splits_per_second=1.0, scored=False)


def test_a_run_that_is_sure_to_reject_too_much_is_stopped() -> None:
    # Up to 9,000 documents may follow the 1,000 bad records: a tenth of all.
    check = progress_display.check_rejected_share
    check(seen(1000, 1000), 0.1, 9000)
    with pytest.raises(RejectedShareError, match=r"not_json 1,001.*--max_rejected_fraction 0\.1"):
        check(seen(1001, 1001), 0.1, 9000)
    with pytest.raises(RejectedShareError):
        check(seen(1, 1), 0.0, 10**12)  # none are allowed

    # Nothing is certain without a bound, or from a sample.
    check(seen(10**9, 10**9), 0.1, None)
    check(seen(10**9, 10**9, exact=False), 0.1, 9000)


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.sampled_from([0.0, 0.1, 0.5]))
def test_whether_a_run_is_stopped_does_not_depend_on_the_order_of_its_splits(
    good: list[bool], limit: float
) -> None:
    """A run that is stopped early would be refused at its end, however its splits are ordered."""
    too_many = good.count(False) > limit * len(good)
    for order in (sorted(good), sorted(good, reverse=True), good):
        stopped = False
        for done in range(1, len(order) + 1):
            try:
                rejected = order[:done].count(False)
                progress_display.check_rejected_share(seen(done, rejected), limit, good.count(True))
            except RejectedShareError:
                stopped = True
        assert stopped == too_many


def test_a_share_that_may_still_become_right_is_only_warned_of() -> None:
    warning = progress_display.rejects_too_much_so_far
    assert warning(seen(999, 999), 0.1) == ""
    assert warning(seen(2000, 200), 0.1) == ""
    assert warning(seen(2000, 400), 0.1).startswith("WARNING: 20.0% of the records read so far")


@pytest.mark.parametrize("split_bytes", [100, 2**24])
def test_no_corpus_has_more_documents_than_its_upper_bound(
    tmp_path: Path, split_bytes: int
) -> None:
    lines = b'{"text":"a"}\n' * 50
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(lines)
    (tmp_path / "in/b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "in/c.txt").write_bytes(b"one text")
    pq.write_table(pa.table({"text": ["a"] * 70}), tmp_path / "in/d.parquet", row_group_size=20)
    plans = planned(tmp_path / "in", tmp_path / "run", split_bytes)
    read = plans.identity.read
    bound = max_documents(plans, read)
    assert bound is not None
    assert 50 + 50 + 1 + 70 <= bound <= 52 + 50 * 1032 + 1 + 70
    assert max_documents(plans, read, max_looks=0) is None
    (tmp_path / "in/e.jsonl.bz2").write_bytes(bz2.compress(lines))  # unpacks to anything
    assert max_documents(planned(tmp_path / "in", tmp_path / "other", split_bytes), read) is None


def planned(corpus: Path, output: Path, split_bytes: int) -> CommittedPlans:
    options = run_options(split_bytes=split_bytes)
    request = ScoringRequest(Patterns((str(corpus),)), "rater", str(output), options)
    plan_now(request)
    plans = find_plans(request.folder)
    assert plans is not None
    return plans
