"""Runs that start from something else than an untrained rater."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.scorer import Scorer
from tests.support import training

DOCUMENTS = ["alpha beta gamma", "mu mu mu mu lambda", "zeta eta theta"]


@pytest.mark.slow
def test_a_run_continues_where_an_earlier_rater_ended(
    ten_steps: Path, texts: Path, tmp_path: Path
) -> None:
    earlier, work = ten_steps / "rater", tmp_path / "work"
    # Inner models without a warm-up, which the start does not depend on.
    done = training.run(
        training.command(
            work, texts, start__rater=earlier, meta_steps=2, population__warmup_steps=0
        )
    )
    assert done.returncode == 0, done.stderr

    before, first, last = (
        Scorer(load_rater(path)).score(DOCUMENTS).scores_N
        for path in (earlier, work / "raters" / "step_00000000", work / "rater")
    )
    np.testing.assert_array_equal(first, before)
    assert not np.array_equal(last, before)
    started = load_rater(work / "rater").provenance["start"]
    assert started == {"rater": training.digest(earlier), "of_step": 10}


def test_a_start_that_does_not_fit_is_reported_in_one_line(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = training.command(tmp_path / "work", texts, start__rater=tmp_path / "nowhere")
    done = training.run_here(arguments, capsys)
    assert done.returncode == 2
    assert "start.rater: " in done.stderr
    assert "not a rater checkpoint" in done.stderr
    assert not (tmp_path / "work" / "run.json").exists()


@pytest.mark.slow
def test_a_run_that_starts_by_a_filter_resumes_without_fitting_again(
    texts: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    arguments = training.command(
        work,
        texts,
        start__scores="bigram",
        start__steps=5,
        meta_steps=2,
        population__warmup_steps=0,
    )
    done = training.run(arguments)
    assert done.returncode == 0, done.stderr
    assert "start: rank correlation" in done.stderr
    started = load_rater(work / "raters" / "step_00000000").provenance["start"]
    assert started["scores"] == "bigram"
    assert started["held_out"] > 0

    # As if it had been killed before its first checkpoint.
    before = training.digest(work / "rater")
    for folder in ("checkpoints", "rater", "raters"):
        shutil.rmtree(work / folder)
    (work / "summary.json").unlink()
    again = training.run(arguments)
    assert again.returncode == 0, again.stderr
    assert "start: " not in again.stderr
    assert training.digest(work / "rater") == before
