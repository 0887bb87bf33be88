"""The band of a cascade keeps its promise, and its one score has the specified order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from datarater.rater_model.cascade import Band, HeldOut, combined_scores

KEEPS = st.sampled_from([0.1, 0.25, 0.5, 0.9])


def held_out(count: int, noise: float, seed: int) -> HeldOut:
    """Returns documents whose scores by the student are those by the rater and some noise."""
    random = np.random.default_rng(seed)
    rater_H = random.standard_normal(count)
    student_H = rater_H + noise * random.standard_normal(count)
    return HeldOut(student_H, rater_H, random.integers(200, 9000, count).astype(float))


def kept_by_cascade(documents: HeldOut, band: Band, keep: float) -> NDArray[np.bool_]:
    """Returns which documents a cascade keeps, by sorting as the order is specified."""
    count = len(documents.student_H)
    place_H = np.empty(count)
    place_H[np.argsort(-documents.student_H)] = np.arange(count)
    certainty_H = (place_H < np.floor(band.kept * count)).astype(int) - (
        place_H >= np.ceil(band.dropped * count)
    )
    score_H = np.where(certainty_H == 0, documents.rater_H, documents.student_H)
    best = sorted(range(count), key=lambda index: (-certainty_H[index], -score_H[index]))
    kept_H = np.zeros(count, bool)
    kept_H[best[: round(keep * count)]] = True
    return kept_H


def agreement(documents: HeldOut, kept_H: NDArray[np.bool_], keep: float) -> float:
    by_rater = np.argsort(-documents.rater_H)[: round(keep * len(kept_H))]
    return float(kept_H[by_rater].mean())


@given(
    st.integers(200, 2000),
    st.floats(0, 2),
    st.integers(0, 2**32 - 1),
    KEEPS,
    st.sampled_from([0.8, 0.95, 0.98]),
)
def test_a_band_has_the_wished_agreement_on_the_documents_it_was_chosen_on(
    count: int, noise: float, seed: int, keep: float, wished: float
) -> None:
    documents = held_out(count, noise, seed)
    band = documents.band(keep, wished)
    assert 0 <= band.kept <= keep <= band.dropped <= 1
    kept_H = kept_by_cascade(documents, band, keep)
    assert agreement(documents, kept_H, keep) >= wished


@pytest.mark.parametrize("keep", [0.1, 0.5])
@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_the_agreement_on_new_documents_is_the_wished_one_on_average(
    keep: float, noise: float
) -> None:
    reached = []
    for seed in range(60):
        band = held_out(1000, noise, seed).band(keep, 0.95)
        new = held_out(2000, noise, seed + 10_000)
        reached.append(agreement(new, kept_by_cascade(new, band, keep), keep))
    error = np.std(reached) / np.sqrt(len(reached))
    assert np.mean(reached) > 0.95 - 2 * error


@given(st.integers(100, 1000), st.floats(0, 2), st.integers(0, 1000), KEEPS)
def test_a_higher_agreement_leaves_more_to_the_rater(
    count: int, noise: float, seed: int, keep: float
) -> None:
    documents = held_out(count, noise, seed)
    bands = [documents.band(keep, wished) for wished in (0.8, 0.9, 0.95, 0.99, 1)]
    assert bands == sorted(bands, key=lambda band: (-band.kept, band.dropped))
    shares = [documents.share(band) for band in bands]
    assert shares == sorted(shares)
    assert bands[-1] == Band(0, 1)
    assert shares[-1] == 1


def test_a_perfect_student_leaves_next_to_nothing_to_the_rater() -> None:
    documents = held_out(1000, 0, 0)
    band = documents.band(0.5, 0.98)
    assert documents.share(band) < 0.01


def test_too_few_documents_leave_everything_to_the_rater() -> None:
    assert held_out(30, 0, 0).band(0.5, 0.98) == Band(0, 1)


scores = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(scores, scores, st.sampled_from([-1, 0, 1])), min_size=1))
def test_the_combined_scores_rank_first_by_certainty_and_then_by_whoever_scored(
    documents: list[tuple[float, float, int]],
) -> None:
    student_N, rater_N, certainty_N = (
        np.asarray(column, kind)
        for column, kind in zip(
            zip(*documents, strict=True), (np.float32, np.float32, np.int8), strict=True
        )
    )
    offset = 2.0**22  # more than twice any score
    combined_N = combined_scores(student_N, rater_N, certainty_N, offset)
    by_one_score = np.lexsort((combined_N,))
    assert (np.diff(certainty_N[by_one_score]) >= 0).all()
    in_doubt_N = certainty_N == 0
    assert (combined_N[in_doubt_N] == rater_N[in_doubt_N]).all()
    for certainty in (-1, 1):
        of_it_N = certainty_N == certainty
        order = np.argsort(student_N[of_it_N])
        assert (np.diff(combined_N[of_it_N][order]) >= 0).all()


def test_scores_beyond_the_limit_do_not_mix_and_a_bad_one_stays_bad() -> None:
    student_N = np.asarray([-1e9, 1e9, 0, 0], np.float32)
    rater_N = np.asarray([0, 0, 1e9, np.nan], np.float32)
    combined_N = combined_scores(student_N, rater_N, np.asarray([1, -1, 0, 0], np.int8), 16.0)
    assert combined_N[0] > combined_N[2] > combined_N[1]
    assert np.isnan(combined_N[3])
