"""The whole graph of a command, readable from top to bottom.

`Work` describes what a command does as a value: enough to build its graph anywhere, in this process
or in another. The graph has two halves, each a transform below, and `scoring.json` is the barrier
between them:

    ScoreCorpus:       plan -> score -> summarize -> commit `scoring.json`
    SelectAndPublish:  find the cutoffs -> count -> write -> commit the manifest and `_SUCCESS`

Every step is idempotent and skips what is already committed, so the same graph also resumes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam

from datarater.pipelines.graph import planning, publishing, scoring
from datarater.pipelines.graph.cutoff_search import find_cutoffs
from datarater.pipelines.graph.kept_rows import CountKept
from datarater.pipelines.graph.output_files import WriteShard, plan_shards_of
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.graph.score_split import ScoreSplit
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder


@dataclasses.dataclass(frozen=True)
class Work:
    """Scoring, selecting, or both in one graph.

    Attributes:
        scoring: What to score; None to select from a scored corpus.
        selection: What to keep; None to score only.

    Raises:
        ValueError: Neither is given.
    """

    scoring: ScoringRequest | None = None
    selection: SelectionRequest | None = None

    def __post_init__(self) -> None:
        if self.scoring is None and self.selection is None:
            raise ValueError("there is nothing to do: neither scoring nor selection is given")

    def build(self, start: beam.PCollection) -> Any:
        """Adds the steps of the work to a pipeline.

        Args:
            start: Collection of one element.
        """
        scored = start
        if self.scoring is not None:
            scored = start | "Score" >> ScoreCorpus(self.scoring)
        if self.selection is None:
            return scored
        return scored | "Select" >> SelectAndPublish(self.selection)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        request = self.selection or self.scoring
        assert request is not None
        return request.folder

    @property
    def goal(self) -> str:
        """The path of the file that the graph commits last."""
        return (
            self.folder.scoring_path
            if self.selection is None
            else self.selection.selection.success_path
        )

    def leases(self) -> list[str]:
        """Returns the paths of the leases that a launch needs, for scoring and for selecting."""
        folders = []
        if self.scoring is not None and not commits.exists(self.folder.scoring_path):
            folders.append(self.folder.scoring_lease_path)
        if self.selection is not None:
            folders.append(self.folder.selection_lease_path(self.selection.name))
        return folders

    def folders(self) -> list[str]:
        """Returns the folders that only the owner of these leases writes into."""
        folders = []
        if self.scoring is not None:
            folders += self.folder.scoring_folders
        if self.selection is not None:
            folders.append(self.selection.selection.path)
        return folders

    def of_launch(self, launch: str, slots: int = 0) -> Work:
        """Returns the same work for one launch, in whose name the workers leave marks.

        Args:
            launch: Id of the launch.
            slots: Number of worker processes; see `ScoringRequest`.
        """
        if self.scoring is None:
            return self
        return dataclasses.replace(
            self, scoring=dataclasses.replace(self.scoring, launch=launch, slots=slots)
        )


class ScoreCorpus(beam.PTransform):
    """Plans and scores a corpus; emits one element once `scoring.json` is committed."""

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, start: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of one element."""
        request, folder = self._request, self._request.folder

        # Plan: the numbers of all groups of splits.
        groups = start | "Plan" >> planning.Plan(request.plan)
        if request.slots:
            groups = groups | "Score from one row" >> scoring.ScoreLocally(request)

        # Score: every split that has no score file yet. Score files are listed in bulk, so that a
        # resumed run does not look for each one.
        scored_before = scoring.list_scored(start, groups, folder)
        expanded = groups | "Expand group" >> scoring.expand_groups(scored_before, folder)
        newly_scored = (
            expanded.splits
            | "Spread splits" >> scoring.DealOut()
            | "Score split" >> beam.ParDo(ScoreSplit(request))
        )
        already_scored = expanded.scored | "Scored before" >> beam.ParDo(scoring.CountFound())

        # Summarize: every group whose splits are all scored.
        summarized = (
            (newly_scored, already_scored)
            | "All splits" >> beam.Flatten()
            | "Group splits" >> beam.GroupByKey()
            | "Summarise group" >> beam.ParDo(scoring.SummariseGroup(folder))
        )

        # Barrier: the sum of all summaries, committed as `scoring.json`.
        return (
            (summarized, expanded.summarised)
            | "All groups" >> beam.Flatten()
            | "Read summary" >> beam.Map(scoring.read_summary, folder)
            | "Add summaries" >> beam.CombineGlobally(scoring.MergeSummaries())
            | "Finish scoring" >> beam.ParDo(scoring.FinishScoring(request))
        )


class SelectAndPublish(beam.PTransform):
    """Selects from committed scores and writes the kept documents; emits the manifest's path."""

    def __init__(self, request: SelectionRequest):
        super().__init__()
        self._request = request

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of one element, which waits for `scoring.json`."""
        request = self._request

        # Select: the exact cutoffs, and what they keep of every split and source.
        cutoffs, groups = find_cutoffs(scored, request)
        cutoff = beam.pvalue.AsSingleton(cutoffs)
        counts = groups | "Count kept" >> beam.ParDo(CountKept(request), cutoff)
        sources = counts | "By source" >> beam.CombineGlobally(publishing.MergeSources())

        # Write: the input is read a second time, for the kept documents only.
        written = (
            scored
            | "Plan shards" >> beam.FlatMap(plan_shards_of, beam.pvalue.AsIter(counts), request)
            | "Spread shards" >> beam.Reshuffle()
            | "Write shard" >> beam.ParDo(WriteShard(request), cutoff)
        )

        # Publish: reconcile the counts, then commit the manifest and `_SUCCESS`.
        return scored | "Publish" >> beam.ParDo(
            publishing.Publish(request),
            cutoff,
            beam.pvalue.AsIter(counts),
            beam.pvalue.AsSingleton(sources),
            beam.pvalue.AsIter(written),
        )
