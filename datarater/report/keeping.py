"""What the cutoffs of a manifest keep: of each document, the chance that it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.ranking import (
    KEY_BITS,
    Ends,
    RankKeys,
    rows_by_code,
    scores_of,
)

_CORPUS = ""


@dataclass(frozen=True)
class Keeping:
    """Cutoffs of a selection, for the whole corpus or for each source.

    Attributes:
        per_source: Whether each source has a cutoff of its own.
        groups: Fields of the cutoff by source, or under "" for the corpus.
        minimum: Fields of the cutoff that guarantees a minimum, by source.
    """

    per_source: bool
    groups: Mapping[str, Mapping[str, Any]]
    minimum: Mapping[str, Mapping[str, Any]]
    _cutoffs: dict[str, float | None] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, cutoff: Mapping[str, Any]) -> Keeping:
        """Returns the cutoffs that a manifest describes."""
        per_source = "sources" in cutoff
        groups = cutoff["sources"] if per_source else {_CORPUS: cutoff}
        return cls(per_source, groups, cutoff.get("minimum", {}))

    @property
    def draws(self) -> bool:
        """Whether documents are drawn by chance."""
        return any("probabilities" in fields for fields in self.groups.values())

    def cutoff(self, source: str) -> float | None:
        """Returns the lowest score that can be kept of a source.

        Returns:
            The score; None if all or nothing is kept, or documents are drawn.
        """
        # Every score file asks again, and a corpus may have thousands of sources.
        if source not in self._cutoffs:
            self._cutoffs[source] = self._find_cutoff(source)
        return self._cutoffs[source]

    def _find_cutoff(self, source: str) -> float | None:
        end = self.end(source)
        if "probabilities" in self._group(source) or not 0 < end < 1 << KEY_BITS:
            return None
        score = float(scores_of([(end - 1) >> 160])[0])
        return score if np.isfinite(score) else None

    def cutoffs(self, sources: Sequence[str]) -> list[float]:
        """Returns the distinct cutoffs of some sources, ascending."""
        return sorted({score for score in map(self.cutoff, sources) if score is not None})

    def chances(
        self, keys: RankKeys, scores_N: NDArray[Any], codes_N: NDArray[Any], names: Sequence[str]
    ) -> NDArray[np.float64]:
        """Returns the chance of each document to be kept; 0 or 1 unless the rule draws.

        Args:
            keys: Rank keys of N documents.
            scores_N: Their scores.
            codes_N: Source of each document, an index into `names`.
            names: Names of the sources.
        """
        ends = Ends.of([self.end(name) for name in names])
        chances_N = keys.below_each(ends, codes_N).astype(np.float64)
        if not self.draws:
            return chances_N
        for code, rows_M in rows_by_code(codes_N, np.ones(len(codes_N), bool)):
            steps = self._group(names[code]).get("probabilities")
            if steps:
                # The steps go down from the best score; each holds from its score on.
                starts_K = -np.asarray([step["score"] for step in steps])
                index_M = np.searchsorted(starts_K, -scores_N[rows_M], side="right") - 1
                chances_K = np.asarray([step["probability"] for step in steps])
                drawn_M = chances_K[np.maximum(index_M, 0)]
                chances_N[rows_M] = np.maximum(chances_N[rows_M], drawn_M)
        return chances_N

    def _group(self, source: str) -> Mapping[str, Any]:
        return self.groups.get(source if self.per_source else _CORPUS, {})

    def end(self, source: str) -> int:
        """Returns the rank key below which every document of a source is kept."""
        fields = (self._group(source), self.minimum.get(source, {}))
        return max(int(one.get("rank_key", "0"), 16) for one in fields)
