"""Temperature sampling: each document is kept as many times as its score deserves, zero included.

A document with score s has the weight w = exp((s - s_best) / temperature). It gets

    c = min(max_copies, scale * w)

copies on average, where the scale is such that the copies of all documents together, or their
tokens, add up to a budget. A document gets floor(c) copies, and one more with the probability
c - floor(c), which the seeded hash of its key decides. So the result is repeatable and does not
depend on the workers. Scores are defined up to a constant, and so are the weights: c depends on
differences of scores alone.

As in `datarater.pipelines.selection.batch_top_k`, scores are counted in bins that begin as the high
half of their orders. Bins with more than 1/1024 of the budget, or of the documents, are refined,
eight bits at a time, down to the single score. All documents of a bin get the weight of its middle.
The budget is met exactly by these weights, however coarse the bins; if it is more than `max_copies`
of everything, everything has that many copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.descent import Unit
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import (
    KEY_BITS,
    RankKeys,
    SelectionError,
    scores_of,
    seeded_hash,
)

RESOLUTION = 1024
_CHANCE_BITS = 53
_SHOWN_STEPS = 101
# Separates this draw from the one of batch top-K and from tie-breaking, which hash the same keys.
_DRAW = 0x9FB21C651E98DF25
_MAX_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Budget:
    """What a temperature sample is to add up to.

    Attributes:
        unit: Whether copies are counted, or their tokens.
        target: The budget.
        temperature: Difference of scores that multiplies the copies by e.
        max_copies: Maximum number of copies of a document.
    """

    unit: Unit
    target: int
    temperature: float
    max_copies: int


def expected_copies(
    budget: Budget, scores_K: NDArray[np.float64], sizes_K: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the mean number of copies of documents of K scores.

    Args:
        budget: The budget.
        scores_K: Scores, descending.
        sizes_K: Documents of each score, or their tokens, in the unit of the budget.

    Example:
        >>> budget = Budget(Unit.DOCUMENTS, 5, 1.0, 4)
        >>> expected_copies(budget, np.asarray([0.0, -np.log(2.0)]), np.asarray([1, 4])).round(3)
        array([1.667, 0.833])
    """
    if not budget.target:
        return np.zeros(len(scores_K))
    most = float(budget.max_copies)
    if not len(scores_K) or budget.target >= most * float(sizes_K.sum()):
        return np.full(len(scores_K), most)

    # As few of the best scores as possible reach the maximum: the smallest number for which the
    # next one does not exceed it. Weights are relative to that one, so that the best never
    # underflows.
    left_K = budget.target - most * (np.cumsum(sizes_K) - sizes_K)
    low, high = 0, len(scores_K) - 1
    while low < high:
        middle = (low + high) // 2
        weights = np.exp((scores_K[middle:] - scores_K[middle]) / budget.temperature)
        if left_K[middle] <= most * float((sizes_K[middle:] * weights).sum()):
            high = middle
        else:
            low = middle + 1

    weights = np.exp((scores_K[low:] - scores_K[low]) / budget.temperature)
    total = float((sizes_K[low:] * weights).sum())
    copies_K = np.full(len(scores_K), most)
    copies_K[low:] = max(0.0, left_K[low]) / total * weights if total else 0.0
    return np.clip(copies_K, 0, most)


