"""A Flink cluster on this machine: kills change no result, nor does the way to submit."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from datarater.pipelines.commands import curate
from datarater.rater_model import exit_codes
from deploy.flink import cluster, java, supervisor
from tests.support.corpora import as_lines, make_records
from tests.support.runners import FlinkForTests, one_flink_at_a_time, outcome, score_files

pytestmark = [pytest.mark.drill, one_flink_at_a_time]


def flags(corpus: Path, rater: Path, output: Path, *more: str) -> list[str]:
    args = [
        "--input",
        f"{corpus}/*",
        "--rater",
        str(rater),
        "--output",
        str(output),
        "--split_bytes",
        "4000",
    ]
    return [*args, "--max_windows", "4", "--workers_to_fill", "2", "--keep_fraction", "0.5", *more]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 300 splits: scoring lasts long enough to be in the middle of it."""
    folder = tmp_path_factory.mktemp("flink_corpus") / "in"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.jsonl").write_bytes(
            as_lines(make_records(240, number)) + b"no JSON\n"
        )
    return folder


@pytest.fixture(scope="module")
def expected(corpus: Path, rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("expected") / "run"
    assert curate.main(flags(corpus, rater, output)) == 0
    return output


def workers(flink: FlinkForTests) -> dict[int, int]:
    """The worker processes of jobs, by the number of their pool."""
    found = {}
    for number in range(1, flink.cluster.task_managers + 1):
        log = (flink.folder / supervisor.LOGS / f"worker-pool-{number}.log").read_text()
        started = re.findall(r"worker [0-9-]+ is process (\d+)", log)
        if started:
            found[number] = int(started[-1])
    return found


def processes(flink: FlinkForTests) -> dict[str, int]:
    return dict(supervisor.running(flink.folder))


class Job:
    """A command that runs on the cluster while the test does harm to it."""

    def __init__(self, args: list[str], output: Path):
        self._output = output
        self.process = subprocess.Popen(
            [sys.executable, "-m", "datarater.pipelines.commands.curate", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until(self, condition: Callable[[], bool], seconds: float = 240.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, "what was waited for did not come"
            time.sleep(0.05)

    def wait_for_scores(self, more: int) -> dict[Path, int]:
        """Waits for so many more score files; some splits are still to come."""
        enough = len(score_files(self._output)) + more
        self.wait_until(lambda: len(score_files(self._output)) >= enough)
        assert not (self._output / "scoring.json").exists()
        return score_files(self._output)

    def end(self) -> str:
        return self.process.communicate(timeout=300)[0]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_and_a_killed_task_manager_change_nothing(
    corpus: Path, rater: Path, expected: Path, flink_cluster: FlinkForTests, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    job = Job(flags(corpus, rater, output, *flink_cluster.flags()), output)
    before = job.wait_for_scores(20)
    first = workers(flink_cluster)
    assert set(first) == {1, 2}  # each task manager has a worker process of its own
    kill(first[1])
    job.wait_until(lambda: workers(flink_cluster)[1] != first[1])
    job.wait_for_scores(20)
    manager = processes(flink_cluster)["task-manager-2"]
    kill(manager)
    job.wait_until(lambda: processes(flink_cluster).get("task-manager-2", manager) != manager)
    said = job.end()
    assert job.process.returncode == 0, said
    assert said.count("Flink restarts the job, which continues from the committed work") >= 1
    assert before.items() <= score_files(output).items()  # nothing was scored again
    assert outcome(output, "keep-0.5") == outcome(expected, "keep-0.5")


def seconds_used(pid: int) -> float:
    """Processor time of a process; 0 once it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def busiest(pids: Iterable[int], seconds: float = 2.0) -> tuple[float, int]:
    """The process that works the most for a while: the share of a core it uses, and its id."""
    pids = list(pids)
    before = [seconds_used(pid) for pid in pids]
    time.sleep(seconds)
    shares = [(seconds_used(pid) - used) / seconds for pid, used in zip(pids, before, strict=True)]
    return max(zip(shares, pids, strict=True), default=(0.0, 0))


def test_three_preemptions_and_two_kills_of_the_worker_of_one_long_split_change_nothing(
    rater: Path, flink_cluster: FlinkForTests, tmp_path: Path
) -> None:
    """A worker that a cluster ends says nothing about its split, however often it happens."""
    (tmp_path / "in").mkdir()
    documents = 200_000
    (tmp_path / "in/long.jsonl").write_bytes(as_lines(make_records(documents, 0)) + b"no JSON\n")
    output = tmp_path / "run"
    job = Job(flags_of_one_split(tmp_path / "in", rater, output, *flink_cluster.flags()), output)
    job.wait_until(lambda: (output / "plan/identity.json").exists())

    ended: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        victims: list[int] = []

        def is_in_the_split(victims: list[int] = victims) -> bool:
            share, pid = busiest(set(workers(flink_cluster).values()) - ended)
            if share > 0.3:
                victims.append(pid)
            return len(victims) >= 2 and victims[-1] == victims[-2]

        job.wait_until(is_in_the_split)
        assert score_files(output) == {}  # the split is still in progress
        os.kill(victims[-1], number)
        ended.add(victims[-1])

    said = job.end()
    assert job.process.returncode == 0, said
    assert len(ended) == 5
    assert said.count("Flink restarts the job") >= 1
    assert len(score_files(output)) == 1
    local = tmp_path / "local"
    assert curate.main(flags_of_one_split(tmp_path / "in", rater, local)) == 0
    assert outcome(output, "keep-0.5") == outcome(local, "keep-0.5")
    counts = json.loads((output / "scoring.json").read_bytes())["counts"]
    assert (counts["read"], counts["scored"]) == (documents + 1, documents)
    ids = [json.loads(line)["id"] for line in outcome(output, "keep-0.5")["kept"]]
    assert len(ids) == len(set(ids)) == documents // 2


def flags_of_one_split(corpus: Path, rater: Path, output: Path, *more: str) -> list[str]:
    return ["64MB" if flag == "4000" else flag for flag in flags(corpus, rater, output, *more)]


def test_a_rerun_after_the_whole_cluster_was_killed_goes_on(
    corpus: Path, rater: Path, expected: Path, flink_cluster: FlinkForTests, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    job = Job(flags(corpus, rater, output, *flink_cluster.flags()), output)
    before = job.wait_for_scores(20)
    for pid in processes(
        flink_cluster
    ).values():  # the supervisor first, so that nothing is started again
        kill(pid)
    said = job.end()
    assert job.process.returncode == exit_codes.FAILED, said
    assert said.splitlines()[-1].startswith("datarater curate: the job server was lost (")
    assert "run the same command to continue" in said.splitlines()[-1]

    # A cluster that is down is told before anything is submitted.
    args = flags(corpus, rater, output, *flink_cluster.flags())
    assert curate.main(args) == exit_codes.FAILED

    flink_cluster.cluster = FlinkForTests.up(flink_cluster.folder).cluster
    again = [flag.replace("FlinkRunner", "PortableRunner") for flag in flink_cluster.flags()]
    again.append(f"--artifact_endpoint={flink_cluster.cluster.artifact_endpoint}")
    assert curate.main(flags(corpus, rater, output, *again)) == 0
    assert before.items() <= score_files(output).items()
    assert outcome(output, "keep-0.5") == outcome(expected, "keep-0.5")


def test_flink_runner_with_a_job_server_of_its_own(
    corpus: Path,
    rater: Path,
    flink_cluster: FlinkForTests,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One worker on a cluster of which only the job manager's address is known."""
    small, output = tmp_path / "in", tmp_path / "run"
    small.mkdir()
    (small / "a.jsonl").write_bytes((corpus / "00.jsonl").read_bytes())
    known = flink_cluster.cluster
    way_in = ["--runner=FlinkRunner", f"--flink_master={known.flink_master}", "--parallelism=1"]
    way_in += [
        f"--flink_job_server_jar={known.job_server_jar}",
        f"--environment_config={known.worker_pool}",
    ]
    started = len(workers_started(flink_cluster))
    assert curate.main(flags(small, rater, output, *way_in)) == 0
    assert "1 worker process, one scoring thread in each" in capfd.readouterr().out
    # One worker, for all steps of the job: it loads the rater once.
    assert len(workers_started(flink_cluster)) == started + 1
    assert curate.main(flags(small, rater, tmp_path / "local")) == 0
    assert outcome(output, "keep-0.5") == outcome(tmp_path / "local", "keep-0.5")


def workers_started(flink: FlinkForTests) -> list[str]:
    logs = (flink.folder / supervisor.LOGS).glob("worker-pool-*.log")
    return [
        line for log in logs for line in re.findall(r"worker [0-9-]+ is process", log.read_text())
    ]


def test_up_is_idempotent_and_down_leaves_nothing(
    flink_cluster: FlinkForTests, tmp_path: Path
) -> None:
    before = processes(flink_cluster)
    assert FlinkForTests.up(flink_cluster.folder).cluster == flink_cluster.cluster
    assert processes(flink_cluster) == before
    with pytest.raises(
        java.ClusterError, match="has 2 task managers with 1 slots each; take it down first"
    ):
        cluster.up(flink_cluster.folder, tmp_path, task_managers=3)

    # Beside it, another one on ports of its own.
    other = cluster.up(
        tmp_path / "other", Path(flink_cluster.cluster.job_server_jar).parents[1], task_managers=1
    )
    assert {other.flink_master, other.job_endpoint, other.worker_pool}.isdisjoint(
        {
            flink_cluster.cluster.flink_master,
            flink_cluster.cluster.job_endpoint,
            flink_cluster.cluster.worker_pool,
        }
    )
    assert other.overview()["taskmanagers"] == 1
    assert cluster.down(tmp_path / "other")
    assert "does not answer" in other.missing()
    assert not cluster.down(tmp_path / "other")
    assert flink_cluster.cluster.missing() == ""
