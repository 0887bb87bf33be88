"""Defines what a format for trainers is: how documents become records, and records become files.

A record is a document as bytes, ready for the format's files. A file that several workers write
together is at first made of pieces, each of them a zstd stream of records. Joining them gives the
same sequence of records to the same code as writing the file at once, so it gives the same bytes.
"""

from __future__ import annotations

import abc
import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol

import zstandard

from datarater.pipelines.graph.record_writers import row_json, table_rows, take_field
from datarater.pipelines.graph.second_read import IncompleteRows, KeptSplit
from datarater.rater_model.documents.json_lines import (
    SCORE_FIELD,
    dump_json,
    id_of_key,
    load_json,
    storable,
)
from datarater.rater_model.documents.records import ReadOptions

if TYPE_CHECKING:
    from datarater.pipelines.run_folder.manifest import Manifest

_LENGTH = struct.Struct("<Q")
_ZSTD_LEVEL = 1


class RecordFiles(Protocol):
    """The files of one part of a data set, which are written record by record."""

    def add(self, record: bytes) -> None:
        """Adds a record.

        Raises:
            OSError: The files cannot be written.
        """

    def close(self) -> None:
        """Completes the files, which stay open."""


class TrainerFormat(abc.ABC):
    """A format in which all kept documents have the same fields, whatever their input.

    Attributes:
        name: Name of the format, a value of `--output_format`.
        suffix: Suffix of its files of documents.
        companion_suffixes: Suffixes of what is written beside each file, such as its index.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    companion_suffixes: ClassVar[tuple[str, ...]] = ()

    def file_name(self, index: int, count: int) -> str:
        """Returns the name of one of several files, given by its number from 0."""
        return f"part-{index:05d}-of-{count:05d}.{self.suffix}"

    def companions(self, name: str) -> list[str]:
        """Returns the names of the files that are written beside one."""
        stem = name.removesuffix(self.suffix)
        return [stem + suffix for suffix in self.companion_suffixes]

    @abc.abstractmethod
    def records(self, kept: KeptSplit) -> Iterator[bytes]:
        """Yields the kept documents of a split as records.

        Raises:
            InputChangedError: The input has changed since it was scored.
        """

    @abc.abstractmethod
    def open(self, files: Sequence[BinaryIO], documents: int) -> RecordFiles:
        """Begins a file of documents and its companions.

        Args:
            files: The open files, empty, in the order of the names.
            documents: Number of records that will be added.
        """

    def whole_files(self, manifest: Manifest) -> dict[str, bytes]:
        """Returns the content of the files that describe all others, by name.

        They are written once the counts are reconciled, and depend on nothing but the manifest.
        """
        return {}


@dataclasses.dataclass(frozen=True, slots=True)
class KeptDocument:
    """A kept document in the fields that all formats for trainers share.

    Attributes:
        id: Its id, as JSON if it is not a string; without one the digest of its text.
        text: Its text.
        source: Its source; "" without one.
        metadata: All other fields as a JSON object.
        score: Its score.
    """

    id: str
    text: str
    source: str
    metadata: str
    score: float

    def row(self) -> dict[str, Any]:
        """Returns the fields by the names of `DOCUMENT_SCHEMA`."""
        return {
            "id": self.id,
            "text": self.text,
            "source": self.source,
            "metadata": self.metadata,
            SCORE_FIELD: self.score,
        }


def kept_documents(kept: KeptSplit) -> Iterator[KeptDocument]:
    """Yields the kept documents of a split; raises as `TrainerFormat.records` does."""
    source, options = kept.source, kept.options
    if source.is_table:
        for table, scored in kept.scored_tables():
            columns = [scored[name].to_pylist() for name in ("key", "source", "score")]
            for fields, key, name, score in zip(table_rows(table), *columns, strict=True):
                text = take_field(fields, options.text_field)
                identifier = take_field(fields, options.id_field)
                of_source = take_field(fields, options.source_field)
                _put_back(fields, options, identifier, of_source, key, name)
                metadata = row_json(fields).decode()
                yield KeptDocument(_id(key), text, storable(name), metadata, score)
        return

    as_line, separator = source.json_line, source.nested_separator
    for document, score in kept.documents():
        fields = load_json(as_line(document, options))
        take_field(fields, options.text_field, separator)
        identifier = take_field(fields, options.id_field, separator)
        of_source = take_field(fields, options.source_field, separator)
        fields.pop(SCORE_FIELD, None)
        _put_back(fields, options, identifier, of_source, document.key, document.source)
        yield KeptDocument(
            _id(document.key),
            document.text,
            storable(document.source),
            dump_json(fields),
            score,
        )


def _id(key: str) -> str:
    value = id_of_key(key)
    return storable(value) if isinstance(value, str) else dump_json(value)


def _put_back(
    fields: dict[str, Any],
    options: ReadOptions,
    identifier: Any,
    source: Any,
    key: str,
    name: str,
) -> None:
    """Leaves an id in the metadata that a digest replaces, and a source that is cut."""
    if identifier is not None and key.startswith("sha256:"):
        fields[options.id_field] = identifier
    if isinstance(source, str) and storable(source) != storable(name):
        fields[options.source_field] = source


class DocumentWriter:
    """Writes a file of a format for trainers, and its companions.

    Args:
        files: Empty binary files; they stay open.
        trainer_format: The format.
        documents: Number of documents that will be written.
    """

    def __init__(self, files: Sequence[BinaryIO], trainer_format: TrainerFormat, documents: int):
        self.incomplete: list[IncompleteRows] = []
        self._records = trainer_format.records
        self._out = trainer_format.open(files, documents)

    def write(self, kept: KeptSplit) -> int:
        """Adds the documents of a split; returns how many there were."""
        count = 0
        for record in self._records(kept):
            self._out.add(record)
            count += 1
        self.incomplete += kept.incomplete
        return count

    def close(self) -> None:
        """Completes the files."""
        self._out.close()


class PieceWriter:
    """Writes a piece of a file of a format for trainers: its records in a zstd stream.

    Args:
        file: Binary file to write to; it stays open.
        trainer_format: The format.
    """

    def __init__(self, file: BinaryIO, trainer_format: TrainerFormat):
        self.incomplete: list[IncompleteRows] = []
        self._records = trainer_format.records
        self._out = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).stream_writer(
            file, closefd=False
        )

    def write(self, kept: KeptSplit) -> int:
        """Adds the documents of a split; returns how many there were."""
        count = 0
        for record in self._records(kept):
            self._out.write(_LENGTH.pack(len(record)) + record)
            count += 1
        self.incomplete += kept.incomplete
        return count

    def close(self) -> None:
        """Completes the stream."""
        self._out.close()


class DocumentJoiner:
    """Puts the pieces of a file of a format for trainers together.

    Args:
        files: Empty binary files; they stay open.
        trainer_format: The format.
        documents: Number of documents in all pieces.
    """

    def __init__(self, files: Sequence[BinaryIO], trainer_format: TrainerFormat, documents: int):
        self._out = trainer_format.open(files, documents)

    def add(self, piece: BinaryIO) -> None:
        """Adds the records of the next piece, one in memory at a time."""
        for record in _records_of(piece):
            self._out.add(record)

    def close(self) -> None:
        """Completes the files."""
        self._out.close()


def _records_of(piece: BinaryIO) -> Iterable[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(piece, closefd=False) as stream:
        while head := _exactly(stream, _LENGTH.size):
            yield _exactly(stream, *_LENGTH.unpack(head))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """Returns the next bytes of a stream; none at its end.

    Raises:
        OSError: It ends within them.
    """
    parts, left = [], count
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    if parts and left:
        raise OSError("the piece is cut off")
    return b"".join(parts)
