"""Score files: one row per document of a split, in the order of the input, and its bad records.

The files are Parquet. All of them have the same schema, so that a folder of them is one table:

| column | meaning |
|---|---|
| position | where the record starts (JSONL: byte in the decompressed stream; Parquet: row) |
| key | key of the document; null for a record that could not be read |
| key_hash | unseeded hash of the key, which breaks ties; 0 without a key |
| score | float32; null for rejected records |
| tokens | tokens of the whole text |
| bytes | bytes of the text in UTF-8 |
| source | source that the document names |
| status | `scored`, or the reason of the rejection |
| detail, excerpt | the fault, and the first bytes of the record; rejected records only |
| records | 1; the number of records that are lost together, such as rows of a damaged row group |
| file | path of the input file |
| scored_by | `rater` or `student`; only in runs with a student |
| score_NAME | score of another rater; only in runs with several; null where it is not finite |

The score files of a selection's ranking (`datarater.pipelines.graph.ranking`) have the same rows.
There `score` is the number that the selection ranks by, null for a document that the ranking
excludes, whose `status` is the reason, and `tokens` is the count that budgets use. They have more
columns: `rater_score` and `rater_tokens` as in the run's score files; `joined:NAME`, whether the
joined table NAME has a row of the document; and the columns `NAME.column` that the rules use.

Bad records past `MAX_LISTED_REJECTS` are one row at the end for each reason, with their number.

Files of version 0.1.0 have no columns `records` and `file`: all values of `records` are 1 there
(`with_records`), and all rows belong to the one file of the split.

The file's metadata names the split and counts its records. So a score file can be understood by
itself, and its last bytes are enough to count its records. A split of several small files has their
rows one file after another. `ScoreFile.sections` gives each of them as a score file of its own.

Rows are written and read by row groups of bounded size, so that memory does not grow with the
number of documents in a split. All but very long score files have one row group.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.layout import FORMAT_VERSION, RunFolder
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.selection.ranking import RankKeys, key_hash
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    Document,
    Record,
)
from datarater.rater_model.documents.store_errors import raising_os_errors
from datarater.rater_model.json_codec import IF_SET, DecodingError, decode, to_plain

SCORED = "scored"
SCORE_NOT_FINITE = "score_not_finite"
METADATA_KEY = b"datarater"
"""Key of the `Footer`."""
_PACKED_ROWS = 4096
RANK_COLUMNS = ("position", "key_hash", "score", "tokens")
"""The columns that rank keys are made of."""
RECORDS = "records"
FILE = "file"
SCORED_BY = "scored_by"
BY_RATER, BY_STUDENT = "rater", "student"
RATER_SCORE = "rater_score"
"""The run's own score, in the score files of a ranking."""
RATER_TOKENS = "rater_tokens"
RANKED_BY = "ranked_by"
"""The number that a selection ranks by, where `score` is the run's own score."""
OTHER_SCORE = "score_"
"""What the names of columns begin with that have the scores of other raters."""
JOINED = "joined:"
"""What the names of columns begin with that say whether a joined table has a row."""
MAX_LISTED_REJECTS = 1000
"""Number of bad records of a split that are listed one by one; the others are counted."""
_LISTED_OF_ANY_REASON = 10
ROW_GROUP_BYTES = 32 * 2**20
"""Bytes of rows that are collected before they are written as a row group."""

