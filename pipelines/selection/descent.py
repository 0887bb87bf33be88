"""Descent: finds the cutoff of one rule digit by digit, by mergeable histograms."""

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

# At most this many undecided documents are gathered and sorted (40 bytes each) in place of a next
# level.
SORT_LIMIT = 65_536

# From so many keys on, counting into all 65,536 bins is faster than sorting.
_DENSE_FROM = 8192


@dataclass(frozen=True)
class Histogram:
    """A sparse, mergeable histogram over one digit of the rank keys.

    Attributes:
        bins_K: uint64, ascending and distinct: the best first.
        counts_K: int64, documents in each bin.
        tokens_K: int64, their tokens.
    """

    bins_K: NDArray[np.uint64]
    counts_K: NDArray[np.int64]
    tokens_K: NDArray[np.int64]

    @classmethod
    def empty(cls) -> "Histogram":
        """Counts nothing."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, keys: RankKeys, level: int) -> "Histogram":
        """Counts the digits of keys at a level."""
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
    def merge(cls, parts: Iterable["Histogram"]) -> "Histogram":
        """The sum of several; in any order, in any grouping."""
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
    ) -> "Histogram":
        bins_K, index_N = np.unique(bins_N, return_inverse=True)
        counts_K, tokens_K = np.zeros(len(bins_K), np.int64), np.zeros(len(bins_K), np.int64)
        np.add.at(counts_K, index_N, counts_N)
        np.add.at(tokens_K, index_N, tokens_N)
        return cls(bins_K.astype(np.uint64), counts_K, tokens_K)

    @property
    def documents(self) -> int:
        """All documents counted."""
        return int(self.counts_K.sum())

    @property
    def tokens(self) -> int:
        """All their tokens."""
        return int(self.tokens_K.sum())

    def holds(self, bin_: int) -> bool:
        """Whether a bin counts any document."""
        index = int(np.searchsorted(self.bins_K, np.uint64(bin_)))
        return index < len(self.bins_K) and int(self.bins_K[index]) == bin_

    def to_json(self) -> dict[str, list[int]]:
        """As JSON fields."""
        return {
            "bins": self.bins_K.tolist(),
            "counts": self.counts_K.tolist(),
            "tokens": self.tokens_K.tolist(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Sequence[int]]) -> "Histogram":
        """What `to_json` wrote."""
        return cls(
            np.asarray(fields["bins"], np.uint64),
            np.asarray(fields["counts"], np.int64),
            np.asarray(fields["tokens"], np.int64),
        )


# --- the descent
# -------------------------------------------------------------------------------------


class Step(StrEnum):
    """What a boundary needs next."""

    HISTOGRAM = "histogram"
    SORT = "sort"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Boundary:
    """How far the cutoff is known: keep below `low`, drop from `high` on, undecided between.

    Constant in size and JSON-able: it is all that workers are told.

    Attributes:
        unit: what `left` counts.
        level: the level whose histogram comes next.
        low: rank key; everything below is kept.
        high: rank key; everything from it on is dropped.
        left: how many of `unit` to keep of those undecided; in the end, how many documents of those
            whose key is `end` itself, which is 0 where keys differ.
        undecided: documents with low <= key < high.
        kept: documents below low.
        kept_tokens: their tokens.
        end: the cutoff, once it is known: keep exactly the keys below it.
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
    def begin(cls, rule: Rule, histogram: Histogram) -> "Boundary":
        """The boundary after the first level.

        Args:
            rule: what to keep.
            histogram: of all scored documents, level 0.
        """
        whole = cls(rule.unit, 0, 0, 1 << KEY_BITS, 0, histogram.documents)
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
    def whole(cls, unit: Unit, target: int, documents: int) -> "Boundary":
        """The boundary before the first level: every document is undecided.

        Args:
            unit: what the target counts.
            target: how many of it to keep.
            documents: how many are scored.
        """
        boundary = cls(unit, 0, 0, 1 << KEY_BITS, target, documents)
        # Nothing to look for; a token budget of 0 may still keep documents without tokens.
        if documents == 0 or (target == 0 and unit is Unit.DOCUMENTS):
            return replace(boundary, high=0, left=0, undecided=0, end=0)
        return boundary

    @property
    def step(self) -> Step:
        """What is needed next: a histogram of the undecided, their keys to be sorted, or nothing."""
        if self.end is not None:
            return Step.NOTHING
        if (self.undecided <= SORT_LIMIT and self.level > 0) or self.level == LAST_LEVEL:
            return Step.SORT
        return Step.HISTOGRAM

    @property
    def counted(self) -> bool:
        """Whether `kept` is known: a threshold's is only known once its documents are counted."""
        return self.kept >= 0

    def undecided_of(self, keys: RankKeys) -> RankKeys:
        """The keys among these that are undecided."""
        return keys.take(keys.below(self.high) & ~keys.below(self.low))

    def first_digit(self) -> int:
        """The first level's digit in which all that is undecided lies (after the first level)."""
        return self.low >> SHIFTS[0]

    def descend(self, histogram: Histogram) -> "Boundary":
        """The boundary one level further down.

        Args:
            histogram: of all undecided documents, at `level`.

        Raises:
            SelectionError: the histogram does not count the undecided documents.
        """
        if histogram.documents != self.undecided:
            raise SelectionError(
                f"level {self.level} ({LEVEL_NAMES[self.level]}) counts {histogram.documents} documents where "
                f"the level above counted {self.undecided}: the scores changed during the selection"
            )
        measures_K = histogram.counts_K if self.unit is Unit.DOCUMENTS else histogram.tokens_K
        cumulative_K = np.cumsum(measures_K)
        whole = int(np.searchsorted(cumulative_K, self.left, side="right"))
        kept = self.kept + int(histogram.counts_K[:whole].sum())
        kept_tokens = self.kept_tokens + int(histogram.tokens_K[:whole].sum())
        left = self.left - (int(cumulative_K[whole - 1]) if whole else 0)
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
        shift = SHIFTS[self.level]
        low = self.low + (int(histogram.bins_K[whole]) << shift)
        # A token budget goes on at 0 left: documents without tokens may stand first in the bin.
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

    def settle(self, keys: RankKeys, *, through_equals: bool = False) -> "Boundary":
        """The cutoff, from the keys of all undecided documents.

        Documents of a run have keys that differ. Where some have not (elements of a pipeline that
        are equal in everything), the cutoff can fall between equals: `left` then says how many of
        those at `end` are to be kept.

        Args:
            keys: of the undecided.
            through_equals: keep all equals of the last one kept.

        Raises:
            SelectionError: they are not as many as were counted.
        """
        if len(keys) != self.undecided:
            raise SelectionError(
                f"{len(keys)} undecided documents were gathered where {self.undecided} were counted: "
                "the scores changed during the selection"
            )
        keys = keys.take(
            np.lexsort((keys.positions_N, keys.ordinals_N, keys.hashes_N, keys.order_N))
        )
        measures_N = (
            np.ones(len(keys), np.int64)
            if self.unit is Unit.DOCUMENTS
            else keys.tokens_N.astype(np.int64)
        )
        whole = int(np.searchsorted(np.cumsum(measures_N), self.left, side="right"))
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
        """As JSON fields; rank keys as hexadecimal text."""
        fields = dict(self.__dict__)
        return {
            **fields,
            "unit": str(self.unit),
            "low": f"{self.low:x}",
            "high": f"{self.high:x}",
            "end": None if self.end is None else f"{self.end:x}",
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Boundary":
        """What `to_json` wrote."""
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
        """The score at the cutoff, for a person to read: the last kept documents score about this.

        Returns:
            The lowest score that the cutoff lets through (some that score exactly this may be
            dropped); None where nothing or everything is kept, or nothing is known yet.
        """
        if self.end is None or self.end <= 0 or self.end >> KEY_BITS:
            return None
        bits = 0xFFFFFFFF - ((self.end - 1) >> 160)
        raw = bits & 0x7FFFFFFF if bits >> 31 else ~bits & 0xFFFFFFFF
        score = float(np.uint32(raw).view(np.float32))
        return score if np.isfinite(score) else None
