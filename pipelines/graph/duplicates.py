"""Near-duplicates: the steps that find the documents with a similar one above them.

A document is dropped if a *neighbor* of it, a document that is similar enough, ranks above it in
the order of the run. It does not matter whether the neighbor is dropped itself: one pass, no
transitive closure. So the best document of any group of similar ones is kept.

    1. Sign every split in a second read of the input, and commit its signatures.
    2. Group the digests of all texts: documents with the same words.
    3. Group the bands of all other documents, and compare those that share one by their sketches.
    4. Choose the best neighbor of each document, look up its key, and commit a file per split.

No text and no key leaves the worker that read it, except the keys of neighbors. What is grouped is
arrays of entries (`datarater.pipelines.dedup.entries`): 36 bytes for each document in step 2 and,
at a similarity of 0.8, 16 bands of 92 bytes in step 3. They are dealt out to partitions by the
hash of the bucket, and a partition that is full of one bucket is read twice in bounded memory.

Every step is idempotent. A run that was interrupted reads only the splits again that have no
signatures yet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from datarater.pipelines import errors
from datarater.pipelines.dedup.entries import (
    BAND_ENTRY,
    TEXT_ENTRY,
    Table,
    band_entries,
    by_code,
    places_of,
    row_of,
    signature_type,
    signed,
    split_of,
    text_entries,
)
from datarater.pipelines.dedup.neighbors import FOUND, best_neighbors, neighbors
from datarater.pipelines.dedup.signatures import Bands
from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph.cutoff_search import ListGroups
from datarater.pipelines.graph.requests import DeduplicationRequest
from datarater.pipelines.graph.scoring import DealOut
from datarater.pipelines.graph.second_read import scored_documents
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits, duplicates
from datarater.pipelines.run_folder.committed import PREFIXES, at_once
from datarater.pipelines.run_folder.duplicates import (
    SCHEMA,
    DuplicateCounts,
    DuplicatesSummary,
)
from datarater.pipelines.run_folder.layout import to_json
from datarater.pipelines.run_folder.plan import SplitTask, identity_of, read_group
from datarater.pipelines.run_folder.score_files import RANK_COLUMNS, RECORDS, ScoreFile
from datarater.pipelines.run_folder.scored import count_plans, read_scoring
from datarater.rater_model.documents.files import local_path
from datarater.rater_model.documents.records import Document, ReadOptions
from datarater.rater_model.documents.store_errors import raising_os_errors

_BATCH_DOCUMENTS, _BATCH_BYTES = 1024, 2**20

_CHOSEN = np.dtype(
    [("place", "<u8"), ("neighbor_row", "<u4"), ("similarity", "<f4"), ("exact", "?")]
)
"""A document and its neighbor, whose split is the key of the element."""
_NAMED = pa.schema(
    [
        pa.field("row", pa.int64()),
        *(
            SCHEMA.field(name)
            for name in (
                "duplicate_of",
                "similarity",
                "exact",
                "duplicate_of_file",
                "duplicate_of_position",
            )
        ),
    ]
)

Blocks = tuple[int, Iterable[bytes]]
"""What one key's arrays arrive as."""


