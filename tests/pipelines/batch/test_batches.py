"""What happens to batches, one thing at a time; `tests.support.batches` replaces the scoring."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions
from fsspec.implementations.memory import MemoryFileSystem

from datarater.pipelines.batch import inputs as batch_inputs
from datarater.pipelines.batch import retention
from datarater.pipelines.batch.batches import Batches, Curate
from datarater.pipelines.batch.config import read_config
from datarater.pipelines.batch.journal import Journal, State
from datarater.pipelines.commands import batch, outcome
from datarater.pipelines.errors import CurationError, StoppedError
from datarater.pipelines.graph.requests import Work
from datarater.pipelines.run_folder import commits, lease
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.lease import Launch, Lease
from datarater.pipelines.runners.execution import Execution
from datarater.rater_model.checkpoint import RATER_FILE
from datarater.rater_model.documents.records import FileInfo
from tests.support import batches

FIRST, SECOND, THIRD = "2026-01-29", "2026-01-30", "2026-01-31"


@pytest.fixture(scope="module")
def raters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves one rater, another one, and one without quantiles."""
    folder = tmp_path_factory.mktemp("raters")
    for seed, name in enumerate(("rater", "other")):
        batches.save_plain_rater(folder / name, seed)
    batches.save_plain_rater(folder / "bare", 2, quantiles=())
    return folder


