from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from datarater.pipelines.selection import drift
from datarater.pipelines.selection.drift import Measure, ScoreDistribution
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import RankKeys, SelectionError, orders_of
from datarater.pipelines.selection.rules import Threshold

FLOATS = st.floats(-1e4, 1e4, width=32)
# Crawls are full of ties, so some of the scores are drawn from a few values.
SCORES = st.lists(
    st.one_of(FLOATS, st.sampled_from([-1.5, 0.0, -0.0, 0.25])), min_size=1, max_size=200
)


def float32(scores: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(scores, np.float32)


def counted(scores: ArrayLike) -> ScoreDistribution:
    scores_N = float32(scores)
    count = len(scores_N)
    keys = RankKeys.of(
        scores_N, np.arange(count, dtype=np.uint64), 0, 0, np.arange(count), np.ones(count)
    )
    return ScoreDistribution.of(Histogram.of(keys, 0))


def bins_of(scores: ArrayLike) -> NDArray[np.int64]:
    """The bin of each score, bigger is better: a coarser scale that keeps the order."""
    return 0xFFFF - (orders_of(float32(scores)) >> np.uint32(16)).astype(np.int64)


@given(SCORES, SCORES)
def test_the_distance_is_scipys_over_the_same_bins(
    batch: list[float], reference: list[float]
) -> None:
    distance = drift.kolmogorov_smirnov(counted(batch), counted(reference)).value
    assert distance == pytest.approx(
        scipy.stats.ks_2samp(bins_of(batch), bins_of(reference), method="asymp").statistic,
        abs=1e-12,
    )

    # It differs from that of the scores themselves by at most the share of a bin.
    widest = max(
        np.unique(bins_of(batch), return_counts=True)[1].max() / len(batch),
        np.unique(bins_of(reference), return_counts=True)[1].max() / len(reference),
    )
    exact = scipy.stats.ks_2samp(float32(batch), float32(reference), method="asymp").statistic
    assert distance - 1e-12 <= exact <= distance + widest + 1e-12


@given(SCORES, SCORES, st.integers(1, 20))
def test_the_index_is_that_of_the_raw_scores_by_the_references_quantiles(
    batch: list[float], reference: list[float], groups: int
) -> None:
    measure = drift.population_stability_index(counted(batch), counted(reference), groups)

    # The same from raw scores, one document at a time: the share of the reference that is better
    # gives a score's group.
    sorted_R = np.sort(bins_of(reference))

    def group_of(bin_: int) -> int:
        better = len(sorted_R) - int(np.searchsorted(sorted_R, bin_, side="right"))
        return min(groups - 1, groups * better // len(sorted_R))

    shares = []
    labels = [
        [group_of(bin_) for bin_ in bins_of(scores).tolist()] for scores in (batch, reference)
    ]
    used = sorted(set(labels[0]) | set(labels[1]))
    for side in labels:
        shares.append([max(side.count(group), 0.5) / len(side) for group in used])
    expected = sum((a - e) * math.log(a / e) for a, e in zip(*shares, strict=True))
    assert measure.value == pytest.approx(expected, abs=1e-12)
    assert measure.value >= -1e-12 or len(used) == 1


@given(SCORES)
def test_what_is_the_same_has_not_moved(scores: list[float]) -> None:
    one = counted(scores)
    assert drift.population_stability_index(one, one).value == 0
    assert drift.kolmogorov_smirnov(one, one).value == 0


@given(st.lists(FLOATS, min_size=2, max_size=30), st.integers(1, 1000))
@example([0.0, -1.401298464324817e-45], 1)
def test_quantiles_are_spread_over_the_bins_by_straight_lines(
    quantiles: list[float], documents: int
) -> None:
    quantiles = sorted(quantiles)
    spread = ScoreDistribution.by_quantiles(quantiles, documents)
    assert spread.documents == pytest.approx(documents)

    # Many draws by the same interpolation give every bin the same share. A draw between two float32
    # scores belongs to the bin of the lower one: rounding to the nearest would move draws of a
    # narrow interval across a bin's edge.
    ranks = (np.arange(20_000) + 0.5) / 20_000 * (len(quantiles) - 1)
    draws_N = np.interp(ranks, np.arange(len(quantiles)), quantiles)
    rounded_N = draws_N.astype(np.float32)
    below_N = np.nextafter(rounded_N, np.float32(-np.inf))
    drawn = counted(np.where(rounded_N > draws_N, below_N, rounded_N))
    assert drift.kolmogorov_smirnov(drawn, spread).value < 0.01


def test_quantiles_must_rise() -> None:
    for quantiles in ([], [1.0], [1.0, 0.0], [0.0, math.inf]):
        with pytest.raises(SelectionError, match="rising"):
            ScoreDistribution.by_quantiles(quantiles, 10)


@given(SCORES, FLOATS)
def test_the_kept_share_is_right_but_for_one_bin(scores: list[float], threshold: float) -> None:
    share = counted(scores).kept_share(Threshold(repr(threshold)).end)
    bins_N, cut = bins_of(scores), bins_of([threshold])[0]
    assert (bins_N > cut).mean() - 1e-12 <= share <= (bins_N >= cut).mean() + 1e-12


def test_all_and_nothing_are_kept_whole() -> None:
    scores = counted([-3.0, 0.0, 2.0])
    assert scores.kept_share(0) == 0
    assert scores.kept_share(1 << 192) == 1


def test_nothing_is_measured_without_documents() -> None:
    one, none = counted([1.0]), ScoreDistribution.of(Histogram.empty())
    for measure in (drift.population_stability_index, drift.kolmogorov_smirnov):
        for sides in ((one, none), (none, one)):
            with pytest.raises(SelectionError, match="none on one side"):
                measure(*sides)
    with pytest.raises(SelectionError, match="at least one document"):
        none.kept_share(0)


@pytest.mark.parametrize(("documents", "of"), [(60, 5000), (1000, 1000), (5000, 400)])
def test_chance_alone_seldom_passes_what_it_is_given(documents: int, of: int) -> None:
    rng = np.random.default_rng(0)
    past = np.zeros(3)
    trials = 300
    for _ in range(trials):
        batch, reference = rng.normal(size=documents), rng.normal(size=of)
        one, other = counted(batch), counted(reference)
        share = drift.share_difference(
            int((batch > 0.3).sum()), documents, float((reference > 0.3).mean()), of
        )
        measures = (
            drift.population_stability_index(one, other),
            drift.kolmogorov_smirnov(one, other),
            share,
        )
        past += [measure.is_past(0.0) for measure in measures]
    assert (past <= 0.01 * trials).all()


def test_what_has_moved_is_past_chance_and_limit() -> None:
    rng = np.random.default_rng(0)
    batch, reference = counted(rng.normal(0.7, 1, 400)), counted(rng.normal(0, 1, 4000))
    assert drift.population_stability_index(batch, reference).is_past(0.25)
    distance = drift.kolmogorov_smirnov(batch, reference)
    assert distance.value == pytest.approx(0.27, abs=0.06)
    assert distance.is_past(0.15)
    assert not distance.is_past(0.5)
    assert drift.share_difference(90, 100, 0.5, 1000, comparisons=20).is_past(0.2)
    # Three documents are too few to prove anything.
    assert not drift.share_difference(3, 3, 0.5, 1000).is_past(0.2)


def test_the_chance_level_of_the_index_is_chi_squareds() -> None:
    for freedom in range(1, 30):
        expected = scipy.stats.chi2.isf(drift.BY_CHANCE, freedom)
        assert drift._chi_squared_quantile(freedom) == pytest.approx(expected, rel=0.04)
    assert drift._chi_squared_quantile(0) == 0


def test_a_measure_says_whether_it_is_past_its_limit() -> None:
    assert Measure(0.3, 0.1).is_past(0.2)
    assert Measure(-0.3, 0.1).is_past(0.2)
    assert not Measure(0.3, 0.35).is_past(0.2)
