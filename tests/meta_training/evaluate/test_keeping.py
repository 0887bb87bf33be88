from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.keeping import (
    keep_best,
    order_of,
    seeded_hash,
    source_floors,
    text_hash,
)


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


sourced = st.lists(
    st.tuples(st.floats(-5, 5), st.integers(1, 20), st.sampled_from("abc")), min_size=1, max_size=9
)
shares = st.integers(1, 10).map(lambda tenths: tenths / 10)


@given(sourced, shares, shares)
def test_a_floor_keeps_the_best_of_each_source_and_then_the_best_of_all(
    drawn: list[tuple[float, int, str]], keep: float, floor: float
) -> None:
    scores, sizes, sources = (list(column) for column in zip(*drawn, strict=True))
    ties = np.arange(len(drawn))
    required = source_floors(scores, sizes, floor, ties, sources)
    kept = keep_best(scores, sizes, keep, ties, required)

    # Every choice of the best documents of each source, of which the floors allow some.
    order = order_of(scores, ties).tolist()
    ranked = {name: [i for i in order if sources[i] == name] for name in sorted(set(sources))}
    smallest = {
        name: next(
            count
            for count in range(len(ids) + 1)
            if 10 * sum(sizes[i] for i in ids[:count])
            >= round(10 * floor) * sum(sizes[i] for i in ids)
        )
        for name, ids in ranked.items()
    }
    allowed = []
    for counts in itertools.product(*(range(smallest[n], len(ranked[n]) + 1) for n in ranked)):
        choice = {
            i for ids, count in zip(ranked.values(), counts, strict=True) for i in ids[:count]
        }
        free = choice - {i for name, ids in ranked.items() for i in ids[: smallest[name]]}
        dropped = [order.index(i) for i in range(len(drawn)) if i not in choice]
        # What is kept beyond the floors is better than everything that is dropped.
        if all(order.index(i) < min(dropped, default=len(drawn)) for i in free):
            allowed.append(choice)
    wanted = round(10 * keep) * sum(sizes)
    closest = min(
        allowed,
        key=lambda choice: (
            abs(10 * sum(sizes[i] for i in choice) - wanted),
            sum(sizes[i] for i in choice),
        ),
    )
    assert set(np.flatnonzero(kept)) == closest


def test_a_floor_at_the_kept_share_keeps_that_share_of_each_source() -> None:
    rng = np.random.default_rng(0)
    sources, sizes = rng.integers(0, 4, 2000), rng.integers(1, 9, 2000)
    scores, ties = rng.normal(sources, 1), rng.permutation(2000)
    plain = keep_best(scores, sizes, 0.3, ties)
    even = keep_best(scores, sizes, 0.3, ties, source_floors(scores, sizes, 0.3, ties, sources))
    for source in range(4):
        of_source = sources == source
        share = sizes[even & of_source].sum() / sizes[of_source].sum()
        assert 0.3 <= share < 0.3 + 9 / sizes[of_source].sum()
    assert sizes[plain & (sources == 0)].sum() < 0.1 * sizes[sources == 0].sum()


def test_a_floor_that_the_best_documents_already_meet_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    sources, scores, ties = rng.integers(0, 3, 600), rng.normal(size=600), np.arange(600)
    required = source_floors(scores, np.ones(600), 0.1, ties, sources)
    np.testing.assert_array_equal(
        keep_best(scores, np.ones(600), 0.5, ties, required),
        keep_best(scores, np.ones(600), 0.5, ties),
    )


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
