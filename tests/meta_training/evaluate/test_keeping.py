from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.keeping import keep_best, seeded_hash, text_hash


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 50)), min_size=1, max_size=30),
    st.floats(0.01, 1),
)
def test_the_kept_share_is_as_close_as_whole_documents_allow(
    drawn: list[tuple[float, int]], keep: float
) -> None:
    scores, sizes = np.array([score for score, _ in drawn]), np.array([size for _, size in drawn])
    kept = keep_best(scores, sizes, keep, np.arange(len(sizes)))
    assert kept.any()
    if not kept.all():
        assert scores[kept].min() >= scores[~kept].max()
    # No other cut in this order is closer.
    order = np.lexsort((np.arange(len(sizes)), -scores))
    totals = np.cumsum(sizes[order])
    miss = abs(sizes[kept].sum() - keep * sizes.sum())
    assert miss == pytest.approx(np.abs(totals - keep * sizes.sum()).min(), abs=1e-6)


def test_a_document_without_a_score_is_dropped_first() -> None:
    kept = keep_best([np.nan, -1e9, 3.0], [1, 1, 1], 2 / 3, [0, 1, 2])
    assert kept.tolist() == [False, True, True]


def test_equal_scores_are_ordered_by_the_tie_breaker_alone() -> None:
    ties = [3, 1, 2, 0]
    assert keep_best([1.0] * 4, [1] * 4, 0.5, ties).tolist() == [False, True, False, True]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5])
def test_a_share_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="share"):
        keep_best([1.0], [1], keep, [0])


def test_random_draws_of_seeds_are_independent_halves() -> None:
    hashes = np.array([text_hash(f"document {i}") for i in range(4000)], np.uint64)
    halves = [
        keep_best(np.zeros(4000), np.ones(4000, int), 0.5, seeded_hash(hashes, seed, draw))
        for seed, draw in ((0, 1), (0, 2), (1, 1))
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs((halves[i] & halves[j]).mean() - 0.25) < 0.03


def test_seeded_hashes_stay_distinct() -> None:
    hashes = np.arange(10_000, dtype=np.uint64)
    assert len(np.unique(seeded_hash(hashes, 7))) == 10_000


def test_texts_that_differ_in_case_and_spacing_have_one_hash() -> None:
    assert text_hash("A  Text\nof words") == text_hash("a text of words ")
    assert text_hash("a text") != text_hash("a test")
    assert text_hash("lone \ud800 surrogate") == text_hash("lone \ud800 surrogate")
