"""Drift: how far one set of scores lies from another, by counts alone.

Both sets are counted in the bins of the selection's first histogram
(`datarater.pipelines.selection.ranking`): 65,536 of them at most, each as wide as 1/128 of its
scores. A reference known by quantiles alone is spread over the same bins.

Two measures of the scores, and one of what is kept:

- the population stability index over G groups, each of about 1/G of the reference,

      PSI = sum_g (a_g - e_g) ln(a_g / e_g),

  a_g and e_g being the shares of the batch and of the reference (a share of nothing counts as half
  a document);
- the Kolmogorov-Smirnov distance, max_x |A(x) - E(x)|, at the bounds of the bins: that of all
  scores to within the share of one bin;
- the difference between the kept shares of one source.

Of two samples of one population all three are a little above zero. Each measure therefore comes
with what chance alone passes once in 1,000 times: with n and m documents, PSI * nm / (n + m) is
about chi-squared with G - 1 degrees of freedom, P(KS > x) < 2 exp(-2 x^2 nm / (n + m)), and a share
has its binomial deviation. That speaks of documents drawn one by one: those of a crawl come in
clusters, which a limit has to allow for.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.descent import Histogram
from datarater.pipelines.selection.ranking import SelectionError

PSI_GROUPS = 10
BY_CHANCE = 0.001
"""How often chance alone passes `Measure.by_chance`."""
_BINS = 1 << 16


@dataclass(frozen=True)
class Measure:
    """A measure of drift.

    Attributes:
        value: 0 for none.
        by_chance: what two samples of one population pass once in 1,000 times.
    """

    value: float
    by_chance: float

    def is_past(self, limit: float) -> bool:
        """Whether it is past a limit, and past what chance explains."""
        return abs(self.value) > max(limit, self.by_chance)

    def to_json(self) -> dict[str, float]:
        """As JSON fields."""
        return {"value": round(self.value, 6), "by_chance": round(self.by_chance, 6)}


@dataclass(frozen=True)
class ScoreDistribution:
    """Scored documents by bins of their scores.

    Attributes:
        bins_K: int64, ascending and distinct, the best first: the high half of the order (see
            `datarater.pipelines.selection.ranking`).
        counts_K: float64, documents of each bin; fractions where they come from quantiles.
    """

    bins_K: NDArray[np.int64]
    counts_K: NDArray[np.float64]

    @classmethod
    def of(cls, histogram: Histogram) -> "ScoreDistribution":
        """Of scores that were counted: a histogram of the first level."""
        return cls(histogram.bins_K.astype(np.int64), histogram.counts_K.astype(np.float64))

    @classmethod
    def from_counts(cls, bins: Sequence[int], counts: Sequence[float]) -> "ScoreDistribution":
        """Of bins and their documents."""
        return cls(np.asarray(bins, np.int64), np.asarray(counts, np.float64))

    @classmethod
    def by_quantiles(cls, quantiles: Sequence[float], documents: int) -> "ScoreDistribution":
        """Of a sample that is known by its quantiles at equal steps from 0 to 1: straight lines between them.

        Args:
            quantiles: rising, at least two.
            documents: of the sample; 0, where nobody knows, counts as many as there are quantiles.

        Raises:
            SelectionError: they do not rise.
        """
        scores_Q = np.asarray(quantiles, np.float64)
        if len(scores_Q) < 2 or not np.isfinite(scores_Q).all() or (np.diff(scores_Q) < 0).any():
            raise SelectionError(
                "the quantiles of the reference are not at least two rising numbers"
            )
        floors_B = _lowest_scores()
        above_B = np.zeros(_BINS)  # the share of scores in a bin or in a better one
        for low, high in itertools.pairwise(scores_Q.tolist()):
            if low == high:
                above_B += low >= floors_B
            else:
                above_B += np.clip((high - floors_B) / (high - low), 0, 1)
        shares_B = np.diff(above_B / (len(scores_Q) - 1), prepend=0.0)
        bins_K = np.flatnonzero(shares_B > 0)
        return cls(bins_K, shares_B[bins_K] * (documents or len(scores_Q)))

    @property
    def documents(self) -> float:
        """How many there are."""
        return float(self.counts_K.sum())

    def kept_share(self, end: int) -> float:
        """The share of documents before a cutoff; within its bin, documents are taken to lie evenly.

        Args:
            end: the cutoff, a rank key.

        Raises:
            SelectionError: there are no documents.
        """
        if not self.documents:
            raise SelectionError("of no documents no share can be kept")
        order = end >> 160
        bin_, rest = order >> 16, order & 0xFFFF
        before = float(self.counts_K[self.bins_K < bin_].sum())
        within = float(self.counts_K[self.bins_K == bin_].sum())
        return (before + within * rest / 0x10000) / self.documents


def _lowest_scores() -> NDArray[np.float64]:
    """The lowest score of every bin, the best bin first; infinite where no finite score is."""
    bits_B = np.arange(_BINS - 1, -1, -1, dtype=np.uint32) << np.uint32(16)
    raw_B = np.where(bits_B >> np.uint32(31) == 1, bits_B ^ np.uint32(1 << 31), ~bits_B).astype(
        np.uint32
    )
    with np.errstate(invalid="ignore"):
        scores_B = raw_B.view(np.float32).astype(np.float64)
    beyond_B = np.where(bits_B >> np.uint32(31) == 1, np.inf, -np.inf)
    return np.where(np.isfinite(scores_B), scores_B, beyond_B)


def _aligned(
    batch: ScoreDistribution, reference: ScoreDistribution
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The counts of both in the bins of either, and 1/n + 1/m.

    Raises:
        SelectionError: one of them is empty.
    """
    if not batch.documents or not reference.documents:
        raise SelectionError("drift is measured between documents; there are none on one side")
    bins_K = np.union1d(batch.bins_K, reference.bins_K)
    counts = []
    for one in (batch, reference):
        counts_K = np.zeros(len(bins_K))
        counts_K[np.searchsorted(bins_K, one.bins_K)] = one.counts_K
        counts.append(counts_K)
    return counts[0], counts[1], 1 / batch.documents + 1 / reference.documents


