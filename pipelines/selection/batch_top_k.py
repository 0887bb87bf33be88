"""Batch top-K acceptance: the chance of each score of being kept, and the draw.

A `Distribution` counts a group's scores in bins (see `datarater.pipelines.selection.refined_bins`).
Those with more than 1/1024 of the documents are refined. So ranks are known to a thousandth, and
equal scores exactly. The distribution then becomes an `Acceptance`, which draws.

A bin that covers the quantiles from a to b gets the mean of the acceptance probability over [a, b],

    (G(b) - G(a)) / (b - a),    G(p) = p I_p(B - K, K) - (B - K)/B I_p(B - K + 1, K),

the exact chance of tied documents of which a batch takes some at random. The sum over all bins is
G(1) = K/B: the expected number of accepted documents is exactly K/B of the corpus, however coarse
the bins.

Source: the rule is that of DataRater, arXiv 2505.17895; see
`datarater.pipelines.selection.rules.BatchTopK`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.quantiles import rising
from datarater.pipelines.selection.ranking import RankKeys, orders_of, scores_of, seeded_hash
from datarater.pipelines.selection.refined_bins import (
    CHANCE_BITS,
    RESOLUTION,
    RefinedBins,
    one_bin,
)

# Below this width the difference of two integrals has lost its digits, and the value in the middle
# is as accurate.
_NARROW = 1e-7
_QUANTILE_STEPS = 64
# Separates the draw from tie-breaking, which hashes the same keys with the same seed.
_DRAW = 0x5DEECE66D


def incomplete_beta(a: int, b: int, x_N: ArrayLike) -> NDArray[np.float64]:
    """Returns the regularized incomplete beta function I_x(a, b), by its continued fraction.

    Source: Didonato and Morris, "Algorithm 708", ACM TOMS 18 (1992); evaluated by Lentz's method.

    Args:
        a: Whole number of at least 0; I_x(0, b) is 1.
        b: Whole number of at least 0; I_x(a, 0) is 0 unless a is 0.
        x_N: Numbers in [0, 1], float64.

    Returns:
        Values of the same shape, float64. The absolute error is below 1e-12 for a + b in the
        thousands, and below 1e-9 up to 2^20.
    """
    x_N = np.asarray(x_N, np.float64)
    if a == 0:
        return np.ones_like(x_N)
    if b == 0:
        return np.zeros_like(x_N)

    # The fraction converges fast below this bound; above it, I_x(a, b) = 1 - I_{1-x}(b, a).
    flip_N = x_N > (a + 1) / (a + b + 2)
    result_N = np.empty_like(x_N)
    for flipped, (p, q) in ((False, (a, b)), (True, (b, a))):
        chosen_N = flip_N == flipped
        y_M = (1 - x_N[chosen_N]) if flipped else x_N[chosen_N]
        value_M = _by_continued_fraction(p, q, y_M)
        result_N[chosen_N] = 1 - value_M if flipped else value_M
    return np.clip(result_N, 0.0, 1.0)


def _by_continued_fraction(a: int, b: int, x_M: NDArray[np.float64]) -> NDArray[np.float64]:
    # The factor in front of the fraction: x^a (1 - x)^b / (a B(a, b)).
    with np.errstate(divide="ignore"):
        log_front_M = (
            math.lgamma(a + b)
            - math.lgamma(a)
            - math.lgamma(b)
            + a * np.log(x_M)
            + b * np.log1p(-x_M)
            - math.log(a)
        )

    # Lentz's method: the fraction is the product of c d; neither may become 0.
    tiny = 1e-300
    c_M = np.ones_like(x_M)
    d_M = 1 - (a + b) * x_M / (a + 1)
    d_M = 1 / np.where(np.abs(d_M) < tiny, tiny, d_M)
    h_M = d_M.copy()
    for m in range(1, 20_000):
        before_M = h_M
        for numerator_M in (
            m * (b - m) * x_M / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x_M / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d_M = 1 + numerator_M * d_M
            d_M = 1 / np.where(np.abs(d_M) < tiny, tiny, d_M)
            c_M = 1 + numerator_M / c_M
            c_M = np.where(np.abs(c_M) < tiny, tiny, c_M)
            h_M = h_M * d_M * c_M
        if np.all(np.abs(h_M - before_M) <= 1e-15 * np.abs(h_M)):
            break
    return np.exp(log_front_M) * h_M


def acceptance_probability(kept: int, batch: int, p_N: ArrayLike) -> NDArray[np.float64]:
    """Returns the probability of being among the best K of a batch of B: I_p(B - K, K).

    Args:
        kept: K.
        batch: B.
        p_N: Quantiles of documents in [0, 1]; 1 is the best.

    Example:
        >>> acceptance_probability(1, 2, [0.0, 0.5, 1.0]).tolist()
        [0.0, 0.5, 1.0]
    """
    if kept == 0:
        return np.zeros_like(np.asarray(p_N, np.float64))
    return incomplete_beta(batch - kept, kept, p_N)


def mean_probability(
    kept: int, batch: int, low_N: ArrayLike, high_N: ArrayLike
) -> NDArray[np.float64]:
    """Returns the mean of `acceptance_probability` over intervals of quantiles.

    Args:
        kept: K.
        batch: B.
        low_N: Lower bounds of the intervals.
        high_N: Upper bounds of the intervals; may equal the lower bounds.
    """
    low_N, high_N = np.asarray(low_N, np.float64), np.asarray(high_N, np.float64)
    discarded = batch - kept

    def integral(p_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns G(p) of the module's docstring."""
        if kept == 0:
            return np.zeros_like(p_N)
        if discarded == 0:
            return p_N
        share = discarded / batch
        return p_N * incomplete_beta(discarded, kept, p_N) - share * incomplete_beta(
            discarded + 1, kept, p_N
        )

    width_N = high_N - low_N
    narrow_N = width_N < _NARROW
    middle_N = acceptance_probability(kept, batch, (low_N + high_N) / 2)
    mean_N = (integral(high_N) - integral(low_N)) / np.where(narrow_N, 1.0, width_N)
    return np.clip(np.where(narrow_N, middle_N, mean_N), 0.0, 1.0)


