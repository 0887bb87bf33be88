"""Selecting: from committed scores to the exact cutoff, and to what it keeps of every split.

Nothing is scored and no text is read here. The boundary, constant in size, goes from round to round as a side
input; each round reads only the score files of groups that hold undecided documents, and none at all once the
cutoff is known, which on most corpora is after the first.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import orjson

from pipelines import commits, ledger, splits, summaries
from pipelines.errors import BooksError
from pipelines.ledger import RunFolder, SelectionFolder
from pipelines.score_files import RANK_COLUMNS, ScoreFile
from rater_model.selection import (
    LAST_LEVEL,
    Boundary,
    Histogram,
    RankKeys,
    Rule,
    Step,
    rule_from_json,
    rule_to_json,
)

Undecided = Histogram | RankKeys


@dataclasses.dataclass(frozen=True)
class SelectionRequest:
    """All that a selection is told.

    Attributes:
        output: the run folder.
        name: of the selection.
        rule: as `rule_to_json` gives it.
        seed: of the hash that breaks ties.
        output_format: `same` as the input's, or one of `writing.OUTPUT_FORMATS`.
        output_shard_bytes: about how many bytes of kept text a file holds.
    """

    output: str
    name: str
    rule: dict[str, str]
    seed: int
    output_format: str
    output_shard_bytes: int

    @classmethod
    def of(cls, rule: Rule, *, output: str, name: str | None = None, **options: Any) -> "SelectionRequest":
        """A request for a rule, named by it unless a name is given."""
        return cls(output=output, name=name or rule.name, rule=rule_to_json(rule), **options)

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
            "rule": self.rule,
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


def begin_selection(request: SelectionRequest) -> Boundary:
    """Commits the rule, and takes the descent's first level from `scoring.json`.

    Raises:
        RunFolderMismatchError: the selection's name belongs to another rule.
        BooksError: the corpus is not scored.
    """
    scoring = read_scoring(request.folder)
    if not commits.commit_if_absent(request.selection.rule_path, ledger.to_json(request.rule_fields())):
        ledger.check_rule(request.selection, request.rule_fields())
    return Boundary.begin(rule_from_json(request.rule), Histogram.from_json(scoring["histogram"]))


class CountUndecided(beam.DoFn):
    """One round of the descent: what a group holds between the boundary's ends."""

    def __init__(self, folder: RunFolder, seed: int):
        self._folder = folder
        self._seed = seed

    def process(self, group: int, boundary: Boundary) -> Iterator[Undecided]:
        """A group in; one histogram, or the keys themselves where they are few."""
        if boundary.step is Step.NOTHING:
            return
        if not summaries.read_summary(self._folder, group).histogram().holds(boundary.first_digit()):
            return
        found: list[RankKeys] = []
        counted: list[Histogram] = []
        for task in splits.read_group(self._folder, group):
            keys = ScoreFile.read(self._folder, task.split.ordinal, RANK_COLUMNS).rank_keys(self._seed)
            undecided = boundary.undecided_of(keys)
            if boundary.step is Step.SORT:
                found.append(undecided)
            else:
                counted.append(Histogram.of(undecided, boundary.level))
        yield RankKeys.concatenate(found) if boundary.step is Step.SORT else Histogram.merge(counted)


