from __future__ import annotations

import dataclasses
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

from datarater.pipelines.errors import CurationError, LeaseHeldError
from datarater.pipelines.graph.curation import Curation
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.planning import PlanChunk
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest, Work
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits, lease
from datarater.pipelines.run_folder.lease import Launch, Lease, Process
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepFraction
from tests.support.run_folders import run_options


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


def a_scoring(folder: Path) -> ScoringRequest:
    return ScoringRequest(Patterns(("x",)), "rater", str(folder), run_options())


def a_selection(folder: Path) -> SelectionRequest:
    policy = Policy(KeepFraction("0.5"))
    return SelectionRequest(
        str(folder), policy, seed=0, output_format="same", output_shard_bytes=1000
    )


def not_lost(error: CurationError) -> None:
    raise AssertionError(error)


def ended_process() -> Process:
    """A process of this machine that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        ended = lease.process_id(process.pid)
        process.kill()
    return ended


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
    assert lease.renew_for(folder, "job", renewal_seconds=60.0)
    assert lease.current(folder) == before  # it is not due
    time.sleep(0.01)
    assert lease.renew_for(folder, "job", renewal_seconds=0.0)
    assert not lease.renew_for(folder, "another", renewal_seconds=0.0)
    after = lease.current(folder)
    assert before is not None
    assert after is not None
    assert after.expires > before.expires
    assert after.launch == before.launch


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.01)


def renewed(folder: str) -> float:
    term = lease.current(folder)
    assert term is not None
    return term.renewed


def test_a_worker_renews_the_lease_while_it_does_anything_until_it_is_released(
    folder: str,
) -> None:
    term = lease.take(folder, launch("job", local=False))
    before = set(threading.enumerate())
    for _ in range(2):  # once for every step of the graph, in one thread
        lease.keep(folder, "job", renewal_seconds=0.02)
    (keeper,) = set(threading.enumerate()) - before
    for _ in range(3):
        last = renewed(folder)
        wait_for(lambda last=last: renewed(folder) > last)  # type: ignore[misc]

    dataclasses.replace(term, released=True).write()
    keeper.join(20)
    assert not keeper.is_alive()


def test_every_step_that_takes_time_keeps_the_leases_of_a_job_elsewhere(tmp_path: Path) -> None:
    scoring, selection = a_scoring(tmp_path), a_selection(tmp_path)
    work = Work(scoring, selection).of_launch("job", elsewhere=True)
    assert work.scoring is not None
    assert work.selection is not None
    leases = {scoring.folder.scoring_lease_path, scoring.folder.selection_lease_path("keep-0.5")}
    assert set(work.scoring.kept_leases) == set(work.selection.kept_leases) == leases
    assert Work(scoring, selection).of_launch("here").scoring == dataclasses.replace(
        scoring, launch="here"
    )

    graph = beam.Pipeline()
    _ = graph | beam.Impulse() | Curation(work)
    steps: list[beam.DoFn] = []

    class Steps(PipelineVisitor):
        def visit_transform(self, node: AppliedPTransform) -> None:
            if isinstance(node.transform, beam.ParDo):
                steps.append(node.transform.fn)

    graph.visit(Steps())
    keeping = {type(step).__name__ for step in steps if isinstance(step, Step)}
    assert keeping == {
        "ListInputs", "PlanChunk", "CommitPlan", "ScoreSplit", "SummariseGroup", "FinishScoring",
        "CountUndecided", "CountKept", "WriteShard", "JoinPieces", "Publish",
    }  # fmt: skip

    for path in leases:
        lease.take(path, launch("job", local=False))
    plan_chunk = next(step for step in steps if isinstance(step, PlanChunk))
    plan_chunk.setup()
    for path in leases:  # the first worker ends the long first term
        wait_for(lambda path=path: expires_in(path) <= lease.TERM_SECONDS)  # type: ignore[misc]
        released = lease.current(path)
        assert released is not None
        dataclasses.replace(released, released=True).write()


def expires_in(folder: str) -> float:
    term = lease.current(folder)
    assert term is not None
    return term.expires - time.time()


def test_the_first_term_of_a_job_elsewhere_lasts_until_a_cluster_has_started(folder: str) -> None:
    with Lease([folder], launch("job", local=False), not_lost, renewal_seconds=0.02) as held:
        before = renewed(folder)
        wait_for(lambda: renewed(folder) > before)
        assert expires_in(folder) > 1000
        # From its first worker on the job's workers renew it often enough.
        lease.renew_for(folder, "job")
        assert expires_in(folder) <= 120
        before = renewed(folder)
        wait_for(lambda: renewed(folder) > before)
        assert expires_in(folder) <= 120
        held.leave_to_workers()
    with pytest.raises(LeaseHeldError):
        lease.take(folder, launch("second"))
    with Lease([f"{folder}-2"], launch("here"), not_lost):
        assert expires_in(f"{folder}-2") <= 120


@pytest.mark.parametrize("damage", [b"", b"{", b'{"launch": 1}', b"\xff"])
def test_a_damaged_lease_ends_no_run_and_is_taken_over(folder: str, damage: bytes) -> None:
    path = f"{folder}/000001.json"
    with Lease([folder], launch("first"), not_lost, renewal_seconds=0.02) as held:
        commits.replace(path, damage)
        assert lease.renew_for(folder, "first")
        wait_for(lambda: lease.current(folder) is not None)  # its holder writes it again
        assert held.is_alive()
    commits.replace(path, damage)
    with Lease([folder], launch("second"), not_lost):
        assert [entry.path.rsplit("/", 1)[-1] for entry in commits.list_folder(folder)] == [
            "000002.json"
        ]


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
