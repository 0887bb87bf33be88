"""Cutoff search: the steps that find the exact cutoffs of a selection, round by round.

Nothing is scored here and no text is read. The cutoffs, at most as many as the corpus has sources,
go from round to round as a side input. Each round reads only the score files of groups that contain
undecided documents, and none at all once everything is decided, which on most corpora is after the
first round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.graph.kept_rows import KEEP_COLUMNS, keys_by_source
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder import reference as references
from datarater.pipelines.run_folder.layout import RunFolder, to_json
from datarater.pipelines.run_folder.manifest import check_rule
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES
from datarater.pipelines.run_folder.plan import read_group
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.run_folder.scored import Scoring, count_plans, read_scoring
from datarater.pipelines.selection.cutoffs import Answers, Cutoffs, merge_answers
from datarater.pipelines.selection.policy import Scope
from datarater.pipelines.selection.ranking import SelectionError, UnknownSourceError


class FindCutoffs(beam.PTransform):
    """Finds the exact cutoffs from committed summaries and score files; emits them as one element.

    Args:
        request: The selection.
    """

    def __init__(self, request: SelectionRequest):
        super().__init__()
        self._request = request

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Adds the rounds to a collection of one element, which waits for `scoring.json`."""
        request, folder = self._request, self._request.ranked

        # With a reference run, its groups are counted instead. A reference rater needs no rounds:
        # its quantiles are known from the start.
        rounds = request.policy.rounds
        if request.reference is not None:
            folder = RunFolder(request.reference)
            rounds = rounds if references.is_run(request.reference) else 0

        cutoffs = scored | "Begin" >> beam.Map(_begin, request)
        groups = scored | "List counted groups" >> ListGroups(folder) if rounds else None
        return add_rounds(cutoffs, groups, CountUndecided(request, folder), rounds)


def add_rounds(
    cutoffs: beam.PCollection, parts: beam.PCollection, count: beam.DoFn, rounds: int
) -> beam.PCollection:
    """Adds the rounds of a search; those after its end are idle.

    Args:
        cutoffs: The cutoffs before the first round, as one element.
        parts: What to count, in parts of documents.
        count: Emits the answers of a part to the questions of the cutoffs, its side input.
        rounds: Number of rounds.

    Returns:
        The final cutoffs, as one element.
    """
    for number in range(1, rounds + 1):
        cutoff = beam.pvalue.AsSingleton(cutoffs)
        answers = (
            parts
            | f"Count undecided {number}" >> beam.ParDo(count, cutoff)
            | f"Merge undecided {number}" >> beam.CombineGlobally(MergeAnswers())
        )
        cutoffs = answers | f"Advance {number}" >> beam.Map(advance, cutoff)
    return cutoffs