@dataclass(frozen=True)
class Acceptance:
    """The decision to draw: the chance of acceptance by score, as a step function over orders.

    Attributes:
        starts_K: Ascending orders from 0, uint64; a step ends where the next begins.
        chances_K: Chances in units of 2^-53, uint64.
        expectation: Expected number of accepted documents, and its standard deviation if all keys
            differ; None if the chances were made from quantiles.
    """

    done: ClassVar[Literal[True]] = True
    end: ClassVar[None] = None
    equal: ClassVar[int] = 0
    counted: ClassVar[None] = None
    starts_K: NDArray[np.uint64]
    chances_K: NDArray[np.uint64]
    expectation: tuple[float, float] | None = None

    def keeps(self, keys: RankKeys, seed: int) -> NDArray[np.bool_]:
        """Returns a mask of the accepted documents, drawn by the seeded hashes of their keys.

        Args:
            keys: Rank keys, hashed with the selection's seed.
            seed: Seed of the selection.
        """
        chances_N = self.chances_K[np.searchsorted(self.starts_K, keys.orders(), side="right") - 1]
        draws_N = seeded_hash(keys.hashes(), seed ^ _DRAW) >> np.uint64(64 - CHANCE_BITS)
        return draws_N < chances_N

    def expected(self, *, own: bool) -> tuple[float, float] | None:
        """Returns the expected number of accepted documents, and its standard deviation.

        Args:
            own: Whether the corpus counted is the one selected from, and not a reference.

        Returns:
            The two numbers; None for another corpus, unless no document was counted: then none is
            accepted in any corpus.
        """
        return self.expectation if own or len(self.starts_K) == 1 else None

    def table(self) -> list[dict[str, float]]:
        """Returns at most 101 steps for reports: scores, and the probability from each score on."""
        picked_S = np.unique(np.linspace(0, len(self.starts_K) - 1, 101).astype(int))
        scores_S = scores_of(self.starts_K[picked_S])
        chances_S = self.chances_K[picked_S] / (1 << CHANCE_BITS)
        return [
            {"score": score, "probability": chance}
            for score, chance in zip(scores_S.tolist(), chances_S.tolist(), strict=True)
            if math.isfinite(score)
        ]

    def to_json(self, *, own: bool) -> dict[str, Any]:
        """Returns the chances as JSON fields for the manifest."""
        expected, deviation = self.expected(own=own) or (None, None)
        return {
            "expected": expected,
            "standard_deviation": deviation,
            "probabilities": self.table(),
        }


