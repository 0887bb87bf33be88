"""Searches: how the documents to keep of one group are found, round by round.

A rule begins a `CutoffSearch`. In every round each worker counts its undecided documents
(`CutoffSearch.count`), the counts are added up, and the search advances by the sum
(`CutoffSearch.descend`). It ends as a `Decision`, which decides every document by itself. Where few
documents are undecided, their keys can be gathered instead, which ends the search at once
(`Sortable.settle`).

Searches and decisions are immutable and small, and travel to the workers between rounds.
`datarater.pipelines.selection.descent` finds one cutoff, and
`datarater.pipelines.selection.batch_top_k` the chance of each score of being kept.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import RankKeys


class Decision(Protocol):
    """Decides which documents of a group to keep."""

    done: ClassVar[Literal[True]]

    @property
    def end(self) -> int | None:
        """The cutoff, below which exactly the kept keys lie; None if there is no such number."""

    @property
    def equal(self) -> int:
        """How many documents to keep of those whose key is `end`; 0 unless keys are equal."""

    @property
    def counted(self) -> tuple[int, int] | None:
        """The number of documents and tokens kept; None if the search did not count them."""

    def keeps(self, keys: RankKeys, seed: int) -> NDArray[np.bool_]:
        """Returns a mask of the documents to keep.

        Args:
            keys: Rank keys, hashed with the selection's seed.
            seed: Seed of the selection.
        """

    def expected(self, *, own: bool) -> tuple[float, float] | None:
        """Returns the expected number of documents that a draw keeps, and its standard deviation.

        Args:
            own: Whether the corpus counted is the one selected from, and not a reference.

        Returns:
            The two numbers; None if nothing is drawn, or the corpus is another one.
        """

    def to_json(self, *, own: bool) -> dict[str, Any]:
        """Returns the decision as JSON fields for the manifest.

        Args:
            own: See `expected`.
        """


class Sortable(Protocol):
    """A search that the keys of its undecided documents can finish."""

    @property
    def undecided(self) -> int:
        """The number of undecided documents."""

    @property
    def level(self) -> int:
        """The level of the next count; at the last one only the keys distinguish documents."""

    def settle(self, keys: RankKeys, *, through_equals: bool = False) -> Decision:
        """Returns the decision.

        Args:
            keys: Keys of all undecided documents, in any order.
            through_equals: Whether to keep all documents whose key equals the last one kept.

        Raises:
            SelectionError: There are more or fewer keys than were counted.
        """


class CutoffSearch(Protocol):
    """A search for what to keep of one group, before it is decided."""

    done: ClassVar[Literal[False]]

    @property
    def low(self) -> int:
        """The rank key from which on documents may be undecided."""

    @property
    def high(self) -> int:
        """The rank key below which documents may be undecided."""

    @property
    def level(self) -> int:
        """The level of the next count. Histograms of the whole group answer it at level 0."""

    @property
    def sortable(self) -> Sortable | None:
        """The search itself if the keys of its undecided documents can finish it."""

    def concerns(self, histogram: Histogram) -> bool:
        """Returns whether some documents can be undecided, given their histogram at level 0."""

    def count(self, keys: RankKeys) -> Histogram:
        """Counts undecided documents for the next step.

        Args:
            keys: Rank keys between `low` and `high`.
        """

    def descend(self, histogram: Histogram) -> State:
        """Returns the search one step further on, or the decision.

        Args:
            histogram: Sum of `count` over all documents of the group.

        Raises:
            SelectionError: It counts another number of documents than an earlier step.
        """


State = CutoffSearch | Decision
