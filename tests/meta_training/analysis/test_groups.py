from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datarater.meta_training.analysis.groups import (
    DISCARDS,
    decile_labels,
    distributions,
    label_groups,
    rank_correlation,
    rank_correlation_within,
    source_shares,
)
from datarater.meta_training.analysis.stability import agreement, autocorrelation

RNG = np.random.default_rng(0)
N = 200
HASHES = RNG.integers(0, 2**63, N).astype(np.uint64)
ONES = np.ones(N, np.int64)


def test_small_groups_are_put_together_and_a_single_one_keeps_its_name() -> None:
    values = ["a"] * 5 + ["b"] * 4 + ["c", "d", ""]
    assert label_groups(values, 4) == ["a"] * 5 + ["b"] * 4 + ["(3 other)"] * 3
    assert label_groups(["a"] * 5 + ["b"], 2) == ["a"] * 5 + ["b"]
    assert label_groups(["", "a"], 1) == ["(none)", "a"]


def test_many_numbers_are_cut_at_their_deciles_and_few_are_names() -> None:
    labels = label_groups([str(year) for year in range(1900, 2000)] + [""] * 30, 5)
    assert labels[:10] == ["1,900 to 1,909"] * 10
    assert labels[-1] == "(none)"
    assert len(set(labels)) == 11
    assert label_groups(["1", "2"] * 10, 1) == ["1", "2"] * 10
    words = [f"{index}x" for index in range(40)]
    assert label_groups(words, 1) == words


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200))
def test_deciles_are_ordered_and_equal_values_share_one(values: list[int]) -> None:
    labels = decile_labels(values)
    assert len(set(labels)) <= 10
    ordered = [label for _, label in sorted(zip(values, labels, strict=True))]
    # Each label is one stretch of the sorted values.
    assert len(list(itertools.groupby(ordered))) == len(set(labels))
    assert len({(value, label) for value, label in zip(values, labels, strict=True)}) == len(
        set(values)
    )


def test_a_source_that_scores_low_loses_its_share() -> None:
    groups = ["low"] * 50 + ["high"] * 150
    scores = np.r_[RNG.normal(size=50) - 9, RNG.normal(size=150)]
    shares = source_shares(scores, ONES, HASHES, groups)
    assert shares["low"][0] == 0.25
    # A quarter of the documents are discarded before the others.
    expected = [max(0.0, (0.25 - discard) / (1 - discard)) for discard in DISCARDS]
    assert shares["low"] == pytest.approx(expected, abs=1e-9)
    assert np.add(shares["low"], shares["high"]) == pytest.approx(1)


def test_shares_in_bytes_count_bytes() -> None:
    sizes = np.r_[np.full(100, 30), np.full(100, 10)]
    shares = source_shares(np.zeros(N), sizes, HASHES, ["a"] * 100 + ["b"] * 100)
    assert shares["a"][0] == 0.75


def test_distributions_begin_with_all_and_go_from_low_to_high() -> None:
    scores = np.r_[RNG.normal(size=100), 50 - RNG.exponential(size=100) ** 2]
    overall, first, second = distributions(scores, ["low"] * 100 + ["high"] * 100)
    assert (overall["group"], first["group"], second["group"]) == (None, "low", "high")
    assert overall["mean"] == pytest.approx(0)
    assert overall["deviation"] == pytest.approx(1)
    assert first["left_tail"] == pytest.approx(1, abs=0.4)
    assert second["left_tail"] > 5


def test_rank_correlation_is_that_of_scipy_and_none_for_equal_values() -> None:
    first, second = RNG.normal(size=N), RNG.integers(0, 9, N)
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second)[0])
    assert rank_correlation(first, np.ones(N)) is None


def test_raters_that_agree_on_sources_alone_do_not_agree_within_them() -> None:
    groups = ["a"] * 100 + ["b"] * 100
    level = np.repeat([0.0, 100.0], 100)
    first, second = level + RNG.normal(size=N), level + RNG.normal(size=N)
    assert (rank_correlation(first, second) or 0) > 0.7
    assert abs(rank_correlation_within(first, second, groups, 30) or 0) < 0.3
    assert rank_correlation_within(first, second, groups, 101) is None


def test_agreement_is_full_with_itself_and_none_with_the_opposite() -> None:
    first = RNG.normal(size=N)
    scores = {"one": first, "same": 3 * first + 1, "opposite": -first}
    pairs = agreement(scores, ONES, HASHES, ["s"] * N, 0.25, 30)
    by_pair = {(pair["first"], pair["second"]): pair for pair in pairs}
    assert by_pair["one", "same"]["spearman"] == pytest.approx(1)
    assert by_pair["one", "same"]["overlap"] == {"0.5": 1, "0.25": 1}
    assert by_pair["one", "opposite"]["spearman_within_sources"] == pytest.approx(-1)
    assert by_pair["one", "opposite"]["overlap"] == {"0.5": 0, "0.25": 0}
    assert len(pairs) == 3


def test_autocorrelation_rises_as_scores_settle() -> None:
    final = RNG.normal(size=N)
    scores = {step: final + noise * RNG.normal(size=N) for step, noise in ((0, 9), (5, 1), (9, 0))}
    rows = autocorrelation(scores)
    assert [row["step"] for row in rows] == [0, 5, 9]
    assert rows[0]["with_previous"] is None
    assert rows[0]["with_last"] < rows[1]["with_last"] < rows[2]["with_last"]
    assert rows[2]["with_previous"] == rows[1]["with_last"]