def population_stability_index(
    batch: ScoreDistribution, reference: ScoreDistribution, groups: int = PSI_GROUPS
) -> Measure:
    """The population stability index of a batch's scores against a reference's.

    The groups are cut so that each begins at one of the reference's `groups` quantiles, or as near
    as the bins allow: one bin is never cut, so that many equal scores leave fewer groups.

    Args:
        batch: the scores to look at.
        reference: those they are held against.
        groups: how many there are at most.

    Raises:
        SelectionError: one of them is empty.
    """
    counts_K, expected_K, noise = _aligned(batch, reference)
    before_K = np.cumsum(expected_K) - expected_K
    # Of rounding errors in the sums of fractions: a bound hit but for one is a bound hit.
    group_K = np.minimum(
        np.floor(groups * before_K / expected_K.sum() + 1e-9).astype(np.int64), groups - 1
    )
    used_G = np.unique(group_K)
    shares = []
    for values_K in (counts_K, expected_K):
        values_G = np.bincount(group_K, values_K, groups)[used_G]
        total = float(values_K.sum())
        shares.append(np.maximum(values_G, 0.5) / total)
    actual_G, wanted_G = shares
    value = float(((actual_G - wanted_G) * np.log(actual_G / wanted_G)).sum())
    return Measure(value, _chi_squared_quantile(len(used_G) - 1) * noise)


def kolmogorov_smirnov(batch: ScoreDistribution, reference: ScoreDistribution) -> Measure:
    """The Kolmogorov-Smirnov distance between a batch's scores and a reference's, at the bounds of the bins.

    Raises:
        SelectionError: one of them is empty.
    """
    counts_K, expected_K, noise = _aligned(batch, reference)
    apart_K = np.cumsum(counts_K) / counts_K.sum() - np.cumsum(expected_K) / expected_K.sum()
    return Measure(float(np.abs(apart_K).max()), math.sqrt(math.log(2 / BY_CHANCE) / 2 * noise))


def share_difference(
    kept: int, documents: int, expected: float, of: float, comparisons: int = 1
) -> Measure:
    """By how much the kept share of one source differs from the reference's.

    Args:
        kept: documents of the batch that are kept.
        documents: of the batch, at least one.
        expected: the share that is kept of the reference.
        of: documents of the reference.
        comparisons: how many sources are looked at; chance has so many chances.
    """
    share = (kept + expected * of) / (documents + of)
    deviation = math.sqrt(share * (1 - share) * (1 / documents + 1 / of))
    return Measure(
        kept / documents - expected,
        NormalDist().inv_cdf(1 - BY_CHANCE / comparisons / 2) * deviation,
    )


def _chi_squared_quantile(freedom: int) -> float:
    """What chi-squared passes with chance `BY_CHANCE`, by Wilson and Hilferty's cube root."""
    if freedom < 1:
        return 0.0
    part = 2 / (9 * freedom)
    return freedom * (1 - part + NormalDist().inv_cdf(1 - BY_CHANCE) * math.sqrt(part)) ** 3


def describe(measure: Measure, limit: float | None) -> dict[str, Any]:
    """A measure, its limit and whether it is past it, as JSON fields.

    Args:
        measure: what was measured.
        limit: None for none.
    """
    return {
        **measure.to_json(),
        "limit": limit,
        "past": limit is not None and measure.is_past(limit),
    }