class FindDuplicates(beam.PTransform):
    """Finds the near-duplicates of a scored corpus; emits the path of `_SUCCESS` once it is there.

    Args:
        request: The deduplication.
    """

    def __init__(self, request: DeduplicationRequest):
        super().__init__()
        self._request = request

    def expand(self, scored: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of one element, which waits for `scoring.json`."""
        request = self._request

        # Read the input, and sign its documents. All splits are announced to the later steps,
        # with or without anything found.
        begun = scored | "Begin" >> beam.Map(_begin, request)
        groups = begun | "List groups" >> ListGroups(request.folder)
        tasks = groups | "Expand groups" >> beam.FlatMap(_splits_of, request)
        dealt = tasks | "Spread splits" >> DealOut()
        signed = dealt | "Sign" >> beam.ParDo(SignSplit(request))

        # Find equal texts, then compare the others.
        texts = signed | "Texts" >> beam.ParDo(DealTexts(request))
        equal = (
            texts
            | "Same text" >> beam.GroupByKey()
            | "Equal" >> beam.ParDo(FindNeighbors(request, TEXT_ENTRY, minimum=1.0, exact=True))
        )
        left = (signed, equal) | "All splits" >> beam.Flatten() | "Without" >> beam.GroupByKey()
        bands = left | "Bands" >> beam.ParDo(DealBands(request))
        similar = (
            bands
            | "Same band" >> beam.GroupByKey()
            | "Similar" >> beam.ParDo(FindNeighbors(request, BAND_ENTRY, request.similarity))
        )

        # Choose a neighbor for each document, and fetch the keys of the neighbors.
        named = (
            (equal, similar)
            | "All found" >> beam.Flatten()
            | "Found in split" >> beam.GroupByKey()
            | "Choose" >> beam.ParDo(ChooseNeighbors())
            | "By neighbor" >> beam.GroupByKey()
            | "Name" >> beam.ParDo(NameNeighbors(request))
        )

        # Commit each split, then the counts. Signatures are removed before `_SUCCESS` is there.
        counts = (
            (signed, named)
            | "Every split" >> beam.Flatten()
            | "Named in split" >> beam.GroupByKey()
            | "Commit" >> beam.ParDo(CommitSplit(request))
            | "Add up" >> beam.CombineGlobally(AddCounts())
            | "Summarize" >> beam.ParDo(CommitSummary(request))
        )
        return (
            counts
            | "Prefixes" >> beam.FlatMap(_prefixes)
            | "Spread prefixes" >> beam.Reshuffle()
            | "Remove signatures" >> beam.Map(_remove_signatures, request)
            | "All removed" >> beam.CombineGlobally(sum)
            | "Succeed" >> beam.Map(_succeed, request)
        )


def begin(request: DeduplicationRequest) -> None:
    """Commits the options of a deduplication.

    Raises:
        RunFolderMismatchError: The name belongs to a deduplication with other options.
        CountsError: The scoring is not complete.
    """
    read_scoring(request.folder)
    options = request.options_over(count_plans(request.folder))
    if not commits.commit_if_absent(request.duplicates.options_path, to_json(options)):
        duplicates.check_options(request.duplicates, options)


@beam.typehints.with_output_types(str)
def _begin(scored: Any, request: DeduplicationRequest) -> str:
    begin(request)
    return request.name


@beam.typehints.with_output_types(Iterable[SplitTask])
def _splits_of(group: int, request: DeduplicationRequest) -> Iterator[SplitTask]:
    # Once the counts are there, so are the files of all splits.
    if not commits.exists(request.duplicates.summary_path):
        yield from read_group(request.folder, group)


# Signatures.


@beam.typehints.with_output_types(tuple[int, bytes])
class SignSplit(Step[DeduplicationRequest]):
    """Reads a split and commits its signatures, unless they are committed; emits its ordinal."""

    def __init__(self, request: DeduplicationRequest):
        super().__init__(request)
        self._read: ReadOptions | None = None

    def process(self, task: SplitTask) -> Iterator[tuple[int, bytes]]:
        """Signs one split.

        Raises:
            InputChangedError: An input has changed since it was scored.
            CurationError: An input cannot be read.
        """
        ordinal = task.split.ordinal
        path = self._request.duplicates.signatures_path(ordinal)
        if not commits.exists(path):
            if self._read is None:
                self._read = identity_of(self._request.folder).read
            try:
                with raising_os_errors(task.split.path):
                    blocks = sign_split(self._request, ordinal, self._read)
                    duplicates.write_signatures(path, blocks)
            except OSError as error:
                raise errors.copying_failed(task.split.path, path, error) from error
        yield ordinal, b""


def sign_split(request: DeduplicationRequest, ordinal: int, read: ReadOptions) -> Iterator[Table]:
    """Yields the signatures of all scored documents of a split, in blocks, in their order.

    Args:
        request: The deduplication.
        ordinal: Ordinal of the split.
        read: How records are read.
    """
    # The places of the documents in the order of the run.
    ranks, first = [(np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.uint64))], 0
    for file in ScoreFile.in_chunks(request.folder, ordinal, RANK_COLUMNS):
        keys = file.rank_keys(request.seed)
        ranks.append((first + file.scored_rows(), keys.orders(), keys.hashes()))
        first += file.table.num_rows
    rows_N, orders_N, ties_N = map(np.concatenate, zip(*ranks, strict=True))

    bands, done = Bands.for_similarity(request.similarity), 0
    for batch in _batches(scored_documents(request.folder, ordinal, read)):
        here = slice(done, done + len(batch))
        texts = [document.text for document in batch]
        yield signed(texts, bands, rows_N[here], orders_N[here], ties_N[here])
        done += len(batch)
        Metrics.counter("datarater", "documents_signed").inc(len(batch))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yields documents in batches of bounded size."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.size
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Deal(Step[DeduplicationRequest]):
    """Deals the entries of documents out to partitions by the hashes of their buckets."""

    def __init__(self, request: DeduplicationRequest):
        super().__init__(request)
        self._documents = 0

    def _signatures(self, ordinal: int) -> Iterator[Table]:
        request = self._request
        return duplicates.read_signatures(
            request.duplicates.signatures_path(ordinal),
            signature_type(Bands.for_similarity(request.similarity)),
            request.signatures_per_block,
        )

    def _dealt(self, entries: Table, per_document: int) -> Iterator[tuple[int, bytes]]:
        """Yields partitions and the bytes of their entries.

        Args:
            entries: Entries in any order.
            per_document: Number of entries that each document of the corpus has.
        """
        if not self._documents:
            self._documents = read_scoring(self._request.folder).counts.scored
        number = -(-self._documents * per_document // self._request.entries_per_partition)
        high_E = entries["bucket"] >> np.uint64(32)
        partitions_E = high_E * np.uint64(min(number, 2**31)) >> np.uint64(32)
        for partition, part in by_code(partitions_E, entries):
            yield partition, part.tobytes()


@beam.typehints.with_output_types(tuple[int, bytes])
class DealTexts(_Deal):
    """Emits an entry for the digest of every document."""

    def process(self, element: tuple[int, bytes]) -> Iterator[tuple[int, bytes]]:
        """Deals out one split."""
        ordinal, _ = element
        for signatures in self._signatures(ordinal):
            yield from self._dealt(text_entries(signatures, ordinal), 1)


@beam.typehints.with_output_types(tuple[int, bytes])
class DealBands(_Deal):
    """Emits an entry for each band of every document that has words and no equal one above it."""

    def process(self, element: Blocks) -> Iterator[tuple[int, bytes]]:
        """Deals out one split.

        Args:
            element: Its ordinal, and the documents that have an equal one above them.
        """
        ordinal, blocks = element
        equal = _table(blocks, FOUND)["row"]
        count = Bands.for_similarity(self._request.similarity).count
        for signatures in self._signatures(ordinal):
            yield from self._dealt(band_entries(signatures, ordinal, equal), count)


# Neighbors.


def _table(blocks: Iterable[bytes], kind: np.dtype[Any]) -> Table:
    """Returns the rows of several blocks as one table."""
    return np.frombuffer(b"".join(blocks), kind)


@beam.typehints.with_output_types(tuple[int, bytes])
class FindNeighbors(Step[DeduplicationRequest]):
    """Compares the documents of a partition's buckets; emits what is found by split."""

    def __init__(
        self,
        request: DeduplicationRequest,
        kind: np.dtype[Any],
        minimum: float,
        exact: bool = False,
    ):
        super().__init__(request)
        self._kind = kind
        self._minimum = minimum
        self._exact = exact

    def process(self, element: Blocks) -> Iterator[tuple[int, bytes]]:
        """Compares one partition."""
        _, blocks = element
        found = neighbors(
            lambda: (np.frombuffer(block, self._kind) for block in blocks),
            self._minimum,
            exact=self._exact,
            max_compared=self._request.max_compared,
            max_entries=self._request.max_entries,
        )
        for split, table in found:
            yield split, best_neighbors(table).tobytes()


@beam.typehints.with_output_types(tuple[int, bytes])
class ChooseNeighbors(beam.DoFn):
    """Chooses the best neighbor of each document of a split; emits them by the neighbor's split."""

    def process(self, element: Blocks) -> Iterator[tuple[int, bytes]]:
        """Chooses for one split."""
        split, blocks = element
        found = best_neighbors(_table(blocks, FOUND))
        chosen = np.zeros(len(found), _CHOSEN)
        chosen["place"] = places_of(split, found["row"])
        chosen["neighbor_row"] = row_of(found["neighbor_place"])
        chosen["similarity"] = found["similarity"]
        chosen["exact"] = found["exact"]
        for neighbor_split, part in by_code(split_of(found["neighbor_place"]), chosen):
            yield neighbor_split, part.tobytes()


@beam.typehints.with_output_types(tuple[int, bytes])
class NameNeighbors(Step[DeduplicationRequest]):
    """Looks up the keys of neighbors that are in one split; emits them by the documents' splits."""

    def process(self, element: Blocks) -> Iterator[tuple[int, bytes]]:
        """Looks up the neighbors in one split."""
        neighbor_split, blocks = element
        rows = [np.unique(_table([block], _CHOSEN)["neighbor_row"]) for block in blocks]
        rows_R = np.unique(np.concatenate(rows))
        names = self._names(neighbor_split, rows_R)
        for block in blocks:
            chosen = _table([block], _CHOSEN)
            for split, part in by_code(split_of(chosen["place"]), chosen):
                table = names.take(np.searchsorted(rows_R, part["neighbor_row"]))
                columns = {
                    "row": row_of(part["place"]).astype(np.int64),
                    "similarity": part["similarity"],
                    "exact": part["exact"],
                    **{name: table[name] for name in table.schema.names},
                }
                yield split, _to_json(pa.table(columns).select(_NAMED.names).cast(_NAMED))

    def _names(self, split: int, rows_R: np.ndarray) -> pa.Table:
        """Returns the keys, files and positions of some rows of a split's score file."""
        parts, first = [], 0
        for file in ScoreFile.in_chunks(self._request.folder, split, ("key", "position")):
            for section in file.sections():
                end = first + section.table.num_rows
                within_R = rows_R[(rows_R >= first) & (rows_R < end)].astype(np.int64) - first
                part = section.table.take(within_R)
                paths = pa.array([section.task.split.path] * len(within_R), pa.string())
                parts.append(
                    pa.table(
                        {
                            "duplicate_of": part["key"],
                            "duplicate_of_file": paths,
                            "duplicate_of_position": part["position"],
                        }
                    )
                )
                first = end
        return pa.concat_tables(parts)


def _to_json(named: pa.Table) -> bytes:
    """Returns the columns of named neighbors.

    In a large corpus they come one by one. Of an Arrow stream, the schema would be most of it.
    """
    return orjson.dumps(list(named.to_pydict().values()))


def _from_json(blocks: Iterable[bytes]) -> pa.Table:
    """Returns the named neighbors of all blocks, in the order of their rows."""
    columns = [orjson.loads(block) for block in blocks if block]
    tables = [pa.Table.from_arrays(list(map(pa.array, arrays)), _NAMED.names) for arrays in columns]
    table = pa.concat_tables([_NAMED.empty_table(), *(table.cast(_NAMED) for table in tables)])
    return table.take(pc.sort_indices(table["row"]))


# Files and counts.


@beam.typehints.with_output_types(tuple[int, DuplicateCounts])
class CommitSplit(Step[DeduplicationRequest]):
    """Commits the near-duplicates of a split, unless they are; emits its ordinal and counts."""

    def process(self, element: Blocks) -> Iterator[tuple[int, DuplicateCounts]]:
        """Commits one split.

        Args:
            element: Its ordinal, and its named near-duplicates.

        Raises:
            CountsError: The counts do not add up.
        """
        ordinal, blocks = element
        path = self._request.duplicates.documents_path(ordinal)
        if not commits.exists(path):
            counts = DuplicateCounts()
            tables = self._tables(ordinal, _from_json(blocks), counts)
            with duplicates.to_parquet(tables, ordinal, counts) as file:
                commits.commit_file(path, file)
        counts = duplicates.read_counts(path)
        counts.check(f"split {ordinal}")
        yield ordinal, counts

    def _tables(self, ordinal: int, named: pa.Table, counts: DuplicateCounts) -> Iterator[pa.Table]:
        """Yields the rows of the file of a split, and counts its records."""
        rows_M, first = named["row"].to_numpy(), 0
        columns = ("key", "position", "score", RECORDS)
        for file in ScoreFile.in_chunks(self._request.folder, ordinal, columns):
            documents = len(file.scored_rows())
            read = int(file.column(RECORDS).sum())
            for section in file.sections():
                end = first + section.table.num_rows
                here = named.slice(*_span(rows_M, first, end))
                own = section.table.take(here["row"].to_numpy() - first)
                exact = int(pc.sum(here["exact"]).as_py() or 0)
                counts.exact += exact
                counts.near += here.num_rows - exact
                paths = pa.array([section.task.split.path] * here.num_rows, pa.string())
                splits = pa.array([ordinal] * here.num_rows, pa.int64())
                columns_of_table = {
                    **{name: here[name] for name in _NAMED.names},
                    "key": own["key"],
                    "split": splits,
                    "file": paths,
                    "position": own["position"],
                }
                yield pa.table(columns_of_table).select(SCHEMA.names).cast(SCHEMA)
                first = end
            counts.read += read
            counts.rejected += read - documents
            counts.kept += documents
        counts.kept -= counts.dropped


def _span(rows_M: np.ndarray, first: int, end: int) -> tuple[int, int]:
    """Returns the offset and the length of the rows from `first` to `end` in sorted rows."""
    start, stop = np.searchsorted(rows_M, [first, end]).tolist()
    return start, stop - start


class AddCounts(beam.CombineFn):
    """Adds up the counts of splits; emits their number and sum."""

    def create_accumulator(self) -> tuple[int, DuplicateCounts]:
        """Returns the counts of no split."""
        return 0, DuplicateCounts()

    def add_input(
        self, accumulator: tuple[int, DuplicateCounts], element: tuple[int, DuplicateCounts]
    ) -> tuple[int, DuplicateCounts]:
        """Adds one split."""
        splits, counts = accumulator
        counts.add(element[1])
        return splits + 1, counts

    def merge_accumulators(
        self, accumulators: Iterable[tuple[int, DuplicateCounts]]
    ) -> tuple[int, DuplicateCounts]:
        """Adds several counts."""
        total, splits = DuplicateCounts(), 0
        for number, counts in accumulators:
            total.add(counts)
            splits += number
        return splits, total

    def extract_output(
        self, accumulator: tuple[int, DuplicateCounts]
    ) -> tuple[int, DuplicateCounts]:
        """Returns the sum."""
        return accumulator


@beam.typehints.with_output_types(str)
class CommitSummary(Step[DeduplicationRequest]):
    """Reconciles the counts with those of the scoring, and commits them; emits their path."""

    def process(self, total: tuple[int, DuplicateCounts]) -> Iterator[str]:
        """Commits the counts of all splits.

        Raises:
            CountsError: Two counts differ; nothing is committed.
        """
        request = self._request
        path = request.duplicates.summary_path
        if not commits.exists(path):
            splits, counts = total
            options = request.options_over(count_plans(request.folder))
            scoring = read_scoring(request.folder, options.plans)
            expected = {
                "splits": (splits, scoring.splits),
                "records read": (counts.read, scoring.counts.read),
                "documents": (counts.documents, scoring.counts.scored),
                "records rejected": (counts.rejected, scoring.counts.rejected),
            }
            for name, (actual, correct) in expected.items():
                if actual != correct:
                    raise CountsError(f"{name}: {actual}, but {correct} according to the scoring")
            summary = DuplicatesSummary(
                **vars(options),
                name=request.name,
                splits=splits,
                counts=counts,
                rater=scoring.identity.rater,
            )
            commits.commit_if_absent(path, to_json(summary))
        yield path


@beam.typehints.with_output_types(Iterable[int])
def _prefixes(summary: str) -> Iterator[int]:
    yield from range(PREFIXES)


@beam.typehints.with_output_types(int)
def _remove_signatures(prefix: int, request: DeduplicationRequest) -> int:
    """Removes the signatures under one prefix; returns their number."""
    folder = f"{request.duplicates.signatures_folder}/{prefix:02x}"
    paths = [entry.path for entry in commits.list_folder(folder)]
    at_once(commits.remove, paths)
    _remove_empty(folder)
    return len(paths)


@beam.typehints.with_output_types(str)
def _succeed(removed: int, request: DeduplicationRequest) -> str:
    """Commits `_SUCCESS`, once all signatures are removed."""
    _remove_empty(request.duplicates.signatures_folder)
    commits.commit_if_absent(request.duplicates.success_path, b"")
    return request.duplicates.success_path


def _remove_empty(folder: str) -> None:
    local = local_path(folder)
    if local is not None:
        with contextlib.suppress(OSError):  # there is none, or a late worker has written to it
            os.rmdir(local)