SCHEMA = pa.schema(
    [
        pa.field("position", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("status", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("excerpt", pa.binary()),
        pa.field(RECORDS, pa.int64(), nullable=False),
        pa.field(FILE, pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)
SCORED_BY_FIELD = pa.field(SCORED_BY, pa.dictionary(pa.int32(), pa.string()))
_FILE_INDEX = SCHEMA.get_field_index(FILE)
_FILE_NUMBER = pa.field(FILE, pa.int32(), nullable=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """The rows of one file in a score file.

    Attributes:
        format: Name of the file's format.
        compression: Compression of the whole file.
        layout: Layout of the file, as in `jsonl/gzip` or `parquet/SCHEMA-DIGEST`; files of the same
            layout can share an output file.
        rows: Number of rows.
        content: Digest of the stored bytes (`datarater.rater_model.documents.content`).
    """

    format: str
    compression: Compression
    layout: str
    rows: int
    content: str = dataclasses.field(default="", metadata=IF_SET)


@dataclasses.dataclass(frozen=True)
class Footer:
    """The JSON metadata of a score file.

    Attributes:
        format: Version of the format.
        task: The split and the fingerprints of its files.
        layout: Layout of the input, or of the first file; see `Section`.
        rater: Digest of the rater that scored.
        counts: Counts of the split's records.
        sections: The rows of each file, if there are several.
        content: Digest of the stored bytes of the split, if it is of one file.
    """

    format: int
    task: SplitTask
    layout: str
    rater: str
    counts: Counts
    sections: tuple[Section, ...] = dataclasses.field(default=(), metadata=IF_SET)
    content: str = dataclasses.field(default="", metadata=IF_SET)

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes]) -> Footer:
        """Returns the footer in the metadata of a Parquet file.

        Raises:
            KeyError: There is none.
            DecodingError: It is damaged, or a later version wrote it.
        """
        return decode(cls, metadata[METADATA_KEY])


class ScoreRows:
    """Collects the rows of one split, in the order of the input.

    Of the records that could not be read, the first `max_listed` get a row each, and so do the
    first few with any other reason. All further ones of a reason are one row at the end, which has
    their number: memory and disk do not grow with what is rejected.

    Rows are written whenever there are enough for a row group, at first into memory; a long file is
    continued on the local disk.

    Args:
        paths: Paths of the split's files, in order.
        max_listed: Number of bad records that get a row of their own.
        row_group_bytes: Bytes of rows that are collected before they are written.
        has_student: Whether the rows have the column `scored_by`.
        other_raters: Names of the raters whose scores the rows have beside those of the first.
    """

    def __init__(
        self,
        paths: Sequence[str],
        max_listed: int = MAX_LISTED_REJECTS,
        row_group_bytes: int = ROW_GROUP_BYTES,
        *,
        has_student: bool = False,
        other_raters: Iterable[str] = (),
    ) -> None:
        self._paths = pa.array(paths, pa.string())
        self._row_group_bytes = row_group_bytes
        self._has_student = has_student
        self._schema = SCHEMA.append(SCORED_BY_FIELD) if has_student else SCHEMA
        self._other_columns = [f"{OTHER_SCORE}{name}" for name in other_raters]
        for name in self._other_columns:
            self._schema = self._schema.append(pa.field(name, pa.float32()))
        self._row_schema = self._schema.set(_FILE_INDEX, _FILE_NUMBER)
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            max_size=commits.IN_MEMORY_BYTES
        )
        self._writer: pq.ParquetWriter | None = None
        self._bytes = 0
        self._max_listed = max_listed
        self._listed: Counter[str] = Counter()
        self._first_unlisted: dict[str, tuple[BadRecord, int]] = {}
        self._unlisted: Counter[str] = Counter()
        self._columns: dict[str, list[Any]] = {name: [] for name in self._row_schema.names}
        self._batches: list[pa.RecordBatch] = []
        self._counts = Counts()
        self._rows: Counter[int] = Counter()

    def _pack(self, min_rows: int) -> None:
        """Turns collected rows, if there are enough, into arrays, which take less memory."""
        if len(self._columns["position"]) >= min_rows:
            schema = self._row_schema
            arrays = [pa.array(self._columns[field.name], field.type) for field in schema]
            self._batches.append(pa.record_batch(arrays, schema=schema))
            self._columns = {name: [] for name in schema.names}
            self._bytes += self._batches[-1].nbytes
        if self._bytes >= self._row_group_bytes:
            self._write()

    def _write(self) -> None:
        """Writes the packed rows as a row group."""
        table = pa.Table.from_batches(self._batches, self._row_schema).unify_dictionaries()
        paths = pa.chunked_array(
            [pa.DictionaryArray.from_arrays(part, self._paths) for part in table[FILE].chunks],
            SCHEMA.field(FILE).type,
        )
        table = table.set_column(_FILE_INDEX, SCHEMA.field(FILE), paths)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        # A row group without rows would break readers that take its length as a batch's.
        if table.num_rows:
            self._writer.write_table(table)
        self._batches, self._bytes = [], 0

    def add(
        self,
        records: Sequence[Record],
        scores_N: NDArray[np.float32],
        tokens_N: NDArray[np.int64],
        parts: Sequence[int] = (),
        by_rater_N: NDArray[np.bool_] | None = None,
        other_scores: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> int:
        """Adds records in the order of the input.

        Args:
            records: Documents and bad records, in the order of the input.
            scores_N: Scores of the N documents; a document whose score is not finite is rejected.
            tokens_N: Numbers of tokens of the N documents.
            parts: Number, in the split, of the file of each record; 0 for all if it is empty.
            by_rater_N: Whether the rater scored each document, and not its student; all if None.
            other_scores: Scores of the N documents by each of the other raters.

        Returns:
            The number of documents that were rejected for their score.
        """
        not_finite_N = ~np.isfinite(scores_N)
        parts = parts or [0] * len(records)

        # Documents that follow each other are added column by column, which is faster.
        row = document = 0
        for _, run in itertools.groupby(records, type):
            members = list(run)
            documents = [record for record in members if isinstance(record, Document)]
            their_parts = parts[row : row + len(members)]
            row += len(members)

            if documents:
                chosen = slice(document, document + len(documents))
                document += len(documents)
                self._add_documents(
                    documents, scores_N[chosen], tokens_N[chosen], not_finite_N[chosen], their_parts
                )
                if self._has_student:
                    by_rater = [True] * len(documents)
                    if by_rater_N is not None:
                        by_rater = by_rater_N[chosen].tolist()
                    self._columns[SCORED_BY] += [
                        BY_RATER if by_it else BY_STUDENT for by_it in by_rater
                    ]
                for name, others_N in (other_scores or {}).items():
                    values = others_N[chosen].tolist()
                    self._columns[f"{OTHER_SCORE}{name}"] += [
                        value if math.isfinite(value) else None for value in values
                    ]
                continue
            for record, part in zip(members, their_parts, strict=True):
                if isinstance(record, BadRecord):
                    self._count_bad(record, part)

        self._pack(_PACKED_ROWS)
        return int(not_finite_N.sum())

    def _count_bad(self, record: BadRecord, part: int) -> None:
        """Counts a bad record, and adds a row for it if it is to be listed."""
        self._counts.read += record.records
        self._counts.rejected_by_reason[str(record.reason)] += record.records
        if self._is_listed(record, part):
            self._add_bad(record, part)
            self._rows[part] += 1

    def _add_documents(
        self,
        documents: Sequence[Document],
        scores_N: NDArray[np.float32],
        tokens_N: NDArray[np.int64],
        not_finite_N: NDArray[np.bool_],
        parts: Sequence[int],
    ) -> None:
        """Adds documents: rows with all columns. Without a score they are also rejected records."""
        columns, counts, number = self._columns, self._counts, len(documents)
        first = len(columns["position"])
        keys = [document.key for document in documents]
        sizes = [document.size for document in documents]

        columns[FILE] += parts
        columns["position"] += [document.position for document in documents]
        columns[RECORDS] += [1] * number
        columns["key"] += keys
        columns["key_hash"] += map(key_hash, keys)
        columns["score"] += scores_N.tolist()
        columns["tokens"] += tokens_N.tolist()
        columns["bytes"] += sizes
        columns["source"] += [document.source for document in documents]
        columns["status"] += [SCORED] * number
        columns["detail"] += [None] * number
        columns["excerpt"] += [None] * number

        self._rows.update(parts)
        counts.read += number
        counts.scored += number
        counts.tokens += int(tokens_N.sum())
        counts.bytes += sum(sizes)

        for index in np.flatnonzero(not_finite_N).tolist():
            text = documents[index].text
            columns["score"][first + index] = None
            columns["status"][first + index] = SCORE_NOT_FINITE
            columns["detail"][first + index] = f"the rater's score is {scores_N[index]}"
            columns["excerpt"][first + index] = text[:EXCERPT_BYTES].encode()[:EXCERPT_BYTES]

            counts.rejected_by_reason[SCORE_NOT_FINITE] += 1
            counts.scored -= 1
            counts.tokens -= int(tokens_N[index])
            counts.bytes -= sizes[index]

    def _is_listed(self, record: BadRecord, part: int) -> bool:
        """Returns whether a bad record gets a row of its own; otherwise it is only counted."""
        reason = record.reason
        if self._max_listed > 0 or self._listed[reason] < _LISTED_OF_ANY_REASON:
            self._listed[reason] += 1
            self._max_listed -= 1
            return True

        self._first_unlisted.setdefault(reason, (record, part))
        self._unlisted[reason] += record.records
        return False

    def reject(self, position: int, reason: str, detail: str, part: int = 0) -> None:
        """Adds a row for a file that is rejected whole: one record, since its content is unknown.

        Args:
            position: Position at which the file's part of the split begins.
            reason: One of `datarater.pipelines.bad_splits.REASONS`.
            detail: What happened, for a person.
            part: Number, in the split, of the file.
        """
        self._counts.read += 1
        self._counts.rejected_by_reason[reason] += 1
        self._rows[part] += 1
        self._add_row(position, reason, detail, b"", 1, part)

    def _add_bad(self, record: BadRecord, part: int) -> None:
        self._add_row(
            record.position,
            str(record.reason),
            record.detail,
            record.excerpt,
            record.records,
            part,
        )

    def _add_row(
        self, position: int, reason: str, detail: str, excerpt: bytes, records: int, part: int
    ) -> None:
        values = {
            "position": position,
            "key": None,
            "key_hash": 0,
            "score": None,
            "tokens": 0,
            "bytes": 0,
            "source": "",
            "status": reason,
            "detail": detail,
            "excerpt": excerpt,
            RECORDS: records,
            FILE: part,
        }
        # Only documents have scores, and who gave them.
        for name, column in self._columns.items():
            column.append(values.get(name))

    def to_parquet(
        self,
        task: SplitTask,
        layout: str,
        rater_digest: str,
        sections: Sequence[Section] = (),
        content: str = "",
    ) -> IO[bytes]:
        """Returns the score file, to be read from its beginning.

        Args:
            task: Split that the rows belong to.
            layout: Layout of its first file; see `Section`.
            rater_digest: Digest of the rater that scored.
            sections: What each file is, in order, with 0 rows; none for a split of one file.
            content: Digest of the stored bytes of a split of one file.
        """
        for reason, number in sorted(self._unlisted.items()):
            first, part = self._first_unlisted[reason]
            more = counted(number, "more record")
            detail = f"{more} with this reason, of which the first: {first.detail}"
            self._add_bad(dataclasses.replace(first, detail=detail, records=number), part)
            self._rows[len(task.packed)] += 1  # as the last rows, they are in the last section
        self._unlisted.clear()
        sections = tuple(
            dataclasses.replace(section, rows=self._rows[part])
            for part, section in enumerate(sections)
        )

        reasons = Counter(dict(sorted(self._counts.rejected_by_reason.items())))
        counts = dataclasses.replace(self._counts, rejected_by_reason=reasons)
        footer = Footer(FORMAT_VERSION, task, layout, rater_digest, counts, sections, content)

        self._pack(1)
        self._write()
        assert self._writer is not None
        _close(self._writer, self._schema, footer)
        self._file.seek(0)
        return self._file


def _close(writer: pq.ParquetWriter, schema: pa.Schema, footer: Footer) -> None:
    """Completes a score file with its metadata."""
    # Arrow reads the metadata from its own entry.
    metadata = {METADATA_KEY: orjson.dumps(to_plain(footer))}
    serialized = schema.with_metadata(metadata).serialize()
    writer.add_key_value_metadata({**metadata, b"ARROW:schema": base64.b64encode(serialized)})
    writer.close()


def ranked_file(parts: Iterable[ScoreFile], rater_digest: str) -> IO[bytes]:
    """Returns the score file of a ranking, to be read from its beginning.

    Args:
        parts: The row groups of a score file in order, at least one, with the ranked columns. All
            have one schema.
        rater_digest: Digest of the rater that scored.
    """
    out: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
        max_size=commits.IN_MEMORY_BYTES
    )
    writer, first, counts = None, None, Counts()
    rows: list[list[int]] = []
    for part in parts:
        if writer is None:
            first, writer = part, pq.ParquetWriter(out, part.table.schema, compression="zstd")
        if part.table.num_rows:
            writer.write_table(part.table, row_group_size=part.table.num_rows)
        counts.add(part.counts())
        rows.append([section.rows for section in part.parts])

    assert writer is not None
    assert first is not None
    totals = np.sum(rows, axis=0, dtype=int).tolist()
    sections = tuple(
        dataclasses.replace(section, rows=number)
        for section, number in zip(first.parts, totals, strict=True)
    )
    footer = Footer(
        FORMAT_VERSION, first.task, first.layout, rater_digest, counts, sections, first.content
    )
    _close(writer, first.table.schema, footer)
    out.seek(0)
    return out


def with_records(table: pa.Table) -> pa.Table:
    """Returns rows of a score file with the column `records`, which earlier versions lack."""
    if RECORDS in table.schema.names:
        return table
    ones_R = pa.array(np.ones(table.num_rows, np.int64))
    return table.append_column(SCHEMA.field(RECORDS), ones_R)


@dataclasses.dataclass(frozen=True)
class ScoreFile:
    """The content of a committed score file.

    Attributes:
        task: The split and the fingerprints of its files.
        layout: Layout of the input, or of the first file; see `Section`.
        table: The requested columns.
        parts: Sections of the files, if there are several.
        content: Digest of the stored bytes of the split, if it is of one file; "" if unknown.
    """

    task: SplitTask
    layout: str
    table: pa.Table
    parts: tuple[Section, ...] = ()
    content: str = ""

    @classmethod
    def read(
        cls, folder: RunFolder, ordinal: int, columns: Sequence[str] | None = None
    ) -> ScoreFile:
        """Reads all rows of the score file of a split into memory; see `in_chunks`."""
        chunks = list(cls.in_chunks(folder, ordinal, columns))
        if len(chunks) == 1:
            return chunks[0]
        table = pa.concat_tables([chunk.table for chunk in chunks])
        rows = np.sum([[part.rows for part in chunk.parts] for chunk in chunks], axis=0, dtype=int)
        parts = tuple(
            dataclasses.replace(part, rows=number)
            for part, number in zip(chunks[0].parts, rows.tolist(), strict=True)
        )
        return dataclasses.replace(chunks[0], table=table, parts=parts)

    @classmethod
    def in_chunks(
        cls,
        folder: RunFolder,
        ordinal: int,
        columns: Sequence[str] | None = None,
        *,
        in_one_request: bool = False,
    ) -> Iterator[ScoreFile]:
        """Reads the score file of a split, a row group at a time.

        Args:
            folder: Run folder.
            ordinal: Ordinal of the split.
            columns: Names of the columns to read; None for all.
            in_one_request: Whether to read the bytes of all columns, which takes an object store
                one request in place of about five, unless the file is large.

        Yields:
            The row groups in order, each as a score file in which the sections have only the rows
            that lie in it; one without rows if there are none.

        Raises:
            CountsError: The file is missing or is not a score file.
        """
        path = folder.score_path(ordinal)
        names = None if columns is None else list(columns)
        try:
            with raising_os_errors(path), _opened(path, in_one_request) as file:
                parquet = pq.ParquetFile(file)
                footer = Footer.of(parquet.schema_arrow.metadata)
                groups = parquet.metadata.num_row_groups

                first = 0
                for group in range(max(groups, 1)):
                    table = (
                        parquet.read(columns=names)
                        if groups < 2
                        else parquet.read_row_group(group, columns=names)
                    )
                    if columns is None or RECORDS in columns:
                        table = with_records(table)

                    end = first + table.num_rows
                    parts = _parts_between(footer.sections, first, end) if groups > 1 else None
                    yield cls(
                        footer.task,
                        footer.layout,
                        table,
                        footer.sections if parts is None else parts,
                        footer.content,
                    )
                    first = end
        except FileNotFoundError:
            raise CountsError(
                f"the score file {path} is missing although its split was scored; to score it "
                f"again, remove the summaries in {_summaries(folder)} and {folder.scoring_path}, "
                "and run the same command"
            ) from None
        except (pa.ArrowInvalid, KeyError, TypeError, DecodingError, OSError) as error:
            raise CountsError(f"the score file {path} cannot be read: {error}") from error

    def sections(self) -> Iterator[ScoreFile]:
        """Yields the rows of each file as a score file of a split of its own, without copying."""
        if not self.parts:
            yield self
            return
        first = 0
        for task, part in zip(self.task.each(), self.parts, strict=True):
            split = dataclasses.replace(
                task.split, format=part.format, compression=part.compression
            )
            yield ScoreFile(
                dataclasses.replace(task, split=split),
                part.layout,
                self.table.slice(first, part.rows),
                content=part.content,
            )
            first += part.rows

    def ordinals(self) -> NDArray[np.int64]:
        """Returns the ordinal of each row's part of a file."""
        first = self.task.split.ordinal
        rows = [part.rows for part in self.parts] or [self.table.num_rows]
        return np.repeat(np.arange(first, first + len(rows), dtype=np.int64), rows)

    def column(self, name: str) -> NDArray[Any]:
        """Returns a column without nulls as an array."""
        return self.table.column(name).to_numpy()

    def sources(self) -> tuple[list[str], NDArray[np.int64]]:
        """Returns the names of the sources, and the source of each row as an index into them.

        The column `source` must have been read.
        """
        if not self.table.num_rows:
            return [], np.zeros(0, np.int64)
        column = self.table.column("source").combine_chunks()
        return column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int64)

    def scored_rows(self) -> NDArray[np.int64]:
        """Returns the row numbers of scored documents. The column `score` must have been read."""
        return np.flatnonzero(~self.table.column("score").is_null().to_numpy())

    def document_rows(self) -> NDArray[np.bool_]:
        """Returns a mask of the rows of documents that the run scored, also of excluded ones.

        The column `score` must have been read, and `RATER_SCORE` of a ranking.
        """
        name = RATER_SCORE if RATER_SCORE in self.table.schema.names else "score"
        mask: NDArray[np.bool_] = self.table.column(name).is_valid().to_numpy()
        return mask

    def with_own_scores(self) -> ScoreFile:
        """Returns the file with the run's own scores; those of a ranking become `ranked_by`."""
        names = self.table.schema.names
        if RATER_SCORE not in names:
            return self
        swapped = {"score": RATER_SCORE, RATER_SCORE: "score"}
        columns = [self.table.column(swapped.get(name, name)) for name in names]
        names = [RANKED_BY if name == RATER_SCORE else name for name in names]
        return dataclasses.replace(self, table=pa.table(columns, names=names))

    def counts(self) -> Counts:
        """Counts all records. The columns of `SCHEMA` must have been read."""
        scored_N = self.scored_rows()
        records_R = self.column(RECORDS)
        counts = Counts(
            int(records_R.sum()),
            len(scored_N),
            int(self.column("tokens")[scored_N].sum()),
            int(self.column("bytes")[scored_N].sum()),
        )
        statuses = self.table.column("status").to_pylist()
        for status, number in zip(statuses, records_R.tolist(), strict=True):
            if status != SCORED:
                counts.rejected_by_reason[status] += number
        return counts

    def rank_keys(self, seed: int) -> RankKeys:
        """Returns the rank keys of the scored documents, in the order of `scored_rows`.

        The columns `RANK_COLUMNS` must have been read.
        """
        rows_N = self.scored_rows()
        return RankKeys.of(
            self.table.column("score").to_numpy()[rows_N],
            self.column("key_hash")[rows_N],
            seed,
            self.ordinals()[rows_N] if self.parts else self.task.split.ordinal,
            self.column("position")[rows_N],
            self.column("tokens")[rows_N],
        )


def _parts_between(parts: Sequence[Section], start: int, end: int) -> tuple[Section, ...]:
    """Returns the sections of a score file with the number of their rows from `start` to `end`."""
    ends = list(itertools.accumulate(part.rows for part in parts))
    return tuple(
        dataclasses.replace(part, rows=max(0, min(last, end) - max(last - part.rows, start)))
        for part, last in zip(parts, ends, strict=True)
    )


def _opened(path: str, in_one_request: bool) -> BinaryIO:
    if in_one_request:
        data = commits.read_head(path, commits.IN_MEMORY_BYTES)
        if len(data) < commits.IN_MEMORY_BYTES:
            return io.BytesIO(data)
    return commits.open_committed(path)


def _summaries(folder: RunFolder) -> str:
    """Names the folders that have summaries, for a message."""
    paths = (folder.summaries_path, folder.old_summaries_path)
    with_summaries = [path for path in paths if commits.list_folder(path)]
    return " and ".join(f"{path}/" for path in with_summaries or paths[:1])