class ListGroups(beam.PTransform):
    """Emits the numbers of all groups of splits of a scored run."""

    def __init__(self, folder: RunFolder):
        super().__init__()
        self._folder = folder

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of one element, which waits for `scoring.json`."""
        return scored | "List" >> beam.FlatMap(_groups, self._folder) | "Spread" >> beam.Reshuffle()


@beam.typehints.with_output_types(Cutoffs)
def _begin(scored: Any, request: SelectionRequest) -> Cutoffs:
    return begin_selection(request)


@beam.typehints.with_output_types(Iterable[int])
def _groups(scored: Any, folder: RunFolder) -> Iterator[int]:
    yield from range(read_scoring(folder).groups)


def begin_selection(request: SelectionRequest) -> Cutoffs:
    """Commits the rule, and returns the cutoffs before the first round.

    Raises:
        RunFolderMismatchError: The selection's name belongs to another rule, or the reference to
            another rater.
        CountsError: The scoring is not complete.
        CurationError: The rule does not fit the corpus or the reference.
    """
    cutoffs = first_cutoffs(request)
    commit_rule(request)
    return cutoffs


def commit_rule(request: SelectionRequest) -> None:
    """Commits the rule of a selection.

    Raises:
        RunFolderMismatchError: The selection's name belongs to another rule.
    """
    options = request.options_over(count_plans(request.folder))
    if not commits.commit_if_absent(request.selection.rule_path, to_json(options)):
        check_rule(request.selection, options)


def check_policy(request: SelectionRequest) -> None:
    """Checks whether a policy fits the corpus, before the selection begins.

    The documents of a ranking are not known yet; their sources are those of the run.

    Raises:
        As `first_cutoffs`.
    """
    first_cutoffs(dataclasses.replace(request, ranking=None))


def first_cutoffs(request: SelectionRequest) -> Cutoffs:
    """Returns the cutoffs before the first round, from `scoring.json` or the reference.

    Raises:
        RunFolderMismatchError: The reference's scores cannot be compared with the run's.
        CountsError: The scoring is not complete.
        UsageError: A weight names a source that the corpus does not have.
        CurationError: The rule does not fit the corpus or the reference.
    """
    scoring = read_scoring(request.ranked)
    try:
        return _first_cutoffs(request, scoring)
    except UnknownSourceError as error:
        raise UsageError(f"--source_weight: {error}") from error
    except SelectionError as error:
        raise CurationError(f"the selection {request.name!r}: {error}") from error


def _first_cutoffs(request: SelectionRequest, scoring: Scoring) -> Cutoffs:
    policy = request.policy

    # A reference rater decides at once; a reference run replaces the counts of this run.
    if request.reference is not None:
        reference = references.read_reference(request.reference, scoring.identity)
        if isinstance(reference, references.RaterReference):
            return Cutoffs.fixed(policy, policy.rule.by_quantiles(reference.quantiles))
        scoring = reference.scoring

    if OTHER_SOURCES in scoring.sources and (policy.per is Scope.SOURCE or policy.minimum):
        raise CurationError(
            f"the selection {request.name!r} needs every source apart, but the corpus has more "
            f"than the {len(scoring.sources) - 1:,} that are counted apart: select without --per "
            "source and --min_per_source, or score it into a new run folder with a larger "
            "--max_sources or another --source_field"
        )
    sources = {source: (counts.scored, counts.tokens) for source, counts in scoring.sources.items()}
    return Cutoffs.begin(
        policy,
        scoring.histogram,
        sources,
        own=request.reference is None,
        sort_limit=request.sort_limit,
    )


@beam.typehints.with_output_types(Answers)
class CountUndecided(Step[SelectionRequest]):
    """Counts the undecided documents of a group of splits, for one round of the descent.

    Args:
        request: The selection.
        folder: Run folder whose documents are counted.
    """

    def __init__(self, request: SelectionRequest, folder: RunFolder):
        super().__init__(request)
        self._folder = folder

    def process(self, group: int, cutoffs: Cutoffs) -> Iterator[Answers]:
        """Emits the group's answers to this round's questions, if it has any."""
        if cutoffs.done:
            return

        # The summary shows whether the group has undecided documents; at level 0 it is the answer.
        histograms = summaries.read_summary(self._folder, group).histograms
        if not cutoffs.concerns(histograms):
            return
        answers = cutoffs.from_summary(histograms)

        if answers is None:
            answers = merge_answers(
                cutoffs.answers(*keys_by_source(file, self._request.seed))
                for file in self._files(group)
            )
        yield answers

    def _files(self, group: int) -> Iterator[ScoreFile]:
        for task in read_group(self._folder, group):
            yield from ScoreFile.in_chunks(self._folder, task.split.ordinal, KEEP_COLUMNS)


class MergeAnswers(beam.CombineFn):
    """Merges the answers of a round."""

    _TOGETHER = 32

    def create_accumulator(self) -> list[Answers]:
        """Returns a list of no answers."""
        return []

    def add_input(self, accumulator: list[Answers], element: Answers) -> list[Answers]:
        """Adds the answers of one group."""
        accumulator.append(element)
        return [merge_answers(accumulator)] if len(accumulator) >= self._TOGETHER else accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Answers]]) -> list[Answers]:
        """Adds several lists of answers."""
        return self.compact([part for accumulator in accumulators for part in accumulator])

    def compact(self, accumulator: list[Answers]) -> list[Answers]:
        """Merges the waiting answers before they are sent to another worker."""
        return [merge_answers(accumulator)]

    def extract_output(self, accumulator: list[Answers]) -> Answers:
        """Returns the merged answers."""
        return merge_answers(accumulator)


@beam.typehints.with_output_types(Cutoffs)
def advance(answers: Answers, cutoffs: Cutoffs) -> Cutoffs:
    """Returns the cutoffs after a round."""
    return cutoffs if cutoffs.done else cutoffs.advance(answers)
