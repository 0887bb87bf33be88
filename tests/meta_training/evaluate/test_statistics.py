from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from datarater.meta_training.evaluate.statistics import (
    detection_probability,
    isotonic,
    paired_difference,
    smallest_detectable,
    typical_deviation,
)


@pytest.mark.parametrize("seeds", [2, 3, 8, 30])
def test_the_interval_is_that_of_scipys_paired_t_test(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    first, second = rng.normal(2.5, 0.1, seeds), rng.normal(2.6, 0.1, seeds)

    ours = paired_difference(first, second)

    theirs = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.mean == pytest.approx((first - second).mean())
    assert ours.deviation == pytest.approx((first - second).std(ddof=1))


def test_intervals_cover_the_true_difference_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    trials, true = 4000, -0.02
    covered = 0
    for _ in range(trials):
        shared = rng.normal(0, 1, 4)  # what common random numbers cancel
        difference = paired_difference(shared + rng.normal(true, 0.05, 4), shared)
        assert difference.low is not None
        assert difference.high is not None
        covered += difference.low < true < difference.high
    # 0.95 within 4 standard errors.
    assert abs(covered / trials - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5


def test_a_single_seed_has_a_difference_and_no_interval() -> None:
    difference = paired_difference([2.0], [2.5])
    assert (difference.mean, difference.low, difference.deviation) == (-0.5, None, None)
    assert difference.verdict == "undecided"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [([-0.3, -0.31], "better"), ([0.3, 0.31], "worse"), ([-0.3, 0.31], "undecided")],
)
def test_the_verdict_is_whether_the_interval_excludes_zero(
    differences: list[float], verdict: str
) -> None:
    assert paired_difference(differences, [0.0, 0.0]).verdict == verdict


@pytest.mark.parametrize("losses", [[], [np.nan, 1.0], [np.inf, 1.0], [[1.0]]])
def test_losses_that_cannot_be_paired_are_refused(losses: list[float]) -> None:
    with pytest.raises(ValueError, match="loss"):
        paired_difference(losses, np.zeros(np.shape(losses)))


def test_power_is_the_share_of_simulated_evaluations_that_find_the_difference() -> None:
    rng = np.random.default_rng(1)
    seeds, trials, difference = 5, 4000, 0.06
    found = sum(
        paired_difference(rng.normal(-difference, 0.05, seeds), np.zeros(seeds)).verdict
        != "undecided"
        for _ in range(trials)
    )
    assert detection_probability(difference, 0.05, seeds) == pytest.approx(found / trials, abs=0.03)


@pytest.mark.parametrize("seeds", [2, 4, 8, 40])
def test_the_smallest_detectable_difference_has_the_power_that_integration_gives(
    seeds: int,
) -> None:
    freedom, critical = seeds - 1, stats.t.ppf(0.975, seeds - 1)
    smallest = smallest_detectable(0.03, seeds)
    assert smallest is not None
    shift = smallest / 0.03 * seeds**0.5

    def found(quantile: float) -> float:
        """Returns the power given the quantile of the estimated deviation."""
        bound = critical * (stats.chi2.ppf(quantile, freedom) / freedom) ** 0.5
        return float(stats.norm.sf(bound - shift) + stats.norm.cdf(-bound - shift))

    assert integrate.quad(found, 0, 1, limit=200)[0] == pytest.approx(0.8, abs=1e-4)


def test_the_smallest_detectable_difference_needs_two_seeds() -> None:
    assert smallest_detectable(0.01, 1) is None
    assert smallest_detectable(0.0, 4) == 0


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_the_typical_deviation_is_right_for_few_seeds_and_ignores_a_wild_arm(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    deviations = [*rng.normal(0, 0.02, (4000, seeds)).std(axis=1, ddof=1).tolist(), 50.0, None]
    assert typical_deviation(deviations, seeds) == pytest.approx(0.02, rel=0.06)
    assert typical_deviation([None], seeds) is None


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_isotonic_regression_is_the_projection_onto_non_increasing_sequences(
    values: list[float],
) -> None:
    fit = isotonic(values)
    assert (np.diff(fit) <= 1e-9).all()
    expected = optimize.isotonic_regression(values, increasing=False).x
    np.testing.assert_allclose(fit, expected, atol=1e-9)
