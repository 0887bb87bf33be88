"""Tests the formula of batch top-K acceptance, refined distributions and the draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from datarater.pipelines.selection.batch_top_k import (
    Acceptance,
    Distribution,
    acceptance_by_quantiles,
    acceptance_probability,
    incomplete_beta,
    mean_probability,
)
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.quantiles import score_at
from datarater.pipelines.selection.ranking import RankKeys, SelectionError, key_hash
from datarater.pipelines.selection.rules import BatchTopK

BATCHES = st.integers(1, 300).flatmap(lambda b: st.integers(0, b).map(lambda k: BatchTopK(k, b)))


def keys_of(scores_N: np.ndarray, seed: int = 0, key_of_all: int | None = None) -> RankKeys:
    count = len(scores_N)
    hashes_N = np.random.default_rng(5).integers(0, 2**63, count, np.uint64)
    if key_of_all is not None:
        hashes_N[:] = key_of_all
    return RankKeys.of(scores_N, hashes_N, seed, 0, np.arange(count), np.ones(count, np.int64))


def refined(rule: BatchTopK, parts: list[RankKeys]) -> Distribution:
    distribution = Distribution.begin(rule.kept, rule.batch, sum(map(len, parts)))
    rounds = 0
    while not distribution.is_fine:
        distribution = distribution.refine(Histogram.merge(map(distribution.count, parts)))
        rounds += 1
    assert rounds <= 1 + rule.rounds
    return distribution


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1), (96, 32), (768, 256), (1, 1000), (1000, 1), (2**19, 2**19)]
)
def test_the_incomplete_beta_function_is_the_textbooks(a: int, b: int) -> None:
    x_N = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(incomplete_beta(a, b, x_N), special.betainc(a, b, x_N), atol=1e-9)


@given(BATCHES)
def test_the_mean_acceptance_of_uniform_ranks_is_k_of_b(rule: BatchTopK) -> None:
    edges = np.sort(np.random.default_rng(rule.batch).random(200))
    edges = np.concatenate([[0.0], edges, [1.0]])
    means = mean_probability(rule.kept, rule.batch, edges[:-1], edges[1:])
    assert (means * np.diff(edges)).sum() == pytest.approx(rule.kept / rule.batch, abs=1e-9)
    fine = acceptance_probability(rule.kept, rule.batch, (np.arange(20_000) + 0.5) / 20_000)
    assert fine.mean() == pytest.approx(rule.kept / rule.batch, abs=1e-4)
    assert (np.diff(fine) >= -1e-12).all()


def test_acceptance_is_the_chance_in_batches_that_are_really_drawn() -> None:
    rule, rng = BatchTopK(3, 8), np.random.default_rng(0)
    others = rng.random((200_000, rule.batch - 1))
    for rank in (0.3, 0.6, 0.8):
        accepted = ((others > rank).sum(1) < rule.kept).mean()
        assert acceptance_probability(3, 8, [rank])[0] == pytest.approx(accepted, abs=0.005)


@settings(deadline=None, max_examples=60)
@given(BATCHES, st.integers(0, 2**32), st.sampled_from(["normal", "one", "few", "far", "mixed"]))
def test_the_expected_number_is_exact_whatever_the_scores(
    rule: BatchTopK, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    scores_N = {
        "normal": lambda: rng.standard_normal(3000),
        "one": lambda: np.full(3000, 0.25),
        "few": lambda: rng.choice([-1.0, -0.0, 0.0, 2.0], 3000),
        "far": lambda: 50 + 0.001 * rng.standard_normal(3000),
        "mixed": lambda: np.concatenate([rng.standard_normal(1500), np.full(1500, 0.1)]),
    }[kind]().astype(np.float32)
    keys = keys_of(scores_N)
    distribution = refined(rule, [keys.take(np.arange(0, 1000)), keys.take(np.arange(1000, 3000))])
    expected = distribution.acceptance().expected(own=True)
    assert expected is not None
    assert expected[0] == pytest.approx(3000 * rule.kept / rule.batch, abs=1e-5)

    # Every bin contains at most a thousandth of the documents, or one score.
    wide_K = distribution.widths_K > 1
    assert (distribution.counts_K[wide_K] * 1024 <= 3000).all()


def test_a_draw_is_near_its_expectation_repeats_and_prefers_the_better() -> None:
    scores_N = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    acceptance = refined(BatchTopK(256, 1024), [keys_of(scores_N)]).acceptance()
    assert acceptance.expectation is not None
    expected, deviation = acceptance.expectation
    assert acceptance.expected(own=False) is None

    first_N = acceptance.keeps(keys_of(scores_N, seed=1), 1)
    assert abs(first_N.sum() - expected) < 5 * deviation
    assert (first_N == acceptance.keeps(keys_of(scores_N, seed=1), 1)).all()
    assert (first_N != acceptance.keeps(keys_of(scores_N, seed=2), 2)).any()

    order_N = np.argsort(-scores_N)
    assert first_N[order_N[:10_000]].mean() > 0.99
    assert first_N[order_N[16_000:]].mean() < 0.01


def test_documents_of_one_key_and_score_share_their_fate() -> None:
    scores_N = np.zeros(1000, np.float32)
    acceptance = refined(BatchTopK(1, 2), [keys_of(scores_N)]).acceptance()
    assert set(acceptance.keeps(keys_of(scores_N, 3, key_of_all=key_hash("a")), 3).tolist()) in (
        {True},
        {False},
    )


def test_quantiles_of_a_reference_give_the_same_chances_as_its_documents() -> None:
    rule = BatchTopK(32, 128)
    scores_N = np.random.default_rng(2).standard_normal(100_000).astype(np.float32)
    by_documents = refined(rule, [keys_of(scores_N)]).acceptance()
    by_quantiles = acceptance_by_quantiles(
        32, 128, np.quantile(scores_N, np.linspace(0, 1, 101)).tolist()
    )
    probe_N = np.linspace(-3, 3, 400).astype(np.float32)

    def chances(acceptance: Acceptance) -> np.ndarray:
        at = np.searchsorted(acceptance.starts_K, keys_of(probe_N).orders(), side="right") - 1
        return acceptance.chances_K[at] / 2**53

    np.testing.assert_allclose(chances(by_documents), chances(by_quantiles), atol=0.03)

    far = acceptance_by_quantiles(32, 128, [-1.0, 0.0, 1.0])
    assert far.keeps(keys_of(np.asarray([5.0], np.float32)), 0).all()
    assert not far.keeps(keys_of(np.asarray([-5.0], np.float32)), 0).any()


def test_equal_quantiles_are_a_score_that_many_documents_have() -> None:
    acceptance = acceptance_by_quantiles(1, 2, [0.0, 0.0, 0.0, 0.0, 1.0])
    keys = keys_of(np.zeros(40_000, np.float32))
    # 0.375 is the mean rank of [0, 0.75].
    assert acceptance.keeps(keys, 0).mean() == pytest.approx(0.375, abs=0.02)
    assert score_at([0.0, 1.0, 3.0], 0.75) == 2.0
    with pytest.raises(SelectionError, match="rising"):
        acceptance_by_quantiles(1, 2, [1.0, 0.0])


def test_the_rule_says_what_does_not_divide() -> None:
    assert BatchTopK.discarding(1024, "0.75") == BatchTopK(256, 1024)
    with pytest.raises(SelectionError, match=r"leaves 7\.5"):
        BatchTopK.discarding(10, "0.25")
    with pytest.raises(SelectionError, match="outside"):
        BatchTopK.discarding(10, "1.5")
    assert BatchTopK(256, 1024).value == "256/1024"
