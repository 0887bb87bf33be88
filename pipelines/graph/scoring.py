"""Scoring: every split once, one committed score file each; then summaries, then `scoring.json`."""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
from apache_beam.metrics import Metrics
from numpy.typing import NDArray

from datarater.pipelines.errors import (
    CountsError,
    EmptyCorpusError,
    RejectedShareError,
)
from datarater.pipelines.graph import planning
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.score_split import METRICS, ScoreFromRow, ScoreSplit
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.committed import (
    PREFIXES,
    entries_of,
    merge_ordinals,
    ordinals_of,
)
from datarater.pipelines.run_folder.identity import read_identity
from datarater.pipelines.run_folder.layout import FORMAT_VERSION, RunFolder, to_json, versions
from datarater.pipelines.run_folder.plan import SplitTask, plan_of, read_group
from datarater.pipelines.run_folder.summaries import Counts, Summary
from datarater.rater_model.documents.records import FileInfo


class ExpandGroup(beam.DoFn):
    """Gives the splits of a group, unless all of it is summarised already; apart from them those that are scored."""

    SUMMARISED = "summarised"
    SCORED = "scored"

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def process(self, group: int, scored_M: NDArray[np.int64]) -> Iterator[Any]:
        """A group's number in.

        Args:
            group: the number.
            scored_M: the ordinals of all splits that were scored when they were listed, sorted.
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


class CountFound(beam.DoFn):
    """Counts the splits that were scored before."""

    def process(self, scored: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """A group and an ordinal in, and out."""
        Metrics.counter(METRICS, "splits_found_scored").inc()
        yield scored


class SummariseGroup(beam.DoFn):
    """Writes a group's rejected records and summary from its committed score files."""

    def __init__(self, folder: RunFolder):
        self._folder = folder

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[int]:
        """A group and the ordinals of its scored splits in; the group out."""
        group, ordinals = element
        scored = sorted(set(ordinals))
        planned = [task.split.ordinal for task in read_group(self._folder, group)]
        if scored != planned:
            missing = sorted(set(planned) - set(scored))
            raise CountsError(
                f"group {group}: the splits {missing[:5]} of the plan were not scored"
            )
        summaries.summarise_group(self._folder, group, planned)
        yield group


class MergeSummaries(beam.CombineFn):
    """Adds summaries up."""

    def create_accumulator(self) -> Summary:
        """Counts nothing."""
        return Summary()

    def add_input(self, accumulator: Summary, element: Summary) -> Summary:
        """Adds one."""
        accumulator.add(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Summary]) -> Summary:
        """Adds several."""
        total = Summary()
        for accumulator in accumulators:
            total.add(accumulator)
        return total

    def extract_output(self, accumulator: Summary) -> Summary:
        """The sum."""
        return accumulator


def check_counts(counts: Counts, max_rejected_fraction: float) -> None:
    """Refuses a corpus without records, and one of which too much is rejected.

    Raises:
        EmptyCorpusError: no file holds any record.
        RejectedShareError: the share of rejected records is past the limit.
    """
    if not counts.read:
        raise EmptyCorpusError(
            "--input: there are files, but not one record in them; check the glob, or give the files that hold the "
            "documents"
        )
    rejected = counts.rejected.total()
    if rejected > max_rejected_fraction * counts.read:
        reasons = ", ".join(
            f"{reason} {count:,}" for reason, count in counts.rejected.most_common(3)
        )
        raise RejectedShareError(
            f"{rejected:,} of {counts.read:,} records are rejected ({reasons}), more than --max_rejected_fraction "
            f"{max_rejected_fraction:g}; correct the input or the read options, or raise the limit and run the same "
            "command to go on"
        )


