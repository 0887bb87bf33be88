"""Runs that are killed, stopped, resumed, extended, refused."""

import itertools
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from meta_training.metrics import read_metrics
from rater_model.checkpoint import load_rater
from tests import training

EXPORTED = (0, 5, 10, 15, 20, 24)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by all runs of this file."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.write_texts(tmp_path_factory.mktemp("texts") / "pool.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, texts: Path, cache: Path) -> Path:
    """The workdir of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "work"
    done = training.run(training.command(workdir, texts), cache)
    assert done.returncode == 0, done.stderr
    assert "spent" in done.stdout
    assert "score autocorrelation" in done.stdout
    assert f"next:  datarater-curate --input {texts} --rater {workdir / 'rater'}" in done.stdout
    return workdir


def assert_same_run(workdir: Path, expected: Path) -> None:
    for name in (*(f"raters/step_{step:08d}" for step in EXPORTED), "rater"):
        assert training.digest(workdir / name) == training.digest(expected / name), name
        load_rater(workdir / name)
    assert (workdir / "metrics" / "metrics.csv").read_bytes() == (expected / "metrics" / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_run_says_what_there_is_to_watch(uninterrupted: Path) -> None:
    rows = read_metrics(uninterrupted / "metrics" / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert [int(row["step"]) for row in rows if "score_autocorrelation" in row] == list(EXPORTED[1:])
    assert all(-1 <= row["score_autocorrelation"] <= 1 for row in rows if "score_autocorrelation" in row)
    for before, now in itertools.pairwise(rows):
        assert now["tokens"] - before["tokens"] == 2 * (2 * 4 + 4) * 32  # models x (updates x inner + outer) x length
        assert now["flops"] > before["flops"]
    for row in rows:
        assert 0 < row["effective_sample_share"] <= 1
        assert 0 <= row["weight_entropy_share"] <= 1 + 1e-6
        assert row["meta_gradient_norm_clipped"] <= row["meta_gradient_norm"]
        assert {"score_spread", "outer_loss_of_inner_model_1", "age_of_inner_model_1"} <= set(row)
    # Resets are staggered, so at most times one model is older than the other.
    assert any(row["age_of_inner_model_0"] != row["age_of_inner_model_1"] for row in rows)
    assert len(list((uninterrupted / "pool").iterdir())) == 4  # entries only, no checkpoint between them


@pytest.mark.slow
def test_exported_scores_are_centred_on_the_reference_sample(uninterrupted: Path) -> None:
    rater = load_rater(uninterrupted / "rater")
    assert rater.provenance["step"] == 24
    assert rater.statistics.sample_size == 16
    assert np.interp(0.5, np.linspace(0, 1, 101), rater.statistics.quantiles) == pytest.approx(0, abs=1)
    assert rater.statistics.quantiles[0] < 0 < rater.statistics.quantiles[-1]


@pytest.mark.slow
def test_killed_at_three_random_moments_and_resumed_equals_uninterrupted(
    tmp_path: Path, texts: Path, cache: Path, uninterrupted: Path
) -> None:
    workdir = tmp_path / "work"
    arguments = training.command(workdir, texts)
    rng = random.Random(time.time_ns())
    for moment in ("rater 7", "warm-up 50/80", "step 4/24"):  # in start-up or warm-up, in warm-up or later, in training
        process = training.start(arguments, cache)
        said = list(training.lines_until(process, moment))
        delay = rng.uniform(0, 1.5)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(
            f"killed {delay:.2f} s after {said[-1].strip()!r}; there were {sorted(p.name for p in workdir.iterdir())}"
        )
    done = training.run(arguments, tmp_path / "compiled anew")
    assert done.returncode == 0, done.stderr
    assert_same_run(workdir, uninterrupted)
    left_over = [p for p in workdir.rglob("*") if "orbax-checkpoint-tmp" in p.name or ".new-" in p.name]
    assert left_over == []


@pytest.mark.slow
def test_a_resumed_run_with_a_bpe_does_not_train_it_again(tmp_path: Path, texts: Path, cache: Path) -> None:
    changed = {
        "meta_steps": 9,
        "tokenizer__kind": "bpe",
        "tokenizer__vocabulary_size": 300,
        "population__warmup_steps": 0,
    }
    uninterrupted = tmp_path / "uninterrupted"
    done = training.run(training.command(uninterrupted, texts, **changed), cache)
    assert done.returncode == 0, done.stderr
    assert "trained a BPE of 300 ids on" in done.stderr

    workdir = tmp_path / "killed"
    process = training.start(training.command(workdir, texts, **changed), cache)
    list(training.lines_until(process, "step 8/9"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = training.run(training.command(workdir, texts, **changed), cache)
    assert done.returncode == 0, done.stderr
    assert "resuming at meta-step" in done.stderr
    assert "trained a BPE" not in done.stderr
    assert training.digest(workdir / "rater") == training.digest(uninterrupted / "rater")
    assert (workdir / "tokenizer.json").read_bytes() == (workdir / "rater" / "tokenizer.json").read_bytes()

    (workdir / "tokenizer.json").write_text("exchanged")
    refused = training.run(training.command(workdir, texts, **{**changed, "meta_steps": 10}), cache)
    assert refused.returncode == 3
    assert "tokenizer.json is not the tokenizer that the run began with" in refused.stderr


@pytest.mark.slow
def test_a_run_that_died_before_it_tidied_its_pool_is_tidied_on_resuming(
    tmp_path: Path, texts: Path, cache: Path
) -> None:
    workdir = tmp_path / "work"
    assert training.run(training.command(workdir, texts, meta_steps=3), cache).returncode == 0
    entries = {folder.name for folder in (workdir / "pool").iterdir()}
    shutil.copytree(workdir / "pool" / "40", workdir / "pool" / "35")
    assert training.run(training.command(workdir, texts, meta_steps=4), cache).returncode == 0
    assert {folder.name for folder in (workdir / "pool").iterdir()} == entries == {"16", "40", "56", "80"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [("warm-up 50/80", signal.SIGTERM), ("step 8/24", signal.SIGTERM), ("step 8/24", signal.SIGINT)],
)
def test_a_signal_saves_and_leaves_with_75(
    tmp_path: Path, texts: Path, cache: Path, uninterrupted: Path, moment: str, number: signal.Signals
) -> None:
    workdir = tmp_path / "work"
    arguments = training.command(workdir, texts)
    process = training.start(arguments, cache)
    list(training.lines_until(process, moment))
    process.send_signal(number)
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.wait() == 75, said
    assert "saved; the same command resumes the run" in said
    assert "Traceback" not in said
    done = training.run(arguments, cache)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_a_finished_run_says_so_is_extended_and_refuses_what_differs(
    tmp_path: Path, texts: Path, cache: Path, uninterrupted: Path
) -> None:
    workdir = tmp_path / "work"
    arguments: Callable[..., list[str]] = lambda **changed: training.command(workdir, texts, **changed)  # noqa: E731
    assert training.run(arguments(meta_steps=10), cache).returncode == 0
    short = training.digest(workdir / "rater")

    again = training.run(arguments(meta_steps=10), cache)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert training.digest(workdir / "rater") == short

    other = training.run(arguments(meta_steps=24, inner_batch=8, seed=1), cache)
    assert other.returncode == 3
    assert "inner_batch was 4, is 8" in other.stderr
    assert "seed was 0, is 1" in other.stderr
    assert other.stderr.count("\n") == 1
    fewer = training.run(arguments(meta_steps=9), cache)
    assert fewer.returncode == 3
    assert "meta_steps was 10, is 9" in fewer.stderr

    extended = training.run(arguments(), cache)
    assert extended.returncode == 0, extended.stderr
    assert "resuming at meta-step 10 of 24" in extended.stderr
    assert training.digest(workdir / "rater") == training.digest(uninterrupted / "rater")


@pytest.mark.slow
def test_changed_data_are_refused(tmp_path: Path, cache: Path) -> None:
    texts = training.write_texts(tmp_path / "pool.jsonl")
    workdir = tmp_path / "work"
    changed = {"meta_steps": 1, "population__warmup_steps": 0}
    assert training.run(training.command(workdir, texts, **changed), cache).returncode == 0
    training.write_texts(texts, seed=1)
    done = training.run(training.command(workdir, texts, **{**changed, "meta_steps": 2}), cache)
    assert done.returncode == 3
    assert "other data" in done.stderr


@pytest.mark.slow
def test_two_processes_in_one_workdir(tmp_path: Path, texts: Path, cache: Path) -> None:
    workdir = tmp_path / "work"
    process = training.start(training.command(workdir, texts), cache)
    list(training.lines_until(process, "rater 7"))
    second = training.run(training.command(workdir, texts), cache)
    process.kill()
    process.wait()
    assert second.returncode == 3
    assert "another process is training" in second.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"inner_optimiser__name": "sgd", "inner_optimiser__learning_rate": 1e30}, "warm-up step 2: the inner loss"),
        (
            {
                "population__warmup_steps": 0,
                "inner_optimiser__name": "sgd",
                "inner_optimiser__learning_rate": 1e30,
            },
            "meta-step 1: inner loss is not finite",
        ),
        ({"meta_optimiser__learning_rate": 1e30}, "not finite"),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run(
    tmp_path: Path, texts: Path, cache: Path, changed: dict[str, object], cause: str
) -> None:
    workdir = tmp_path / "work"
    done = training.run(training.command(workdir, texts, **changed), cache)
    assert done.returncode == 1
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("datarater-train: ")
    assert cause in last_line
    assert "Traceback" not in done.stderr
    assert not (workdir / "summary.json").exists()
    for rater in (workdir / "raters").glob("step_*"):
        load_rater(rater)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, texts: Path, cache: Path, uninterrupted: Path) -> None:
    workdir = tmp_path / "work"
    assert training.run(training.command(workdir, texts, meta_steps=10), cache).returncode == 0
    newest = workdir / "checkpoints" / "10"
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    done = training.run(training.command(workdir, texts), cache)
    assert done.returncode == 0, done.stderr
    assert "checkpoint 10 cannot be read and is passed over" in done.stderr
    assert "resuming at meta-step 9 of 24" in done.stderr
    assert training.digest(workdir / "rater") == training.digest(uninterrupted / "rater")


@pytest.mark.slow
def test_a_damaged_pool_is_mended_and_an_exchanged_one_refused(tmp_path: Path, texts: Path, cache: Path) -> None:
    workdir = tmp_path / "work"
    assert training.run(training.command(workdir, texts, meta_steps=3), cache).returncode == 0
    entries = sorted((workdir / "pool").iterdir(), key=lambda entry: int(entry.name))
    for file in (entries[1] / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    done = training.run(training.command(workdir, texts, meta_steps=4), cache)
    assert done.returncode == 0, done.stderr
    assert "resuming warm-up" in done.stderr
    assert "resuming at meta-step 3 of 4" in done.stderr
    middle = entries[1].rename(tmp_path / "middle")
    entries[0].rename(entries[1])
    middle.rename(entries[0])
    done = training.run(training.command(workdir, texts, meta_steps=5), cache)
    assert done.returncode == 3
    assert "is not the warm-up pool" in done.stderr


@pytest.mark.slow
def test_a_lost_rater_is_written_again(tmp_path: Path, texts: Path, cache: Path) -> None:
    workdir = tmp_path / "work"
    arguments = training.command(workdir, texts, meta_steps=3, population__warmup_steps=0)
    assert training.run(arguments, cache).returncode == 0
    before = training.digest(workdir / "rater")
    for file in (workdir / "rater").iterdir():
        file.unlink()
    (workdir / "rater").rmdir()
    assert training.run(arguments, cache).returncode == 0
    assert training.digest(workdir / "rater") == before
    assert json.loads((workdir / "summary.json").read_text())["digest"] == before
