"""The effect of length: what it shows of scores that depend on length, and of those that do not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from datarater.meta_training.run.length_effect import length_effect, length_text


def test_scores_whose_spread_falls_with_length_are_seen() -> None:
    rng = np.random.default_rng(0)
    tokens_N = rng.integers(1, 2000, 4000)
    scores_N = rng.normal(size=4000) / np.sqrt(tokens_N)
    parts = length_effect(tokens_N, scores_N)["parts"]
    spreads = [part["standard_deviation"] for part in parts]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 2 * spreads[-1]
    assert [part["documents"] for part in parts] == [1000] * 4
    assert all(a["tokens"][1] <= b["tokens"][0] for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 1.0), (-1.0, -1.0), (0.0, None)])
def test_the_rank_correlation_is_that_of_score_and_length(
    slope: float, expected: float | None
) -> None:
    tokens_N = np.arange(40)
    effect = length_effect(tokens_N, slope * np.log1p(tokens_N))
    assert effect["rank_correlation"] == expected
    assert ("none" if expected is None else f"{expected:+.2f}") in length_text(effect)


def test_a_few_documents_are_one_part() -> None:
    (part,) = length_effect(np.array([5, 3, 9]), np.array([1.0, 2.0, 3.0]))["parts"]
    assert part["tokens"] == [3, 9]
    assert part["mean"] == 2.0
