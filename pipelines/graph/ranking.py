"""The ranking of a selection: filters, ranks and measures documents by more than the run's score.

For every split a score file is committed below `selections/NAME/ranking/` that has the rows of the
run's. Its `score` is the number to rank by, its `tokens` are what budgets count, and documents that
a condition excludes have no score. Then the steps that search for cutoffs, count and write work on
these files as on the run's, so whatever holds for a plain selection holds for a ranked one. A
resumed selection ranks only what has no such file.

Joined tables (`datarater.pipelines.graph.joined_tables`) meet the documents by key: keys and the
places of their documents are shuffled by bucket, and what was found there goes back to the splits.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue
from numpy.typing import NDArray

from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph import joined_tables
from datarater.pipelines.graph.cutoff_search import commit_rule
from datarater.pipelines.graph.joined_tables import Chunk, Lookup, TablePart
from datarater.pipelines.graph.output_files import ScoredPart
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.graph.score_split import METRICS
from datarater.pipelines.graph.scoring import (
    DealOut,
    ExpandGroup,
    ListScored,
    MergeSummaries,
    by_ordinal,
    read_summary,
)
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.graph.token_counts import (
    MAX_TOKENS,
    FieldCounter,
    TokenCounter,
    token_counts,
)
from datarater.pipelines.run_folder import commits, summaries
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.duplicates import duplicate_rows
from datarater.pipelines.run_folder.identity import CommittedIdentity
from datarater.pipelines.run_folder.layout import RankingFolder, read_json, to_json
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES
from datarater.pipelines.run_folder.plan import SplitTask, identity_of, plan_of, read_group
from datarater.pipelines.run_folder.ranking_options import (
    CONDITION_MISSING,
    CONDITION_NOT_MET,
    NEAR_DUPLICATE,
    RANK_MISSING,
    RANK_NOT_FINITE,
    TOKENS_MISSING,
    JoinCounts,
    JoinedTable,
    JoinsFile,
    RankingOptions,
)
from datarater.pipelines.run_folder.score_files import (
    JOINED,
    OTHER_SCORE,
    RATER_SCORE,
    RATER_TOKENS,
    ScoreFile,
    ranked_file,
)
from datarater.pipelines.run_folder.scored import Scoring, count_plans, read_scoring
from datarater.pipelines.run_folder.summaries import Summary
from datarater.pipelines.selection.expressions import Expression
from datarater.rater_model.documents.records import FileInfo, ReadOptions

ROWS_AT_ONCE = 2**18
"""Number of keys that a worker collects before it emits them."""

Keys = tuple[bool, bytes, bytes]
"""Keys in one bucket: whether they are ids, their hashes, and the places of their documents."""


class Rank(beam.PTransform):
    """Ranks the documents of a scored run for one selection; emits one element at the end.

    Args:
        request: The selection, which has a ranking.
    """

    def __init__(self, request: SelectionRequest):
        super().__init__()
        self._request = request

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of one element, which waits for `scoring.json`."""
        request, folder = self._request, self._request.ranking_folder

        # What a launch before has ranked is not ranked again.
        groups = scored | "Begin" >> beam.FlatMap(_begin, request) | "Spread" >> beam.Reshuffle()
        listed = AsSingleton(groups | "List ranked" >> ListScored(folder))
        expanded = groups | "Expand group" >> beam.ParDo(ExpandGroup(folder), listed).with_outputs(
            ExpandGroup.SUMMARISED, ExpandGroup.SCORED, main="splits"
        )

        # What the joined tables say of a split comes together with the split.
        tasks = expanded.splits | "By ordinal" >> beam.Map(by_ordinal).with_output_types(
            tuple[int, SplitTask]
        )
        parts, counted = {"task": tasks}, []
        if _tables(request):
            joined = expanded.splits | "Join" >> JoinTables(request, scored)
            parts["joined"], counted = joined["found"], [AsIter(joined["counted"])]
        ranked = (
            parts
            | "Group parts" >> beam.CoGroupByKey()
            | "Rank split" >> beam.ParDo(RankSplit(request))
        )

        # Summaries as scoring makes them, then the counts of the whole.
        summarized = (
            (ranked, expanded.scored)
            | "All splits" >> beam.Flatten()
            | "Group splits" >> beam.GroupByKey()
            | "Summarise group" >> beam.ParDo(SummariseRanking(request))
        )
        return (
            (summarized, expanded.summarised)
            | "All groups" >> beam.Flatten()
            | "Read summary" >> beam.Map(read_summary, folder)
            | "Add summaries" >> beam.CombineGlobally(MergeSummaries())
            | "Finish ranking" >> beam.ParDo(FinishRanking(request), *counted)
        )


