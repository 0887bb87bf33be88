"""Distributions of scores in contiguous bins, refined round by round where a rule needs it.

Scores are represented by their *orders*; smaller is better (see
`datarater.pipelines.selection.ranking`). The bins begin as the high half of the order. In each
round those that a rule calls large are refined, eight bits at a time, down to the single score: a
distribution in bounded memory, whatever the scores.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import KEY_BITS, RankKeys, SelectionError

RESOLUTION = 1024
"""A bin with more than this share, 1/1024, of what a rule counts is large."""
CHANCE_BITS = 53
"""Chances of a draw are in units of 2^-53."""


@dataclass(frozen=True, kw_only=True)
class RefinedBins(abc.ABC):
    """The distribution of a group's scores with their tokens.

    Attributes:
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
    documents: int
    shift: int
    starts_K: NDArray[np.uint64]
    widths_K: NDArray[np.uint64]
    counts_K: NDArray[np.int64]
    tokens_K: NDArray[np.int64]

    @abc.abstractmethod
    def large(self) -> NDArray[np.bool_]:
        """Returns a mask of the bins that have too much for the rule to treat as one score."""

    @property
    def _coarse(self) -> NDArray[np.bool_]:
        """Mask of the bins to refine next."""
        if self.shift == 32:
            return np.ones(len(self.starts_K), bool)
        return (self.widths_K == np.uint64(1 << self.shift)) & self.large()

    @property
    def is_fine(self) -> bool:
        """Whether every bin is a single score or is not large."""
        return self.shift == 0 or not self._coarse.any()

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

        order_M = order_N[inside_N] >> np.uint64(self._next_shift)
        bins_K, index_M, counts_K = np.unique(order_M, return_inverse=True, return_counts=True)
        tokens_K = np.zeros(len(bins_K), np.int64)
        np.add.at(tokens_K, index_M, keys.tokens_N[inside_N])
        return Histogram(bins_K, counts_K.astype(np.int64), tokens_K)

    def refine(self, histogram: Histogram) -> Self:
        """Returns the distribution with its coarse bins refined.

        Args:
            histogram: Counts of the documents in the bins to refine.

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
        counts = np.concatenate([self.counts_K[~coarse_K], histogram.counts_K])
        tokens = np.concatenate([self.tokens_K[~coarse_K], histogram.tokens_K])

        order = np.argsort(starts, kind="stable")
        return replace(
            self,
            shift=shift,
            starts_K=starts[order],
            widths_K=widths[order],
            counts_K=counts[order],
            tokens_K=tokens[order],
        )


def one_bin(documents: int) -> dict[str, Any]:
    """Returns the fields of `RefinedBins` if only the number of documents is known."""
    return {
        "documents": documents,
        "shift": 32,
        "starts_K": np.zeros(1, np.uint64),
        "widths_K": np.asarray([1 << 32], np.uint64),
        "counts_K": np.asarray([documents]),
        "tokens_K": np.zeros(1, np.int64),
    }
