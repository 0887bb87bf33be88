"""Runs that are killed, stopped, resumed, extended, refused."""

import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from datarater.meta_training.run.metrics import read_metrics
from datarater.rater_model.checkpoint import load_rater
from tests.support import ROOT, training

EXPORTED = (0, 5, 10, 15, 20, 24)
IN_TRAINING = ("step 4/24", "step 8/24", "step 12/24")


def assert_same_run(workdir: Path, expected: Path) -> None:
    for name in (*(f"raters/step_{step:08d}" for step in EXPORTED), "rater"):
        assert training.digest(workdir / name) == training.digest(expected / name), name
        load_rater(workdir / name)
    assert training.repeatable_rows(workdir) == training.repeatable_rows(expected)


@pytest.mark.slow
def test_a_run_prints_what_it_cost_and_the_next_command(uninterrupted: Path, texts: Path) -> None:
    printed = (uninterrupted.parent / "printed.txt").read_text()
    assert "spent" in printed
    # 24, the last export, follows too soon to be compared.
    assert "between the exports of steps 15 and 20" in printed
    assert f"next:  datarater curate --input {texts} --rater {uninterrupted / 'rater'}" in printed


@pytest.mark.slow
def test_a_run_records_its_metrics(uninterrupted: Path) -> None:
    rows = read_metrics(uninterrupted / "metrics" / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 25))

    correlated = [row for row in rows if "score_autocorrelation" in row]
    assert [(row["score_autocorrelation_since"], row["step"]) for row in correlated] == [
        (0, 5),
        (5, 10),
        (10, 15),
        (15, 20),
    ]
    assert all(-1 <= row["score_autocorrelation"] <= 1 for row in correlated)

    tokens_of_a_step = 2 * (2 * 4 + 4) * 32  # models x (updates x inner + outer) x length
    for before, now in itertools.pairwise(rows):
        assert now["tokens"] - before["tokens"] == tokens_of_a_step
        assert now["flops"] > before["flops"]
    for row in rows:
        assert 0 < row["effective_sample_share"] <= 1
        assert 0 <= row["weight_entropy_share"] <= 1 + 1e-6
        assert row["meta_gradient_norm_clipped"] <= row["meta_gradient_norm"]
        assert {"score_spread", "outer_loss_of_inner_model_1", "age_of_inner_model_1"} <= set(row)

    # Resets are staggered, so at most times one model is older than the other.
    assert any(row["age_of_inner_model_0"] != row["age_of_inner_model_1"] for row in rows)
    # Only the entries, no checkpoint between them.
    assert len(list((uninterrupted / "pool").iterdir())) == 4


@pytest.mark.slow
def test_exported_scores_are_centered_on_the_reference_sample(uninterrupted: Path) -> None:
    rater = load_rater(uninterrupted / "rater")
    assert rater.provenance["step"] == 24
    assert rater.statistics.sample_size == 16
    assert np.interp(0.5, np.linspace(0, 1, 101), rater.statistics.quantiles) == pytest.approx(
        0, abs=1
    )
    assert rater.statistics.quantiles[0] < 0 < rater.statistics.quantiles[-1]


def kill_at(arguments: list[str], moment: str, longest: float, rng: random.Random) -> None:
    """Starts a command and kills it at most `longest` seconds after a line with a text."""
    process = training.start(arguments)
    output = list(training.lines_until(process, moment))
    delay = rng.uniform(0, longest)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (
        f"had ended by {delay:.2f} s after {output[-1].strip()!r}"
    )
    print(f"killed {delay:.2f} s after {output[-1].strip()!r}")


def left_over(workdir: Path) -> list[Path]:
    """Returns the files and folders that were being written."""
    return [p for p in workdir.rglob("*") if "orbax-checkpoint-tmp" in p.name or ".new-" in p.name]


