"""Selecting: from committed scores to the exact cutoffs, and to what they keep of every split.

Nothing is scored and no text is read here. The cutoffs, as many as the corpus has sources at most, go from round to
round as a side input; each round reads only the score files of groups that hold undecided documents, and none at
all once everything is decided, which on most corpora is after the first.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import apache_beam as beam
import numpy as np
import orjson

from pipelines import commits, ledger, references, splits, summaries, writing
from pipelines.errors import BooksError, CurationError
from pipelines.kept_counts import GroupCounts, KeptCounts, KeptSplits
from pipelines.ledger import RunFolder, SelectionFolder
from pipelines.score_files import RANK_COLUMNS, ScoreFile
from rater_model.acceptance import Acceptance, acceptance_by_quantiles, score_at
from rater_model.cutoffs import Answers, Cutoffs, Policy, merge_answers
from rater_model.selection import (
    KEY_BITS,
    BatchTopK,
    Boundary,
    Histogram,
    KeepFraction,
    RankKeys,
    Rule,
    SelectionError,
    Threshold,
)


@dataclasses.dataclass(frozen=True)
class SelectionRequest:
    """All that a selection is told.

    Attributes:
        output: the run folder.
        name: of the selection.
        policy: the rule and what it applies to, as `Policy.to_json` gives it.
        seed: of the hash that breaks ties, and of the draw of a batch top-K.
        output_format: `same` as the input's, or one of `writing.OUTPUT_FORMATS`.
        output_shard_bytes: about how many bytes of kept text a file holds.
        reference: a run folder or rater checkpoint whose distribution of scores decides; None: the run's own.
    """

    output: str
    name: str
    policy: dict[str, Any]
    seed: int
    output_format: str
    output_shard_bytes: int
    reference: str | None = None

    @classmethod
    def of(cls, rule: Rule | Policy, *, output: str, name: str | None = None, **options: Any) -> "SelectionRequest":
        """A request for a rule or policy, named by it unless a name is given."""
        policy = rule if isinstance(rule, Policy) else Policy(rule)
        if not name:
            name = policy.name + ("-by-reference" if options.get("reference") else "")
        return cls(output=output, name=name, policy=policy.to_json(), **options)

    def read_policy(self) -> Policy:
        """The rule and what it applies to."""
        return Policy.from_json(self.policy)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    @property
    def selection(self) -> SelectionFolder:
        """The selection's folder."""
        return self.folder.selection(self.name)

    def rule_fields(self) -> dict[str, Any]:
        """What `rule.json` holds: every option that changes what is kept or how it is written."""
        return {
            "format": ledger.FORMAT_VERSION,
            **self.policy,
            "reference": self.reference,
            "seed": self.seed,
            "output_format": self.output_format,
            "output_shard_bytes": self.output_shard_bytes,
        }


def read_scoring(folder: RunFolder) -> dict[str, Any]:
    """The committed counts of a scored corpus.

    Raises:
        BooksError: the corpus is not scored to its end.
    """
    data = commits.read_if_there(folder.scoring_path)
    if data is None:
        raise BooksError(
            f"{folder.scoring_path} is missing: the corpus is not scored to its end; run datarater-score, or "
            "datarater-curate, with this output folder first"
        )
    fields: dict[str, Any] = orjson.loads(data)
    return fields


def begin_selection(request: SelectionRequest) -> Cutoffs:
    """Commits the rule, and takes the descent's first level from `scoring.json`.

    Raises:
        RunFolderMismatchError: the selection's name belongs to another rule, or the reference to another rater.
        BooksError: the corpus is not scored.
        CurationError: the rule does not fit the corpus or the reference.
    """
    cutoffs = first_cutoffs(request)
    if not commits.commit_if_absent(request.selection.rule_path, ledger.to_json(request.rule_fields())):
        ledger.check_rule(request.selection, request.rule_fields())
    return cutoffs


def first_cutoffs(request: SelectionRequest) -> Cutoffs:
    """What is known before the first round, from `scoring.json` or the reference's.

    Raises:
        RunFolderMismatchError: the reference's scores cannot be compared with the run's.
        BooksError: the corpus is not scored.
        CurationError: the rule does not fit the corpus or the reference.
    """
    scoring = read_scoring(request.folder)
    try:
        return _first_cutoffs(request, scoring)
    except SelectionError as error:
        raise CurationError(f"the selection {request.name!r}: {error}") from error


