from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datarater.meta_training.analysis.disparity import disparity, ratio_interval, wilson_interval


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("abcd")), min_size=1, max_size=80).filter(
        lambda pairs: any(kept for kept, _ in pairs)
    ),
    st.floats(1.01, 3),
)
def test_rates_ratios_and_flags_are_those_counted_one_by_one(
    pairs: list[tuple[bool, str]], limit: float
) -> None:
    kept, groups = np.array([pair[0] for pair in pairs]), [pair[1] for pair in pairs]
    found = disparity("field", kept, groups, limit)
    overall = sum(kept) / len(kept)
    rates = {
        name: sum(k for k, g in pairs if g == name) / groups.count(name) for name in set(groups)
    }
    assert {row.group for row in found.groups} == set(groups)
    for row in found.groups:
        assert row.documents == groups.count(row.group)
        assert row.rate == rates[row.group]
        assert row.ratio == pytest.approx(rates[row.group] / overall)
        assert row.low <= row.rate <= row.high
        assert row.ratio_low <= row.ratio <= row.ratio_high
        flag = "low" if row.ratio < 1 / limit else "high" if row.ratio > limit else ""
        assert row.flag == flag
        assert not row.certain or row.flag
        if row.certain:
            assert row.ratio_high < 1 / limit or row.ratio_low > limit
    assert [row.rate for row in found.groups] == sorted(rates.values())
    assert found.min_over_max == pytest.approx(min(rates.values()) / max(rates.values()))
    assert found.min_over_max_low <= found.min_over_max + 1e-12
    assert sum(row.kept for row in found.groups) == sum(kept)


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from([0.5, 0.95, 0.999]))
def test_wilson_intervals_are_those_of_scipy(kept: int, total: int, confidence: float) -> None:
    kept = min(kept, total)
    expected = stats.binomtest(kept, total).proportion_ci(confidence, method="wilson")
    assert wilson_interval(kept, total, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


def test_the_ratio_interval_is_that_of_scipy() -> None:
    expected = stats.contingency.relative_risk(30, 100, 55, 120).confidence_interval(0.95)
    assert ratio_interval((30, 100), (55, 120)) == pytest.approx((expected.low, expected.high))


def test_a_proportion_of_nothing_has_a_ratio_between_those_of_its_neighbors() -> None:
    rng = np.random.default_rng(2)
    low, high = ratio_interval((0, 50), (25, 50))
    assert low == 0
    assert ratio_interval((0, 500), (250, 500))[1] < high < ratio_interval((2, 50), (25, 50))[1]
    # A true ratio above the interval would seldom leave nothing of 50.
    assert (rng.binomial(50, 0.5 * high, 2000) == 0).mean() < 0.05


def test_intervals_of_all_groups_hold_together_in_most_samples() -> None:
    rng = np.random.default_rng(1)
    rates = np.repeat([0.2, 0.5, 0.6, 0.9], 60)
    groups = np.repeat(list("abcd"), 60).tolist()
    true = dict(zip("abcd", [0.2, 0.5, 0.6, 0.9], strict=True))
    held = 0
    for _ in range(200):
        found = disparity("field", rng.random(240) < rates, groups)
        held += all(row.low <= true[row.group] <= row.high for row in found.groups)
    assert held >= 180


def test_a_group_that_is_dropped_is_named_in_one_sentence() -> None:
    kept = np.array([True] * 100 + [False] * 100)
    groups = ["kept"] * 95 + ["mixed"] * 10 + ["dropped"] * 95
    found = disparity("language", kept, groups)
    assert [row.group for row in found.flagged] == ["dropped", "kept"]
    assert all(row.certain for row in found.flagged)
    said = found.warning()
    assert said is not None
    assert said.startswith(
        "keep rate by language: past the limit in 2 of 3 groups, 2 with the whole interval; lowest "
        "dropped 0.00 (0.00 to "
    )
    assert disparity("language", kept, ["same"] * 200).warning() is None


def test_few_documents_make_no_certain_flag() -> None:
    found = disparity("field", np.array([True, True, False, False]), ["a", "a", "b", "b"])
    assert [row.flag for row in found.groups] == ["low", "high"]
    assert not any(row.certain for row in found.groups)


def test_nothing_kept_has_no_rate() -> None:
    with pytest.raises(ValueError, match="at least one kept document"):
        disparity("field", np.zeros(3, bool), ["a", "b", "c"])
    assert math.isfinite(disparity("field", np.ones(1, bool), ["a"]).min_over_max_high)
