from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datarater.meta_training.demo import ranking
from datarater.meta_training.demo.ranking import auc, average_ranks, spearman

# Few distinct values, so that ties are common.
TIED = st.integers(-4, 4).map(float)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(ranking).failed == 0


@given(st.lists(st.tuples(TIED, st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_won_with_ties_half(pairs: list[tuple[float, bool]]) -> None:
    positives = [score for score, positive in pairs if positive]
    negatives = [score for score, positive in pairs if not positive]
    scores, labels = [score for score, _ in pairs], [positive for _, positive in pairs]
    if not positives or not negatives:
        with pytest.raises(ValueError, match="undefined"):
            auc(scores, labels)
        return
    won = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    assert auc(scores, labels) == pytest.approx(won / (len(positives) * len(negatives)))


@given(st.lists(st.tuples(TIED, TIED), min_size=2, max_size=40))
def test_spearman_equals_scipys(pairs: list[tuple[float, float]]) -> None:
    x_N, y_N = np.array(pairs).T
    if len(set(x_N)) < 2 or len(set(y_N)) < 2:
        with pytest.raises(ValueError, match="undefined"):
            spearman(x_N, y_N)
        return
    assert spearman(x_N, y_N) == pytest.approx(stats.spearmanr(x_N, y_N).statistic, abs=1e-12)


@given(st.lists(st.floats(allow_nan=False), max_size=40))
def test_average_ranks_equal_scipys(values: list[float]) -> None:
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values) if values else [])


@given(st.lists(st.tuples(TIED, st.booleans()), min_size=2, max_size=40))
def test_ranking_ignores_monotone_maps_of_the_scores(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([score for score, _ in pairs]), [positive for _, positive in pairs]
    if all(labels) or not any(labels):
        return
    assert auc(scores, labels) == auc(np.exp(scores) + 7, labels)
    assert auc(scores, labels) == pytest.approx(1 - auc(-scores, labels))


@pytest.mark.parametrize("call", [lambda x: auc(x, [True, False]), lambda x: spearman(x, [1, 2])])
def test_a_nan_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="NaN"):
        call([float("nan"), 1.0])


def test_shapes_and_labels_are_checked() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        auc([1.0, 2.0], [True, False, True])
    with pytest.raises(ValueError, match="differ in shape"):
        spearman([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one dimension"):
        auc([[1.0, 2.0]], [True, False])
    with pytest.raises(ValueError, match="booleans"):
        auc([1.0, 2.0], [0.5, 1.0])
