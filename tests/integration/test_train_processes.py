"""Several processes train one rater, or end with one line each; all resume after a kill."""

import fcntl
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from datarater.meta_training.configs import default
from datarater.meta_training.run.metrics import read_metrics
from datarater.meta_training.run.preparation import prepare
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater
from tests.support import ROOT, training

WATCHED = ("outer_loss", "inner_loss", "effective_sample_share", "score_spread")
STEPS = 12


def command(workdir: Path, texts: str | Path, **changed: object) -> list[str]:
    settings = {
        "meta_steps": STEPS,
        "report_every": 1,
        "checkpoint_every": 2,
        "population__warmup_steps": 4,
    }
    return training.command(workdir, texts, **{**settings, **changed})


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return f"--coordinator=localhost:{listening.getsockname()[1]}"


def start_both(
    workdir: Path,
    texts: Path,
    changed: Mapping[int, Mapping[str, object]] | None = None,
) -> list[subprocess.Popen[str]]:
    """Starts two processes of one run; `changed` has the settings that differ between them."""
    coordinator = free_address()
    return [
        training.start(
            [
                *command(workdir, texts, **(changed or {}).get(i, {})),
                coordinator,
                "--processes=2",
                f"--process={i}",
            ],
        )
        for i in range(2)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Waits for the processes and returns the rest of their outputs."""
    return [process.communicate(timeout=600)[0] for process in processes]


def own_words(output: str) -> list[str]:
    """Returns the lines of the command itself, without progress and the lines of libraries."""
    return [
        line for line in output.splitlines() if line.startswith(("datarater train: ", "process "))
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """Returns the workdir of two uninterrupted processes."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "together"
    processes = start_both(workdir, texts)
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "on 2 x cpu: 2 groups of 1" in outputs[0]
    return workdir


def assert_same_run(workdir: Path, expected: Path) -> None:
    for name in ("rater", "raters/step_00000005", "raters/step_00000010"):
        assert training.digest(workdir / name) == training.digest(expected / name), name
        load_rater(workdir / name)
    assert training.repeatable_rows(workdir) == training.repeatable_rows(expected)


def assert_reports_that_another_ended(number: int, code: int, output: str) -> None:
    # JAX aborts a process that loses the coordinator, if it notices before we do.
    if number != 0 and code == -signal.SIGABRT:
        assert re.search("another task died|leader .* died", output), output
        return
    assert code == exit_codes.FAILED, output
    expected = (
        f"process {number} of 2: another process of this run has ended or cannot be reached, "
        "so this one ends too ("
    )
    (line,) = [line for line in own_words(output) if line.startswith(expected)]
    assert line.endswith(
        "Start all of them again with the same workdir: the run resumes from its last checkpoint"
    )


@pytest.mark.drill
@pytest.mark.parametrize("killed", [0, 1])
def test_one_killed_ends_the_other_and_both_resume_to_the_same_rater(
    killed: int, tmp_path: Path, texts: Path, uninterrupted: Path
) -> None:
    workdir = tmp_path / "together"
    processes = start_both(workdir, texts)
    list(training.lines_until(processes[0], "step 5/"))
    processes[killed].kill()
    outputs = ended(processes)
    assert processes[killed].returncode == -signal.SIGKILL
    survivor = 1 - killed
    assert_reports_that_another_ended(survivor, processes[survivor].returncode, outputs[survivor])

    processes = start_both(workdir, texts)
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("resuming at meta-step" in output for output in outputs)
    assert_same_run(workdir, uninterrupted)


@pytest.mark.drill
def test_sigterm_to_one_stops_both_after_the_same_step(tmp_path: Path, texts: Path) -> None:
    workdir = tmp_path / "together"
    processes = start_both(workdir, texts)
    list(training.lines_until(processes[0], "step 3/"))
    processes[1].terminate()
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [exit_codes.STOPPED] * 2, outputs
    lines = [own_words(output) for output in outputs]
    assert lines[0] == lines[1]
    match = re.fullmatch(
        rf"datarater train: stopped after meta-step (\d+) of {STEPS}; saved; .*", lines[0][0]
    )
    assert match, lines
    assert int(match[1]) == max(int(folder.name) for folder in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_two_processes_train_the_rater_of_one(
    tmp_path: Path, texts: Path, uninterrupted: Path
) -> None:
    alone = training.run(command(tmp_path / "alone", texts))
    assert alone.returncode == 0, alone.stderr
    rows, expected = (
        read_metrics(workdir / "metrics" / "metrics.csv")
        for workdir in (uninterrupted, tmp_path / "alone")
    )
    assert len(rows) == len(expected) == STEPS
    for name in WATCHED:
        assert [row[name] for row in rows] == pytest.approx(
            [row[name] for row in expected], rel=1e-3
        ), name


@pytest.mark.drill
def test_processes_with_different_configs_are_refused_by_name(tmp_path: Path, texts: Path) -> None:
    changed = {1: {"seed": 7, "inner_optimiser__learning_rate": 0.02}}
    processes = start_both(tmp_path / "together", texts, changed)
    outputs = ended(processes)
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == exit_codes.WRONG_USAGE, output
        (line,) = own_words(output)
        assert "config.seed is 0 in process 0, 7 in process 1" in line
        assert re.search(
            r"config\.inner_optimiser\.learning_rate is \S+ in process 0, 0\.02 in process 1", line
        )
        assert "meta_steps" not in line
    assert not (tmp_path / "together" / "config.json").exists()


@pytest.mark.drill
def test_processes_that_read_different_texts_are_refused(tmp_path: Path) -> None:
    processes = []
    coordinator = free_address()
    # The same command on both hosts, whose copies of the prepared data differ.
    for i in range(2):
        host = tmp_path / f"host{i}"
        host.mkdir()
        config = default.get_config()
        config.update_from_flattened_dict(training.TINY)
        config.data.inner = str(training.write_texts(host / "pool.jsonl", seed=i))
        prepare(config, host / "prepared", processes=1)
        arguments = [
            *command(tmp_path / "together", "", data__prepared="prepared"),
            coordinator,
            "--processes=2",
        ]
        processes.append(
            subprocess.Popen(
                [*arguments, f"--process={i}"],
                cwd=host,
                env={**training.environment(), "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    outputs = ended(processes)
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == exit_codes.WRONG_USAGE, output
        (line,) = own_words(output)
        assert "the processes of this run differ: digest of the data is " in line
    assert not (tmp_path / "together" / "run.json").exists()


@pytest.mark.drill
def test_a_failure_of_one_process_keeps_its_exit_code_and_is_reported_by_the_other(
    tmp_path: Path, texts: Path
) -> None:
    workdir = tmp_path / "together"
    workdir.mkdir()
    with (workdir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        processes = start_both(workdir, texts)
        outputs = ended(processes)

    held = f"another process is training in {workdir}; wait for it, or give another --workdir"
    assert processes[0].returncode == exit_codes.OTHER_RUN, outputs[0]
    assert own_words(outputs[0]) == [f"datarater train: {held}"]
    assert processes[1].returncode == exit_codes.FAILED, outputs[1]
    assert own_words(outputs[1]) == [f"datarater train: process 0 of 2 has ended: {held}"]
    assert not any(
        word in output
        for output in outputs
        for word in ("Traceback", "Fatal", "barrier", "DEADLINE")
    )


@pytest.mark.drill
def test_a_failure_in_the_midst_of_training_keeps_its_exit_code(
    tmp_path: Path, texts: Path
) -> None:
    """Only process 0 writes raters: if it cannot, the other waits for it in the next exchange."""
    workdir = tmp_path / "together"
    processes = start_both(workdir, texts, {i: {"meta_steps": 10_000} for i in range(2)})
    list(training.lines_until(processes[0], "step 5/"))
    raters = workdir / "raters"
    raters.rename(workdir / "moved")
    raters.write_text("a file where the folder was")
    outputs = ended(processes)
    assert processes[0].returncode == exit_codes.FAILED, outputs[0]
    assert own_words(outputs[0])[0].startswith("datarater train: ")
    assert_reports_that_another_ended(1, processes[1].returncode, outputs[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes=2"], "--processes=2 needs --coordinator=HOST:PORT"),
        (
            ["--coordinator=localhost:1", "--processes=2", "--process=2"],
            "--process=2 must be below --processes=2",
        ),
        (
            ["--coordinator=localhost", "--processes=2"],
            "--coordinator=localhost must be HOST:PORT of process 0",
        ),
    ],
)
def test_processes_that_cannot_meet_are_wrong_usage(
    options: list[str],
    message: str,
    tmp_path: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = training.run_here([*command(tmp_path / "work", texts), *options], capsys)
    assert_wrong_usage(done, message)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_wrong_usage(tmp_path: Path, texts: Path) -> None:
    # JAX looks for a cluster before it starts.
    done = training.run([*command(tmp_path / "work", texts), "--coordinator=auto"])
    assert_wrong_usage(done, "--coordinator=auto: JAX finds no cluster that provides the processes")


def assert_wrong_usage(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == exit_codes.WRONG_USAGE, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