def finish_scoring(total: Summary, folder: RunFolder, max_rejected_fraction: float = 1.0) -> None:
    """Commits `scoring.json`.

    Args:
        total: the sum of all groups' summaries.
        folder: the run folder.
        max_rejected_fraction: the share of records that may be rejected.

    Raises:
        CountsError: a group or split is missing, or the counts contradict each other.
        EmptyCorpusError: no file holds any record.
        RejectedShareError: the share of rejected records is past the limit.
    """
    identity = read_identity(folder)
    plan = plan_of(folder)
    if (total.groups, total.splits) != (plan["groups"], plan["splits"]):
        raise CountsError(
            f"{folder.path}: {total.splits} splits in {total.groups} groups were scored, but the plan has "
            f"{plan['splits']} in {plan['groups']}"
        )
    total.counts.check(folder.path)
    for source, counts in total.sources.items():
        counts.check(f"{folder.path}, source {source!r}")
    check_counts(total.counts, max_rejected_fraction)
    fields = {
        "format": FORMAT_VERSION,
        "versions": versions(),
        "identity": identity,
        "splits": total.splits,
        "groups": total.groups,
        "counts": total.counts.to_json(),
        "sources": {source: counts.to_json() for source, counts in total.sources.items()},
        "histogram": total.histogram().to_json(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    commits.commit_if_absent(folder.scoring_path, to_json(fields))


class FinishScoring(beam.DoFn):
    """Commits `scoring.json`, and says so by one element."""

    def __init__(self, request: ScoringRequest):
        self._request = request

    def process(self, total: Summary) -> Iterator[str]:
        """The sum of all summaries in."""
        finish_scoring(total, self._request.folder, self._request.max_rejected_fraction)
        yield self._request.folder.scoring_path


class ScoreCorpus(beam.PTransform):
    """Plans and scores a corpus; gives one element once `scoring.json` is committed.

    Every step is idempotent, and what was committed before is not done again.
    """

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, start: beam.PCollection) -> beam.PCollection:
        """A collection of one element in."""
        folder = self._request.folder
        groups = start | "Plan" >> planning.Plan(self._request.plan)
        if self._request.slots:
            groups = groups | "Score from one row" >> _ScoreLocally(self._request)
        # Listed a thousand to a request: a resumed run looks for no score file by itself.
        found = (
            start
            | "Prefixes"
            >> beam.FlatMap(_prefixes, beam.pvalue.AsIter(groups)).with_output_types(int)
            | "Spread prefixes" >> beam.Reshuffle()
            | "List scored" >> beam.Map(_scored_under, folder)
            | "Merge scored" >> beam.CombineGlobally(merge_ordinals)
        )
        expand = beam.ParDo(ExpandGroup(folder), beam.pvalue.AsSingleton(found))
        expanded = groups | "Expand group" >> expand.with_outputs(
            ExpandGroup.SUMMARISED, ExpandGroup.SCORED, main="splits"
        )
        scored_now = (
            expanded.splits
            | "Spread splits" >> _DealOut()
            | "Score split"
            >> beam.ParDo(ScoreSplit(self._request)).with_output_types(tuple[int, int])
        )
        scored_before = expanded[ExpandGroup.SCORED] | "Scored before" >> beam.ParDo(CountFound())
        scored = (
            (scored_now, scored_before)
            | "All splits" >> beam.Flatten()
            | "Group splits" >> beam.GroupByKey()
            | "Summarise group" >> beam.ParDo(SummariseGroup(folder))
        )
        return (
            (scored, expanded[ExpandGroup.SUMMARISED])
            | "All groups" >> beam.Flatten()
            | "Read summary" >> beam.Map(_read_summary, folder)
            | "Add summaries" >> beam.CombineGlobally(MergeSummaries())
            | "Finish scoring" >> beam.ParDo(FinishScoring(self._request))
        )


def _prefixes(start: Any, groups: Iterable[int]) -> Iterator[int]:
    # The groups are waited for, not looked at.
    yield from range(PREFIXES)


def _scored_under(prefix: int, folder: RunFolder) -> NDArray[np.int64]:
    return ordinals_of(entries_of(folder, prefix))


def _by_ordinal(task: SplitTask) -> tuple[int, SplitTask]:
    return task.split.ordinal, task


def _one_of(element: tuple[int, Iterable[SplitTask]]) -> SplitTask:
    return next(iter(element[1]))


class _DealOut(beam.PTransform):
    """Deals splits out evenly to all workers.

    A Reshuffle alone is not enough: Flink leaves out the second of two between which nothing is
    grouped, and all splits of a group stay where the group was. So they are grouped, each by
    itself.
    """

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        """Splits in and out."""
        return (
            tasks
            | "By ordinal" >> beam.Map(_by_ordinal).with_output_types(tuple[int, SplitTask])
            | "Each by itself" >> beam.GroupByKey()
            | "Split" >> beam.Map(_one_of).with_output_types(SplitTask)
            | "Deal out" >> beam.Reshuffle()
        )


class _ScoreLocally(beam.PTransform):
    """Has all splits scored by the workers of this machine; gives the numbers of the groups when they are.

    What follows finds every split scored. The numbers go to each worker under a key of its own: the
    local runner deals keys out evenly.
    """

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, groups: beam.PCollection) -> beam.PCollection:
        """The numbers of all groups in."""
        slots = self._request.slots
        ended = (
            groups
            | "To every worker"
            >> beam.FlatMap(_to_every_worker, slots).with_output_types(tuple[int, int])
            | "Gather groups" >> beam.GroupByKey()
            | "Score" >> beam.ParDo(ScoreFromRow(self._request)).with_output_types(int)
        )
        return (
            groups
            | "When all have ended"
            >> beam.Map(_first, beam.pvalue.AsIter(ended)).with_output_types(int)
            | "Spread groups" >> beam.Reshuffle()
        )


def _to_every_worker(group: int, slots: int) -> Iterator[tuple[int, int]]:
    for slot in range(slots):
        yield slot, group


def _first(group: int, ended: Iterable[int]) -> int:
    return group


def _read_summary(group: int, folder: RunFolder) -> Summary:
    return summaries.read_summary(folder, group)


def preflight(request: ScoringRequest) -> Sequence[FileInfo]:
    """What can be known before any work begins: the same checks that the graph makes, with clearer messages.

    Returns:
        The input files.

    Raises:
        CurationError: no input, no rater, no run folder that can be used.
        RunFolderMismatchError: the run folder is another run's.
        RejectedShareError: everything is scored, and too much was rejected.
    """
    commits.check_file_system(request.output)
    files = planning.list_inputs(request.inputs)
    planning.check_committed_plan(request.plan, files)
    scored = commits.read_if_there(request.folder.scoring_path)
    if scored is not None:
        check_counts(
            Counts.from_json(orjson.loads(scored)["counts"]), request.max_rejected_fraction
        )
    return files
