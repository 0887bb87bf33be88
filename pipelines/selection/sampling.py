"""Temperature sampling: each document is kept as many times as its score deserves, zero included.

A document with score s has the weight w = exp((s - s_best) / temperature). It gets

    c = min(max_copies, scale * w)

copies on average, where the scale is such that the copies of all documents together, or their
tokens, add up to a budget. A document gets floor(c) copies, and one more with the probability
c - floor(c), which the seeded hash of its key decides. So the result is repeatable and does not
depend on the workers. Scores are defined up to a constant, and so are the weights: c depends on
differences of scores alone.

Scores are counted in bins (see `datarater.pipelines.selection.refined_bins`). Those with more than
1/1024 of the budget, or of the documents, are refined. All documents of a bin get the weight of its
middle.
The budget is met exactly by these weights, however coarse the bins; if it is more than `max_copies`
of everything, everything has that many copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.descent import Unit
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import RankKeys, scores_of, seeded_hash
from datarater.pipelines.selection.refined_bins import (
    CHANCE_BITS,
    RESOLUTION,
    RefinedBins,
    one_bin,
)

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
        draws_N = seeded_hash(keys.hashes(), seed ^ _DRAW) >> np.uint64(64 - CHANCE_BITS)
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
        means_K = self.whole_K + self.chances_K / (1 << CHANCE_BITS)
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


@dataclass(frozen=True, kw_only=True)
class ScoreBins(RefinedBins):
    """The distribution of a group's scores with their tokens, refined where copies are spent.

    Attributes:
        budget: What the copies add up to.
    """

    budget: Budget

    @classmethod
    def begin(cls, budget: Budget, documents: int) -> ScoreBins:
        """Returns the distribution of a group if only its number of documents is known."""
        return cls(budget=budget, **one_bin(documents))

    def _scores(self) -> NDArray[np.float64]:
        """Returns the middle of each bin's scores, descending."""
        ends_2K = np.stack([self.starts_K, self.starts_K + self.widths_K - np.uint64(1)])
        scores_2K = scores_of(ends_2K.astype(np.uint32)).astype(np.float64)
        scores_2K = np.nan_to_num(scores_2K, nan=0.0, posinf=_MAX_FLOAT, neginf=-_MAX_FLOAT)
        middle_K: NDArray[np.float64] = scores_2K.mean(axis=0)
        return middle_K

    def _sizes(self) -> NDArray[np.int64]:
        return self.tokens_K if self.budget.unit is Unit.TOKENS else self.counts_K

    def large(self) -> NDArray[np.bool_]:
        """Returns a mask of the bins with many documents, or a large part of the budget."""
        sizes_K = self._sizes()
        spent_K = expected_copies(self.budget, self._scores(), sizes_K) * sizes_K
        has_many_K = self.counts_K * RESOLUTION > self.documents
        large_K: NDArray[np.bool_] = has_many_K | (
            spent_K * RESOLUTION > max(1, self.budget.target)
        )
        return large_K

    def descend(self, histogram: Histogram) -> ScoreBins | Repetition:
        """Returns the refined distribution, or the copies once all bins are fine enough.

        Raises:
            SelectionError: The histogram counts another number of documents than the bins.
        """
        refined = self.refine(histogram)
        return refined.repetition() if refined.is_fine else refined

    def repetition(self) -> Repetition:
        """Returns the copies under this distribution."""
        if not self.documents:
            none = np.zeros(1, np.uint64)
            return Repetition(none, np.zeros(1, np.int64), none, (0.0, 0.0), 0.0)
        copies_K = expected_copies(self.budget, self._scores(), self._sizes())
        whole_K = np.floor(copies_K).astype(np.int64)
        chances_K = np.round((copies_K - whole_K) * (1 << CHANCE_BITS)).astype(np.uint64)
        chance_K = chances_K / (1 << CHANCE_BITS)
        means_K = whole_K + chance_K
        deviation = math.sqrt(float((self.counts_K * chance_K * (1 - chance_K)).sum()))

        return Repetition(
            self.starts_K,
            whole_K,
            chances_K,
            (float((self.counts_K * means_K).sum()), deviation),
            float((self.tokens_K * means_K).sum()),
        )
