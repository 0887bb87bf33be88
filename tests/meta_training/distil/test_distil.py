"""A student learns scores that n-grams explain, and a distillation is refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarater import cli
from datarater.rater_model import exit_codes
from datarater.rater_model.cascade import HeldOut
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.ngram_scorer import make_scorer
from tests.support.run_folders import write_run

COUNT = 600
WORDS = ["the", "old", "boats", "12", "harbors,", "and", "77", "gulls", "cried!", "{calm}", "water"]


def texts(count: int = COUNT, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 20 + index % 60)) for index in range(count)]


def score_of(text: str) -> float:
    """The share of digits and of one word, which byte n-grams up to an order of 3 can express."""
    return 3 * sum(map(str.isdigit, text)) / len(text) - 20 * text.count("gul") / len(text) + 5


def make_run(folder: Path, count: int = COUNT, **identity: Any) -> str:
    pool = folder / "pool.jsonl"
    rows = [{"id": index, "text": text} for index, text in enumerate(texts(count))]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores: dict[str, float | None] = {
        str(index): score_of(text) for index, text in enumerate(texts(count))
    }
    scores["0"] = None  # rejected
    return write_run(folder / "run", scores, [str(pool)], **identity)


def test_a_student_predicts_the_scores_of_new_texts_and_is_the_same_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    digests = []
    for name in ("student", "again"):
        assert cli.main(["distil", "--run", run, "--output", str(tmp_path / name)]) == 0
        digests.append(load_rater(tmp_path / name).digest)
    assert digests[0] == digests[1]
    said = capsys.readouterr().out
    assert "fitted to 449 documents; on 150 others: R2 0.99" in said
    assert "agreement 0.98" in said

    student = load_rater(tmp_path / "student")
    assert student.provenance["distilled_from"] == "d1ge57"
    new = texts(200, seed=1)
    scores_N = make_scorer(student).score(new).scores_N
    expected_N = np.asarray([score_of(text) for text in new])
    assert np.corrcoef(scores_N, expected_N)[0, 1] > 0.99
    assert np.abs(scores_N - expected_N).mean() < 0.1 * expected_N.std()

    # What was held out is scored as the student's own scorer scores it.
    held_out = HeldOut.of(student)
    assert len(held_out.rater_H) == student.statistics.sample_size == 150
    assert held_out.student_H == pytest.approx(held_out.rater_H, abs=0.3)


def test_a_distillation_that_cannot_be_made_is_refused_before_the_documents_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "pool.jsonl").unlink()
    cascade = write_run(tmp_path / "cascade", {"1": 0.5}, cascade={"student": "digest"})
    student = str(tmp_path / "student")
    cases = [
        (["--run", run, "--output", str(tmp_path / "taken")], "is not a rater checkpoint"),
        (["--run", cascade, "--output", student], "a student gave some of its scores"),
        (["--run", str(tmp_path / "none"), "--output", student], "there is no"),
        (["--run", run, "--output", student, "--held_out", "1"], "is not a share"),
    ]
    for flags, message in cases:
        assert cli.main(["distil", *flags]) == exit_codes.WRONG_USAGE
        assert message in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_too_few_documents_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, count=40)
    code = cli.main(["distil", "--run", run, "--output", str(tmp_path / "student")])
    assert code == exit_codes.EMPTY_CORPUS
    assert "39 documents have a score, but a student needs at least 50" in capsys.readouterr().err
