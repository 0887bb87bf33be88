"""Drift: measures how far one set of scores lies from another, from counts alone.

Both sets are counted in the bins of the selection's first histogram
(`datarater.pipelines.selection.histogram`): at most 65,536, each as wide as 1/128 of its scores. A
reference known only by its quantiles is spread over the same bins.

There are two measures of the scores, and one of what is kept:

- the population stability index over G groups, each of about 1/G of the reference,

      PSI = sum_g (a_g - e_g) ln(a_g / e_g),

  where a_g and e_g are the shares of the batch and of the reference (an empty group counts as half
  a document);
- the Kolmogorov-Smirnov distance, max_x |A(x) - E(x)|, at the bounds of the bins; it differs from
  that of the scores themselves by at most the share of one bin;
- the difference between the kept shares of one source.

For two samples of one population, all three are a little above zero. Each measure therefore comes
with the value that chance alone exceeds once in 1,000 times: with n and m documents, PSI * nm /
(n + m) is about chi-squared with G - 1 degrees of freedom, P(KS > x) < 2 exp(-2 x^2 nm / (n + m)),
and a share has its binomial deviation. These levels assume documents drawn one by one. The
documents of a crawl come in clusters, for which a limit has to allow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.quantiles import rising
from datarater.pipelines.selection.ranking import SelectionError, scores_of

PSI_GROUPS = 10
BY_CHANCE = 0.001
"""How often chance alone exceeds `Measure.by_chance`."""
_BINS = 1 << 16


@dataclass(frozen=True)
class Measure:
    """A measure of drift.

    Attributes:
        value: Measured value; 0 for no drift.
        by_chance: Value that two samples of one population exceed once in 1,000 times.
    """

    value: float
    by_chance: float

    def is_past(self, limit: float) -> bool:
        """Returns whether the value exceeds both a limit and what chance explains."""
        return abs(self.value) > max(limit, self.by_chance)


@dataclass(frozen=True)
class ScoreDistribution:
    """The number of scored documents by bins of their scores.

    Attributes:
        bins_K: Distinct bins in ascending order (the best first), int64: the high half of the
            order (see `datarater.pipelines.selection.ranking`).
        counts_K: Number of documents in each bin, float64; fractional if from quantiles.
    """

    bins_K: NDArray[np.int64]
    counts_K: NDArray[np.float64]

    @classmethod
    def of(cls, histogram: Histogram) -> ScoreDistribution:
        """Returns the distribution that a histogram of level 0 counts."""
        return cls(histogram.bins_K.astype(np.int64), histogram.counts_K.astype(np.float64))

    @classmethod
    def from_counts(cls, bins: Sequence[int], counts: Sequence[float]) -> ScoreDistribution:
        """Returns the distribution of bins and their numbers of documents."""
        return cls(np.asarray(bins, np.int64), np.asarray(counts, np.float64))

    @classmethod
    def by_quantiles(cls, quantiles: Sequence[float], documents: int) -> ScoreDistribution:
        """Returns the distribution of a sample known by its quantiles, interpolated linearly.

        Args:
            quantiles: At least two rising scores at equal steps from 0 to 1.
            documents: Size of the sample; 0 if unknown, which counts one document per quantile.

        Raises:
            SelectionError: The quantiles do not rise.
        """
        scores_Q = rising(quantiles)

        # The share of scores in each bin or in a better one, summed over the intervals between
        # quantiles.
        floors_B = _lowest_scores()
        above_B = np.zeros(_BINS)
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
        """The number of documents."""
        return float(self.counts_K.sum())

    def kept_share(self, end: int) -> float:
        """Returns the share of documents below a cutoff.

        Documents are assumed to be spread evenly within the cutoff's bin.

        Args:
            end: Rank key of the cutoff.

        Raises:
            SelectionError: There are no documents.
        """
        if not self.documents:
            raise SelectionError("a kept share needs at least one document")

        order = end >> 160
        bin_, rest = order >> 16, order & 0xFFFF
        before = float(self.counts_K[self.bins_K < bin_].sum())
        within = float(self.counts_K[self.bins_K == bin_].sum())
        return (before + within * rest / 0x10000) / self.documents


def _lowest_scores() -> NDArray[np.float64]:
    """Returns the lowest score of every bin, the best first; infinite in bins without scores."""
    orders_B = np.arange(_BINS, dtype=np.uint32) << np.uint32(16) | np.uint32(0xFFFF)
    with np.errstate(invalid="ignore"):
        scores_B = scores_of(orders_B).astype(np.float64)
    beyond_B = np.where(orders_B >> np.uint32(31) == 0, np.inf, -np.inf)
    return np.where(np.isfinite(scores_B), scores_B, beyond_B)


def _aligned(
    batch: ScoreDistribution, reference: ScoreDistribution
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Returns the counts of both in the bins of either, and 1/n + 1/m.

    Raises:
        SelectionError: One of them is empty.
    """
    if not batch.documents or not reference.documents:
        raise SelectionError("drift needs documents on both sides; there are none on one side")

    bins_K = np.union1d(batch.bins_K, reference.bins_K)
    counts = []
    for distribution in (batch, reference):
        counts_K = np.zeros(len(bins_K))
        counts_K[np.searchsorted(bins_K, distribution.bins_K)] = distribution.counts_K
        counts.append(counts_K)
    return counts[0], counts[1], 1 / batch.documents + 1 / reference.documents