@dataclass(frozen=True)
class Repetition:
    """The decision how many copies to keep, as a step function over orders.

    Attributes:
        starts_K: Ascending orders, uint64; a step ends where the next begins. The first step also
            has all orders before it.
        whole_K: Copies that every document of a step gets, int64.
        chances_K: Chance of one more, in units of 2^-53, uint64.
        expectation: Expected number of copies, and its standard deviation if all keys differ.
        tokens: Expected number of their tokens.
    """

    done: ClassVar[Literal[True]] = True
    end: ClassVar[None] = None
    equal: ClassVar[int] = 0
    counted: ClassVar[None] = None
    starts_K: NDArray[np.uint64]
    whole_K: NDArray[np.int64]
    chances_K: NDArray[np.uint64]
    expectation: tuple[float, float]
    tokens: float

    def copies(self, keys: RankKeys, seed: int) -> NDArray[np.int64]:
        """Returns the number of copies of each document.

        Args:
            keys: Rank keys, hashed with the selection's seed.
            seed: Seed of the selection.
        """
        steps_N = np.searchsorted(self.starts_K, keys.orders(), side="right") - 1
        steps_N = np.maximum(steps_N, 0)
        draws_N = seeded_hash(keys.hashes(), seed ^ _DRAW) >> np.uint64(64 - _CHANCE_BITS)
        copies_N: NDArray[np.int64] = self.whole_K[steps_N] + (draws_N < self.chances_K[steps_N])
        return copies_N

    def keeps(self, keys: RankKeys, seed: int) -> NDArray[np.bool_]:
        """Returns a mask of the documents with at least one copy."""
        kept_N: NDArray[np.bool_] = self.copies(keys, seed) > 0
        return kept_N

    def expected(self, *, own: bool) -> tuple[float, float] | None:
        """Returns the expected number of copies, and its standard deviation."""
        return self.expectation

    def to_json(self, *, own: bool) -> dict[str, Any]:
        """Returns the copies as JSON fields for the manifest: at most 101 steps."""
        picked_S = np.unique(np.linspace(0, len(self.starts_K) - 1, _SHOWN_STEPS).astype(int))
        means_K = self.whole_K + self.chances_K / (1 << _CHANCE_BITS)
        steps = [
            (score, mean)
            for score, mean in zip(
                scores_of(self.starts_K[picked_S]).tolist(), means_K[picked_S].tolist(), strict=True
            )
            if math.isfinite(score)
        ]
        return {
            "expected": self.expectation[0],
            "expected_tokens": self.tokens,
            "standard_deviation": self.expectation[1],
            "copies": [{"score": score, "copies": mean} for score, mean in steps],
            "probabilities": [
                {"score": score, "probability": min(1.0, mean)} for score, mean in steps
            ],
        }