def _tables(request: SelectionRequest) -> Sequence[JoinedTable]:
    return _options(request).joins


def _options(request: SelectionRequest) -> RankingOptions:
    assert request.ranking is not None
    return request.ranking


@beam.typehints.with_output_types(Iterable[int])
def _begin(scored: Any, request: SelectionRequest) -> Iterator[int]:
    """Commits the rule, which the ranking belongs to; yields the numbers of all groups."""
    commit_rule(request)
    yield from range(read_scoring(request.folder).groups)


# Joining.


class JoinTables(beam.PTransform):
    """Joins the documents of splits with tables, by key.

    Args:
        request: The selection.
        scored: A collection of one element, which waits for `scoring.json`.
    """

    def __init__(self, request: SelectionRequest, scored: beam.PCollection):
        super().__init__()
        self._request = request
        self._scored = scored

    def expand(self, splits: beam.PCollection) -> dict[str, beam.PCollection]:
        """Adds the steps to a collection of splits to rank.

        Returns:
            `found`: What the tables say of the documents of a split, by its ordinal. `counted`: the
            path of the counts of the tables, once they are committed.
        """
        request = self._request
        buckets: dict[str, beam.PCollection] = {}
        buckets["documents"] = (
            splits | "Spread splits" >> DealOut() | "Keys" >> beam.ParDo(DocumentKeys(request))
        )

        # The tables are not read where nothing is left to rank.
        left = splits | "Count splits" >> beam.combiners.Count.Globally()
        counts = []
        for number in range(len(_tables(request))):
            read = (
                self._scored
                | f"List table {number}"
                >> beam.FlatMap(_list_table, request, number, AsSingleton(left))
                | f"Spread files {number}" >> beam.Reshuffle()
                | f"Divide files {number}" >> beam.FlatMap(_parts, _tables(request)[number])
                | f"Spread parts {number}" >> beam.Reshuffle()
                | f"Read table {number}"
                >> beam.ParDo(ReadTable(request, number)).with_outputs(COUNTS, main="rows")
            )
            buckets[str(number)] = read.rows
            counts.append(read[COUNTS])

        met = (
            buckets
            | "Meet" >> beam.CoGroupByKey()
            | "Find" >> beam.ParDo(FindRows(request)).with_outputs(COUNTS, main="found")
        )
        counted = (
            (*counts, met[COUNTS])
            | "All counts" >> beam.Flatten()
            | "Add counts" >> beam.CombineGlobally(_added)
            | "Commit counts" >> beam.ParDo(CommitJoins(request))
        )
        return {"found": met.found, "counted": counted}


COUNTS = "counts"


@beam.typehints.with_output_types(Iterable[tuple[int, FileInfo]])
def _list_table(
    scored: Any, request: SelectionRequest, number: int, splits_left: int
) -> Iterator[tuple[int, FileInfo]]:
    """Yields the files of a joined table with their numbers, unless nothing is left to do.

    Raises:
        InputChangedError: They are not the files that the selection began with.
    """
    if not splits_left and commits.exists(request.ranking_folder.joins_path):
        return
    table = _tables(request)[number]
    if joined_tables.identify(joined_tables.files_of(table.name, table.patterns)) != table.inputs:
        raise joined_tables.changed(table.name, ", ".join(table.patterns))
    yield from enumerate(joined_tables.files_of(table.name, table.patterns))


@beam.typehints.with_output_types(Iterable[TablePart])
def _parts(listed: tuple[int, FileInfo], table: JoinedTable) -> Iterator[TablePart]:
    number, file = listed
    yield from joined_tables.parts_of(table, file, number)


