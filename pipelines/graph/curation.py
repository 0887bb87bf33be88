"""What a command does, as a value: enough to build its graph anywhere, in this process or in another."""

import dataclasses
from typing import Any

import apache_beam as beam

from datarater.pipelines.graph import publishing, scoring
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder


@dataclasses.dataclass(frozen=True)
class Work:
    """Scoring, selecting, or both in one graph.

    Attributes:
        scoring: what to score; None if that is done.
        selection: what to keep; None to score only.
    """

    scoring: ScoringRequest | None = None
    selection: SelectionRequest | None = None

    def __post_init__(self) -> None:
        if self.scoring is None and self.selection is None:
            raise ValueError("there is nothing to do: neither scoring nor selection is given")

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        request = self.selection or self.scoring
        assert request is not None
        return request.folder

    @property
    def goal(self) -> str:
        """The file that the graph commits last."""
        return (
            self.folder.scoring_path
            if self.selection is None
            else self.selection.selection.success_path
        )

    def leases(self) -> list[str]:
        """The leases to hold: one launch at a time scores, and one makes each selection."""
        folders = []
        if self.scoring is not None and not commits.exists(self.folder.scoring_path):
            folders.append(self.folder.scoring_lease_path)
        if self.selection is not None:
            folders.append(self.folder.selection_lease_path(self.selection.name))
        return folders

    def folders(self) -> list[str]:
        """The folders that only a holder of these leases writes into, once the work is done."""
        folders = []
        if self.scoring is not None:
            folders += self.folder.scoring_folders
        if self.selection is not None:
            folders.append(self.selection.selection.path)
        return folders

    def of_launch(self, launch: str, slots: int = 0) -> "Work":
        """The same work, done by a launch; its workers leave marks in its name.

        Args:
            launch: its id.
            slots: see `ScoringRequest`.
        """
        if self.scoring is None:
            return self
        return dataclasses.replace(
            self, scoring=dataclasses.replace(self.scoring, launch=launch, slots=slots)
        )

    def build(self, start: beam.PCollection) -> Any:
        """Adds the steps to a collection of one element."""
        scored = start
        if self.scoring is not None:
            scored = start | "Score" >> scoring.ScoreCorpus(self.scoring)
        if self.selection is None:
            return scored
        return scored | "Select" >> publishing.SelectAndPublish(self.selection)