def _first_cutoffs(request: SelectionRequest, scoring: dict[str, Any]) -> Cutoffs:
    policy = request.read_policy()
    own = request.reference is None
    if request.reference is not None:
        reference = references.read_reference(request.reference, scoring["identity"])
        if isinstance(reference, references.RaterReference):
            counts = scoring["counts"]
            return Cutoffs.fixed(policy, _by_quantiles(policy.rule, reference.quantiles), counts["scored"])
        scoring = reference.scoring
    sources = {source: (counts["scored"], counts["tokens"]) for source, counts in scoring["sources"].items()}
    return Cutoffs.begin(policy, Histogram.from_json(scoring["histogram"]), sources, own=own)


def _by_quantiles(rule: Rule, quantiles: tuple[float, ...]) -> Boundary | Acceptance:
    if isinstance(rule, BatchTopK):
        return acceptance_by_quantiles(rule, quantiles)
    if not isinstance(rule, KeepFraction):
        raise SelectionError(f"the rule {rule.kind} asks nothing of a reference")
    boundary = Boundary.begin(Threshold(Fraction(score_at(quantiles, float(1 - rule.fraction)))), Histogram.empty())
    if rule.fraction in (0, 1):
        end = int(rule.fraction) << KEY_BITS
        boundary = dataclasses.replace(boundary, low=end, high=end, end=end)
    return boundary


class CountUndecided(beam.DoFn):
    """One round of the descent: what a group of splits holds of undecided documents."""

    def __init__(self, folder: RunFolder, seed: int):
        self._folder = folder
        self._seed = seed

    def process(self, group: int, cutoffs: Cutoffs) -> Iterator[Answers]:
        """A group of splits in; its answers to this round's questions."""
        if cutoffs.done:
            return
        histograms = summaries.read_summary(self._folder, group).histograms
        if not cutoffs.concerns(histograms):
            return
        answers = cutoffs.from_summary(histograms)
        if answers is None:
            parts = []
            for task in splits.read_group(self._folder, group):
                file = ScoreFile.read(self._folder, task.split.ordinal, KEEP_COLUMNS)
                parts.append(cutoffs.answers(*keys_by_source(file, self._seed)))
            answers = merge_answers(parts)
        yield answers


class MergeAnswers(beam.CombineFn):
    """Puts the answers of a round together."""

    _TOGETHER = 32

    def create_accumulator(self) -> list[Answers]:
        """Holds nothing."""
        return []

    def add_input(self, accumulator: list[Answers], element: Answers) -> list[Answers]:
        """Adds one group's."""
        accumulator.append(element)
        return [merge_answers(accumulator)] if len(accumulator) >= self._TOGETHER else accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Answers]]) -> list[Answers]:
        """Adds several."""
        return self.compact([part for accumulator in accumulators for part in accumulator])

    def compact(self, accumulator: list[Answers]) -> list[Answers]:
        """Makes one of what waits, before it travels."""
        return [merge_answers(accumulator)]

    def extract_output(self, accumulator: list[Answers]) -> Answers:
        """All answers."""
        return merge_answers(accumulator)


def advance(answers: Answers, cutoffs: Cutoffs) -> Cutoffs:
    """The cutoffs after a round."""
    return cutoffs if cutoffs.done else cutoffs.advance(answers)


# --- what is kept of each split ----------------------------------------------------------------------


KEEP_COLUMNS = (*RANK_COLUMNS, "source")
COUNT_COLUMNS = (*KEEP_COLUMNS, "bytes")


def keys_by_source(file: ScoreFile, seed: int) -> tuple[RankKeys, np.ndarray, list[str]]:
    """The rank keys of a score file's scored documents, the source of each as a code, and the sources' names."""
    names, codes_R = file.sources()
    return file.rank_keys(seed), codes_R[file.scored_rows()], names


def kept_rows(file: ScoreFile, cutoffs: Cutoffs, seed: int) -> np.ndarray:
    """The row numbers of kept documents in a score file, in the order of the input."""
    return file.scored_rows()[cutoffs.keeps(*keys_by_source(file, seed), seed)]


