"""Descent: finds the cutoff of one group digit by digit, from mergeable histograms.

A group keeps the documents whose rank key (`datarater.pipelines.selection.ranking`) is below one
number, the *cutoff*. The descent finds it as in a radix sort. A histogram over the key's next digit
shows in which bin the cutoff lies: with counts c_1, c_2, ... of the bins, the best first, and a
target of t documents, it is the first bin k with

    c_1 + ... + c_k > t.

All bins before k are kept, all bins after it are dropped, and t - (c_1 + ... + c_{k-1}) of its own
documents are still to be kept. The next histogram counts only the documents of that bin. A token
budget works in the same way, with sums of tokens in place of counts.

Once few documents are undecided, their keys can be gathered and sorted, which ends the descent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import (
    KEY_BITS,
    SHIFTS,
    RankKeys,
    SelectionError,
    scores_of,
)

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


class Unit(StrEnum):
    """The unit of a target."""

    DOCUMENTS = "documents"
    TOKENS = "tokens"


@dataclass(frozen=True)
class Cutoff:
    """The decision to keep the documents whose rank key is below one number.

    Attributes:
        end: The cutoff.
        counted: Number of documents and tokens below it; None if not counted.
        equal: How many documents to keep of those whose key is `end` itself; 0 unless keys are
            equal.
    """

    done: ClassVar[Literal[True]] = True
    end: int
    counted: tuple[int, int] | None = None
    equal: int = 0

    def keeps(self, keys: RankKeys, seed: int) -> NDArray[np.bool_]:
        """Returns a mask of the keys below the cutoff."""
        return keys.below(self.end)

    def expected(self, *, own: bool) -> None:
        """Returns None: nothing is drawn."""

    def to_json(self, *, own: bool) -> dict[str, Any]:
        """Returns the cutoff as JSON fields for the manifest."""
        return {"rank_key": f"{self.end:x}", "lowest_score": self.lowest_score()}

    def lowest_score(self) -> float | None:
        """Returns the score at the cutoff, for reports.

        Returns:
            The lowest score that can be kept (some documents with exactly this score may be
            dropped); None if nothing or everything is kept.
        """
        if self.end <= 0 or self.end >> KEY_BITS:
            return None
        score = float(scores_of((self.end - 1) >> 160))
        return score if np.isfinite(score) else None


@dataclass(frozen=True)
class Boundary:
    """How far the cutoff is known: keep below `low`, drop from `high` on, undecided between.

    Attributes:
        unit: Unit of `left`.
        level: Level of the next histogram.
        low: Rank key below which every document is kept.
        high: Rank key from which on every document is dropped.
        left: How many of `unit` to keep of the undecided documents.
        undecided: Number of documents with low <= key < high.
        kept: Number of documents below `low`.
        kept_tokens: Number of their tokens.
    """

    done: ClassVar[Literal[False]] = False
    unit: Unit
    level: int
    low: int
    high: int
    left: int
    undecided: int
    kept: int = 0
    kept_tokens: int = 0

    @classmethod
    def begin(
        cls, unit: Unit, target: int, documents: int, histogram: Histogram | None = None
    ) -> Boundary | Cutoff:
        """Returns the boundary after the first level if it is counted already, otherwise before it.

        Args:
            unit: Unit of the target.
            target: How many of `unit` to keep.
            documents: Number of scored documents.
            histogram: Histogram of all scored documents at level 0.
        """
        whole = cls(unit, 0, 0, 1 << KEY_BITS, target, documents)
        if histogram is not None:
            return whole.descend(histogram)

        # There is nothing to find; but a token budget of 0 may keep documents without tokens.
        if documents == 0 or (target == 0 and unit is Unit.DOCUMENTS):
            return Cutoff(0, (0, 0))
        return whole

    @property
    def sortable(self) -> Boundary | None:
        """The boundary itself once the first level, which needs no documents, is counted."""
        return self if self.level else None

    def concerns(self, histogram: Histogram) -> bool:
        """Returns whether some documents can be undecided, given their histogram at level 0."""
        return self.level == 0 or histogram.holds(self.low >> SHIFTS[0])

    def count(self, keys: RankKeys) -> Histogram:
        """Counts the digits of undecided keys at the next level."""
        return Histogram.of(keys, self.level)

    def descend(self, histogram: Histogram) -> Boundary | Cutoff:
        """Returns the boundary one level further down, or the cutoff.

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

        # The target covers every bin: keep all undecided documents.
        if whole == len(cumulative_K):
            return Cutoff(self.high, (kept, kept_tokens))

        # The cutoff is between two bins if nothing is left to keep. A token budget continues then:
        # the next bin may begin with documents without tokens.
        left = self.left - (int(cumulative_K[whole - 1]) if whole else 0)
        shift = SHIFTS[self.level]
        low = self.low + (int(histogram.bins_K[whole]) << shift)
        if left == 0 and self.unit is Unit.DOCUMENTS:
            return Cutoff(low, (kept, kept_tokens))

        # Otherwise only the documents of one bin are still undecided.
        return replace(
            self,
            level=self.level + 1,
            low=low,
            high=low + (1 << shift),
            left=left,
            undecided=int(histogram.counts_K[whole]),
            kept=kept,
            kept_tokens=kept_tokens,
        )

    def settle(self, keys: RankKeys, *, through_equals: bool = False) -> Cutoff:
        """Returns the cutoff, from the keys of all undecided documents.

        Documents of a run have distinct keys. Identical elements of a pipeline do not, and the
        cutoff can fall between them: `Cutoff.equal` is then how many of them to keep.

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
            np.lexsort((keys.positions_N, keys.ordinals_N, keys.hashes(), keys.orders()))
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
        kept_tokens = self.kept_tokens + int(keys.tokens_N[:whole].sum())
        return Cutoff(end, (self.kept + whole, kept_tokens), equal)
