"""Histograms: sparse counts of documents and tokens by one digit of their rank keys.

They merge by addition, in any order and grouping, so every count of a corpus can be made by workers
that see only a part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.ranking import LEVEL_BITS, RankKeys, rows_by_code

# From this many keys on, counting into all 65,536 bins is faster than sorting.
_DENSE_FROM = 8192


@dataclass(frozen=True)
class Histogram:
    """A sparse, mergeable histogram over one digit of the rank keys.

    Attributes:
        bins_K: Distinct digits in ascending order (the best first), uint64.
        counts_K: Number of documents in each bin, int64.
        tokens_K: Number of their tokens, int64.
    """

    bins_K: NDArray[np.uint64]
    counts_K: NDArray[np.int64]
    tokens_K: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Histogram:
        """Returns the histogram of no documents."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, keys: RankKeys, level: int) -> Histogram:
        """Counts the digits of keys at a level."""
        # Dense: one pass over all bins.
        if LEVEL_BITS[level] == 16 and len(keys) >= _DENSE_FROM:
            digits_N = keys.digits(level).astype(np.int64)
            counts_B = np.bincount(digits_N, minlength=1 << 16)
            tokens_B = np.zeros(1 << 16, np.int64)
            np.add.at(tokens_B, digits_N, keys.tokens_N)
            bins_K = np.flatnonzero(counts_B)
            return cls(
                bins_K.astype(np.uint64), counts_B[bins_K].astype(np.int64), tokens_B[bins_K]
            )
        return cls._summed(keys.digits(level), np.ones(len(keys), np.int64), keys.tokens_N)

    @classmethod
    def by_source(
        cls, keys: RankKeys, codes_N: NDArray[np.int64], names: Sequence[str]
    ) -> dict[str, Histogram]:
        """Counts the digits of every source's keys at level 0.

        Args:
            keys: Rank keys of N scored documents.
            codes_N: Source of each document, an index into `names`.
            names: Names of the sources.
        """
        everything_N = np.ones(len(keys), bool)
        return {
            names[code]: cls.of(keys.take(rows_M), 0)
            for code, rows_M in rows_by_code(codes_N, everything_N)
        }

    @classmethod
    def merge(cls, parts: Iterable[Histogram]) -> Histogram:
        """Returns the sum of histograms, the same in any order and grouping."""
        columns = [(part.bins_K, part.counts_K, part.tokens_K) for part in parts]
        if not columns:
            return cls.empty()
        bins_N, counts_N, tokens_N = (
            np.concatenate(column) for column in zip(*columns, strict=True)
        )
        return cls._summed(bins_N, counts_N, tokens_N)

    @classmethod
    def _summed(
        cls, bins_N: NDArray[np.uint64], counts_N: NDArray[np.int64], tokens_N: NDArray[np.int64]
    ) -> Histogram:
        bins_K, index_N = np.unique(bins_N, return_inverse=True)
        counts_K, tokens_K = np.zeros(len(bins_K), np.int64), np.zeros(len(bins_K), np.int64)
        np.add.at(counts_K, index_N, counts_N)
        np.add.at(tokens_K, index_N, tokens_N)
        return cls(bins_K.astype(np.uint64), counts_K, tokens_K)

    @property
    def documents(self) -> int:
        """The number of documents counted."""
        return int(self.counts_K.sum())

    @property
    def tokens(self) -> int:
        """The number of their tokens."""
        return int(self.tokens_K.sum())

    def holds(self, bin_: int) -> bool:
        """Returns whether a bin counts any document."""
        index = int(np.searchsorted(self.bins_K, np.uint64(bin_)))
        return index < len(self.bins_K) and int(self.bins_K[index]) == bin_

    def to_json(self) -> dict[str, list[int]]:
        """Returns the histogram as JSON fields."""
        return {
            "bins": self.bins_K.tolist(),
            "counts": self.counts_K.tolist(),
            "tokens": self.tokens_K.tolist(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Sequence[int]]) -> Histogram:
        """Returns the histogram that `to_json` wrote."""
        return cls(
            np.asarray(fields["bins"], np.uint64),
            np.asarray(fields["counts"], np.int64),
            np.asarray(fields["tokens"], np.int64),
        )
