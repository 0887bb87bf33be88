"""Several processes train one rater together; when one is killed the others say so, and all of them resume."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

from meta_training.metrics import read_metrics
from rater_model.checkpoint import load_rater
from tests import training

WATCHED = ("outer_loss", "inner_loss", "effective_sample_share", "score_spread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by all runs of this file."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("texts") / "pool.jsonl")


def command(workdir: Path, texts: Path, meta_steps: int) -> list[str]:
    return training.command(
        workdir, texts, meta_steps=meta_steps, report_every=1, checkpoint_every=2, population__warmup_steps=8
    )


def start_both(workdir: Path, texts: Path, cache: Path, meta_steps: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{listening.getsockname()[1]}"
    return [
        training.start([*command(workdir, texts, meta_steps), coordinator, "--processes=2", f"--process={i}"], cache)
        for i in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_killed_ends_the_other_and_both_resume(killed: int, tmp_path: Path, texts: Path, cache: Path) -> None:
    workdir = tmp_path / "together"
    processes = start_both(workdir, texts, cache, 10_000)
    said = list(training.lines_until(processes[0], "step 5/"))
    assert any("on 2 x cpu: 2 groups of 1" in line for line in said)
    processes[killed].kill()
    output, _ = processes[1 - killed].communicate(timeout=180)
    assert processes[1 - killed].returncode not in (0, None)
    # Who loses the coordinator may be ended by JAX itself, which says as much.
    assert re.search("another process of this run has ended|another task died|leader .* died", output), output
    processes[killed].communicate()

    processes = start_both(workdir, texts, cache, 10_000)
    assert "resuming at meta-step" in "".join(training.lines_until(processes[0], "resuming"))
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_processes_train_the_rater_of_one(tmp_path: Path, texts: Path, cache: Path) -> None:
    meta_steps = 6
    alone = training.run(command(tmp_path / "alone", texts, meta_steps), cache)
    assert alone.returncode == 0, alone.stderr
    processes = start_both(tmp_path / "together", texts, cache, meta_steps)
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    load_rater(tmp_path / "together" / "rater")
    rows, expected = (read_metrics(tmp_path / name / "metrics" / "metrics.csv") for name in ("together", "alone"))
    assert len(rows) == len(expected) == meta_steps
    for name in WATCHED:
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in expected], rel=1e-4), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes=2"], "--processes=2 needs --coordinator=HOST:PORT"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "--process=2 must be below --processes=2"),
    ],
)
def test_numbers_that_do_not_fit_are_wrong_usage(
    options: list[str], message: str, tmp_path: Path, texts: Path, cache: Path
) -> None:
    done = training.run([*command(tmp_path / "work", texts, 2), *options], cache)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