def population_stability_index(
    batch: ScoreDistribution, reference: ScoreDistribution, groups: int = PSI_GROUPS
) -> Measure:
    """Returns the population stability index of a batch's scores against a reference's.

    Each group begins at one of the reference's `groups` quantiles, or as close to it as the bins
    allow. A bin is never split, so many equal scores leave fewer groups.

    Args:
        batch: Scores to examine.
        reference: Scores to compare them with.
        groups: Maximum number of groups.

    Raises:
        SelectionError: One of them is empty.
    """
    counts_K, expected_K, noise = _aligned(batch, reference)

    # Assign bins to groups. 1e-9 absorbs rounding errors in the sums of fractions.
    before_K = np.cumsum(expected_K) - expected_K
    group_K = np.minimum(
        np.floor(groups * before_K / expected_K.sum() + 1e-9).astype(np.int64), groups - 1
    )
    used_G = np.unique(group_K)

    # The share of each group on both sides; an empty group counts as half a document.
    shares = []
    for values_K in (counts_K, expected_K):
        values_G = np.bincount(group_K, values_K, groups)[used_G]
        total = float(values_K.sum())
        shares.append(np.maximum(values_G, 0.5) / total)

    actual_G, expected_G = shares
    value = float(((actual_G - expected_G) * np.log(actual_G / expected_G)).sum())
    return Measure(value, _chi_squared_quantile(len(used_G) - 1) * noise)


def kolmogorov_smirnov(batch: ScoreDistribution, reference: ScoreDistribution) -> Measure:
    """Returns the Kolmogorov-Smirnov distance of two score distributions, at the bins' bounds.

    Raises:
        SelectionError: One of them is empty.
    """
    counts_K, expected_K, noise = _aligned(batch, reference)
    apart_K = np.cumsum(counts_K) / counts_K.sum() - np.cumsum(expected_K) / expected_K.sum()
    return Measure(float(np.abs(apart_K).max()), math.sqrt(math.log(2 / BY_CHANCE) / 2 * noise))


def share_difference(
    kept: int, documents: int, expected: float, of: float, comparisons: int = 1
) -> Measure:
    """Returns the difference between the kept share of one source and the reference's.

    Args:
        kept: Number of documents of the batch that are kept.
        documents: Number of documents of the batch, at least one.
        expected: Share of the reference that is kept.
        of: Number of documents of the reference.
        comparisons: Number of sources compared; chance has as many occasions (Bonferroni).
    """
    share = (kept + expected * of) / (documents + of)
    deviation = math.sqrt(share * (1 - share) * (1 / documents + 1 / of))
    return Measure(
        kept / documents - expected,
        NormalDist().inv_cdf(1 - BY_CHANCE / comparisons / 2) * deviation,
    )


def _chi_squared_quantile(freedom: int) -> float:
    """Returns the value that chi-squared exceeds with chance `BY_CHANCE`.

    Source: the cube-root approximation of Wilson and Hilferty, PNAS 17 (1931).
    """
    if freedom < 1:
        return 0.0
    part = 2 / (9 * freedom)
    return freedom * (1 - part + NormalDist().inv_cdf(1 - BY_CHANCE) * math.sqrt(part)) ** 3
