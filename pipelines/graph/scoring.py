"""The steps that score a corpus: group by group, and then the counts of all groups.

`ScoreGroups` deals the splits out to the workers, which score each split once
(`datarater.pipelines.graph.score_split`), and summarizes each group of splits from its committed
score files. `CommitCounts` commits the sum as `scoring.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from numpy.typing import NDArray

from datarater.pipelines.errors import (
    CountsError,
    EmptyCorpusError,
    RejectedShareError,
    RunFolderMismatchError,
)
from datarater.pipelines.graph import planning
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.score_split import METRICS, ScoreFromRow, ScoreSplit
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits, fresh_start, summaries
from datarater.pipelines.run_folder.committed import (
    PREFIXES,
    entries_of,
    merge_ordinals,
    ordinals_of,
)
from datarater.pipelines.run_folder.counts import Counts, main_reasons
from datarater.pipelines.run_folder.identity import InputsCounter, InputsDigest
from datarater.pipelines.run_folder.layout import RunFolder, read_json, to_json
from datarater.pipelines.run_folder.plan import (
    SplitTask,
    find_plans,
    identity_of,
    is_small,
    read_group,
)
from datarater.pipelines.run_folder.scored import Scoring, last_scoring_path
from datarater.pipelines.run_folder.summaries import Summary
from datarater.rater_model.counted import counted, was_or_were


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What a scoring is about to do.

    Attributes:
        inputs: What identifies the input files.
        new: Number of files that are not planned yet.
        plans: Number of plans of the run folder once they are.
        max_splits: Upper bound of the number of splits of these files.
    """

    inputs: InputsDigest
    new: int
    plans: int
    max_splits: int


def preflight(request: ScoringRequest) -> Preflight:
    """Makes the checks of the graph before any work begins, with clearer messages.

    Raises:
        CurationError: There is no input or no rater, or the run folder cannot be used.
        RunFolderMismatchError: The run folder belongs to another run, in which something was
            scored.
        RejectedShareError: Everything is scored, and too much was rejected.
        EmptyCorpusError: Everything is read, and nothing could be scored.
    """
    commits.check_file_system(request.output)
    inputs, max_splits = _count_inputs(request)
    plans = find_plans(request.folder)
    new = 0
    if plans is not None:
        try:
            new = planning.check_committed_plan(request, inputs, plans).new
        except RunFolderMismatchError:
            if not fresh_start.nothing_was_scored(request.folder):
                raise
            fresh_start.clear(request.folder)
            plans = None
    if plans is None:
        commits.check_creates_once(request.output)
        return Preflight(inputs, inputs.files, plans=1, max_splits=max_splits)

    number = len(plans.identities)
    scored = read_json(request.folder.scoring_path_of(number - 1), Scoring)
    if scored is not None and not new:
        check_counts(scored.counts, request.folder, request.max_rejected_fraction)
    return Preflight(inputs, new, number + (new > 0), max_splits)


def _count_inputs(request: ScoringRequest) -> tuple[InputsDigest, int]:
    """Returns what identifies the input files, and an upper bound of their number of splits."""
    counter = InputsCounter()
    target = request.options.split_bytes
    large, small, small_bytes = 0, 0, 0
    for file in request.inputs.files():
        counter.add(file)
        if is_small(file, target):
            small += 1
            small_bytes += file.size
        else:
            large += -(-file.size // target)

    # Of two splits of small files next to each other, one is at least half full.
    inputs = counter.digest()
    packed = large + 2 * (small_bytes // request.pack_bytes(inputs.bytes) + 1)
    return inputs, large + min(small, packed)


class ScoreGroups(beam.PTransform):
    """Scores every split that has no score file yet; emits the summary of every group."""

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, groups: beam.PCollection) -> beam.PCollection:
        """Adds the steps to the numbers of all groups of splits."""
        request, folder = self._request, self._request.folder
        if request.slots:
            groups = groups | "Score from one row" >> ScoreLocally(request)

        # Score files are listed in bulk, so that a resumed run does not look for each one.
        listed = beam.pvalue.AsSingleton(groups | "List scored" >> ListScored(folder))
        expanded = groups | "Expand group" >> beam.ParDo(ExpandGroup(folder), listed).with_outputs(
            ExpandGroup.SUMMARISED, ExpandGroup.SCORED, main="splits"
        )
        dealt = expanded.splits | "Spread splits" >> DealOut()
        newly_scored = dealt | "Score split" >> beam.ParDo(ScoreSplit(request))
        already_scored = expanded.scored | "Scored before" >> beam.ParDo(CountFound())

        # A group is summarized once all of its splits are scored.
        summarized = (
            (newly_scored, already_scored)
            | "All splits" >> beam.Flatten()
            | "Group splits" >> beam.GroupByKey()
            | "Summarise group" >> beam.ParDo(SummariseGroup(request))
        )
        return (
            (summarized, expanded.summarised)
            | "All groups" >> beam.Flatten()
            | "Read summary" >> beam.Map(read_summary, folder)
        )


class CommitCounts(beam.PTransform):
    """Commits the sum of all summaries as `scoring.json`; emits its path."""

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, summarized: beam.PCollection) -> beam.PCollection:
        """Adds the steps to the summaries of all groups."""
        return (
            summarized
            | "Add summaries" >> beam.CombineGlobally(MergeSummaries())
            | "Finish scoring" >> beam.ParDo(FinishScoring(self._request))
        )


