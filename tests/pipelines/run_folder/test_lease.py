from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datarater.pipelines.errors import CurationError, LeaseHeldError, PoisonSplitError
from datarater.pipelines.run_folder import commits, lease, split_marks
from datarater.pipelines.run_folder.layout import RunFolder, to_json
from datarater.pipelines.run_folder.lease import Launch, Lease, Process
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.rater_model.documents.records import Split


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "local": str(tmp_path / "run/lease/scoring"),
        "memory": f"memory:/{tmp_path}/run/lease/scoring",
    }[request.param]


def launch(name: str, **changes: object) -> Launch:
    fields = {
        "runner": "FnApiRunner",
        "local": True,
        "process": lease.process_id(),
        "started": time.time(),
    }
    return Launch(name, **{**fields, **changes})  # type: ignore[arg-type]


def not_lost(error: CurationError) -> None:
    raise AssertionError(error)


def ended_process() -> Process:
    """A process of this machine that has ended."""
    code = (
        "import dataclasses, json; from datarater.pipelines.run_folder.lease import process_id; "
        "print(json.dumps(dataclasses.asdict(process_id())))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    return Process(**json.loads(output))


def test_one_launch_holds_and_the_other_says_who(folder: str) -> None:
    first = launch("first")
    with Lease([folder], first, not_lost):
        with pytest.raises(
            LeaseHeldError, match=r"launch first, process \d+ on .*expires in \d+ s"
        ) as raised:
            lease.take(folder, launch("second"))
        assert raised.value.exit_code == 3
    term = lease.current(folder)
    assert term is not None
    assert term.released
    with Lease([folder], launch("second"), not_lost):
        pass
    assert len(commits.list_folder(folder)) == 1


def test_of_many_at_once_one_takes_it(tmp_path: Path) -> None:
    def take(number: int) -> bool:
        try:
            lease.take(str(tmp_path), launch(f"l{number}"))
        except LeaseHeldError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(16))) == 1


def test_a_lease_runs_out(folder: str) -> None:
    lease.take(folder, launch("first"), term_seconds=0.2)
    time.sleep(0.3)
    assert lease.take(folder, launch("second")).launch.id == "second"


def test_a_dead_process_of_this_machine_holds_nothing(folder: str) -> None:
    process = ended_process()
    assert lease.is_gone(process)
    assert not lease.is_gone(lease.process_id())
    elsewhere = dataclasses.replace(process, host="elsewhere")
    assert not lease.is_gone(elsewhere)
    lease.take(folder, launch("elsewhere", process=elsewhere))
    with pytest.raises(LeaseHeldError):
        lease.take(folder, launch("second"))
    commits.remove(f"{folder}/000001.json")
    lease.take(folder, launch("first", process=process))
    lease.take(folder, launch("second"))


def test_a_job_elsewhere_outlives_its_launcher(folder: str) -> None:
    lease.take(folder, launch("job", process=ended_process(), local=False))
    with pytest.raises(LeaseHeldError):
        lease.take(folder, launch("second"))
    before = lease.current(folder)
    time.sleep(0.01)
    lease.keep(folder, "job", renewal_seconds=0.0)
    lease.keep(folder, "another", renewal_seconds=0.0)
    after = lease.current(folder)
    assert before is not None
    assert after is not None
    assert after.expires > before.expires
    assert after.launch == before.launch


def test_a_lease_is_renewed_while_it_is_held(folder: str) -> None:
    with Lease([folder], launch("first"), not_lost, term_seconds=1.0, renewal_seconds=0.05):
        time.sleep(1.3)
        with pytest.raises(LeaseHeldError):
            lease.take(folder, launch("second"))


def test_who_lost_its_lease_is_told(folder: str) -> None:
    lost: list[CurationError] = []
    with Lease([folder], launch("first"), lost.append, renewal_seconds=0.1):
        term = lease.current(folder)
        assert term is not None
        dataclasses.replace(term, path=f"{folder}/000002.json", launch=launch("second")).write()
        time.sleep(0.5)
    assert [type(error) for error in lost] == [LeaseHeldError]
    term = lease.current(folder)
    assert term is not None
    assert (term.launch.id, term.released) == ("second", False)


# --- Marks of splits in progress ---


TASK = SplitTask(Split("gs://b/in.jsonl", "jsonl", start=100, end=1200, ordinal=7), "mtime-1", 0)


def die_over(folder: RunFolder, name: str, process: Process | None = None) -> None:
    """Leaves the mark of a worker that died while it scored the split."""
    before = {path for path, _ in split_marks.unfinished(folder)}
    with split_marks.marked(folder, TASK, name):
        ((path, mark),) = [
            found for found in split_marks.unfinished(folder) if found[0] not in before
        ]
    commits.replace(path, to_json(dataclasses.replace(mark, process=process or mark.process)))


def test_a_mark_is_there_while_a_split_is_scored(folder: str) -> None:
    run = RunFolder(folder)
    with split_marks.marked(run, TASK, "one"):
        assert [mark.ordinal for _, mark in split_marks.unfinished(run)] == [7]
    with pytest.raises(ValueError, match="said"), split_marks.marked(run, TASK, "one"):
        raise ValueError("said")
    with split_marks.marked(run, TASK, ""):
        assert split_marks.unfinished(run) == []


def test_a_split_that_ends_three_workers_of_a_launch_is_named(folder: str) -> None:
    run = RunFolder(folder)
    for _ in range(3):
        die_over(run, "one")
    with (
        pytest.raises(
            PoisonSplitError, match=r"split 7 \(gs://b/in.jsonl, bytes 100 to 1,200\) crashed 3"
        ),
        split_marks.marked(run, TASK, "one"),
    ):
        pytest.fail("it is not to be scored again")
    with split_marks.marked(run, TASK, "two"):
        pass
    assert split_marks.clear_finished(run) == {split_marks.describe(TASK.split): 3}
    commits.commit_if_absent(run.score_path(7), b"")
    assert split_marks.clear_finished(run) == {}
    assert split_marks.unfinished(run) == []


def test_the_living_are_no_suspects(folder: str) -> None:
    run = RunFolder(folder)
    die_over(run, "one", ended_process())
    die_over(run, "one")
    die_over(run, "another")
    assert split_marks.clear_bystanders(run, "one") == {split_marks.describe(TASK.split): 1}
    assert [
        (mark.launch, lease.is_gone(mark.process)) for _, mark in split_marks.unfinished(run)
    ] == [
        ("another", False),
        ("one", True),
    ]