class _InBuckets(Step[SelectionRequest]):
    """A step that divides keys into buckets."""

    def __init__(self, request: SelectionRequest):
        super().__init__(request)
        self._buckets = 0

    def _count(self) -> int:
        """Returns the number of buckets, which is the same for all steps of the selection."""
        if not self._buckets:
            documents = read_scoring(self._request.folder).counts.scored
            self._buckets = joined_tables.count_buckets(
                documents, _tables(self._request), self._request.rows_per_bucket
            )
        return self._buckets


@beam.typehints.with_output_types(tuple[int, Keys])
class DocumentKeys(_InBuckets):
    """Emits the hashes of the keys of documents, with their places, by bucket.

    A place is the ordinal of a split and the number of a row in its score file.

    Args:
        request: The selection.
        rows_at_once: Number of keys to collect before they are emitted.
    """

    def __init__(self, request: SelectionRequest, rows_at_once: int = ROWS_AT_ONCE):
        super().__init__(request)
        self._rows_at_once = rows_at_once

    def start_bundle(self) -> None:
        """Begins with no keys."""
        self._hashes: dict[bool, list[NDArray[np.uint64]]] = {}
        self._places: dict[bool, list[NDArray[np.int64]]] = {}
        self._waiting = 0

    def process(self, task: SplitTask) -> Iterator[tuple[int, Keys]]:
        """Adds the documents of a split; emits all keys once there are many."""
        ordinal, first = task.split.ordinal, 0
        for file in ScoreFile.in_chunks(self._request.folder, ordinal, ("key", "score")):
            rows_N = file.scored_rows()
            keys = file.table.column("key").take(pa.array(rows_N)).to_pylist()
            places_N2 = np.stack([np.full(len(rows_N), ordinal), first + rows_N], 1)
            for by_id in sorted({table.by_id for table in _tables(self._request)}):
                hashes_N2 = joined_tables.document_hashes(keys, by_id=by_id)
                self._hashes.setdefault(by_id, []).append(hashes_N2)
                self._places.setdefault(by_id, []).append(places_N2)
                self._waiting += len(keys)
            first += file.table.num_rows
        if self._waiting >= self._rows_at_once:
            yield from self._emit()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Emits the keys that are left."""
        window = GlobalWindow()
        for element in self._emit():
            yield WindowedValue(element, window.max_timestamp(), [window])

    def _emit(self) -> Iterator[tuple[int, Keys]]:
        for by_id, parts in self._hashes.items():
            hashes_N2, places_N2 = np.concatenate(parts), np.concatenate(self._places[by_id])
            for bucket, rows_M in joined_tables.by_bucket(hashes_N2, self._count()):
                keys = by_id, hashes_N2[rows_M].tobytes(), places_N2[rows_M].tobytes()
                yield bucket, keys
        self.start_bundle()


class ReadTable(_InBuckets):
    """Emits the rows of a joined table by bucket, and what was counted of it.

    Args:
        request: The selection.
        number: Number of the table.
    """

    def __init__(self, request: SelectionRequest, number: int):
        super().__init__(request)
        self._number = number

    def process(self, part: TablePart) -> Iterator[Any]:
        """Reads one part of the table; raises as `joined_tables.read_part` does."""
        table = _tables(self._request)[self._number]
        chunks, counts = joined_tables.chunks_of(table, part, self._count())
        yield from chunks
        Metrics.counter(METRICS, "joined_rows").inc(counts.rows)
        yield beam.pvalue.TaggedOutput(COUNTS, {table.name: counts})

    def infer_output_type(self, input_type: Any) -> Any:
        """Returns the type of the rows, by which Beam groups them."""
        return tuple[int, Chunk]


class FindRows(Step[SelectionRequest]):
    """Finds the rows of joined tables for the documents of one bucket.

    It emits by the ordinal of the split what was found, as JSON: for each table of one kind of key
    its number, the numbers of the documents' rows in the score file, and the used columns.
    """

    def process(self, element: tuple[int, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        """Finds the rows of one bucket.

        Args:
            element: The bucket, and the chunks of `documents` and of each table by its number.
        """
        _, chunks = element
        lookups: list[Lookup] = []
        counts: dict[str, JoinCounts] = {}
        for number, table in enumerate(_tables(self._request)):
            lookups.append(Lookup.of(chunks[str(number)], len(table.columns)))
            counts[table.name] = JoinCounts(duplicates=lookups[-1].duplicates)
        yield beam.pvalue.TaggedOutput(COUNTS, counts)

        for by_id, hashes, places in chunks["documents"]:
            hashes_N2 = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
            places_N2 = np.frombuffer(places, np.int64).reshape(-1, 2)
            for number, table in enumerate(_tables(self._request)):
                if table.by_id == by_id:
                    yield from _found(number, lookups[number], hashes_N2, places_N2)

    def infer_output_type(self, input_type: Any) -> Any:
        """Returns the type of what was found, by which Beam groups it."""
        return tuple[int, bytes]


def _found(
    number: int, lookup: Lookup, hashes_N2: NDArray[np.uint64], places_N2: NDArray[np.int64]
) -> Iterator[tuple[int, bytes]]:
    """Yields what a table says of documents, by the ordinals of their splits."""
    found_N = lookup.find(hashes_N2)
    rows_M = np.flatnonzero(found_N >= 0)
    rows_M = rows_M[np.argsort(places_N2[rows_M, 0], kind="stable")]
    ordinals, firsts = np.unique(places_N2[rows_M, 0], return_index=True)
    if not len(rows_M):
        return
    for ordinal, rows in zip(ordinals.tolist(), np.split(rows_M, firsts[1:]), strict=True):
        picked = found_N[rows].tolist()
        columns = [[column[row] for row in picked] for column in lookup.columns]
        yield ordinal, orjson.dumps([number, places_N2[rows, 1].tolist(), columns])


def _added(parts: Iterable[Mapping[str, JoinCounts]]) -> dict[str, JoinCounts]:
    """Adds the counts of joined tables up, by the tables' names."""
    total: dict[str, JoinCounts] = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, JoinCounts()).add(counts)
    return total


