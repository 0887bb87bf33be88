"""Temperature sampling: the budget is met, copies follow the scores, in whatever order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from datarater.pipelines.selection.descent import Unit
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import RankKeys, SelectionError
from datarater.pipelines.selection.rules import TemperatureSample
from datarater.pipelines.selection.sampling import Budget, Repetition, expected_copies

SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=12)


def keys_of(scores: list[float], tokens: list[int], seed: int = 0) -> RankKeys:
    hashes = np.random.default_rng(1).integers(0, 2**63, len(scores)).astype(np.uint64)
    return RankKeys.of(scores, hashes, seed, 0, np.arange(len(scores)), tokens)


def decided(rule: TemperatureSample, keys: RankKeys, parts: int = 1) -> Repetition:
    """Searches as the graph does, with counts of several parts."""
    bounds = np.linspace(0, len(keys), parts + 1).astype(int)
    some = [keys.take(np.arange(low, high)) for low, high in itertools.pairwise(bounds)]
    target = rule.target(len(keys), int(keys.tokens_N.sum()))
    state = rule.begin(target, len(keys))
    for _ in range(rule.rounds + 1):
        if state.done is False:
            state = state.descend(Histogram.merge([state.count(part) for part in some]))
    assert isinstance(state, Repetition)
    return state


@given(SIZES, st.integers(0, 300), st.sampled_from([0.01, 0.5, 3.0, 1e6]), st.integers(1, 5))
def test_the_budget_is_met_and_copies_are_proportional_to_weights_up_to_the_maximum(
    sizes: list[int], target: int, temperature: float, most: int
) -> None:
    assume(sum(sizes) > 0)
    scores_K = -np.arange(len(sizes), dtype=float) / 3
    sizes_K = np.asarray(sizes)
    copies_K = expected_copies(Budget(Unit.DOCUMENTS, target, temperature, most), scores_K, sizes_K)
    assert ((copies_K >= 0) & (copies_K <= most)).all()
    assert (copies_K * sizes_K).sum() == pytest.approx(min(target, most * sum(sizes)))
    assert (np.diff(copies_K) <= 1e-12).all()  # better ones get at least as many

    # Those below the maximum are proportional to exp(score / temperature).
    free_K = np.flatnonzero((copies_K < most) & (copies_K > 1e-200))
    for first, second in itertools.pairwise(free_K):
        ratio = math.exp((scores_K[second] - scores_K[first]) / temperature)
        assert copies_K[second] / copies_K[first] == pytest.approx(ratio)


@given(
    st.lists(st.tuples(st.floats(-3, 3, width=32), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(0, 200),
    st.booleans(),
    st.integers(1, 4),
)
def test_any_division_into_parts_gives_the_same_copies(
    documents: list[tuple[float, int]], target: int, in_tokens: bool, parts: int
) -> None:
    rule = TemperatureSample(target, "1/2", 3, in_tokens=in_tokens)
    keys = keys_of([score for score, _ in documents], [tokens for _, tokens in documents])
    whole, divided = decided(rule, keys), decided(rule, keys, parts)
    copies_N = whole.copies(keys, 0)
    assert copies_N.tolist() == divided.copies(keys, 0).tolist()
    assert whole.to_json(own=True) == divided.to_json(own=True)

    # So few documents are told apart to the single score: each gets the floor or one more.
    scores_N = keys.scores_N.astype(float)
    order_N = np.argsort(-scores_N, kind="stable")
    sizes_N = keys.tokens_N if in_tokens else np.ones(len(keys), np.int64)
    total = rule.target(len(keys), int(keys.tokens_N.sum()))
    budget = Budget(Unit.TOKENS if in_tokens else Unit.DOCUMENTS, total, 0.5, 3)
    mean_N = np.empty(len(keys))
    mean_N[order_N] = expected_copies(budget, scores_N[order_N], sizes_N[order_N])
    assert (np.abs(copies_N - mean_N) < 1 + 1e-9).all()
    assert whole.expectation[0] == pytest.approx(mean_N.sum())
    assert (whole.keeps(keys, 0) == (copies_N > 0)).all()

    # The fields for people begin with the best score.
    steps = whole.to_json(own=True)["copies"]
    assert steps[0]["score"] == scores_N.max()
    assert steps[0]["copies"] == pytest.approx(mean_N.max())


def test_the_number_of_copies_is_near_its_expectation_and_another_seed_draws_others() -> None:
    rng = np.random.default_rng(0)
    scores, tokens = rng.normal(size=20_000).tolist(), rng.integers(1, 100, 20_000).tolist()
    rule = TemperatureSample(500_000, "0.7", 4, in_tokens=True)
    keys = keys_of(scores, tokens)
    decision = decided(rule, keys)
    assert decision.tokens == pytest.approx(500_000)
    copies_N = decision.copies(keys, 0)
    expected, deviation = decision.expectation
    assert abs(copies_N.sum() - expected) < 5 * deviation
    assert (copies_N * keys.tokens_N).sum() == pytest.approx(500_000, rel=0.02)
    assert copies_N.max() == 4

    others_N = decision.copies(keys_of(scores, tokens, seed=1), 1)
    assert 0 < (others_N != copies_N).sum() < 20_000


def test_scores_whose_weights_underflow_share_what_the_better_ones_leave() -> None:
    budget = Budget(Unit.DOCUMENTS, 4, 0.75, 3)
    sizes_K = np.asarray([1, 2, 1])
    copies_K = expected_copies(budget, np.asarray([3e38, 0.5, -3e38]), sizes_K)
    assert copies_K.tolist() == [3.0, 0.5, 0.0]
    assert expected_copies(budget, np.asarray([1.0, 0.0]), np.asarray([0, 0])).tolist() == [3, 3]


def test_a_higher_temperature_samples_more_evenly() -> None:
    scores = np.linspace(-1, 1, 1000).tolist()
    keys = keys_of(scores, [1] * 1000)
    best = []
    for temperature in ("0.1", "1", "1000000"):
        copies_N = decided(TemperatureSample(1000, temperature, 4, in_tokens=False), keys).copies(
            keys, 0
        )
        best.append(int(copies_N[-100:].sum()))
    assert best[0] == 400
    assert best[0] > best[1] > best[2]
    assert best[2] == 100  # one copy of everything


def test_rules_have_names_and_refuse_what_is_out_of_range() -> None:
    rule = TemperatureSample(1000, "0.5", 4, in_tokens=True)
    assert rule.name == "sample-tokens-1000-t0.5-x4"
    assert (rule.kind, rule.value) == ("sample_tokens", "1000 temperature=0.5 max_copies=4")
    assert TemperatureSample(9, "1/3", 1, in_tokens=False).name == "sample-count-9-t1-of-3-x1"
    for wrong in ((1000, "0", 4), (1000, "-1", 4), (1000, "x", 4), (-1, "1", 4), (1, "1", 0)):
        with pytest.raises(SelectionError):
            TemperatureSample(*wrong, in_tokens=True)