def _steps(
    kept: int,
    batch: int,
    starts_K: NDArray[np.uint64],
    ends_K: NDArray[np.uint64],
    low_K: NDArray[np.float64],
    high_K: NDArray[np.float64],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Returns the steps over all orders: the bins, and the gaps without documents between them."""
    gap_starts_J = np.concatenate([np.zeros(1, np.uint64), ends_K])
    gap_at_J = np.concatenate([np.ones(1), low_K])  # the quantile on both sides of the gap
    all_starts = np.concatenate([gap_starts_J, starts_K])
    chances = np.concatenate(
        [
            acceptance_probability(kept, batch, gap_at_J),
            mean_probability(kept, batch, low_K, high_K),
        ]
    )
    # An empty gap starts where a bin starts: sort the bin last, since the last of equal starts is
    # the one that a search finds.
    order = np.lexsort((np.arange(len(all_starts)), all_starts))
    return all_starts[order], np.round(chances[order] * (1 << CHANCE_BITS)).astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class Distribution(RefinedBins):
    """The distribution of a group's scores, refined until ranks are known to a thousandth.

    Attributes:
        kept: K, the number of documents kept of a batch.
        batch: B, the number of documents in a batch.
    """

    kept: int
    batch: int

    @classmethod
    def begin(cls, kept: int, batch: int, documents: int) -> Distribution:
        """Returns the distribution of a group if only its number of documents is known."""
        return cls(kept=kept, batch=batch, **one_bin(documents))

    def large(self) -> NDArray[np.bool_]:
        """Returns a mask of the bins with many documents."""
        large_K: NDArray[np.bool_] = self.counts_K * RESOLUTION > self.documents
        return large_K

    def descend(self, histogram: Histogram) -> Distribution | Acceptance:
        """Returns the refined distribution, or the chances once all bins are fine enough.

        Args:
            histogram: Counts of the documents in the bins to refine.

        Raises:
            SelectionError: The histogram counts another number of documents than the bins.
        """
        refined = self.refine(histogram)
        return refined.acceptance() if refined.is_fine else refined

    def acceptance(self) -> Acceptance:
        """Returns the chances of acceptance under this distribution."""
        if self.documents == 0:
            return Acceptance(np.zeros(1, np.uint64), np.zeros(1, np.uint64), (0.0, 0.0))

        # The quantiles that each bin covers.
        above_K = np.cumsum(self.counts_K)
        high_K = 1 - (above_K - self.counts_K) / self.documents
        low_K = 1 - above_K / self.documents
        starts, chances = _steps(
            self.kept, self.batch, self.starts_K, self.starts_K + self.widths_K, low_K, high_K
        )

        # The number of accepted documents is a sum of independent draws.
        at_K = np.searchsorted(starts, self.starts_K, side="right") - 1
        chance_K = chances[at_K] / (1 << CHANCE_BITS)
        expected = float((self.counts_K * chance_K).sum())
        deviation = math.sqrt(float((self.counts_K * chance_K * (1 - chance_K)).sum()))
        return Acceptance(starts, chances, (expected, deviation))


def acceptance_by_quantiles(kept: int, batch: int, quantiles: Sequence[float]) -> Acceptance:
    """Returns the chances of acceptance under the quantiles of a reference.

    Args:
        kept: K.
        batch: B.
        quantiles: Rising scores at equal steps from 0 to 1, interpolated linearly. Equal quantiles
            represent a score that many documents have.

    Raises:
        SelectionError: The quantiles do not rise.
    """
    scores_Q = rising(quantiles)

    # Interpolate between the quantiles.
    parts_P = np.linspace(0, len(scores_Q) - 1, (len(scores_Q) - 1) * _QUANTILE_STEPS + 1)
    scores_P = np.interp(parts_P, np.arange(len(scores_Q)), scores_Q)
    ranks_P = parts_P / (len(scores_Q) - 1)

    # The best first; a step spans the orders from one score down to the next.
    orders_P = orders_of(scores_P).astype(np.uint64)[::-1]
    ranks_P = ranks_P[::-1]
    starts_K, first_K = np.unique(orders_P, return_index=True)
    last_K = np.append(first_K[1:], len(orders_P)) - 1

    # Where quantiles are equal, the score is an atom; elsewhere a step reaches from its own rank to
    # the next score's.
    high_K = ranks_P[first_K]
    low_K = np.append(ranks_P[first_K[1:]], 0.0)
    atom_K = last_K > first_K
    ends_K = np.append(starts_K[1:], starts_K[-1] + np.uint64(1))
    low_K = np.where(atom_K, ranks_P[last_K], low_K)
    ends_K = np.where(atom_K, starts_K + np.uint64(1), ends_K)

    starts, chances = _steps(kept, batch, starts_K, ends_K, low_K, high_K)
    return Acceptance(starts, chances)