class Nights:
    """A folder of inputs, a configuration and the command."""

    def __init__(self, folder: Path, raters: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._raters = raters
        self._capsys = capsys
        self._rng = random.Random(0)
        self.curate: Curate = batches.curate
        self.out = self.err = ""
        self.configure()

    def configure(self, **changes: Any) -> None:
        """Writes the configuration; a night without files is no alarm unless `limits` says so."""
        limits = {"min_documents": None, **changes.pop("limits", {})}
        self.config = batches.write_config(
            self.folder, **{"rater": str(self._raters / "rater"), "limits": limits, **changes}
        )

    def bring(self, name: str, count: int = 100, mean: float = 0.0) -> None:
        """Writes an input file, or writes it again with another content."""
        batches.write(
            self.folder / "in" / name, batches.documents(self._rng, f"{name}-{count}", count, mean)
        )

    def run(self, date: str, *flags: str) -> int:
        """Runs the command; its output is in `out` and `err`."""
        run = functools.partial(batch.run, curate=self.curate)
        argv = ["--config", str(self.config), "--as_of", date, *flags]
        code = outcome.exit_code_of(batch.COMMAND, run, argv)
        self.out, self.err = self._capsys.readouterr()
        return code

    def record(self, date: str) -> dict[str, Any]:
        """Returns the record that is published for a date."""
        return batches.record_of(self.folder, date)

    def taken(self, date: str) -> list[str]:
        """Returns the files of a batch, relative to `in/`."""
        lines = Path(self.record(date)["inputs"]["list"]).read_bytes().splitlines()
        return [
            str(Path(json.loads(line)["path"]).relative_to(self.folder / "in")) for line in lines
        ]

    def published(self) -> list[str]:
        """Returns the dates that readers see."""
        folder = self.folder / "published"
        return sorted(place.name for place in folder.iterdir()) if folder.exists() else []

    @property
    def state(self) -> State:
        """State of the journal."""
        return Journal(str(self.folder / "state")).read()

    def snapshot(self) -> dict[Path, int]:
        """Returns every file with its modification time."""
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def nights(
    tmp_path: Path,
    raters: Path,
    capsys: pytest.CaptureFixture[str],
) -> Nights:
    return Nights(tmp_path, raters, capsys)


# --- exactly once


def test_a_night_loads_the_rater_once(nights: Nights, raters: Path) -> None:
    """Two batches are made although the parameters are gone after the first request."""
    shutil.copytree(raters / "rater", nights.folder / "rater")
    nights.configure(rater="rater")
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")
    night = Batches(read_config(str(nights.config)), batches.curate)
    for file in (nights.folder / "rater").iterdir():
        if file.name != RATER_FILE:
            file.unlink()
    for date in (FIRST, SECOND):
        night.finish(datetime.date.fromisoformat(date))
    assert nights.published() == [FIRST, SECOND]


def test_a_night_takes_its_files_once(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{FIRST}/b.jsonl", 40)
    assert nights.run(FIRST) == 0
    record = nights.record(FIRST)
    assert nights.taken(FIRST) == [f"{FIRST}/a.jsonl", f"{FIRST}/b.jsonl"]
    assert record["counts"]["read"] == 140
    assert record["counts"]["kept"] + record["counts"]["dropped"] == 140
    assert record["drift"]["psi"]["past"] is False
    assert record["exit_code"] == 0
    assert record["format"] == 1
    batches.check_published(nights.folder)
    before = nights.snapshot()
    assert nights.run(FIRST) == 0
    assert "was already published and does not change" in nights.out
    assert nights.snapshot() == before


def test_an_empty_night_has_a_record_too(nights: Nights) -> None:
    assert nights.run(FIRST) == 0
    record = nights.record(FIRST)
    assert record["inputs"]["files"] == record["counts"]["read"] == 0
    assert record["files"] == []
    assert record["drift"] is None
    assert (
        f"WARNING: batch {FIRST}: no new file matches '*.jsonl' in {nights.folder}/in/{FIRST}"
        in nights.err
    )
    (nights.folder / "in" / SECOND).mkdir(parents=True)
    (nights.folder / "in" / SECOND / "empty.jsonl").write_bytes(b"")
    assert nights.run(SECOND) == 0
    assert nights.record(SECOND)["inputs"]["files"] == 1
    assert nights.record(SECOND)["counts"]["read"] == 0
    assert "batch 2026-01-30: there is no record" in nights.out


def test_without_a_date_in_the_glob_a_batch_takes_what_is_there(nights: Nights) -> None:
    nights.configure(input="in/*/*.jsonl")
    nights.bring("x/a.jsonl")
    assert nights.run(SECOND) == 0
    nights.bring("y/b.jsonl")
    assert nights.run(FIRST) == 0  # a past date
    assert nights.run(THIRD) == 0
    assert (nights.taken(FIRST), nights.taken(SECOND), nights.taken(THIRD)) == (
        ["y/b.jsonl"],
        ["x/a.jsonl"],
        [],
    )


def test_a_folder_or_braces_may_be_the_input(nights: Nights) -> None:
    nights.configure(input=["in/{date}", "in/{x,y}/{date}.jsonl"])
    nights.bring(f"{FIRST}/deep/a.jsonl")
    nights.bring(f"y/{FIRST}.jsonl")
    assert nights.run(FIRST) == 0
    assert nights.taken(FIRST) == [f"{FIRST}/deep/a.jsonl", f"y/{FIRST}.jsonl"]
    (nights.folder / "in" / SECOND).mkdir()
    assert nights.run(SECOND) == 0
    assert nights.taken(SECOND) == []


def test_a_past_date_takes_its_own_files_alone(nights: Nights) -> None:
    for date in (FIRST, SECOND, THIRD):
        nights.bring(f"{date}/a.jsonl")
    for date in (SECOND, THIRD, FIRST):
        assert nights.run(date) == 0
    assert nights.taken(THIRD) == [f"{THIRD}/a.jsonl"]
    assert nights.taken(FIRST) == [f"{FIRST}/a.jsonl"]


def test_a_date_that_was_missed_gets_its_own_batch_first(nights: Nights) -> None:
    for date in ("2026-01-28", FIRST, THIRD):
        nights.bring(f"{date}/a.jsonl")
    assert nights.run("2026-01-28") == 0
    assert nights.run(THIRD) == 0
    assert f"batch {FIRST} was missed: it is made first" in nights.out
    assert nights.published() == ["2026-01-28", FIRST, THIRD]  # nothing came on the day between
    assert nights.taken(FIRST) == [f"{FIRST}/a.jsonl"]
    assert nights.taken(THIRD) == [f"{THIRD}/a.jsonl"]


def test_a_date_that_was_missed_too_long_ago_is_reported_once(nights: Nights) -> None:
    nights.configure(late_days=1)
    for date in (FIRST, SECOND, THIRD):
        nights.bring(f"{date}/a.jsonl")
    assert nights.run(FIRST) == 0
    assert nights.run("2026-02-01") == 0
    assert f"there is no batch of {SECOND}; to make it: datarater batch --config" in nights.out
    assert nights.published() == [FIRST, THIRD, "2026-02-01"]
    assert nights.run("2026-02-01") == 0
    assert "there is no batch" not in nights.out
    assert nights.run(SECOND) == 0
    assert nights.taken(SECOND) == [f"{SECOND}/a.jsonl"]


def test_a_future_date_is_wrong_usage(nights: Nights, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        nights.run("2999-01-01")
    assert ended.value.code == 2
    assert "--as_of: 2999-01-01 is in the future" in capsys.readouterr().err


@pytest.mark.parametrize("date", ["2026-1-3", "20260103", "today", "2026-02-30"])
def test_what_is_not_a_date_is_wrong_usage(
    nights: Nights, capsys: pytest.CaptureFixture[str], date: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        nights.run(date)
    assert ended.value.code == 2
    expected = f"argument --as_of: {date!r} is not a date such as 2026-01-31"
    assert expected in capsys.readouterr().err


def test_a_dry_run_changes_nothing(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    before = nights.snapshot()
    assert nights.run(FIRST, "--dry_run") == 0
    assert f"batch {FIRST}: 1 file," in nights.out
    assert "a.jsonl" in nights.out
    assert nights.snapshot() == before
    assert nights.run(FIRST) == 0
    assert nights.run(FIRST, "--dry_run") == 0
    assert f"is published: {nights.folder}/published/{FIRST}/manifest.json" in nights.out


def test_state_and_publication_on_an_object_store(nights: Nights, tmp_path: Path) -> None:
    store = f"memory:/{tmp_path}"
    nights.configure(state=f"{store}/state", publish=f"{store}/published")
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    assert nights.run(FIRST) == 0
    nights.bring(f"{FIRST}/late.jsonl")
    assert nights.run(SECOND) == 0
    record = json.loads(commits.read_bytes(f"{store}/published/{SECOND}/manifest.json"))
    assert record["inputs"]["late"] == 1
    assert commits.exists(f"{store}/published/{SECOND}/_SUCCESS")
    assert all(commits.exists(file["path"]) for file in record["files"])
    fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def test_a_store_that_cannot_create_only_if_absent_is_refused_by_name(nights: Nights) -> None:
    class ForgetfulFileSystem(MemoryFileSystem):
        protocol = "forgetful"

        def pipe_file(self, path: str, value: bytes) -> None:
            super().pipe_file(path, value)

    fsspec.register_implementation("forgetful", ForgetfulFileSystem, clobber=True)
    nights.configure(publish="forgetful://published")
    assert nights.run(FIRST) == 1
    assert "ForgetfulFileSystem cannot create a file only if it does not exist" in nights.err
    assert not (nights.folder / "state").exists()


# --- late, changed, or still being written


def test_late_files_join_the_next_batch_and_are_reported(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    nights.bring(f"{FIRST}/late.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")
    assert nights.run(SECOND) == 0
    assert nights.taken(SECOND) == [f"{FIRST}/late.jsonl", f"{SECOND}/a.jsonl"]
    assert "1 late: files of earlier dates" in nights.out
    inputs = nights.record(SECOND)["inputs"]
    assert inputs["late"] == 1
    note = json.loads(Path(inputs["notes"]).read_bytes())
    assert (note["what"], note["date"]) == ("late", FIRST)


def test_late_files_are_found_for_late_days(nights: Nights) -> None:
    nights.configure(late_days=1)
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    nights.bring(f"{FIRST}/late.jsonl")
    assert nights.run(THIRD) == 0
    assert nights.taken(THIRD) == []
    nights.configure(late_days=2)
    assert nights.run("2026-02-01") == 0
    assert nights.taken("2026-02-01") == []  # three days after
    assert nights.run(SECOND) == 0
    assert nights.taken(SECOND) == [f"{FIRST}/late.jsonl"]


def test_a_changed_file_is_reported_once_then_ignored(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    nights.bring(f"{FIRST}/a.jsonl", 50)
    assert nights.run(SECOND) == 0
    assert "1 changed since a batch took them: ignored" in nights.out
    assert nights.taken(SECOND) == []
    note = json.loads(Path(nights.record(SECOND)["inputs"]["notes"]).read_bytes())
    assert note["taken_by"] == FIRST
    assert note["fingerprint"] != note["fingerprint_taken"]
    assert nights.run(THIRD) == 0
    assert "changed since" not in nights.out
    assert nights.record(FIRST)["counts"]["read"] == 100


def test_a_changed_file_may_be_taken_as_a_new_version(nights: Nights) -> None:
    nights.configure(changed_files="take")
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    nights.bring(f"{FIRST}/a.jsonl", 50)
    for date in (SECOND, THIRD):
        assert nights.run(date) == 0
    assert nights.record(SECOND)["inputs"]["version"] == 1
    assert (nights.taken(SECOND), nights.taken(THIRD)) == ([f"{FIRST}/a.jsonl"], [])
    assert nights.record(SECOND)["counts"]["read"] == 50


def test_changed_files_may_be_refused(nights: Nights) -> None:
    nights.configure(changed_files="refuse")
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    nights.bring(f"{FIRST}/a.jsonl", 50)
    assert nights.run(SECOND) == 3
    assert "1 input file changed after a batch took them" in nights.err
    assert nights.published() == [FIRST]
    assert nights.state.claim_of(SECOND) is None


def test_a_file_that_was_just_modified_waits(nights: Nights) -> None:
    nights.configure(quiet_minutes=5)
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{FIRST}/b.jsonl")
    old = datetime.datetime.now().timestamp() - 301
    os.utime(nights.folder / "in" / FIRST / "a.jsonl", (old, old))
    assert nights.run(FIRST) == 0
    assert nights.taken(FIRST) == [f"{FIRST}/a.jsonl"]
    assert "1 modified too recently" in nights.out
    assert nights.record(FIRST)["inputs"]["waiting"] == 1
    os.utime(nights.folder / "in" / FIRST / "b.jsonl", (old, old))
    assert nights.run(SECOND) == 0
    assert nights.taken(SECOND) == [f"{FIRST}/b.jsonl"]


# --- begun but not finished


class KilledError(BaseException):
    """The launch is killed here."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Kills the next launch, once, when it is about to commit a file with this ending."""

    def kill_at(ending: str) -> None:
        real = os.link
        done: list[str] = []

        def link(staged: str, target: str) -> None:
            if not done and target.endswith(ending):
                done.append(target)
                raise KilledError
            real(staged, target)

        monkeypatch.setattr(os, "link", link)

    return kill_at


def killed(nights: Nights, date: str) -> None:
    with pytest.raises(KilledError):
        nights.run(date)


def test_the_next_run_finishes_what_was_begun(nights: Nights, kill: Callable[[str], None]) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")
    kill("scoring.json")
    killed(nights, FIRST)
    assert nights.published() == []
    assert nights.state.unfinished() == [FIRST]
    nights.bring(f"{FIRST}/later.jsonl")
    assert nights.run(SECOND) == 0
    assert f"batch {FIRST} was begun but not published: it is finished first" in nights.out
    assert nights.taken(FIRST) == [f"{FIRST}/a.jsonl"]
    assert nights.taken(SECOND) == [f"{FIRST}/later.jsonl", f"{SECOND}/a.jsonl"]


@pytest.mark.parametrize("ending", ["manifest.json", "_SUCCESS"])
def test_a_publication_that_readers_do_not_see_yet_is_shown_by_the_next_run(
    nights: Nights, ending: str, kill: Callable[[str], None]
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    kill(f"published/{FIRST}/{ending}")
    killed(nights, FIRST)
    assert nights.state.unfinished() == []
    assert nights.run(SECOND) == 0
    assert (
        f"batch {FIRST} was published by a launch that was killed: readers can find it now"
        in nights.out
    )
    assert list(batches.check_published(nights.folder)) == [FIRST, SECOND]


def test_the_alarm_of_a_killed_launch_is_raised_by_the_next(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    nights.bring(f"{FIRST}/a.jsonl", mean=-3.0)
    kill(f"published/{FIRST}/manifest.json")
    killed(nights, FIRST)
    nights.bring(f"{SECOND}/a.jsonl")
    assert nights.run(SECOND) == 4
    assert f"batch {FIRST} is published, but the population stability index" in nights.err
    assert nights.run(SECOND) == 0, "reported once: the batch of the date itself has no alarm"


def test_a_claimed_file_that_changed_before_it_was_read_starts_the_batch_over(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    for name in ("a", "b"):
        nights.bring(f"{FIRST}/{name}.jsonl")
    kill("identity.json")
    killed(nights, FIRST)
    nights.bring(f"{FIRST}/a.jsonl", 50)
    (nights.folder / "in" / FIRST / "b.jsonl").unlink()
    assert nights.run(SECOND) == 0
    assert f"batch {FIRST}: started over, because " in nights.out
    assert "a.jsonl was modified" in nights.out
    assert "b.jsonl is gone" in nights.out
    assert nights.taken(FIRST) == [f"{FIRST}/a.jsonl"]
    assert nights.record(FIRST)["counts"]["read"] == 50
    assert len(nights.state.released) == 1


def test_a_file_that_changes_at_every_look_does_not_start_a_batch_over_forever(
    nights: Nights, kill: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    kill("identity.json")
    killed(nights, FIRST)
    monkeypatch.setattr(batch_inputs, "file_info", lambda path: FileInfo(path, 1, "another"))
    assert nights.run(FIRST) == 0
    assert nights.out.count("started over") == 1


def test_a_change_after_the_selection_changes_nothing(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    kill("published/2026-01-29/manifest.json")
    killed(nights, FIRST)
    (nights.folder / "in" / FIRST / "a.jsonl").unlink()
    assert nights.run(FIRST) == 0
    assert nights.record(FIRST)["counts"]["read"] == 100


def test_another_rule_starts_an_unfinished_batch_over_with_the_same_files(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    nights.configure(input="in/*/*.jsonl")
    nights.bring("x/a.jsonl")
    kill("scoring.json")
    killed(nights, FIRST)
    nights.configure(input="in/*/*.jsonl", curate={"threshold": 1.5})
    nights.bring("x/b.jsonl")
    assert nights.run(SECOND) == 0
    why = "selection.name is 'keep-0.5-by-reference' there, but 'threshold-1.5' now"
    assert f"started over, because {why}" in nights.out
    assert (nights.taken(FIRST), nights.taken(SECOND)) == (["x/a.jsonl"], ["x/b.jsonl"])
    assert nights.record(FIRST)["terms"]["selection"]["rule"] == {
        "kind": "threshold",
        "value": "1.5",
    }


def test_a_batch_in_which_another_launch_works_is_left_alone(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    kill("scoring.json")
    killed(nights, FIRST)
    run = RunFolder(next(iter(nights.state.claims.values())).run)

    def lost(error: Exception) -> None:
        raise error

    with Lease([run.scoring_lease_path], Launch.new("other", local=True), lost):
        assert nights.run(FIRST) == 3
        assert "another launch is working here" in nights.err
        nights.bring(f"{FIRST}/a.jsonl", 50)  # it is not started over either
        assert nights.run(FIRST) == 3
        assert nights.run(SECOND) == 0
        assert f"skipped: batch {FIRST}: " in nights.out
        assert nights.published() == [SECOND]
    assert nights.run(SECOND) == 0
    assert nights.published() == [FIRST, SECOND]


def test_a_batch_that_fails_does_not_stop_the_next_and_is_not_forgotten(
    nights: Nights,
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")

    def failing(work: Work, execution: Execution) -> None:
        if f"/runs/{FIRST}" in work.folder.path:
            raise CurationError("split 0 is poison")
        batches.curate(work, execution)

    nights.curate = failing
    assert nights.run(FIRST) == 1
    assert nights.run(SECOND) == 1
    assert f"WARNING: batch {FIRST}: split 0 is poison" in nights.err
    assert nights.published() == [SECOND]
    nights.curate = batches.curate
    assert nights.run(SECOND) == 0
    assert nights.published() == [FIRST, SECOND]


def test_a_signal_while_another_date_is_finished_ends_the_command(
    nights: Nights,
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")

    def stopped(work: Work, execution: Execution) -> None:
        raise StoppedError("stopped by SIGTERM")  # as a cancelled remote job does

    nights.curate = stopped
    assert nights.run(FIRST) == StoppedError.exit_code
    assert nights.run(SECOND) == StoppedError.exit_code
    assert nights.state.claim_of(SECOND) is None, "no work begins after a signal"


def test_a_job_that_continues_elsewhere_is_published_by_the_next_run(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    submitted: list[tuple[Work, Execution]] = []
    nights.curate = lambda *job: submitted.append(job)
    assert nights.run(FIRST) == StoppedError.exit_code == 75
    assert "run the same command again" in nights.err
    nights.curate = lambda work, execution: (
        batches.curate(work, execution) if SECOND in work.folder.path else None
    )
    assert nights.run(SECOND) == 0
    assert f"skipped: batch {FIRST}: the job continues" in nights.out
    batches.curate(*submitted[0])  # the job has ended
    assert nights.run(FIRST) == 0
    assert nights.published() == [FIRST, SECOND]


@pytest.mark.parametrize("first_job_continues", [False, True])
def test_scoring_and_selecting_are_two_jobs_if_scoring_has_flags_of_its_own(
    nights: Nights, first_job_continues: bool
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    nights.configure(beam_score={"job_name": "on-gpus"}, beam={"job_name": "on-cpus"})
    jobs: list[tuple[Work, str]] = []

    def run(work: Work, execution: Execution) -> None:
        job_name = execution.options.view_as(GoogleCloudOptions).job_name
        jobs.append((work, job_name))
        if work.selection is None and not first_job_continues:
            commits.commit_if_absent(work.folder.scoring_path, b"scored")
        elif work.selection is not None:
            # The stand-in scores and selects at once.
            Path(work.folder.scoring_path).unlink()
            batches.curate(dataclasses.replace(work, scoring=jobs[0][0].scoring), execution)

    nights.curate = run
    code = nights.run(FIRST)
    assert [name for _, name in jobs] == ["on-gpus", "on-cpus"][: 1 if first_job_continues else 2]
    assert jobs[0][0].selection is None
    if first_job_continues:
        assert code == StoppedError.exit_code
        assert "run the same command again" in nights.err
    else:
        assert jobs[1][0].scoring is None
        assert code == 0
        assert nights.published() == [FIRST]


def test_two_launches_of_one_journal_publish_once(nights: Nights) -> None:
    """The second launch does all of its work while the first one is about to publish."""
    nights.bring(f"{FIRST}/a.jsonl")
    inside: list[int] = []

    def curate_and_be_overtaken(work: Work, execution: Execution) -> None:
        batches.curate(work, execution)
        if not inside:
            inside.append(1)
            assert nights.run(FIRST) == 0

    nights.curate = curate_and_be_overtaken
    assert nights.run(FIRST) == 0
    assert inside
    assert len(nights.state.publications) == 1
    batches.check_published(nights.folder)


def test_a_batch_that_another_launch_started_over_is_not_published_twice(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    inside: list[int] = []

    def curate_and_be_overtaken(work: Work, execution: Execution) -> None:
        if not inside:
            inside.append(1)
            nights.configure(curate={"threshold": 1.0})
            assert nights.run(FIRST) == 0
        batches.curate(work, execution)

    nights.curate = curate_and_be_overtaken
    assert nights.run(FIRST) == 3
    assert "another launch has started it over" in nights.err
    assert nights.record(FIRST)["terms"]["selection"]["rule"]["kind"] == "threshold"


def test_a_place_where_another_state_folder_publishes_is_refused(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    nights.configure(state="other_state")
    assert nights.run(FIRST) == 3
    assert "another state folder publishes here" in nights.err


# --- before the first batch


def test_the_first_batch_reports_earlier_dates_that_have_files(nights: Nights) -> None:
    nights.configure(late_days=3)
    for date in ("2026-01-27", "2026-01-28", SECOND, THIRD):  # none on FIRST
        nights.bring(f"{date}/a.jsonl")
    expected = (
        f"WARNING: the first batch is that of {THIRD}, and no batch takes the files of earlier "
        f"dates (2026-01-28, {SECOND}); to take them: for day in 2026-01-28 {SECOND}; do "
        f"datarater batch --config {nights.config} --as_of $day; done\n"
    )
    assert nights.run(THIRD, "--dry_run") == 0
    assert nights.err == expected
    assert nights.run(THIRD) == 0
    assert nights.err == expected
    assert nights.published() == [THIRD]

    # Reported once. The dates become ordinary past ones when somebody takes them.
    assert nights.run(THIRD) == 0
    assert nights.err == ""
    for date in ("2026-01-28", SECOND):
        assert nights.run(date) == 0
        assert nights.err == ""
        assert nights.taken(date) == [f"{date}/a.jsonl"]


def test_the_first_batch_reports_one_earlier_date_after_a_kill_too(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")
    kill("scoring.json")
    killed(nights, SECOND)
    assert nights.run(SECOND) == 0
    assert nights.err.endswith(
        f"to take them: datarater batch --config {nights.config} --as_of {FIRST}\n"
    )


def test_the_first_batch_has_nothing_to_report_without_dates_or_files(nights: Nights) -> None:
    nights.bring(f"{THIRD}/a.jsonl")
    assert nights.run(THIRD) == 0
    assert nights.err == ""
    nights.configure(input="in/*/*.jsonl", state="other", publish="elsewhere")
    assert nights.run(THIRD) == 0
    assert nights.err == ""


# --- nights without files


def test_a_night_without_files_is_an_alarm_by_default(nights: Nights) -> None:
    nights.configure(limits={"min_documents": 1})
    assert nights.run(FIRST) == 4
    alarm = (
        "the batch has 0 scored documents, fewer than limits.min_documents: 1; no new file matches "
        f"'*.jsonl' in {nights.folder}/in/{FIRST}"
    )
    assert f"WARNING: {alarm}\n" in nights.err
    assert f"datarater batch: batch {FIRST} is published, but {alarm}" in nights.err

    record = nights.record(FIRST)
    assert record["alarms"] == [alarm]
    assert record["exit_code"] == 4
    assert record["documents"] == {"value": 0, "limit": 1, "past": True}

    assert nights.run(FIRST) == 4
    nights.bring(f"{SECOND}/a.jsonl")
    assert nights.run(SECOND) == 0
    assert nights.record(SECOND)["documents"] == {"value": 100, "limit": 1, "past": False}


def test_the_alarm_of_an_empty_night_names_files_that_wait(nights: Nights) -> None:
    nights.configure(
        input=["in/{date}/*.jsonl", "other/*/{date:%Y/%m}/*"],
        quiet_minutes=5,
        limits={"min_documents": 1},
    )
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 4
    assert nights.record(FIRST)["alarms"][0].endswith(
        f"no new file matches '*.jsonl' in {nights.folder}/in/{FIRST} or '*/2026/01/*' in "
        f"{nights.folder}/other (1 file modified too recently waits for the next batch)"
    )


def test_too_few_documents_are_an_alarm(nights: Nights) -> None:
    nights.configure(limits={"min_documents": 100})
    nights.bring(f"{FIRST}/a.jsonl", 99)
    assert nights.run(FIRST) == 4
    assert nights.record(FIRST)["alarms"] == [
        "the batch has 99 scored documents, fewer than limits.min_documents: 100; in 1 file"
    ]
    nights.bring(f"{SECOND}/a.jsonl", 100)
    assert nights.run(SECOND) == 0


def test_an_empty_night_may_be_held_back_until_it_is_accepted(nights: Nights) -> None:
    nights.configure(limits={"min_documents": 1, "on_alarm": "hold"})
    assert nights.run(FIRST) == 4
    assert f"batch {FIRST} is held back: the batch has 0 scored documents" in nights.err
    command = f"datarater batch --config {nights.config} --as_of {FIRST} --accept_alarm"
    assert f"To publish it without files: {command}; if files arrive, the next run" in nights.err
    assert nights.published() == []
    assert nights.run(FIRST, "--accept_alarm") == 4
    assert nights.published() == [FIRST]


def test_an_empty_night_that_is_held_back_takes_files_that_arrive(nights: Nights) -> None:
    nights.configure(limits={"min_documents": 1, "on_alarm": "hold"})
    assert nights.run(FIRST) == 4
    assert nights.run(FIRST) == 4
    assert len(nights.state.released) == 0
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")
    assert nights.run(SECOND) == 0
    assert f"{FIRST}: started over, because it had no files, and 1 have arrived since" in nights.out
    assert nights.taken(FIRST) == [f"{FIRST}/a.jsonl"]
    assert nights.taken(SECOND) == [f"{SECOND}/a.jsonl"]


def test_without_dates_new_files_belong_to_the_next_batch_not_to_an_empty_one(
    nights: Nights,
) -> None:
    nights.configure(input="in/*/*.jsonl", limits={"min_documents": 1, "on_alarm": "hold"})
    assert nights.run(FIRST) == 4
    nights.bring("x/a.jsonl")
    assert nights.run(SECOND) == 4  # FIRST is still held back
    assert nights.published() == [SECOND]
    assert nights.taken(SECOND) == ["x/a.jsonl"]


# --- the reference and its alarms


@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_a_missing_reference_is_reported_with_the_command_that_makes_it(
    nights: Nights, raters: Path, flags: tuple[str, ...]
) -> None:
    nights.configure(
        reference="my reference",
        curate={"keep_fraction": 0.5, "max_windows": 8, "output_format": "jsonl"},
    )
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST, *flags) == 1
    assert nights.err.count("\n") == 1
    assert f"reference: {nights.folder}/my reference is neither a scored run folder" in nights.err
    # What changes a score is part of the command, what selects is not.
    assert nights.err.endswith(
        f"datarater score --input 'GLOB' --rater {raters}/rater --max_windows=8 "
        f"--output '{nights.folder}/my reference'\n"
    )
    assert nights.published() == []


def test_the_reference_is_frozen(nights: Nights, raters: Path) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    nights.bring(f"{SECOND}/a.jsonl")
    assert nights.run(FIRST) == 0
    nights.configure(rater=str(raters / "other"))
    before = nights.snapshot()
    assert nights.run(SECOND) == 3
    assert "is not the one that the batches" in nights.err
    assert "--adopt_reference" in nights.err
    assert nights.snapshot() == before
    assert nights.run(SECOND, "--adopt_reference") == 0
    assert nights.run(THIRD) == 0
    assert nights.record(FIRST)["rater"] != nights.record(SECOND)["rater"]
    nights.configure()
    assert nights.run("2026-02-01") == 3


def test_drift_has_its_own_exit_code_every_time(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl", 400, mean=1.0)
    assert nights.run(FIRST) == 4
    assert "WARNING: the population stability index" in nights.err
    assert "is published, but the population stability index" in nights.err
    record = nights.record(FIRST)
    assert record["exit_code"] == 4
    assert record["drift"]["ks"]["past"] is True
    assert nights.run(FIRST) == 4
    nights.bring(f"{SECOND}/a.jsonl", 400)
    assert nights.run(SECOND) == 0


def test_an_alarm_of_another_dates_batch_is_not_lost(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    nights.bring(f"{FIRST}/a.jsonl", 400, mean=1.0)
    kill("scoring.json")
    killed(nights, FIRST)
    nights.bring(f"{SECOND}/a.jsonl", 400)
    assert nights.run(SECOND) == 4
    assert f"batch {SECOND} is published; batch {FIRST} is published, but" in nights.err
    assert nights.record(SECOND)["alarms"] == []
    assert nights.run(SECOND) == 0


def test_an_alarm_may_hold_a_batch_back_until_it_is_accepted(nights: Nights) -> None:
    nights.configure(limits={"on_alarm": "hold", "psi": 0.1})
    nights.bring(f"{FIRST}/a.jsonl", 400, mean=1.0)
    assert nights.run(FIRST) == 4
    assert "is held back" in nights.err
    assert nights.published() == []
    assert nights.run(SECOND, "--accept_alarm") == 4  # the flag accepts the alarm of this date only
    assert nights.published() == [SECOND]
    assert f"batch {SECOND} is published; batch {FIRST} is held back" in nights.err
    assert nights.run(FIRST, "--accept_alarm") == 4
    assert nights.published() == [FIRST, SECOND]
    assert nights.run(SECOND) == 0


@pytest.mark.parametrize("on_alarm", ["publish", "hold"])
def test_too_many_rejected_records_are_an_alarm(nights: Nights, on_alarm: str) -> None:
    nights.configure(limits={"on_alarm": on_alarm, "rejected_share": 0.1})
    nights.bring(f"{FIRST}/a.jsonl", 100)
    with (nights.folder / "in" / FIRST / "a.jsonl").open("a") as file:
        file.write("not json\n" * 20)
    assert nights.run(FIRST) == 4
    if on_alarm == "hold":
        assert nights.published() == []
        assert nights.run(FIRST, "--accept_alarm") == 4
    assert nights.record(FIRST)["alarms"] == [
        "16.7% of the records are rejected (not_json 20), past the limit of 0.1"
    ]


@pytest.mark.parametrize("by", ["flag", "config"])
def test_a_file_that_cannot_be_read_may_be_rejected(nights: Nights, by: str) -> None:
    nights.bring(f"{FIRST}/a.jsonl", 100)
    (nights.folder / "in" / FIRST / "b.jsonl").write_bytes(batches.UNREADABLE)
    assert nights.run(FIRST) not in (0, 5)
    assert nights.published() == []

    rejecting: tuple[str, ...] = ("--on_bad_split", "reject")
    if by == "config":
        nights.configure(curate={"keep_fraction": 0.5, "on_bad_split": "reject"})
        assert nights.run(FIRST, "--on_bad_split", "fail") not in (0, 5)
        rejecting = ()
    for _ in range(2):
        assert nights.run(FIRST, *rejecting) == 5
        assert "1 file or split was rejected whole (split_unreadable 1)" in nights.err
    record = nights.record(FIRST)
    assert (record["exit_code"], record["alarms"]) == (5, [])
    assert record["counts"]["rejected_by_reason"] == {"split_unreadable": 1}

    # A later date has a batch of its own; the trouble of this one is reported once.
    nights.bring(f"{SECOND}/a.jsonl")
    assert nights.run(SECOND) == 0


def test_a_few_documents_raise_no_alarm_by_chance(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl", 20)
    assert nights.run(FIRST) == 0
    drift = nights.record(FIRST)["drift"]
    assert drift["psi"]["value"] > drift["psi"]["limit"]
    assert drift["psi"]["value"] < drift["psi"]["by_chance"]


def test_a_threshold_needs_no_reference_and_measures_no_drift(nights: Nights, raters: Path) -> None:
    nights.configure(rater=str(raters / "bare"), curate={"threshold": -0.5})
    nights.bring(f"{FIRST}/a.jsonl", 200, mean=3.0)
    assert nights.run(FIRST) == 0
    assert nights.record(FIRST)["drift"] is None
    assert "drift: not measured" in nights.out
    nights.configure(rater=str(raters / "bare"), state="other", publish="elsewhere")
    assert nights.run(FIRST) == 1
    assert "without the quantiles" in nights.err


# --- retention


def test_old_scores_and_old_documents_are_removed_by_separate_rules(nights: Nights) -> None:
    nights.configure(retention={"scores_days": 1, "published_days": 2}, late_days=2)
    dates = batches.dates_from(FIRST, 4)
    for date in dates:
        nights.bring(f"{date}/a.jsonl")
        assert nights.run(date) == 0
        foreign = Path(nights.record(date)["run"]) / "scores" / "notes.txt"
        foreign.write_text("not of the batch")

    runs = {claim.date: Path(claim.run) for claim in nights.state.claims.values()}
    assert nights.published() == dates[1:]
    left = {path.name for path in runs[dates[0]].rglob("*") if path.is_file()}
    assert left == {"notes.txt"}
    assert not (runs[dates[1]] / "scoring.json").exists()
    assert (runs[dates[1]] / "scores" / "notes.txt").exists()
    assert (runs[dates[2]] / "scoring.json").exists()
    assert list(batches.check_published(nights.folder)) == dates[1:]

    # What was taken stays taken, and what was recorded stays recorded.
    before = nights.snapshot()
    assert nights.run(dates[0]) == 0
    assert nights.snapshot() == before
    assert nights.published() == dates[1:]


def test_a_date_that_retention_would_remove_at_once_is_refused(nights: Nights) -> None:
    nights.configure(retention={"published_days": 2}, late_days=1)
    dates = batches.dates_from(FIRST, 5)
    nights.bring(f"{dates[4]}/a.jsonl")
    assert nights.run(dates[4]) == 0
    nights.bring(f"{dates[0]}/a.jsonl")
    assert nights.run(dates[0]) == 2
    assert "retention.published_days: 2 would remove this one at once" in nights.err
    assert nights.published() == [dates[4]]


def test_a_removal_that_was_killed_is_finished_by_the_next_run(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.configure(retention={"scores_days": 1})
    for date in (FIRST, SECOND):
        nights.bring(f"{date}/a.jsonl")
        assert nights.run(date) == 0
    real = commits.remove

    def remove(path: str) -> None:
        if path.endswith(".parquet"):
            raise KilledError
        real(path)

    monkeypatch.setattr(commits, "remove", remove)
    killed(nights, THIRD)
    assert nights.state.expiries
    run = Path(nights.record(FIRST)["run"])
    assert list(run.rglob("*.parquet"))
    monkeypatch.setattr(commits, "remove", real)
    nights.configure()  # a decided removal is done, whatever the configuration says now
    assert nights.run(THIRD) == 0
    assert not nights.state.expiries
    assert not list(run.rglob("*.parquet"))
    batches.check_published(nights.folder)


def test_a_released_run_folder_is_removed_with_old_scores(
    nights: Nights, kill: Callable[[str], None]
) -> None:
    nights.configure(retention={"scores_days": 1})
    nights.bring(f"{FIRST}/a.jsonl")
    kill("selections/keep-0.5-by-reference/manifest.json")
    killed(nights, FIRST)
    released_run = Path(next(iter(nights.state.claims.values())).run)
    nights.bring(f"{FIRST}/a.jsonl", 50)
    assert nights.run(FIRST) == 0
    assert list(released_run.rglob("part-*"))
    assert nights.run(THIRD) == 0
    assert not [path for path in released_run.rglob("*") if path.is_file()]


def test_the_run_folder_that_is_the_reference_is_never_due(nights: Nights) -> None:
    nights.configure(retention={"scores_days": 1})
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    assert nights.run(SECOND) == 0
    nights.configure(retention=None)
    assert nights.run(THIRD) == 0
    run = nights.record(FIRST)["run"]
    nights.configure(retention={"scores_days": 1})
    assert retention.due(read_config(str(nights.config)), nights.state) is not None
    nights.configure(retention={"scores_days": 1}, reference=run)
    assert retention.due(read_config(str(nights.config)), nights.state) is None


def test_help_has_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        batch.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "  datarater batch --config batch.yaml --as_of 2026-01-31" in text
    assert "Exit codes:" in text


def test_leases_of_the_tests_are_the_real_ones(nights: Nights) -> None:
    nights.bring(f"{FIRST}/a.jsonl")
    assert nights.run(FIRST) == 0
    folder = RunFolder(nights.record(FIRST)["run"])
    term = lease.current(folder.scoring_lease_path)
    assert term is not None
    assert term.released