@beam.typehints.with_output_types(str)
class CommitJoins(Step[SelectionRequest]):
    """Commits the counts of the joined tables; emits their path."""

    def process(self, counts: dict[str, JoinCounts]) -> Iterator[str]:
        """Commits the counts of all tables, unless they are committed."""
        path = self._request.ranking_folder.joins_path
        commits.commit_if_absent(path, to_json(JoinsFile(counts)))
        yield path


# Ranking.


@beam.typehints.with_output_types(tuple[int, int])
class RankSplit(Step[SelectionRequest]):
    """Commits the score file of one split for the ranking; emits its group and ordinal."""

    def __init__(self, request: SelectionRequest):
        super().__init__(request)
        self._identity: CommittedIdentity | None = None
        self._counter: TokenCounter | FieldCounter | None = None

    def _run(self) -> CommittedIdentity:
        if self._identity is None:
            self._identity = identity_of(self._request.folder)
        return self._identity

    def _token_counter(self) -> TokenCounter | FieldCounter:
        options = _options(self._request)
        if self._counter is None and options.tokens_field:
            self._counter = FieldCounter(options.tokens_field)
        elif self._counter is None:
            self._counter = TokenCounter.unchanged(options.tokens_from, options.tokenizer)
        return self._counter

    def process(
        self, element: tuple[int, Mapping[str, Iterable[Any]]]
    ) -> Iterator[tuple[int, int]]:
        """Ranks one split, given with what the joined tables say of it."""
        ordinal, parts = element
        request, options = self._request, _options(self._request)
        for task in parts["task"]:  # there is one
            found = FoundRows.of(parts.get("joined", ()), options)
            duplicates_D = np.zeros(0, np.int64)
            if options.duplicates:
                folder = request.folder.duplicates(options.duplicates)
                duplicates_D = duplicate_rows(folder, ordinal)
            judged = functools.partial(_judged, request, ordinal, found, duplicates_D)
            ranked: Iterable[ScoreFile] = (part for _, part in judged())
            if options.tokenizer or options.tokens_field:
                ranked = count_tokens(self._token_counter(), judged, self._run().read)
            with ranked_file(ranked, self._run().rater) as content:
                commits.commit_file(request.ranking_folder.score_path(ordinal), content)
            Metrics.counter(METRICS, "splits_ranked").inc()
            yield task.group, ordinal


_NO_ROWS: NDArray[np.int64] = np.zeros(0, np.int64)