# Which splits to score.


class ListScored(beam.PTransform):
    """Lists the splits that were scored before, a thousand score files per request.

    Emits one element: the sorted ordinals of the scored splits, int64.
    """

    def __init__(self, folder: RunFolder):
        super().__init__()
        self._folder = folder

    def expand(self, groups: beam.PCollection) -> beam.PCollection:
        """Adds the steps to the numbers of all groups, for which the listing waits."""
        return (
            groups.pipeline
            | "Once" >> beam.Impulse()
            | "Prefixes" >> beam.FlatMap(_prefixes, beam.pvalue.AsIter(groups))
            | "Spread prefixes" >> beam.Reshuffle()
            | "List" >> beam.Map(_scored_under, self._folder)
            | "Merge" >> beam.CombineGlobally(merge_ordinals)
        )


@beam.typehints.with_output_types(Iterable[int])
def _prefixes(start: Any, groups: Iterable[int]) -> Iterator[int]:
    # The groups only make this step wait for them.
    yield from range(PREFIXES)


def _scored_under(prefix: int, folder: RunFolder) -> NDArray[np.int64]:
    return ordinals_of(entries_of(folder, prefix))


class ExpandGroup(beam.DoFn):
    """Emits the splits of a group that still need scoring; tags the ones already scored.

    A group with a summary is complete: only its number is emitted, with a tag of its own.
    """

    SUMMARISED = "summarised"
    SCORED = "scored"

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def process(self, group: int, scored_M: NDArray[np.int64]) -> Iterator[Any]:
        """Expands one group.

        Args:
            group: Number of the group.
            scored_M: Sorted ordinals of all splits that were scored when they were listed.
        """
        if summaries.is_summarised(self._folder, group):
            yield beam.pvalue.TaggedOutput(self.SUMMARISED, group)
            return

        tasks = read_group(self._folder, group)
        ordinals_S = np.asarray([task.split.ordinal for task in tasks], np.int64)
        for task, scored in zip(tasks, np.isin(ordinals_S, scored_M).tolist(), strict=True):
            if scored:
                yield beam.pvalue.TaggedOutput(self.SCORED, (group, task.split.ordinal))
            else:
                yield task


@beam.typehints.with_output_types(tuple[int, int])
class CountFound(beam.DoFn):
    """Counts the splits that were scored before."""

    def process(self, scored: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Passes on the group and ordinal of one split."""
        Metrics.counter(METRICS, "splits_found_scored").inc()
        yield scored


# Who scores them.


class DealOut(beam.PTransform):
    """Deals splits out evenly to all workers.

    A Reshuffle alone is not enough. Flink drops the second of two Reshuffles without a grouping
    between them, and then all splits of a group stay on one worker. So every split is first grouped
    under its own ordinal.
    """

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of splits."""
        return (
            tasks
            | "By ordinal" >> beam.Map(by_ordinal).with_output_types(tuple[int, SplitTask])
            | "Each by itself" >> beam.GroupByKey()
            | "Split" >> beam.Map(_one_of).with_output_types(SplitTask)
            | "Deal out" >> beam.Reshuffle()
        )


def by_ordinal(task: SplitTask) -> tuple[int, SplitTask]:
    """Returns a split after its ordinal, to group by."""
    return task.split.ordinal, task


def _one_of(element: tuple[int, Iterable[SplitTask]]) -> SplitTask:
    return next(iter(element[1]))


class ScoreLocally(beam.PTransform):
    """Scores all splits with the workers of this machine; emits the groups once they are done.

    The steps after it find every split scored. Each worker gets the numbers of all groups under a
    key of its own, because the local runner deals keys out evenly.
    """

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, groups: beam.PCollection) -> beam.PCollection:
        """Adds the steps to the numbers of all groups."""
        ended = (
            groups
            | "To every worker" >> beam.FlatMap(_to_every_worker, self._request.slots)
            | "Gather groups" >> beam.GroupByKey()
            | "Score" >> beam.ParDo(ScoreFromRow(self._request))
        )
        return (
            groups
            | "When all have ended" >> beam.Map(_first, beam.pvalue.AsIter(ended))
            | "Spread groups" >> beam.Reshuffle()
        )


@beam.typehints.with_output_types(Iterable[tuple[int, int]])
def _to_every_worker(group: int, slots: int) -> Iterator[tuple[int, int]]:
    for slot in range(slots):
        yield slot, group


