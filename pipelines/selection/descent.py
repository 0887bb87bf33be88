"""Descent: finds the cutoff of one rule digit by digit, from mergeable histograms.

A rule keeps the documents whose rank key (`datarater.pipelines.selection.ranking`) is below one
number, the *cutoff*. The descent finds it as in a radix sort. A sparse histogram over the key's
next digit (`Histogram`) shows in which bin the cutoff lies: with counts c_1, c_2, ... of the bins,
the best first, and a target of t documents, it is the first bin k with

    c_1 + ... + c_k > t.

All bins before k are kept, all bins after it are dropped, and t - (c_1 + ... + c_{k-1}) of its own
documents are still to be kept. The next histogram counts only the documents of that bin. A token
budget works in the same way, with sums of tokens in place of counts.

Histograms carry documents and tokens and merge by addition, so the descent needs nothing but small
sums from the workers. As soon as few documents are undecided, their keys are gathered and sorted,
which ends it. A `Boundary` is the state between two levels. Everything here is arithmetic on
arrays, without input or output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.ranking import (
    KEY_BITS,
    LAST_LEVEL,
    LEVEL_BITS,
    SHIFTS,
    RankKeys,
    SelectionError,
)
from datarater.pipelines.selection.rules import Rule, Threshold, Unit

LEVEL_NAMES = (
    "score, high half",
    "score, low half",
    "hash, first quarter",
    "hash, second quarter",
    "hash, third quarter",
    "hash, last quarter",
    "split ordinal",
    "position",
)

# Up to this many undecided documents are gathered and sorted (40 bytes each) instead of counted at
# a next level.
SORT_LIMIT = 65_536

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


class Step(StrEnum):
    """What a boundary needs next."""

    HISTOGRAM = "histogram"
    SORT = "sort"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Boundary:
    """How far the cutoff is known: keep below `low`, drop from `high` on, undecided between.

    Constant in size and JSON-able; workers need nothing else.

    Attributes:
        unit: Unit of `left`.
        level: Level of the next histogram.
        low: Rank key below which every document is kept.
        high: Rank key from which on every document is dropped.
        left: How many of `unit` to keep of the undecided documents. Once `end` is known: how many
            documents to keep of those whose key is `end` itself; 0 unless keys are equal.
        undecided: Number of documents with low <= key < high.
        kept: Number of documents below `low`; -1 if not counted.
        kept_tokens: Number of their tokens; -1 if not counted.
        end: The cutoff, once known: keep exactly the keys below it.
    """

    unit: Unit
    level: int
    low: int
    high: int
    left: int
    undecided: int
    kept: int = 0
    kept_tokens: int = 0
    end: int | None = None

    @classmethod
    def begin(cls, rule: Rule, histogram: Histogram) -> Boundary:
        """Returns the boundary after the first level.

        Args:
            rule: How much to keep.
            histogram: Histogram of all scored documents at level 0.
        """
        whole = cls(rule.unit, 0, 0, 1 << KEY_BITS, 0, histogram.documents)

        # A threshold is its own cutoff; how many documents it keeps is not counted here.
        if isinstance(rule, Threshold):
            return cls(
                rule.unit,
                LAST_LEVEL,
                rule.end,
                rule.end,
                0,
                0,
                kept=-1,
                kept_tokens=-1,
                end=rule.end,
            )

        left = rule.target(histogram.documents, histogram.tokens)
        return replace(whole, left=left).descend(histogram)

    @classmethod
    def whole(cls, unit: Unit, target: int, documents: int) -> Boundary:
        """Returns the boundary before the first level, where every document is undecided.

        Args:
            unit: Unit of the target.
            target: How many of `unit` to keep.
            documents: Number of scored documents.
        """
        boundary = cls(unit, 0, 0, 1 << KEY_BITS, target, documents)
        # There is nothing to find; but a token budget of 0 may keep documents without tokens.
        if documents == 0 or (target == 0 and unit is Unit.DOCUMENTS):
            return replace(boundary, high=0, left=0, undecided=0, end=0)
        return boundary

    @property
    def step(self) -> Step:
        """The next step: a histogram of the undecided documents, sorting their keys, or nothing."""
        if self.end is not None:
            return Step.NOTHING
        if (self.undecided <= SORT_LIMIT and self.level > 0) or self.level == LAST_LEVEL:
            return Step.SORT
        return Step.HISTOGRAM

    @property
    def counted(self) -> bool:
        """Whether `kept` is known; for a threshold it is not."""
        return self.kept >= 0

    def undecided_of(self, keys: RankKeys) -> RankKeys:
        """Returns the undecided keys among these."""
        return keys.take(keys.below(self.high) & ~keys.below(self.low))

    def first_digit(self) -> int:
        """Returns the first-level digit of all undecided documents, after the first level."""
        return self.low >> SHIFTS[0]

    def descend(self, histogram: Histogram) -> Boundary:
        """Returns the boundary one level further down.

        Args:
            histogram: Histogram of all undecided documents at `level`.

        Raises:
            SelectionError: The histogram counts another number of documents than are undecided.
        """
        if histogram.documents != self.undecided:
            raise SelectionError(
                f"level {self.level} ({LEVEL_NAMES[self.level]}) counts {histogram.documents} "
                f"documents where the level above counted {self.undecided}: "
                "the scores changed during the selection"
            )

        # Bins before the one with the cutoff are kept whole.
        measures_K = histogram.counts_K if self.unit is Unit.DOCUMENTS else histogram.tokens_K
        cumulative_K = np.cumsum(measures_K)
        whole = int(np.searchsorted(cumulative_K, self.left, side="right"))
        kept = self.kept + int(histogram.counts_K[:whole].sum())
        kept_tokens = self.kept_tokens + int(histogram.tokens_K[:whole].sum())
        left = self.left - (int(cumulative_K[whole - 1]) if whole else 0)

        # The target covers every bin: keep all undecided documents.
        if whole == len(cumulative_K):
            return replace(
                self,
                low=self.high,
                left=0,
                undecided=0,
                kept=kept,
                kept_tokens=kept_tokens,
                end=self.high,
            )

        # Only the documents of this bin are still undecided.
        shift = SHIFTS[self.level]
        low = self.low + (int(histogram.bins_K[whole]) << shift)
        # A token budget continues with 0 left: the bin may begin with documents without tokens.
        done = self.unit is Unit.DOCUMENTS and left == 0
        return replace(
            self,
            level=self.level + 1,
            low=low,
            high=low + (1 << shift),
            left=left,
            undecided=0 if done else int(histogram.counts_K[whole]),
            kept=kept,
            kept_tokens=kept_tokens,
            end=low if done else None,
        )

    def settle(self, keys: RankKeys, *, through_equals: bool = False) -> Boundary:
        """Returns the boundary with its cutoff, from the keys of all undecided documents.

        Documents of a run have distinct keys. Identical elements of a pipeline do not, and the
        cutoff can fall between them: `left` is then how many of those at `end` to keep.

        Args:
            keys: Keys of the undecided documents, in any order.
            through_equals: Whether to keep all documents whose key equals the last one kept.

        Raises:
            SelectionError: There are more or fewer keys than were counted.
        """
        if len(keys) != self.undecided:
            raise SelectionError(
                f"{len(keys)} undecided documents were gathered where {self.undecided} "
                "were counted: the scores changed during the selection"
            )

        # Sort the keys, and count the longest prefix within the target.
        keys = keys.take(
            np.lexsort((keys.positions_N, keys.ordinals_N, keys.hashes_N, keys.order_N))
        )
        measures_N = (
            np.ones(len(keys), np.int64)
            if self.unit is Unit.DOCUMENTS
            else keys.tokens_N.astype(np.int64)
        )
        whole = int(np.searchsorted(np.cumsum(measures_N), self.left, side="right"))

        # If the prefix ends between equal keys, either count those to keep or keep all of them.
        equal = 0
        if 0 < whole < len(keys) and keys.key(whole) == keys.key(whole - 1):
            equals_N = keys.below(keys.key(whole) + 1) & ~keys.below(keys.key(whole))
            equal = whole - int(np.flatnonzero(equals_N)[0])
            if through_equals:
                whole, equal = int(np.flatnonzero(equals_N)[-1]) + 1, 0

        end = self.high if whole == len(keys) else keys.key(whole)
        return replace(
            self,
            low=end,
            high=end,
            left=equal,
            undecided=0,
            kept=self.kept + whole,
            kept_tokens=self.kept_tokens + int(keys.tokens_N[:whole].sum()),
            end=end,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the boundary as JSON fields, with rank keys as hexadecimal text."""
        fields = dict(self.__dict__)
        return {
            **fields,
            "unit": str(self.unit),
            "low": f"{self.low:x}",
            "high": f"{self.high:x}",
            "end": None if self.end is None else f"{self.end:x}",
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Boundary:
        """Returns the boundary that `to_json` wrote."""
        end = fields["end"]
        return cls(
            **{
                **fields,
                "unit": Unit(fields["unit"]),
                "low": int(fields["low"], 16),
                "high": int(fields["high"], 16),
                "end": None if end is None else int(end, 16),
            }
        )

    def lowest_score(self) -> float | None:
        """Returns the score at the cutoff, for reports.

        Returns:
            The lowest score that can be kept (some documents with exactly this score may be
            dropped); None if nothing or everything is kept, or the cutoff is not known yet.
        """
        if self.end is None or self.end <= 0 or self.end >> KEY_BITS:
            return None
        bits = 0xFFFFFFFF - ((self.end - 1) >> 160)
        raw = bits & 0x7FFFFFFF if bits >> 31 else ~bits & 0xFFFFFFFF
        score = float(np.uint32(raw).view(np.float32))
        return score if np.isfinite(score) else None