def _sum_by_source(codes_R: np.ndarray, sources: int, values_R: np.ndarray) -> list[int]:
    sums_S = np.zeros(sources, np.int64)
    np.add.at(sums_S, codes_R, values_R.astype(np.int64))
    sums: list[int] = sums_S.tolist()
    return sums


def count_group(request: SelectionRequest, group: int, cutoffs: Cutoffs) -> GroupCounts:
    """Counts what is kept of every split of a group.

    Raises:
        BooksError: the counts contradict each other.
    """
    rows: list[tuple[int, str, KeptCounts]] = []
    sources: dict[str, KeptCounts] = {}
    for task in splits.read_group(request.folder, group):
        ordinal = task.split.ordinal
        file = ScoreFile.read(request.folder, ordinal, COUNT_COLUMNS)
        kept_R = np.zeros(file.table.num_rows, bool)
        kept_R[kept_rows(file, cutoffs, request.seed)] = True
        scored_R = np.zeros(file.table.num_rows, bool)
        scored_R[file.scored_rows()] = True
        names, codes_R = file.sources()
        split_counts = KeptCounts()
        columns = [
            _sum_by_source(codes_R, len(names), values_R)
            for values_R in (
                np.ones(len(codes_R), np.int64),
                kept_R,
                scored_R & ~kept_R,
                ~scored_R,
                np.where(kept_R, file.column("tokens"), 0),
                np.where(kept_R, file.column("bytes"), 0),
            )
        ]
        for source, *numbers in zip(names, *columns, strict=True):
            counts = KeptCounts(*numbers)
            split_counts.add(counts)
            sources.setdefault(source, KeptCounts()).add(counts)
        split_counts.check(f"{task.split.path}, split {ordinal}")
        layout = writing.layout_for(file.layout, task.split.path, request.output_format)
        rows.append((ordinal, layout, split_counts))
    return GroupCounts(group, KeptSplits.of(rows), sources)


class CountKept(beam.DoFn):
    """Commits what is kept of every split of a group."""

    def __init__(self, request: SelectionRequest):
        self._request = request

    def process(self, group: int, cutoffs: Cutoffs) -> Iterator[GroupCounts]:
        """A group in, its committed counts out."""
        path = self._request.selection.counts_path(group)
        data = commits.read_if_there(path)
        if data is None:
            counts = count_group(self._request, group, cutoffs)
            commits.commit_if_absent(path, orjson.dumps(counts.to_json()))
            data = commits.read_bytes(path)
        yield GroupCounts.from_json(orjson.loads(data))


def find_cutoffs(scored: beam.PCollection, request: SelectionRequest) -> tuple[beam.PCollection, beam.PCollection]:
    """Adds the steps that find the exact cutoffs, from committed summaries and score files.

    Args:
        scored: one element, which says that `scoring.json` is committed.
        request: the selection.

    Returns:
        The cutoffs (one element), and the numbers of all groups of splits.
    """
    cutoffs = scored | "Begin" >> beam.Map(_begin, request)
    groups = asked = _listed(scored, request.folder, "groups")
    rounds = request.read_policy().rounds
    folder = request.folder
    if request.reference is not None:
        # Only a scored run is asked; a rater's quantiles are known from the start.
        if references.is_run(request.reference):
            folder = RunFolder(request.reference)
            asked = _listed(scored, folder, "groups of the reference")
        else:
            rounds = 0
    for number in range(1, rounds + 1):
        answers = (
            asked
            | f"Count undecided {number}"
            >> beam.ParDo(CountUndecided(folder, request.seed), beam.pvalue.AsSingleton(cutoffs))
            | f"Merge undecided {number}" >> beam.CombineGlobally(MergeAnswers())
        )
        cutoffs = answers | f"Advance {number}" >> beam.Map(advance, beam.pvalue.AsSingleton(cutoffs))
    return cutoffs, groups


def _listed(scored: beam.PCollection, folder: RunFolder, what: str) -> beam.PCollection:
    return scored | f"List {what}" >> beam.FlatMap(_groups, folder) | f"Spread {what}" >> beam.Reshuffle()


def _begin(scored: Any, request: SelectionRequest) -> Cutoffs:
    return begin_selection(request)


def _groups(scored: Any, folder: RunFolder) -> Iterator[int]:
    yield from range(splits.plan_of(folder)["groups"])
