"""The second read of the input: gets the kept documents of a split and checks them.

Every record is compared with the split's score file, so an input that changed since it was scored
is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datarater.pipelines.errors import InputChangedError
from datarater.pipelines.run_folder.plan import unchanged
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.rater_model.documents.arrow_types import mapped_type, take_rows, without_view
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.json_lines import load_json
from datarater.rater_model.documents.parquet import UNREADABLE_COLUMNS, find_column
from datarater.rater_model.documents.records import MAX_NAME_CHARACTERS, Document, ReadOptions


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
    """The kept documents of one split.

    Attributes:
        file: Score file of the split, all columns.
        kept_R: Mask of the kept documents over its rows.
        options: How records are read.
        incomplete: Rows that `tables` has yielded without columns that cannot be read.
    """

    file: ScoreFile
    kept_R: np.ndarray
    options: ReadOptions
    incomplete: list[IncompleteRows] = dataclasses.field(default_factory=list)

    @property
    def source(self) -> FileFormat:
        """The format of the input file."""
        return format_named(self.file.task.split.format)

    def score_rows(self) -> pa.Table:
        """Returns the rows of the score file; the input is not read."""
        return self.file.table.filter(pa.array(self.kept_R))

    def documents(self) -> Iterator[tuple[Document, float]]:
        """Yields the documents with their scores.

        Raises:
            InputChangedError: The input has changed since it was scored.
        """
        # Bad records, of which only some have a row, are never kept.
        split = self.file.task.split
        is_document_R = self.file.table.column("key").is_valid()
        table = self.file.table.filter(is_document_R)
        kept_N = self.kept_R[is_document_R.to_numpy()]
        positions, sizes, keys, scores = (
            table.column(name).to_pylist() for name in ("position", "bytes", "key", "score")
        )

        with unchanged(self.file.task, self.file.content):
            row = 0
            rejected = set(self.file.table.filter(pc.invert(is_document_R))["position"].to_pylist())
            for record in self.source.read(split, self.options):
                if not isinstance(record, Document):
                    continue
                is_scored = (
                    row < len(positions)
                    and (record.position, record.size) == (positions[row], sizes[row])
                    and is_same_key(record.key, keys[row])
                )
                if not is_scored and record.position in rejected:
                    continue  # an earlier version could not read it
                if not is_scored:
                    raise self._changed(f"the document at {record.position} is not the one scored")
                if kept_N[row]:
                    yield record, scores[row]
                row += 1

            if row != len(positions):
                raise self._changed(
                    f"it has {row} documents, {len(positions)} were scored in split {split.ordinal}"
                )

    def tables(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yields the rows of a split whose records are rows, all columns, with their scores.

        Raises:
            InputChangedError: The input has changed since it was scored.
        """
        positions_N = self.file.column("position")[self.kept_R]
        sizes_N = self.file.column("bytes")[self.kept_R]
        scores_N = self.file.table.column("score").to_numpy(zero_copy_only=False)[self.kept_R]

        with unchanged(self.file.task, self.file.content):
            done = 0
            for first, batch in self.source.read_tables(self.file.task.split, self.options):
                low, high = np.searchsorted(positions_N, [first, first + batch.num_rows])
                if low != done:
                    raise self._changed(f"row {positions_N[done]} is gone")
                done = high
                if low == high:
                    continue

                rows_N = pa.array(positions_N[low:high] - first)
                table = take_rows(pa.Table.from_batches([batch]), rows_N)
                if (self._text_sizes(table) != sizes_N[low:high]).any():
                    raise self._changed(
                        f"a text in the rows {first} to {first + batch.num_rows} is not the one "
                        "scored"
                    )
                unreadable = (batch.schema.metadata or {}).get(UNREADABLE_COLUMNS)
                if unreadable is not None:
                    self.incomplete.append(
                        IncompleteRows(
                            file=self.file.task.split.path,
                            row=int(positions_N[low]),
                            rows=int(high - low),
                            columns=unreadable.decode(),
                        )
                    )
                yield table, scores_N[low:high]

            if done != len(positions_N):
                raise self._changed(f"row {positions_N[done]} is gone")

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
            f"the input {self.file.task.split.path} was modified after it was scored: {detail}; "
            "restore it, or curate it into a new run folder"
        )
