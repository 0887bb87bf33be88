"""The whole graph of a command, from top to bottom.

Every step is idempotent and skips what is already committed, so the same graph also resumes. Its
size does not depend on the corpus.
"""

from __future__ import annotations

import apache_beam as beam
from apache_beam.pvalue import AsIter, AsSingleton

from datarater.pipelines.graph.cutoff_search import FindCutoffs, ListGroups
from datarater.pipelines.graph.duplicates import FindDuplicates
from datarater.pipelines.graph.kept_rows import CountKept
from datarater.pipelines.graph.output_files import JoinPieces, WriteShard, plan_shards_of
from datarater.pipelines.graph.planning import Plan
from datarater.pipelines.graph.publishing import MergeSources, Publish
from datarater.pipelines.graph.ranking import Rank
from datarater.pipelines.graph.requests import Work
from datarater.pipelines.graph.scoring import CommitCounts, ScoreGroups


class Curation(beam.PTransform):
    """Scores a corpus, finds its near-duplicates, selects from it, or does several of these.

    Args:
        work: What to do.
    """

    def __init__(self, work: Work):
        super().__init__()
        self._work = work

    def expand(self, start: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of one element.

        Returns:
            One element, once the last file is committed.
        """
        scoring, duplicates, selection = (
            self._work.scoring,
            self._work.duplicates,
            self._work.selection,
        )
        scored = start

        # Plan the splits and score them. The barrier is the commit of `scoring.json`.
        if scoring is not None:
            groups = start | "Plan" >> Plan(scoring)
            summaries = groups | "Score" >> ScoreGroups(scoring)
            scored = summaries | "Barrier" >> CommitCounts(scoring)

        # Find near-duplicates. The barrier is the commit of their `_SUCCESS`.
        if duplicates is not None:
            scored = scored | "Duplicates" >> FindDuplicates(duplicates)
        if selection is None:
            return scored

        # Rank by more than the run's score, where the selection asks for it.
        if selection.ranking is not None:
            scored = scored | "Rank" >> Rank(selection)

        # Select: find the exact cutoffs, and count what they keep of every split and source.
        cutoffs = scored | "Select" >> FindCutoffs(selection)
        groups = scored | "List groups" >> ListGroups(selection.folder)
        counts = groups | "Count kept" >> beam.ParDo(CountKept(selection), AsSingleton(cutoffs))
        sources = counts | "Add sources" >> beam.CombineGlobally(MergeSources())

        # Write the kept documents in a second read of the input, which pieces of output files
        # bound, then publish the manifest.
        shards = scored | "Plan shards" >> beam.FlatMap(plan_shards_of, AsIter(counts), selection)
        spread = shards | "Spread shards" >> beam.Reshuffle()
        results = spread | "Write shard" >> beam.ParDo(
            WriteShard(selection), AsSingleton(cutoffs)
        ).with_outputs(WriteShard.PIECES, main="files")
        joined = (
            results[WriteShard.PIECES]
            | "Group pieces" >> beam.GroupByKey()
            | "Join pieces" >> beam.ParDo(JoinPieces(selection))
        )
        written = (results.files, joined) | "Written files" >> beam.Flatten()
        return scored | "Publish" >> beam.ParDo(
            Publish(selection),
            AsSingleton(cutoffs),
            AsIter(counts),
            AsSingleton(sources),
            AsIter(written),
        )
