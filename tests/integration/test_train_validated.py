"""A run with every objective on: several targets, questions, decay, average and validation."""

import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from datarater.meta_training.run.metrics import read_metrics
from datarater.rater_model.checkpoint import load_rater
from tests.support import training


def write_questions(path: Path) -> Path:
    rng = random.Random(0)
    records = [
        {
            "context": " ".join(rng.choices(training.WORDS, k=3)),
            "choices": rng.sample(training.WORDS, 3),
            "label": rng.randrange(3),
        }
        for _ in range(20)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.slow
def test_a_resumed_run_with_every_objective_equals_an_undisturbed_one(tmp_path: Path) -> None:
    pool, web, books, validation = (
        training.write_texts(tmp_path / f"{name}.jsonl", 120, seed)
        for seed, name in enumerate(("pool", "web", "books", "validation"))
    )
    questions = write_questions(tmp_path / "questions.jsonl")
    workdir = tmp_path / "undisturbed"
    command = training.command(
        workdir,
        pool,
        meta_steps=40,
        population__warmup_steps=6,
        data__outer=f"web={web};books={books}",
        data__questions=questions,
        data__outer_weights="web=2;books=1;questions=1",
        data__validation=validation,
        validate_every=2,
        validation__models=2,
        validation__updates=2,
        validation__windows=8,
        early_stopping__patience=2,
        choose_checkpoint="validation",
        rater_average__decay=0.5,
        meta_optimiser__schedule="cosine",
        meta_optimiser__warmup_steps=2,
        meta_optimiser__learning_rate=1.0,  # too high, so that the run stops early
    )
    done = training.run(command)
    assert done.returncode == 0, done.stderr

    rater = load_rater(workdir / "rater")
    chosen = rater.provenance["chosen"]
    rows = read_metrics(workdir / "metrics" / "metrics.csv")
    validated = [row for row in rows if "validation_gain" in row]
    assert [row["step"] for row in validated] == list(range(2, chosen["last_step"] + 1, 2))
    best = max(validated, key=lambda row: row["validation_gain"])
    assert chosen["step"] == best["step"]
    assert chosen["last_step"] == best["step"] + 2 * 2 < 40
    assert f"at step {chosen['last_step']} of 40: no improvement in 2 validations" in done.stdout
    assert all(
        row["outer_loss"]
        == pytest.approx(
            0.5 * row["outer_loss_of_set_web"]
            + 0.25 * row["outer_loss_of_set_books"]
            + 0.25 * row["outer_loss_of_set_questions"],
            rel=1e-5,
        )
        for row in rows
    )

    # As if it had been killed after its first checkpoint.
    resumed = tmp_path / "resumed"
    shutil.copytree(workdir, resumed)
    (resumed / "summary.json").unlink()
    shutil.rmtree(resumed / "rater")
    first, *later = sorted(int(path.name) for path in (resumed / "checkpoints").iterdir())
    for step in later:
        shutil.rmtree(resumed / "checkpoints" / str(step))
    again = training.run([word.replace(str(workdir), str(resumed)) for word in command])
    assert again.returncode == 0, again.stderr
    assert f"resuming at meta-step {first} of 40" in again.stderr
    assert training.digest(resumed / "rater") == training.digest(workdir / "rater")
    assert training.repeatable_rows(resumed) == training.repeatable_rows(workdir)

    finished = training.run(command)
    assert "it stopped early, of 40" in finished.stdout

    # Extended, it equals a run that was as patient from the start.
    patient = [word.replace("patience=2", "patience=4") for word in command]
    extended = training.run(patient)
    assert extended.returncode == 0, extended.stderr
    assert f"resuming at meta-step {chosen['last_step']} of 40" in extended.stderr
    from_the_start = tmp_path / "patient"
    other = training.run([word.replace(str(workdir), str(from_the_start)) for word in patient])
    assert other.returncode == 0, other.stderr
    assert training.repeatable_rows(workdir) == training.repeatable_rows(from_the_start)
    raters = [load_rater(path / "rater") for path in (workdir, from_the_start)]
    # The best rater may be one from before, which records the patience of then.
    jax.tree.map(np.testing.assert_array_equal, *(each.params for each in raters))
    assert raters[0].provenance["chosen"] == raters[1].provenance["chosen"]
    assert raters[0].provenance["chosen"]["last_step"] > chosen["last_step"]
