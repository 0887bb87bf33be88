"""Defines what a file format is: one class that says all that sets the format apart."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from datarater.rater_model.documents.json_lines import as_line, id_of_key, scored_line
from datarater.rater_model.documents.records import (
    Compression,
    Document,
    ReadOptions,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead

if TYPE_CHECKING:
    import pyarrow as pa


class FileFormat(abc.ABC):
    """A way in which files store records: how they are recognized, split, read and written.

    A format is one subclass, listed in `datarater.rater_model.documents.formats`. It has to define
    `name`, `sniff` and `read`. By default a file is one split, and its documents are written as
    JSON lines.

    Attributes:
        name: Name in plans, score files and the names of output files. A name once published never
            changes its meaning.
        unit: Unit of the positions at which files are split, for messages.
        cuts_streams: Whether a split of a compressed stream may begin at any offset. Reading one
            unpacks everything before it.
        is_table: Whether records are rows of a table, which `read_tables` reads for writing.
        written_as: Name of the format in which documents are written by default.
        compresses_by_record: Whether a written record is a gzip member, zstd frame or bzip2 stream
            of its own.
        nested_separator: What separates the names of nested fields in the fields of a JSON line.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "bytes"
    cuts_streams: ClassVar[bool] = False
    is_table: ClassVar[bool] = False
    written_as: ClassVar[str] = "jsonl"
    compresses_by_record: ClassVar[bool] = False
    nested_separator: ClassVar[str] = "."

    # Reading

    @abc.abstractmethod
    def sniff(self, head: FileHead) -> Compression | None:
        """Returns the compression of a file of this format; None for any other file.

        Raises:
            OSError: if the file cannot be read.
        """

    def plan(self, whole: Split, head: FileHead, options: ReadOptions, target: int) -> list[Split]:
        """Cuts a file into splits; see `datarater.rater_model.documents.reading.plan_file`.

        Args:
            whole: Split that covers the file.
            head: First bytes of the file.
            options: Options that the file will be read with.
            target: Stored bytes that a split should have.
        """
        return [whole]

    @abc.abstractmethod
    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Reads a split; see `datarater.rater_model.documents.reading.read_split`."""

    def read_tables(
        self, split: Split, options: ReadOptions
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Reads all columns of a split's rows, so that kept rows can be written untouched.

        It yields exactly the rows for which `read` yields a record, good or bad. Rows that `read`
        reports as lost are left out.

        Yields:
            The number of the batch's first row in the file, and the batch, with the file's schema.
        """
        raise NotImplementedError(f"{self.name} files have no rows")

    def narrowed(self, split: Split, positions: Sequence[int]) -> list[Split]:
        """Returns parts of a split that contain some records and as little else as the format can.

        Args:
            split: The split.
            positions: Positions of records in it, increasing.

        Raises:
            OSError: if the file cannot be read.
        """
        return [split]

    def count_records(self, path: str) -> int | None:
        """Returns the number of records that a file states; None if it states none.

        Raises:
            OSError: if the file cannot be read.
        """
        return None

    # Writing

    def layout(self, split: Split) -> str:
        """Returns the layout of a split: name of the format, slash, all that its output depends on.

        Raises:
            OSError: if the file cannot be read.
        """
        return f"{self.name}/{split.compression}"

    def output_format(self, detail: str) -> str:
        """Returns the format in which documents of a layout are written by default.

        Args:
            detail: The layout's part after the slash.

        Returns:
            The name of the format and the suffix of the compression, such as `jsonl.gz`.
        """
        return self.written_as + Compression(detail).suffix

    def output_class(self, detail: str, written: str) -> str:
        """Returns what documents must agree in to share an output file.

        Args:
            detail: The layout's part after the slash.
            written: Format of the output file.
        """
        return self.name

    def json_line(self, document: Document, options: ReadOptions) -> bytes:
        """Returns a document as a JSON line with all fields of its record: id, text and source.

        Args:
            document: Document as it was read; not a row of a table.
            options: Options that it was read with.
        """
        more = {options.source_field: document.source} if document.source else {}
        return as_line(options, id_of_key(document.key), document.text, more)

    def scored_record(self, document: Document, score: float, options: ReadOptions) -> bytes:
        """Returns a document as a record of the format `written_as`, with its score added.

        Args:
            document: Document as it was read; not a row of a table.
            score: Score of the document.
            options: Options that it was read with.
        """
        return scored_line(self.json_line(document, options), score)

    def frame(self, record: bytes) -> bytes:
        """Returns the bytes that represent a record of this format in a file."""
        return record + b"\n"
