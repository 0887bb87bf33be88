"""The second read of the input: gets the kept documents of a split and checks them.

Every record is compared with the split's score file, so an input that changed since it was scored
is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datarater.pipelines.errors import InputChangedError
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import SplitTask, unchanged
from datarater.pipelines.run_folder.score_files import BY_STUDENT, SCORED_BY, ScoreFile
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.arrow_types import mapped_type, take_rows, without_view
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.json_lines import load_json
from datarater.rater_model.documents.parquet import UNREADABLE_COLUMNS, find_column
from datarater.rater_model.documents.records import MAX_NAME_CHARACTERS, Document, ReadOptions

_KEPT_COLUMNS = ["position", "bytes", "score", "key", "source"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncompleteRows:
    """Kept rows of a damaged file, which are written without some of their columns.

    Attributes:
        file: Path of the input file.
        row: Number of the first of the rows in the file.
        rows: Number of kept rows.
        columns: Names of the columns that cannot be read and are null.
    """

    file: str
    row: int
    rows: int
    columns: str


@dataclasses.dataclass(frozen=True, slots=True)
class _ScoredRows:
    """Some rows of a score file: its documents by column, and where records were rejected.

    `kept` is the number of copies to keep of each document.
    """

    positions: list[int]
    sizes: list[int]
    keys: list[str]
    scores: list[float]
    kept: list[int]
    by_student: list[bool | None]
    rejected: set[int]

    @classmethod
    def none(cls) -> _ScoredRows:
        """Returns no rows."""
        return cls([], [], [], [], [], [], set())

    @classmethod
    def of(cls, rows: tuple[pa.Table, np.ndarray]) -> _ScoredRows:
        """Returns the rows of a table, given with how many copies of each are kept.

        Bad records, of which only some have a row, are never kept.
        """
        table, kept_R = rows
        is_document_R = table.column("key").is_valid()
        documents = table.filter(is_document_R)
        by_student: list[bool | None] = [None] * documents.num_rows
        if SCORED_BY in documents.schema.names:
            by_student = [name == BY_STUDENT for name in documents.column(SCORED_BY).to_pylist()]
        return cls(
            documents.column("position").to_pylist(),
            documents.column("bytes").to_pylist(),
            documents.column("key").to_pylist(),
            documents.column("score").to_pylist(),
            kept_R[is_document_R.to_numpy()].tolist(),
            by_student,
            set(table.filter(pc.invert(is_document_R))["position"].to_pylist()),
        )

    def after(self, before: _ScoredRows) -> _ScoredRows:
        """Returns these rows, with what was rejected before them."""
        return dataclasses.replace(self, rejected=before.rejected | self.rejected)


class _KeptRows:
    """Takes the kept rows out of a score file in order, by their positions.

    Args:
        rows: All rows of the score file, a part at a time, each with the mask of the kept ones.
    """

    def __init__(self, rows: Iterable[tuple[pa.Table, np.ndarray]]):
        self._rows = iter(rows)
        self._waiting = pa.table({"position": pa.array([], pa.int64())})

    def before(self, end: int | None) -> pa.Table:
        """Takes the rows before a position; a few of those that are left for None.

        Returns:
            The rows, with the columns of `_KEPT_COLUMNS`; of these only positions if it is empty.
        """
        positions_N = self._waiting["position"].to_numpy()
        while not len(positions_N) or (end is not None and positions_N[-1] < end):
            following = next(self._rows, None)
            if following is None:
                break
            table, kept_R = following
            copies = pa.array(np.repeat(np.arange(table.num_rows), kept_R))
            kept = table.select(_KEPT_COLUMNS).take(copies)
            self._waiting = pa.concat_tables([self._waiting, kept]) if len(positions_N) else kept
            positions_N = self._waiting["position"].to_numpy()

        count = len(positions_N) if end is None else int(np.searchsorted(positions_N, end))
        taken, self._waiting = self._waiting.slice(0, count), self._waiting.slice(count)
        return taken


def is_same_key(key: str, scored: str) -> bool:
    """Returns whether two keys are of one id.

    Version 0.1.0 rounded integers past 64 bits, and kept ids of any length.
    """
    if key == scored or (key.startswith("sha256:") and len(scored) > MAX_NAME_CHARACTERS):
        return True
    is_number = key.lstrip("-").isdigit() and not scored.startswith(("sha256:", '"'))
    return is_number and float(key) == load_json(scored.encode())


@dataclasses.dataclass(frozen=True)
class KeptSplit:
    """The kept documents of one file of a split.

    Attributes:
        task: The file, or its part.
        content: Digest of the stored bytes that were scored; "" if unknown.
        rows: All rows of its score file, a part at a time, each with the number of copies to keep
            of each row, or the mask of the kept ones.
        options: How records are read.
        incomplete: Rows that `tables` has yielded without columns that cannot be read.
    """

    task: SplitTask
    content: str
    rows: Iterable[tuple[pa.Table, np.ndarray]]
    options: ReadOptions
    incomplete: list[IncompleteRows] = dataclasses.field(default_factory=list)

    @property
    def source(self) -> FileFormat:
        """The format of the input file."""
        return format_named(self.task.split.format)

    def score_rows(self) -> Iterator[pa.Table]:
        """Yields the rows of the score file; the input is not read."""
        for table, kept_R in self.rows:
            yield table.take(pa.array(np.repeat(np.arange(table.num_rows), kept_R)))

    def documents(self) -> Iterator[tuple[Document, float]]:
        """Yields the documents with their scores; raises as `judged_documents` does."""
        for document, score, _ in self.judged_documents():
            yield document, score

    def judged_documents(self) -> Iterator[tuple[Document, float, bool | None]]:
        """Yields the documents, their scores, and whether a student gave them.

        Whether a student gave a score is None in a run without one.

        Raises:
            InputChangedError: The input has changed since it was scored.
        """
        split = self.task.split
        expected = map(_ScoredRows.of, self.rows)
        with unchanged(self.task, self.content):
            rows, row, before = _ScoredRows.none(), 0, 0
            for record in self.source.read(split, self.options):
                if not isinstance(record, Document):
                    continue
                while row == len(rows.positions):
                    following = next(expected, None)
                    if following is None:
                        break
                    before += row
                    rows, row = following.after(rows), 0

                is_scored = (
                    row < len(rows.positions)
                    and (record.position, record.size) == (rows.positions[row], rows.sizes[row])
                    and is_same_key(record.key, rows.keys[row])
                )
                if not is_scored and record.position in rows.rejected:
                    continue  # an earlier version could not read it
                if not is_scored:
                    raise self._changed(f"the document at {record.position} is not the one scored")
                for _ in range(rows.kept[row]):
                    yield record, rows.scores[row], rows.by_student[row]
                row += 1

            left = len(rows.positions) - row + sum(len(more.positions) for more in expected)
            if left:
                raise self._changed(
                    f"it has {counted(before + row, 'document')}, {before + row + left} were "
                    f"scored in split {split.ordinal}"
                )

    def tables(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yields the rows of a split whose records are rows, all columns, with their scores.

        Raises:
            InputChangedError: The input has changed since it was scored.
        """
        for table, scored in self.scored_tables():
            yield table, scored["score"].to_numpy()

    def scored_tables(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yields the rows of a split whose records are rows, and what the score file has of each.

        Yields:
            The rows with all columns; their positions, scores, keys and sources.

        Raises:
            InputChangedError: The input has changed since it was scored.
        """
        waiting = _KeptRows(self.rows)
        with unchanged(self.task, self.content):
            for first, batch in self.source.read_tables(self.task.split, self.options):
                scored = waiting.before(first + batch.num_rows)
                if not scored.num_rows:
                    continue
                positions_N = scored["position"].to_numpy()
                if positions_N[0] < first:
                    raise self._changed(f"row {positions_N[0]} is gone")

                table = take_rows(pa.Table.from_batches([batch]), pa.array(positions_N - first))
                if (self._text_sizes(table) != scored["bytes"].to_numpy()).any():
                    raise self._changed(
                        f"a text in the rows {first} to {first + batch.num_rows} is not the one "
                        "scored"
                    )
                unreadable = (batch.schema.metadata or {}).get(UNREADABLE_COLUMNS)
                if unreadable is not None:
                    self.incomplete.append(
                        IncompleteRows(
                            file=self.task.split.path,
                            row=int(positions_N[0]),
                            rows=len(positions_N),
                            columns=unreadable.decode(),
                        )
                    )
                yield table, scored

            left = waiting.before(None)
            if left.num_rows:
                raise self._changed(f"row {left['position'][0]} is gone")

    def _text_sizes(self, table: pa.Table) -> np.ndarray:
        """Returns the size of every text in bytes of UTF-8."""
        field = self.options.text_field
        place = find_column(table.schema, field)
        if place is None:
            raise InputChangedError(f"the column {field!r} is gone")

        index, names, _ = place
        column = table.column(index)
        if names:
            column = pc.struct_field(column, list(names))
        if not len(column):
            return np.zeros(0, np.int64)
        column = column.cast(mapped_type(column.type, without_view))
        return pc.binary_length(column).to_numpy().astype(np.int64)

    def _changed(self, detail: str) -> InputChangedError:
        return InputChangedError(
            f"the input {self.task.split.path} was modified after it was scored: {detail}; "
            "restore it, or curate it into a new run folder"
        )


def by_section(file: ScoreFile, kept_R: np.ndarray) -> Iterator[tuple[int, ScoreFile, np.ndarray]]:
    """Yields the number of each section that has rows, the section, and the mask of its rows."""
    first = 0
    for number, section in enumerate(file.sections()):
        end = first + section.table.num_rows
        if end > first:
            yield number, section, kept_R[first:end]
        first = end


def scored_documents(folder: RunFolder, ordinal: int, read: ReadOptions) -> Iterator[Document]:
    """Yields all documents of a split that have a score, in the order of its score file.

    Args:
        folder: Run folder.
        ordinal: Ordinal of the split.
        read: How records are read.

    Raises:
        InputChangedError: An input has changed since it was scored.
        OSError: An input cannot be read.
    """

    def parts(columns: Sequence[str]) -> Iterator[tuple[int, ScoreFile, np.ndarray]]:
        for file in ScoreFile.in_chunks(folder, ordinal, columns):
            scored_R = np.zeros(file.table.num_rows, bool)
            scored_R[file.scored_rows()] = True
            yield from by_section(file, scored_R)

    # A file without such documents is not opened: it may be unreadable.
    with_scores = {number for number, _, scored_S in parts(["score"]) if scored_S.any()}
    rows = parts(["position", "bytes", "key", "score"])
    for number, of_section in itertools.groupby(rows, operator.itemgetter(0)):
        if number in with_scores:
            _, section, scored_S = next(of_section)
            more = ((later.table, later_S) for _, later, later_S in of_section)
            tables = itertools.chain([(section.table, scored_S)], more)
            kept = KeptSplit(section.task, section.content, tables, read)
            yield from (document for document, _ in kept.documents())
