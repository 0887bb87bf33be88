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

_BINS = 1 << 16
# From this many keys or bins on, counting into all 65,536 bins is faster than sorting.
_DENSE_FROM = 2048
_MAX_WAITING = 1 << 16
_DOCUMENT_BITS = 18
_MAX_DOCUMENTS = (1 << _DOCUMENT_BITS) - 1
_MAX_TOKENS = (1 << (63 - 2 * _DOCUMENT_BITS)) - 1


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
        if 1 << LEVEL_BITS[level] > _BINS or len(keys) < _DENSE_FROM:
            return cls._by_sorting(keys.digits(level), np.ones(len(keys), np.int64), keys.tokens_N)
        return cls.merge(cls._by_counting(part, level) for part in keys.parts(_MAX_DOCUMENTS))

    @classmethod
    def _by_counting(cls, keys: RankKeys, level: int) -> Histogram:
        """Counts digits of 16 bits in an array of all bins.

        A bin's sum is its tokens * 2^18 + its documents, so one addition counts both.
        """
        sums_B = np.zeros(_BINS, np.int64)
        for part in keys.parts():
            # Sums that do not fit are as rare as documents of 10^8 tokens.
            if part.tokens_N.view(np.uint64).max() > _MAX_TOKENS:
                ones_N = np.ones(len(keys), np.int64)
                return cls._by_sorting(keys.digits(level), ones_N, keys.tokens_N)
            if level:
                digits_M = part.digits(level)
            else:
                digits_M = (part.scores_N.view(np.uint32) >> np.uint32(16)).astype(np.uint64)
            np.add.at(sums_B, digits_M.view(np.int64), (part.tokens_N << _DOCUMENT_BITS) + 1)

        # At the first level the scores' own bits are counted, which rise with positive scores.
        if not level:
            sums_B = np.concatenate([sums_B[: _BINS // 2][::-1], sums_B[_BINS // 2 :]])
        bins_K = np.flatnonzero(sums_B)
        sums_K = sums_B[bins_K]
        return cls(bins_K.view(np.uint64), sums_K & _MAX_DOCUMENTS, sums_K >> _DOCUMENT_BITS)

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
        if len(names) == 1:
            return {names[0]: cls.of(keys, 0)} if len(keys) else {}

        # A source with many documents is counted by itself.
        counted: dict[int, Histogram] = {}
        is_large_S = np.bincount(codes_N, minlength=len(names)) >= _DENSE_FROM
        is_large_N = is_large_S[codes_N]
        for code, rows_M in rows_by_code(codes_N, is_large_N):
            counted[code] = cls.of(keys.take(rows_M), 0)

        # The others are counted together, with the code of the source in front of the digit.
        rows_M = np.flatnonzero(~is_large_N)
        codes_M, rest = codes_N[rows_M].astype(np.uint64), keys.take(rows_M)
        digits_M = (codes_M << np.uint64(LEVEL_BITS[0])) + rest.digits(0)
        together = cls._by_sorting(digits_M, np.ones(len(rest), np.int64), rest.tokens_N)
        codes_K = together.bins_K >> np.uint64(LEVEL_BITS[0])
        codes, firsts = np.unique(codes_K, return_index=True)
        ends = np.append(firsts, len(codes_K))[1:]
        for code, first, end in zip(codes.tolist(), firsts.tolist(), ends.tolist(), strict=True):
            counted[code] = cls(
                together.bins_K[first:end] & np.uint64(_BINS - 1),
                together.counts_K[first:end],
                together.tokens_K[first:end],
            )
        return {names[code]: counted[code] for code in sorted(counted)}

    @classmethod
    def merge(cls, parts: Iterable[Histogram]) -> Histogram:
        """Returns the sum of histograms, the same in any order and grouping.

        Parts are added up as they come. Not more than `_MAX_WAITING` bins, or as many as the sum
        has, wait at a time.
        """
        total, waiting, bins = cls.empty(), [], 0
        for part in parts:
            waiting.append(part)
            bins += len(part.bins_K)
            if bins > max(_MAX_WAITING, len(total.bins_K)):
                total, waiting, bins = cls._sum([total, *waiting]), [], 0
        return cls._sum([total, *waiting])

    @classmethod
    def _sum(cls, parts: Sequence[Histogram]) -> Histogram:
        several = [part for part in parts if len(part.bins_K)]
        if len(several) < 2:
            return several[0] if several else cls.empty()
        if (
            sum(len(part.bins_K) for part in several) < _DENSE_FROM
            or max(int(part.bins_K[-1]) for part in several) >= _BINS
        ):
            columns = zip(
                *((part.bins_K, part.counts_K, part.tokens_K) for part in several), strict=True
            )
            return cls._by_sorting(*map(np.concatenate, columns))

        counts_B, tokens_B = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
        for part in several:
            at_K = part.bins_K.view(np.int64)
            counts_B[at_K] += part.counts_K
            tokens_B[at_K] += part.tokens_K
        bins_K = np.flatnonzero(counts_B)
        return cls(bins_K.view(np.uint64), counts_B[bins_K], tokens_B[bins_K])

    @classmethod
    def _by_sorting(
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