RankedPart = tuple[ScoreFile, ScoreFile]
"""A row group of the run's score file, and the same rows as a ranking has them."""


def _judged(
    request: SelectionRequest, ordinal: int, found: FoundRows, duplicates_D: NDArray[np.int64]
) -> Iterator[RankedPart]:
    """Yields the row groups of a split; see `rank_parts`."""
    parts = ScoreFile.in_chunks(request.folder, ordinal)
    return rank_parts(parts, _options(request), found, duplicates_D)


def count_tokens(
    counter: TokenCounter | FieldCounter,
    judged: Callable[[], Iterable[RankedPart]],
    read: ReadOptions,
) -> Iterator[ScoreFile]:
    """Yields the ranked rows of a split with the tokens of a counter; excludes those without.

    Args:
        counter: What counts them.
        judged: Returns the row groups of the split.
        read: How records are read.

    Raises:
        InputChangedError: An input has changed since it was scored.
        UnreadableInputError: An input cannot be read.
    """

    def chosen() -> Iterator[ScoredPart]:
        for scored, ranked in judged():
            yield scored, ranked.table.column("score").is_valid().to_numpy()

    # Row groups are judged anew rather than remembered: a split may have many.
    counts = token_counts(counter, chosen, read)
    for _, ranked in judged():
        rows_M = ranked.scored_rows()
        tokens_R = np.zeros(ranked.table.num_rows, np.int64)
        counts_M = list(itertools.islice(counts, len(rows_M)))
        tokens_R[rows_M] = [count or 0 for count in counts_M]
        changed = {"tokens": pa.array(tokens_R)}
        missing = [row for row, count in zip(rows_M, counts_M, strict=True) if count is None]
        if missing:
            scores_R = ranked.table.column("score").to_pylist()
            statuses_R = ranked.table.column("status").to_pylist()
            for row in missing:
                scores_R[row], statuses_R[row] = None, TOKENS_MISSING
            changed["score"] = pa.array(scores_R, pa.float32())
            changed["status"] = pa.array(statuses_R, pa.string()).dictionary_encode()
        yield dataclasses.replace(ranked, table=_with_columns(ranked.table, changed))
    for _ in counts:  # the check of the last records
        raise AssertionError("more documents were tokenized than chosen")


@dataclasses.dataclass(frozen=True)
class FoundRows:
    """What joined tables say of the rows of a score file.

    Attributes:
        rows: For each table, the numbers of the rows that it has a row of, ascending.
        values: For each table, the values of its used columns in these rows, as arrays of objects.
    """

    rows: tuple[NDArray[np.int64], ...]
    values: tuple[tuple[NDArray[Any], ...], ...]

    @classmethod
    def of(cls, found: Iterable[bytes], options: RankingOptions) -> FoundRows:
        """Returns what `FindRows` emitted for a split."""
        rows: list[list[int]] = [[] for _ in options.joins]
        values: list[list[list[Any]]] = [[[] for _ in table.columns] for table in options.joins]
        for part in found:
            number, places, columns = orjson.loads(part)
            rows[number] += places
            for column, more in zip(values[number], columns, strict=True):
                column += more

        orders = [np.argsort(np.asarray(places, np.int64)) for places in rows]
        return cls(
            tuple(
                np.asarray(places, np.int64)[order]
                for places, order in zip(rows, orders, strict=True)
            ),
            tuple(
                tuple(_objects(column)[order] for column in columns)
                for columns, order in zip(values, orders, strict=True)
            ),
        )

    def columns(
        self, options: RankingOptions, first: int, rows: int
    ) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
        """Returns the columns for some rows of the score file.

        Args:
            options: The ranking.
            first: Number of the first row.
            rows: Number of rows.

        Returns:
            The used columns by their full names, and whether each table has the row, by the names
            of the columns that say so.
        """
        columns, joined = {}, {}
        for number, table in enumerate(options.joins):
            low, high = np.searchsorted(self.rows[number], [first, first + rows])
            at_M = self.rows[number][low:high] - first
            has_R = np.zeros(rows, bool)
            has_R[at_M] = True
            joined[f"{JOINED}{table.name}"] = pa.array(has_R)
            for values, (name, kind) in zip(
                self.values[number], table.full_names().items(), strict=True
            ):
                column_R = np.full(rows, None, object)
                column_R[at_M] = values[low:high]
                columns[name] = pa.array(column_R, kind.arrow)
        return columns, joined