@beam.typehints.with_output_types(int)
def _first(group: int, ended: Iterable[int]) -> int:
    return group


# The counts.


@beam.typehints.with_output_types(int)
class SummariseGroup(Step[ScoringRequest]):
    """Writes a group's rejected records and summary from its committed score files."""

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[int]:
        """Summarizes one group.

        Args:
            element: Number of the group, and the ordinals of its scored splits.

        Raises:
            CountsError: A split of the plan was not scored.
        """
        group, ordinals = element
        folder = self._request.folder
        scored = sorted(set(ordinals))
        planned = [task.split.ordinal for task in read_group(folder, group)]
        if scored != planned:
            missing = sorted(set(planned) - set(scored))
            raise CountsError(
                f"group {group}: the splits {missing[:5]} of the plan were not scored"
            )

        summaries.summarise_group(folder, group, planned, self._request.max_sources)
        yield group


@beam.typehints.with_output_types(Summary)
def read_summary(group: int, folder: RunFolder) -> Summary:
    """Reads the committed summary of a group."""
    return summaries.read_summary(folder, group)


class MergeSummaries(beam.CombineFn):
    """Adds summaries up."""

    def create_accumulator(self) -> Summary:
        """Returns a summary of nothing."""
        return Summary()

    def add_input(self, accumulator: Summary, element: Summary) -> Summary:
        """Adds one summary."""
        accumulator.add(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Summary]) -> Summary:
        """Adds several summaries."""
        total = Summary()
        for accumulator in accumulators:
            total.add(accumulator)
        return total

    def extract_output(self, accumulator: Summary) -> Summary:
        """Returns the sum."""
        return accumulator


def _all_records(number: int) -> str:
    return "the only record is" if number == 1 else f"all {number:,} records are"


def check_counts(counts: Counts, folder: RunFolder, max_rejected_fraction: float) -> None:
    """Refuses a corpus without documents, or with too many rejected records.

    Raises:
        EmptyCorpusError: No file contains a record, or none of the records could be scored.
        RejectedShareError: The share of rejected records exceeds the limit.
    """
    if not counts.read:
        raise EmptyCorpusError(
            "--input: the files contain no records; check the glob, or give the files that "
            "contain the documents"
        )

    if not counts.scored:
        example = fresh_start.first_reject(folder)
        raise EmptyCorpusError(
            f"no document could be scored: {_all_records(counts.read)} rejected "
            f"({main_reasons(counts.rejected_by_reason)})"
            + (f", the first one in {example}" if example else "")
            + "; correct --input, --text_field or the other options and run the command again, "
            "also with this --output: it is planned anew where nothing was scored"
        )

    if counts.rejected > max_rejected_fraction * counts.read:
        raise RejectedShareError(
            f"{counts.rejected:,} of {counted(counts.read, 'record')} are rejected "
            f"({main_reasons(counts.rejected_by_reason)}), more than "
            f"--max_rejected_fraction {max_rejected_fraction:g}; correct the input or the read "
            "options, or raise the limit and run the same command to continue"
        )


def finish_scoring(total: Summary, folder: RunFolder, max_rejected_fraction: float = 1.0) -> None:
    """Reconciles the counts, then commits `scoring.json`.

    Args:
        total: Sum of all groups' summaries.
        folder: The run folder.
        max_rejected_fraction: Maximum share of records that may be rejected.

    Raises:
        CountsError: A group or split is missing, or the counts contradict each other.
        EmptyCorpusError: No file contains a record, or none of the records could be scored.
        RejectedShareError: The share of rejected records exceeds the limit.
    """
    # Every split of the plan is counted once, and every record is scored or rejected.
    identity = identity_of(folder)
    plan = identity.plan
    if (total.groups, total.splits) != (plan.groups, plan.splits):
        raise CountsError(
            f"{folder.path}: {counted(total.splits, 'split')} in {counted(total.groups, 'group')} "
            f"{was_or_were(total.splits)} scored, but the plan has {plan.splits} in {plan.groups}"
        )
    total.counts.check(folder.path)
    for source, counts in total.sources.items():
        counts.check(f"{folder.path}, source {source!r}")
    check_counts(total.counts, folder, max_rejected_fraction)

    scoring = Scoring(
        identity=identity,
        splits=total.splits,
        groups=total.groups,
        counts=total.counts,
        sources=total.sources,
        histogram=total.histogram(),
    )
    commits.commit_if_absent(last_scoring_path(folder), to_json(scoring))


@beam.typehints.with_output_types(str)
class FinishScoring(Step[ScoringRequest]):
    """Commits `scoring.json`; emits its path."""

    def process(self, total: Summary) -> Iterator[str]:
        """Finishes the scoring, given the sum of all summaries."""
        finish_scoring(total, self._request.folder, self._request.max_rejected_fraction)
        yield last_scoring_path(self._request.folder)
