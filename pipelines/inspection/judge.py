"""Says what a finished selection decides about a document, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datarater.pipelines.inspection.found_documents import FoundDocument, Place, read_rows
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.duplicates import read_duplicates
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import Manifest
from datarater.pipelines.run_folder.plan import CommittedPlans
from datarater.pipelines.run_folder.ranking_options import EXCLUSIONS, NEAR_DUPLICATE
from datarater.pipelines.run_folder.sampled_copies import read_copies
from datarater.pipelines.run_folder.score_files import RANKED_BY
from datarater.pipelines.run_folder.scored import Scoring, read_scoring
from datarater.pipelines.selection.ranking import RankKeys
from datarater.pipelines.selection.sampling import Repetition
from datarater.report.keeping import Keeping

_NEIGHBOR_COLUMNS = ("file", "position", "duplicate_of", "similarity", "exact")


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """The better document that another one is a near-duplicate of.

    Attributes:
        key: Its key.
        similarity: Estimated Jaccard similarity of the two; 1 if `is_exact`.
        is_exact: Whether the two have the same words in the same order.
    """

    key: str
    similarity: float
    is_exact: bool


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a selection decides about a document.

    Attributes:
        selection: Name of the selection.
        chance: Chance that the document is kept, 0 or 1 unless the rule draws; None if the
            selection does not cover it.
        copies: Number of its copies in the output, in a selection that samples by temperature.
        excluded: Reason why the selection's ranking excludes it; "" if it does not.
        neighbor: What it is a near-duplicate of, where that is the reason.
    """

    selection: str
    chance: float | None
    copies: int | None = None
    excluded: str = ""
    neighbor: Neighbor | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the document is kept; None if chance decides, or it is not covered."""
        if self.copies is not None:
            return self.copies > 0
        return None if self.chance not in (0, 1) else self.chance == 1

    def __str__(self) -> str:
        """Returns the decision in words."""
        if self.excluded:
            return f"dropped: {self.excluded}"
        if self.chance is None:
            return "added after the selection"
        if self.kept is None:
            return f"kept with a chance of {self.chance:.0%}"
        if self.copies is not None and self.copies > 1:
            return f"kept in {self.copies} copies"
        return "kept" if self.kept else "dropped"


@dataclasses.dataclass(frozen=True)
class Judge:
    """A finished selection, which decides about documents.

    Attributes:
        run: Run folder.
        manifest: Manifest of the selection.
        plans: The plans that it covers.
        keeping: Its cutoffs.
        copies: Its copies by source, or under "", if it samples by temperature.
    """

    run: RunFolder
    manifest: Manifest
    plans: CommittedPlans
    keeping: Keeping
    copies: Mapping[str, Repetition]

    @classmethod
    def of(cls, run: RunFolder, manifest: Manifest, plans: CommittedPlans) -> Judge:
        """Returns the judge of a manifest, given all plans of the run."""
        covered = dataclasses.replace(
            plans,
            identities=plans.identities[: manifest.plans],
            indices=plans.indices[: manifest.plans],
        )
        copies = read_copies(run.selection(manifest.name))
        return cls(run, manifest, covered, Keeping.of(manifest.cutoff), copies)

    @property
    def has_ranking(self) -> bool:
        """Whether the selection ranks by more than the run's score."""
        return self.manifest.ranking is not None

    @property
    def folder(self) -> RunFolder:
        """The run folder as the selection sees it: with the score files that it ranks by."""
        return self.run.ranking(self.manifest.name) if self.has_ranking else self.run

    def scoring(self) -> Scoring:
        """Reads the counts of the documents that the selection ranks."""
        return read_scoring(self.folder, self.manifest.plans)

    @property
    def columns(self) -> list[str]:
        """The names of the columns of joined tables that the selection uses."""
        ranking = self.manifest.ranking
        joins = () if ranking is None else ranking.joins
        return [name for table in joins for name in table.full_names()]

    def read_rows(self, places: Sequence[Place]) -> list[FoundDocument]:
        """Returns documents as the selection sees them, or as the run does if it covers them not.

        Args:
            places: Their places, which give the order.

        Raises:
            CountsError: A score file is missing or damaged.
        """
        if not self.has_ranking:
            return read_rows(self.run, places)
        covered = [place for place in places if self._covers(place)]
        others = [place for place in places if not self._covers(place)]
        found = [*read_rows(self.folder, covered), *read_rows(self.run, others)]
        by_place = {document.place: document for document in found}
        return [by_place[place] for place in places if place in by_place]

    def _covers(self, place: Place) -> bool:
        return place.part < self.plans.end

    def decide(self, documents: Sequence[FoundDocument]) -> list[Decision]:
        """Returns the decisions about documents that `read_rows` read.

        Raises:
            CountsError: A file of near-duplicates is missing or damaged.
        """
        duplicates = [one for one in documents if one.row["status"] == NEAR_DUPLICATE]
        neighbors = self._neighbors(duplicates)
        return [self._decide(one, neighbors.get(one.place)) for one in documents]

    def _decide(self, document: FoundDocument, neighbor: Neighbor | None) -> Decision:
        name, row = self.manifest.name, document.row
        if not self._covers(document.place):
            return Decision(name, None)
        if row["status"] in EXCLUSIONS:
            return Decision(name, 0.0, 0 if self.copies else None, row["status"], neighbor)

        score = row[RANKED_BY] if self.has_ranking else row["score"]
        keys = RankKeys.of(
            np.asarray([score], np.float32),
            np.asarray([row["key_hash"]], np.uint64),
            self.manifest.seed,
            document.place.part,
            np.asarray([row["position"]]),
            np.asarray([row["tokens"]], np.int64),
        )
        scores_N, codes_N = np.asarray([score]), np.zeros(1, np.int64)
        chance = float(self.keeping.chances(keys, scores_N, codes_N, [row["source"]])[0])
        return Decision(name, chance, self._count_copies(keys, row["source"]))

    def _count_copies(self, keys: RankKeys, source: str) -> int | None:
        """Returns the copies of one document; None for a rule without copies."""
        if not self.copies:
            return None
        decision = self.copies.get(source if self.keeping.per_source else "")
        copies = 0 if decision is None else int(decision.copies(keys, self.manifest.seed)[0])
        return max(copies, int(keys.below(self.keeping.end(source))[0]))

    def _neighbors(self, documents: Sequence[FoundDocument]) -> dict[Place, Neighbor]:
        """Returns the neighbors of near-duplicates; reads the files of their splits."""
        ranking = self.manifest.ranking
        if not documents or ranking is None or not ranking.duplicates:
            return {}
        duplicates = self.run.duplicates(ranking.duplicates)
        wanted: dict[int, dict[tuple[str, int], Place]] = {}
        for document in documents:
            at = document.split.path, document.place.position
            wanted.setdefault(document.place.ordinal, {})[at] = document.place

        def of_split(ordinal: int) -> dict[Place, Neighbor]:
            table = read_duplicates(duplicates, ordinal, _NEIGHBOR_COLUMNS)
            places = zip(table["file"].to_pylist(), table["position"].to_pylist(), strict=True)
            rows = [row for row, at in enumerate(places) if at in wanted[ordinal]]
            return {
                wanted[ordinal][row["file"], row["position"]]: _neighbor(row)
                for row in table.take(rows).to_pylist()
            }

        found: dict[Place, Neighbor] = {}
        for one in at_once(of_split, list(wanted)):
            found |= one
        return found


def _neighbor(row: Mapping[str, Any]) -> Neighbor:
    return Neighbor(row["duplicate_of"], row["similarity"], row["exact"])