def _objects(values: list[Any]) -> NDArray[Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def rank_parts(
    parts: Iterable[ScoreFile],
    options: RankingOptions,
    found: FoundRows,
    duplicates_D: NDArray[np.int64] = _NO_ROWS,
) -> Iterator[RankedPart]:
    """Ranks the documents of a score file, a row group at a time; yields each before and after.

    Args:
        parts: The row groups of the run's score file, all columns.
        options: The ranking.
        found: What the joined tables say of its rows.
        duplicates_D: Numbers of its rows that are near-duplicates to leave out, ascending.
    """
    first = 0
    for part in parts:
        rows = part.table.num_rows
        joined, has = found.columns(options, first, rows)
        is_duplicate_R = np.zeros(rows, bool)
        low, high = np.searchsorted(duplicates_D, [first, first + rows])
        is_duplicate_R[duplicates_D[low:high] - first] = True
        ranked = rank_table(part.table, options, joined, has, is_duplicate_R)
        yield part, dataclasses.replace(part, table=ranked)
        first += rows


def rank_table(
    table: pa.Table,
    options: RankingOptions,
    joined: Mapping[str, pa.Array],
    has: Mapping[str, pa.Array],
    is_duplicate_R: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Returns rows of a score file with the scores, tokens and reasons of a ranking.

    Args:
        table: Rows of the run's score file.
        options: The ranking.
        joined: Columns of joined tables, by their full names.
        has: Whether joined tables have each row, by column.
        is_duplicate_R: Whether each row is a near-duplicate to leave out; None if none is.
    """
    rows = table.num_rows
    own = {
        "rater": table.column("score").cast(pa.float64()),
        "tokens": table.column("tokens"),
        "bytes": table.column("bytes"),
        "source": table.column("source").cast(pa.string()),
    }
    for name in table.schema.names:
        if name.startswith(OTHER_SCORE):
            own[name.removeprefix(OTHER_SCORE)] = table.column(name).cast(pa.float64())
    columns = {name: _combined(column) for name, column in own.items()} | dict(joined)
    scored_R = table.column("score").is_valid().to_numpy()
    reasons_R = np.full(rows, "", object)

    def exclude(mask_R: NDArray[np.bool_], reason: str) -> None:
        reasons_R[scored_R & mask_R & (reasons_R == "")] = reason

    if is_duplicate_R is not None:
        exclude(is_duplicate_R, NEAR_DUPLICATE)
    if options.where:
        met = Expression.parse(options.where).evaluate(columns, rows)
        exclude(~met.fill_null(True).to_numpy(zero_copy_only=False), CONDITION_NOT_MET)
        exclude(met.is_null().to_numpy(zero_copy_only=False), CONDITION_MISSING)

    # A score that is not changed keeps its bits.
    scores_R = table.column("score").to_numpy()
    if options.rank_by:
        ranks = Expression.parse(options.rank_by).evaluate(columns, rows).cast(pa.float64())
        exclude(ranks.is_null().to_numpy(zero_copy_only=False), RANK_MISSING)
        with np.errstate(over="ignore"):
            scores_R = ranks.to_numpy(zero_copy_only=False).astype(np.float32)
        exclude(~np.isfinite(scores_R), RANK_NOT_FINITE)

    tokens_R = table.column("tokens").to_numpy()
    if options.tokens_column:
        counted = columns[options.tokens_column]
        counts_R = counted.fill_null(-1).to_numpy(zero_copy_only=False)
        is_count_R = (counts_R >= 0) & (counts_R <= MAX_TOKENS) & (counts_R == counts_R // 1)
        exclude(~is_count_R, TOKENS_MISSING)
        kept_R = scored_R & (reasons_R == "")
        tokens_R = np.where(kept_R, np.where(kept_R, counts_R, 0), 0).astype(np.int64)

    ranked_R = scored_R & (reasons_R == "")
    statuses = np.asarray(table.column("status").to_pylist(), object)
    statuses = np.where(scored_R & ~ranked_R, reasons_R, statuses)
    changed = {
        "score": pa.array(np.where(ranked_R, scores_R, 0), pa.float32(), mask=~ranked_R),
        "tokens": pa.array(tokens_R, pa.int64()),
        "status": pa.array(statuses.tolist(), pa.string()).dictionary_encode(),
    }
    result = _with_columns(table, changed)
    result = result.append_column(RATER_SCORE, table.column("score"))
    result = result.append_column(RATER_TOKENS, table.column("tokens"))
    for name, column in {**has, **joined}.items():
        result = result.append_column(name, column)
    return result


def _with_columns(table: pa.Table, changed: Mapping[str, pa.Array]) -> pa.Table:
    """Returns a table with other values in some of its columns, whose types stay."""
    for name, column in changed.items():
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        table = table.set_column(index, field, column.cast(field.type))
    return table


def _combined(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return (
            pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], column.type)
        )
    return combined


# The counts.


@beam.typehints.with_output_types(int)
class SummariseRanking(Step[SelectionRequest]):
    """Writes a group's summary from its committed score files."""

    def process(self, element: tuple[int, Iterable[int]]) -> Iterator[int]:
        """Summarizes one group.

        Args:
            element: Number of the group, and the ordinals of its ranked splits.

        Raises:
            CountsError: A split of the plan was not ranked.
        """
        group, ordinals = element
        folder = self._request.ranking_folder
        planned = [task.split.ordinal for task in read_group(folder, group)]
        missing = sorted(set(planned) - set(ordinals))
        if missing:
            raise CountsError(
                f"group {group}: the splits {missing[:5]} of the plan were not ranked"
            )
        max_sources = sources_apart_in(read_scoring(self._request.folder))
        summaries.summarise_group(folder, group, planned, max_sources, lists_rejects=False)
        yield group


def sources_apart_in(scoring: Scoring) -> int:
    """Returns the maximum number of sources that a scoring counted apart; see `many_sources`."""
    if OTHER_SOURCES not in scoring.sources:
        return Summary().max_sources
    return sum(name not in ("", OTHER_SOURCES) for name in scoring.sources)


def _reads(sources: Mapping[str, Counts]) -> dict[str, int]:
    return {source: counts.read for source, counts in sources.items()}


def finish_ranking(request: SelectionRequest, total: Summary) -> str:
    """Reconciles the counts of a ranking with those of the run, then commits them.

    Returns:
        The path of the counts.

    Raises:
        CountsError: A group or split is missing, or the counts contradict each other.
    """
    folder: RankingFolder = request.ranking_folder
    plans = count_plans(request.folder)
    scoring = read_scoring(request.folder, plans)
    plan = plan_of(request.folder)
    total.counts.check(folder.ranking_path)
    reasons = total.counts.rejected_by_reason - scoring.counts.rejected_by_reason
    expected = {
        "groups": (total.groups, plan.groups),
        "splits": (total.splits, plan.splits),
        "records read": (total.counts.read, scoring.counts.read),
        "records by source": (_reads(total.sources), _reads(scoring.sources)),
        "documents ranked or excluded": (
            total.counts.scored + reasons.total(),
            scoring.counts.scored,
        ),
    }
    for name, (actual, correct) in expected.items():
        if actual != correct:
            raise CountsError(f"{folder.ranking_path}: {name}: {actual}, but {correct} in the run")

    path = folder.scoring_path_of(plans - 1)
    ranked = Scoring(
        identity=scoring.identity,
        splits=total.splits,
        groups=total.groups,
        counts=total.counts,
        sources=total.sources,
        histogram=total.histogram(),
        joined=dict(sorted(total.joined.items())),
    )
    commits.commit_if_absent(path, to_json(ranked))
    return path


@beam.typehints.with_output_types(str)
class FinishRanking(Step[SelectionRequest]):
    """Commits the counts of a ranking; emits their path."""

    def process(self, total: Summary, counted: Iterable[str] = ()) -> Iterator[str]:
        """Finishes the ranking, given the sum of all summaries; `counted` is waited for."""
        yield finish_ranking(self._request, total)


def read_joins(request: SelectionRequest) -> dict[str, JoinCounts]:
    """Reads the committed counts of the joined tables, by name."""
    content = read_json(request.ranking_folder.joins_path, JoinsFile)
    return {} if content is None else content.tables