def assert_continues(
    workdir: Path, uninterrupted: Path, arguments: list[str], **environment: str
) -> None:
    """Runs a killed command to its end, which is that of an uninterrupted run."""
    done = training.run(arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert_same_run(workdir, uninterrupted)
    assert left_over(workdir) == []


@pytest.mark.slow
def test_killed_in_training_and_resumed_equals_uninterrupted(
    tmp_path: Path, texts: Path, uninterrupted: Path
) -> None:
    workdir = tmp_path / "work"
    arguments = training.command(workdir, texts)
    rng = random.Random(time.time_ns())
    kill_at(arguments, rng.choice(IN_TRAINING), 0.05, rng)
    assert_continues(workdir, uninterrupted, arguments)


@pytest.mark.drill
def test_killed_at_three_random_moments_and_compiled_again_equals_uninterrupted(
    tmp_path: Path, texts: Path, uninterrupted: Path
) -> None:
    workdir = tmp_path / "work"
    arguments = training.command(workdir, texts)
    rng = random.Random(time.time_ns())

    # In start-up or warm-up; in warm-up or later; in training at a random step, far from the end.
    moments = (("rater 7", 1.5), ("warm-up 50/80", 0.5), (rng.choice(IN_TRAINING), 0.05))
    for moment, longest in moments:
        kill_at(arguments, moment, longest, rng)
        print(f"there are {sorted(path.name for path in workdir.iterdir())}")

    compiled_again = str(tmp_path / "compiled again")
    assert_continues(workdir, uninterrupted, arguments, JAX_COMPILATION_CACHE_DIR=compiled_again)


@pytest.mark.slow
def test_a_resumed_run_with_a_bpe_does_not_train_it_again(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {
        "meta_steps": 9,
        "tokenizer__kind": "bpe",
        "tokenizer__vocabulary_size": 300,
        "population__warmup_steps": 0,
    }
    uninterrupted = tmp_path / "uninterrupted"
    done = training.run(training.command(uninterrupted, texts, **changed))
    assert done.returncode == 0, done.stderr
    assert "trained a BPE of 300 ids on" in done.stderr

    workdir = tmp_path / "killed"
    process = training.start(training.command(workdir, texts, **changed))
    list(training.lines_until(process, "step 8/9"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = training.run(training.command(workdir, texts, **changed))
    assert done.returncode == 0, done.stderr
    assert "resuming at meta-step" in done.stderr
    assert "trained a BPE" not in done.stderr
    assert training.digest(workdir / "rater") == training.digest(uninterrupted / "rater")
    assert (workdir / "tokenizer.json").read_bytes() == (
        workdir / "rater" / "tokenizer.json"
    ).read_bytes()

    (workdir / "tokenizer.json").write_text("exchanged")
    refused = training.run_here(
        training.command(workdir, texts, **{**changed, "meta_steps": 10}), capsys
    )
    assert refused.returncode == 3
    assert "tokenizer.json is not the tokenizer that the run began with" in refused.stderr


@pytest.mark.slow
def test_a_run_that_died_before_it_tidied_its_pool_is_tidied_on_resuming(
    workdir: Path, texts: Path
) -> None:
    entries = {folder.name for folder in (workdir / "pool").iterdir()}
    shutil.copytree(workdir / "pool" / "40", workdir / "pool" / "35")
    assert training.run(training.command(workdir, texts, meta_steps=11)).returncode == 0
    assert (
        {folder.name for folder in (workdir / "pool").iterdir()}
        == entries
        == {"16", "40", "56", "80"}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("step 8/24", signal.SIGTERM),
        pytest.param("step 8/24", signal.SIGINT, marks=pytest.mark.drill),
        pytest.param("warm-up 50/80", signal.SIGTERM, marks=pytest.mark.drill),
    ],
)
def test_a_signal_saves_and_leaves_with_75(
    tmp_path: Path,
    texts: Path,
    uninterrupted: Path,
    moment: str,
    number: signal.Signals,
) -> None:
    workdir = tmp_path / "work"
    arguments = training.command(workdir, texts)
    process = training.start(arguments)
    list(training.lines_until(process, moment))
    process.send_signal(number)
    assert process.stdout is not None
    output = process.stdout.read()
    assert process.wait() == 75, output
    assert "saved; the same command resumes the run" in output
    assert "Traceback" not in output
    done = training.run(arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert_same_run(workdir, uninterrupted)


# The command, with a SIGTERM in the middle of the first checkpoint that it reads of a folder.
STOPPED_WHILE_READING = """
import os, signal, sys, threading

from datarater.meta_training import train
from datarater.meta_training.run import checkpoints

folder, read, sent = sys.argv.pop(1), checkpoints.Checkpoints.restore, []

def restore(self, step, like):
    if self._folder.name == folder and not sent:
        sent.append(threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)))
        sent[0].start()
    return read(self, step, like)

checkpoints.Checkpoints.restore = restore
sys.exit(train.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("folder", [pytest.param("pool", marks=pytest.mark.drill), "checkpoints"])
def test_a_signal_while_a_checkpoint_is_read_costs_none_and_leaves_with_75(
    tmp_path: Path, workdir: Path, texts: Path, uninterrupted: Path, folder: str
) -> None:
    before = {
        path.relative_to(workdir)
        for name in ("pool", "checkpoints")
        for path in (workdir / name).rglob("*")
    }

    program = tmp_path / "stopped_while_reading.py"
    program.write_text(STOPPED_WHILE_READING)
    arguments = training.command(workdir, texts)
    assert arguments[:3] == [sys.executable, "-m", "datarater.meta_training.train"]
    environment = {**training.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program), folder, *arguments[3:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert "the same command resumes the run" in done.stderr.splitlines()[-1]
    assert "damaged" not in done.stderr

    after = {
        path.relative_to(workdir)
        for name in ("pool", "checkpoints")
        for path in (workdir / name).rglob("*")
    }
    assert after == before
    done = training.run(arguments)
    assert done.returncode == 0, done.stderr
    assert training.digest(workdir / "rater") == training.digest(uninterrupted / "rater")


@pytest.mark.slow
def test_a_finished_run_reports_it_is_extended_and_refuses_what_differs(
    workdir: Path, texts: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(**changed: object) -> subprocess.CompletedProcess[str]:
        return training.run_here(training.command(workdir, texts, **changed), capsys)

    short = training.digest(workdir / "rater")
    again = ended(meta_steps=10)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert training.digest(workdir / "rater") == short

    other = ended(meta_steps=24, inner_batch=8, seed=1)
    assert other.returncode == 3
    assert "inner_batch was 4, is 8" in other.stderr
    assert "seed was 0, is 1" in other.stderr
    assert other.stderr.count("\n") == 1
    fewer = ended(meta_steps=9)
    assert fewer.returncode == 3
    assert "meta_steps was 10, is 9" in fewer.stderr

    extended = training.run(training.command(workdir, texts))
    assert extended.returncode == 0, extended.stderr
    assert "resuming at meta-step 10 of 24" in extended.stderr
    assert training.digest(workdir / "rater") == training.digest(uninterrupted / "rater")


@pytest.mark.slow
def test_changed_data_are_refused(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = training.write_texts(tmp_path / "pool.jsonl", seed=1)
    done = training.run_here(training.command(workdir, changed), capsys)
    assert done.returncode == 3
    assert "other data" in done.stderr


@pytest.mark.slow
def test_two_processes_in_one_workdir(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "work"
    process = training.start(training.command(workdir, texts))
    list(training.lines_until(process, "rater 7"))
    second = training.run_here(training.command(workdir, texts), capsys)
    process.kill()
    process.wait()
    assert second.returncode == 3
    assert "another process is training" in second.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (
            {"inner_optimiser__name": "sgd", "inner_optimiser__learning_rate": 1e30},
            "warm-up step 2: the inner loss",
        ),
        (
            {
                "population__warmup_steps": 0,
                "inner_optimiser__name": "sgd",
                "inner_optimiser__learning_rate": 1e30,
            },
            "meta-step 1: inner loss is not finite",
        ),
        (
            {
                "population__warmup_steps": 1,
                "inner_optimiser__name": "adamw",
                "inner_optimiser__learning_rate": 3e38,
                "inner_optimiser__weight_decay": 100.0,  # the first loss is finite
            },
            "warm-up step 1: the inner model's parameters are not finite after its update",
        ),
        ({"meta_optimiser__learning_rate": 1e30}, "not finite"),
        (
            {"meta_optimiser__learning_rate": 1e30, "export_every": 1},
            "Lower inner_optimiser.learning_rate",
        ),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run(
    tmp_path: Path,
    texts: Path,
    changed: dict[str, object],
    cause: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "work"
    done = training.run_here(training.command(workdir, texts, **changed), capsys)
    assert done.returncode == 1
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("datarater train: ")
    assert cause in last_line
    assert "Traceback" not in done.stderr
    assert not (workdir / "summary.json").exists()
    for rater in (workdir / "raters").glob("step_*"):
        load_rater(rater)
    assert not changed.keys() >= {"inner_optimiser__learning_rate"} or not list(
        (workdir / "pool").glob("[0-9]*")
    )


@pytest.mark.slow
def test_the_checkpoint_that_is_reported_to_remain_exists_and_is_finite(
    tmp_path: Path, texts: Path
) -> None:
    workdir = tmp_path / "work"
    # The first update, of 1e16, is finite; the result of the second meta-step is not.
    arguments = training.command(
        workdir,
        texts,
        population__warmup_steps=0,
        checkpoint_every=1,
        meta_optimiser__learning_rate=1e17,
    )
    done = training.run(arguments)
    assert done.returncode == 1, done.stderr

    reported = re.search(
        r"meta-step (\d+): .*the checkpoint of step (\d+) and", done.stderr.splitlines()[-1]
    )
    assert reported, done.stderr
    assert int(reported[2]) == int(reported[1]) - 1
    state = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / reported[2] / "state")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))

    again = training.run(arguments)
    assert f"resuming at meta-step {reported[2]} of" in again.stderr
    assert again.stderr.splitlines()[-1] == done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped(workdir: Path, texts: Path, uninterrupted: Path) -> None:
    newest = workdir / "checkpoints" / "10"
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    done = training.run(training.command(workdir, texts))
    assert done.returncode == 0, done.stderr
    assert "is damaged and is skipped" in done.stderr
    assert (workdir / "checkpoints" / "damaged-10").is_dir()
    assert "resuming at meta-step 9 of 24" in done.stderr
    assert training.digest(workdir / "rater") == training.digest(uninterrupted / "rater")


@pytest.mark.slow
def test_a_damaged_pool_is_repaired_and_a_replaced_one_refused(
    workdir: Path, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = sorted((workdir / "pool").iterdir(), key=lambda entry: int(entry.name))
    for file in (entries[1] / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")

    done = training.run(training.command(workdir, texts, meta_steps=11))
    assert done.returncode == 0, done.stderr
    assert "resuming warm-up" in done.stderr
    assert "resuming at meta-step 10 of 11" in done.stderr

    # Later entries, renamed unread, are made again.
    expected = [f"damaged-{entries[1].name}", *(entry.name for entry in entries)]
    assert sorted(entry.name for entry in (workdir / "pool").iterdir()) == sorted(expected)

    middle = entries[1].rename(tmp_path / "middle")
    entries[0].rename(entries[1])
    middle.rename(entries[0])
    done = training.run_here(training.command(workdir, texts, meta_steps=12), capsys)
    assert done.returncode == 3
    assert "is not the warm-up pool" in done.stderr


@pytest.mark.slow
def test_a_lost_rater_is_written_again(workdir: Path, texts: Path) -> None:
    before = training.digest(workdir / "rater")
    shutil.rmtree(workdir / "rater")
    assert training.run(training.command(workdir, texts, meta_steps=10)).returncode == 0
    assert training.digest(workdir / "rater") == before
    assert json.loads((workdir / "summary.json").read_text())["digest"] == before