@dataclass(frozen=True)
class ScoreBins:
    """The distribution of a group's scores with their tokens, refined round by round.

    Attributes:
        budget: What the copies add up to.
        documents: Number of documents.
        shift: Number of low bits of the order that the finest bins omit; 32 before the first count.
        starts_K: First order of each bin, ascending, uint64.
        widths_K: Number of orders that each bin spans, uint64.
        counts_K: Number of documents in each bin, int64.
        tokens_K: Number of their tokens, int64.
    """

    done: ClassVar[Literal[False]] = False
    low: ClassVar[int] = 0
    high: ClassVar[int] = 1 << KEY_BITS
    sortable: ClassVar[None] = None
    budget: Budget
    documents: int
    shift: int
    starts_K: NDArray[np.uint64]
    widths_K: NDArray[np.uint64]
    counts_K: NDArray[np.int64]
    tokens_K: NDArray[np.int64]

    @classmethod
    def begin(cls, budget: Budget, documents: int) -> ScoreBins:
        """Returns the distribution of a group if only its number of documents is known."""
        whole = np.zeros(1, np.uint64), np.asarray([1 << 32], np.uint64)
        return cls(budget, documents, 32, *whole, np.asarray([documents]), np.zeros(1, np.int64))

    def _scores(self) -> NDArray[np.float64]:
        """Returns the middle of each bin's scores, descending."""
        ends_2K = np.stack([self.starts_K, self.starts_K + self.widths_K - np.uint64(1)])
        scores_2K = scores_of(ends_2K.astype(np.uint32)).astype(np.float64)
        scores_2K = np.nan_to_num(scores_2K, nan=0.0, posinf=_MAX_FLOAT, neginf=-_MAX_FLOAT)
        middle_K: NDArray[np.float64] = scores_2K.mean(axis=0)
        return middle_K

    def _sizes(self) -> NDArray[np.int64]:
        return self.tokens_K if self.budget.unit is Unit.TOKENS else self.counts_K

    @property
    def _coarse(self) -> NDArray[np.bool_]:
        """Mask of the bins to refine next."""
        if self.shift == 32:
            return np.ones(len(self.starts_K), bool)
        finest_K = self.widths_K == np.uint64(1 << self.shift)
        sizes_K = self._sizes()
        spent_K = expected_copies(self.budget, self._scores(), sizes_K) * sizes_K
        is_large_K = self.counts_K * RESOLUTION > self.documents
        return finest_K & (is_large_K | (spent_K * RESOLUTION > max(1, self.budget.target)))

    @property
    def level(self) -> int:
        """The level of the next count: 0, which summaries answer, then 1."""
        return int(self.shift < 32)

    @property
    def _next_shift(self) -> int:
        return 16 if self.shift == 32 else self.shift - 8

    def concerns(self, histogram: Histogram) -> bool:
        """Returns whether some documents can lie in the bins to refine."""
        if self.shift == 32:
            return True
        firsts_K = np.unique(self.starts_K[self._coarse] >> np.uint64(16))
        return bool(np.isin(firsts_K, histogram.bins_K).any())

    def count(self, keys: RankKeys) -> Histogram:
        """Counts the documents in the bins to refine, without the bits that are still omitted."""
        coarse_K = self._coarse
        starts_J, widths_J = self.starts_K[coarse_K], self.widths_K[coarse_K]
        order_N = keys.orders().astype(np.uint64)
        at_N = np.searchsorted(starts_J, order_N, side="right") - 1
        inside_N = (at_N >= 0) & (order_N - starts_J[at_N] < widths_J[at_N])
        bins_K, index_M = np.unique(
            order_N[inside_N] >> np.uint64(self._next_shift), return_inverse=True
        )
        counts_K, tokens_K = np.zeros(len(bins_K), np.int64), np.zeros(len(bins_K), np.int64)
        np.add.at(counts_K, index_M, 1)
        np.add.at(tokens_K, index_M, keys.tokens_N[inside_N])
        return Histogram(bins_K, counts_K, tokens_K)

    def descend(self, histogram: Histogram) -> ScoreBins | Repetition:
        """Returns the refined distribution, or the copies once all bins are fine enough.

        Raises:
            SelectionError: The histogram counts another number of documents than the bins.
        """
        coarse_K = self._coarse
        if histogram.documents != int(self.counts_K[coarse_K].sum()):
            raise SelectionError(
                f"{histogram.documents} documents were counted in bins with "
                f"{int(self.counts_K[coarse_K].sum())}: the scores changed during the selection"
            )

        # The finer bins replace the coarse ones.
        shift = self._next_shift
        bins = len(histogram.bins_K)
        starts = np.concatenate([self.starts_K[~coarse_K], histogram.bins_K << np.uint64(shift)])
        widths = np.concatenate([self.widths_K[~coarse_K], np.full(bins, 1 << shift, np.uint64)])
        order = np.argsort(starts, kind="stable")
        refined = replace(
            self,
            shift=shift,
            starts_K=starts[order],
            widths_K=widths[order],
            counts_K=np.concatenate([self.counts_K[~coarse_K], histogram.counts_K])[order],
            tokens_K=np.concatenate([self.tokens_K[~coarse_K], histogram.tokens_K])[order],
        )
        if shift and refined._coarse.any():
            return refined
        return refined.repetition()

    def repetition(self) -> Repetition:
        """Returns the copies under this distribution."""
        if not self.documents:
            none = np.zeros(1, np.uint64)
            return Repetition(none, np.zeros(1, np.int64), none, (0.0, 0.0), 0.0)
        copies_K = expected_copies(self.budget, self._scores(), self._sizes())
        whole_K = np.floor(copies_K).astype(np.int64)
        chances_K = np.round((copies_K - whole_K) * (1 << _CHANCE_BITS)).astype(np.uint64)
        chance_K = chances_K / (1 << _CHANCE_BITS)
        means_K = whole_K + chance_K
        deviation = math.sqrt(float((self.counts_K * chance_K * (1 - chance_K)).sum()))

        return Repetition(
            self.starts_K,
            whole_K,
            chances_K,
            (float((self.counts_K * means_K).sum()), deviation),
            float((self.tokens_K * means_K).sum()),
        )