class MergeUndecided(beam.CombineFn):
    """Adds histograms up, or gathers keys; never both in one round."""

    def create_accumulator(self) -> list[Undecided]:
        """Holds nothing."""
        return []

    def add_input(self, accumulator: list[Undecided], element: Undecided) -> list[Undecided]:
        """Adds one group's."""
        return self._compact([*accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[list[Undecided]]) -> list[Undecided]:
        """Adds several."""
        return self._compact([part for accumulator in accumulators for part in accumulator])

    def extract_output(self, accumulator: list[Undecided]) -> list[Undecided]:
        """One sum, or nothing where nothing was undecided."""
        return accumulator

    @staticmethod
    def _compact(parts: list[Undecided]) -> list[Undecided]:
        histograms = [part for part in parts if isinstance(part, Histogram)]
        keys = [part for part in parts if isinstance(part, RankKeys)]
        merged: list[Undecided] = []
        if histograms:
            merged.append(Histogram.merge(histograms))
        if keys:
            merged.append(RankKeys.concatenate(keys))
        return merged


def advance(found: list[Undecided], boundary: Boundary) -> Boundary:
    """The boundary after a round."""
    if boundary.step is Step.NOTHING:
        return boundary
    if boundary.step is Step.SORT:
        return boundary.settle(RankKeys.concatenate(part for part in found if isinstance(part, RankKeys)))
    return boundary.descend(Histogram.merge(part for part in found if isinstance(part, Histogram)))


# --- what is kept of each split ----------------------------------------------------------------------


@dataclasses.dataclass
class KeptCounts:
    """What became of records in a selection.

    Attributes:
        read: all records.
        kept: those the rule keeps.
        dropped: scored, but not kept.
        rejected: without a score.
        kept_tokens: of the kept.
        kept_bytes: of the kept, text in UTF-8.
    """

    read: int = 0
    kept: int = 0
    dropped: int = 0
    rejected: int = 0
    kept_tokens: int = 0
    kept_bytes: int = 0

    def add(self, other: "KeptCounts") -> None:
        """Adds another's counts to these."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def check(self, what: str) -> None:
        """Holds the books: read = kept + dropped + rejected.

        Raises:
            BooksError: naming the numbers.
        """
        if self.read != self.kept + self.dropped + self.rejected:
            raise BooksError(
                f"{what}: {self.read} documents read, but {self.kept} kept + {self.dropped} dropped + "
                f"{self.rejected} rejected"
            )

    def to_json(self) -> dict[str, int]:
        """As JSON fields."""
        return dict(self.__dict__)


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """What is kept of one split, and what its kept documents can share a file with."""

    ordinal: int
    layout: str
    counts: KeptCounts


@dataclasses.dataclass
class GroupCounts:
    """What is kept of the splits of one group, by split and by source."""

    group: int
    splits: list[SplitCounts]
    sources: dict[str, KeptCounts]

    def to_json(self) -> dict[str, Any]:
        """As JSON fields."""
        return {
            "group": self.group,
            "splits": [
                {"ordinal": split.ordinal, "layout": split.layout, **split.counts.to_json()} for split in self.splits
            ],
            "sources": {source: counts.to_json() for source, counts in self.sources.items()},
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "GroupCounts":
        """What `to_json` wrote."""
        rows = [
            SplitCounts(
                row["ordinal"],
                row["layout"],
                KeptCounts(**{n: v for n, v in row.items() if n not in ("ordinal", "layout")}),
            )
            for row in fields["splits"]
        ]
        sources = {source: KeptCounts(**counts) for source, counts in fields["sources"].items()}
        return cls(fields["group"], rows, sources)


COUNT_COLUMNS = (*RANK_COLUMNS, "bytes", "source")


def kept_rows(file: ScoreFile, boundary: Boundary, seed: int) -> np.ndarray:
    """The row numbers of kept documents in a score file, in the order of the input."""
    if boundary.end is None:
        raise BooksError("the cutoff is not known after the last round of the descent")
    return file.scored_rows()[file.rank_keys(seed).below(boundary.end)]


def _sum_by_source(codes_R: np.ndarray, sources: int, values_R: np.ndarray) -> list[int]:
    sums_S = np.zeros(sources, np.int64)
    np.add.at(sums_S, codes_R, values_R.astype(np.int64))
    sums: list[int] = sums_S.tolist()
    return sums


def count_group(folder: RunFolder, group: int, boundary: Boundary, seed: int) -> GroupCounts:
    """Counts what is kept of every split of a group.

    Raises:
        BooksError: the counts contradict each other.
    """
    result = GroupCounts(group, [], {})
    for task in splits.read_group(folder, group):
        ordinal = task.split.ordinal
        file = ScoreFile.read(folder, ordinal, COUNT_COLUMNS)
        kept_R = np.zeros(file.table.num_rows, bool)
        kept_R[kept_rows(file, boundary, seed)] = True
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
            result.sources.setdefault(source, KeptCounts()).add(counts)
        split_counts.check(f"{task.split.path}, split {ordinal}")
        result.splits.append(SplitCounts(ordinal, file.layout, split_counts))
    return result


class CountKept(beam.DoFn):
    """Commits what is kept of every split of a group."""

    def __init__(self, request: SelectionRequest):
        self._request = request

    def process(self, group: int, boundary: Boundary) -> Iterator[GroupCounts]:
        """A group in, its committed counts out."""
        path = self._request.selection.counts_path(group)
        data = commits.read_if_there(path)
        if data is None:
            counts = count_group(self._request.folder, group, boundary, self._request.seed)
            commits.commit_if_absent(path, orjson.dumps(counts.to_json()))
            data = commits.read_bytes(path)
        yield GroupCounts.from_json(orjson.loads(data))


def find_cutoff(scored: beam.PCollection, request: SelectionRequest) -> tuple[beam.PCollection, beam.PCollection]:
    """Adds the steps that find the exact cutoff, from committed summaries and score files.

    Args:
        scored: one element, which says that `scoring.json` is committed.
        request: the selection.

    Returns:
        The boundary with its cutoff (one element), and the numbers of all groups of splits.
    """
    folder = request.folder
    boundary = scored | "Begin" >> beam.Map(_begin, request)
    groups = scored | "List groups" >> beam.FlatMap(_groups, folder) | "Spread groups" >> beam.Reshuffle()
    for level in range(1, LAST_LEVEL + 1):
        found = (
            groups
            | f"Count undecided {level}"
            >> beam.ParDo(CountUndecided(folder, request.seed), beam.pvalue.AsSingleton(boundary))
            | f"Merge undecided {level}" >> beam.CombineGlobally(MergeUndecided())
        )
        boundary = found | f"Advance {level}" >> beam.Map(advance, beam.pvalue.AsSingleton(boundary))
    return boundary, groups


def _begin(scored: Any, request: SelectionRequest) -> Boundary:
    return begin_selection(request)


def _groups(scored: Any, folder: RunFolder) -> Iterator[int]:
    yield from range(splits.plan_of(folder)["groups"])
