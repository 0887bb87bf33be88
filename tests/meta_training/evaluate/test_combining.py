"""Arms that combine the scores of other arms."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from datarater.meta_training.evaluate.arms import ArmOptions, Arms
from datarater.meta_training.evaluate.combining import mean_ranks, parse_combination
from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.pool import DataOptions, prepare_data
from datarater.meta_training.evaluate.raters import check_start_rater, start_rater

Scores = NDArray[np.float64]

scores_of_six = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=6, max_size=6
).map(lambda values: np.array(values, np.float64))


@given(scores_of_six, st.floats(0.01, 100))
def test_one_score_alone_keeps_its_order(scores_N: Scores, weight: float) -> None:
    combined_N = mean_ranks([scores_N], [weight])
    filled_N = np.where(np.isnan(scores_N), -np.inf, scores_N)
    np.testing.assert_array_equal(
        combined_N[:, None] < combined_N[None], filled_N[:, None] < filled_N[None]
    )


@given(scores_of_six, scores_of_six, st.floats(0.1, 10), st.integers(1, 1000))
def test_only_the_order_of_each_score_and_the_ratio_of_weights_matter(
    first_N: Scores, second_N: Scores, weight: float, factor: int
) -> None:
    combined_N = mean_ranks([first_N, second_N], [1, weight])
    stretched_N = mean_ranks([first_N * 2.0, second_N], [factor, factor * weight])
    np.testing.assert_allclose(stretched_N, combined_N, rtol=1e-9)
    assert ((combined_N >= 0) & (combined_N <= 1 + 1e-9)).all()


@given(scores_of_six, scores_of_six)
def test_what_is_ahead_in_both_is_ahead_in_the_mean(first_N: Scores, second_N: Scores) -> None:
    combined_N = mean_ranks([first_N, second_N], [1, 1])
    for one in range(6):
        for other in range(6):
            if first_N[one] > first_N[other] and second_N[one] > second_N[other]:
                assert combined_N[one] > combined_N[other]


def test_a_heavy_weight_decides() -> None:
    first_N, second_N = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    assert mean_ranks([first_N, second_N], [3, 1]).argmax() == 2
    assert mean_ranks([first_N, second_N], [1, 3]).argmax() == 0
    np.testing.assert_allclose(mean_ranks([first_N, second_N], [1, 1]), 0.5)


def test_a_sum_is_read_with_its_weights() -> None:
    known = ["rater", "c4", "my-scores"]
    assert parse_combination("rater+c4", known) == {"rater": 1, "c4": 1}
    assert parse_combination(".5*rater + 2 * my-scores", known) == {"rater": 0.5, "my-scores": 2}


def arms(folder: Path, **options: Any) -> Arms:
    rng = random.Random(0)
    for name, count in (("pool", 60), ("target", 12)):
        records = [
            {"id": i, "text": " ".join(rng.choices(["sea", "old", "boat", "{x}"], k=40))}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    files = DataOptions((str(folder / "pool.jsonl"),), (str(folder / "target.jsonl"),))
    data = prepare_data(files, folder / "out")
    # No arm here is scored by a model, so there is nothing for workers to do.
    workers: Any = None
    return Arms(data, ArmOptions(**options), folder / "out", workers, lambda line: None)


def test_a_combined_arm_follows_the_folds_of_its_parts(tmp_path: Path) -> None:
    both = {"trigram": 1.0, "gopher": 2.0}
    made = arms(tmp_path, names=("unfiltered", "both"), rotate=True, combined={"both": both})
    for seed in (0, 1):
        expected_N = mean_ranks([made.scores("trigram", seed), made.scores("gopher", seed)], [1, 2])
        np.testing.assert_array_equal(made.scores("both", seed), expected_N)
    assert not np.array_equal(made.scores("both", 0), made.scores("both", 1))
    assert made.scores("both", 0) is made.scores("both", 3)  # the same rotation

    kept = made.select("both", 0.5, seed=0, batch=4)
    assert 20 <= kept.kept_N.sum() <= 40  # type: ignore[union-attr]


def test_the_start_of_a_rater_lies_in_its_workdir(tmp_path: Path) -> None:
    assert start_rater(f"{tmp_path}/rater/") == f"{tmp_path}/raters/step_00000000"
    assert start_rater("rater") == "raters/step_00000000"
    assert start_rater("step_00000050") == "step_00000000"
    with pytest.raises(FlagError, match=r"--start_raters: .* must be a rater in the workdir"):
        check_start_rater(f"{tmp_path}/rater")
