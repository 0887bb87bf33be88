"""What reading yields: documents, bad records with their reasons, and the splits that files are cut into."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Self

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

EXCERPT_BYTES = 200
"""How much of a bad record travels with its report."""

VIRTUAL_BYTES = 2**16
"""What a stored offset counts for in a virtual offset; deflate expands 1,032 times at most, zstd 32,768 times."""


class Reason(enum.StrEnum):
    """Why a record, or what is left of a file, could not be read as a document.

    The values stand in score files and in the files of rejected records: once published, one never
    changes its meaning.
    """

    NOT_UTF8 = "not_utf8"
    """The line is not UTF-8."""
    NOT_JSON = "not_json"
    """The line is not JSON (NaN and Infinity, which some writers emit, are not JSON either)."""
    NOT_AN_OBJECT = "not_an_object"
    """The line is JSON, but not an object."""
    NO_TEXT = "no_text"
    """The record has no text field, or it is null."""
    TEXT_NOT_A_STRING = "text_not_a_string"
    """The text is a number, a boolean, a list, an object or bytes."""
    TEXT_EMPTY = "text_empty"
    """The text is empty or nothing but white space (by `str.isspace`: zero-width characters count as text)."""
    TEXT_NOT_UNICODE = "text_not_unicode"
    """The record holds a lone surrogate, or a Parquet value is not UTF-8: such a text cannot be written again."""
    RECORD_TOO_LARGE = "record_too_large"
    """The record is longer than `ReadOptions.max_record_bytes`, or a row group than its bound."""
    STREAM_CORRUPT = "stream_corrupt"
    """A compressed stream is damaged: what lies after the damage is lost."""
    STREAM_TRUNCATED = "stream_truncated"
    """A compressed stream ends before its time: the last, partial record is lost, and all that followed it."""
    TRAILING_GARBAGE = "trailing_garbage"
    """Bytes that are no compressed data follow a whole compressed stream; what stands before them was read."""
    UNREADABLE_FILE = "unreadable_file"
    """The file as a whole cannot be read: a broken Parquet footer, or a format that is not supported."""
    NO_TEXT_COLUMN = "no_text_column"
    """A Parquet file has no column of the name that the text is to be found under."""
    RECORD_CORRUPT = "record_corrupt"
    """A WARC or TFRecord record is damaged: its header, its checksum, or it is no `tf.train.Example`."""
    PAGE_CORRUPT = "page_corrupt"
    """A Parquet row group is damaged: its rows from this one on are lost, the next row group is read again."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReadOptions:
    """Every option that changes what is read; a part of a run's identity.

    A field name may be a dotted path into nested objects (`metadata.text`). A field whose own name
    holds the dots is found first.

    Attributes:
        text_field: where the text stands.
        id_field: where the document's id stands; documents without one are known by their text's
            digest.
        source_field: where the name of the document's source stands.
        max_record_bytes: a record (JSONL: the line; Parquet: the text) of more bytes than this is
            rejected without ever being held in memory as a whole, as far as its format allows.
    """

    text_field: str = "text"
    id_field: str = "id"
    source_field: str = "source"
    max_record_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name in ("text_field", "id_field", "source_field"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must be the name of a field, not {value!r}")
        if not isinstance(self.max_record_bytes, int) or self.max_record_bytes < 1:
            raise ValueError(
                f"max_record_bytes must be a whole number above 0, not {self.max_record_bytes!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the options as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuilds options from `to_json`.

        Raises:
            ValueError: if a field is unknown or has no sensible value.
        """
        return cls(**_known_fields(cls, fields))


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    r"""A document that was read.

    Attributes:
        key: the id as canonical JSON, so that the ids 1 and "1" differ (`1` and `"1"`); without an
            id (missing, null or empty, or nested deeper than 200 levels) `sha256:` and the hex
            SHA-256 of the text in UTF-8. Keys need not be unique in a corpus.
        text: the text, never empty.
        source: the name of the document's source; "" without one; one that is no string as
            canonical JSON.
        position: the offset at which the record (JSONL: its line) starts in the decompressed
            stream, in bytes; in a virtual split (see `Split`) plus a virtual offset; Parquet: the
            row's number in the file; ArrayRecord: the record's.
        size: the text's length in UTF-8, in bytes.
        raw: the record's own bytes. JSONL: the line, without its `\n` and without the file's byte
            order mark, untouched otherwise (a `\r` stays); TFRecord and ArrayRecord: the data;
            WARC: header and content, without the line ends that follow; Parquet and plain text:
            None.
    """

    key: str
    text: str
    source: str
    position: int
    size: int
    raw: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class BadRecord:
    """A record, or what is left of a file, that could not be read as a document.

    Attributes:
        position: as in `Document`; 0 where the file as a whole cannot be read.
        reason: one of `Reason`.
        detail: one sentence for a person.
        excerpt: the first bytes of the record, at most `EXCERPT_BYTES`.
    """

    position: int
    reason: Reason
    detail: str
    excerpt: bytes


Record = Document | BadRecord


class Format(enum.StrEnum):
    """How records stand in a file."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    WARC = "warc"
    TFRECORD = "tfrecord"
    ARRAY_RECORD = "array_record"
    TEXT = "text"


class Compression(enum.StrEnum):
    """What a whole file is wrapped in. Parquet compresses its own pages: such files are `NONE`."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """An input file as it was found.

    Attributes:
        path: local path or URL.
        size: stored bytes.
        fingerprint: changes when the content does: the store's generation, digest or entity tag
            where it has one, else the time of modification and the size.
    """

    path: str
    size: int
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Returns the file's facts as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuilds the facts from `to_json`.

        Raises:
            ValueError: if a field is unknown.
        """
        return cls(**_known_fields(cls, fields))


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """A part of a file that is read in one go.

    The splits of a file, read in order, give the records of the whole file, each exactly once.

    Attributes:
        path: local path or URL of the file.
        format: how records stand in it.
        compression: what the whole file is wrapped in.
        start: JSONL: an offset in the decompressed stream; Parquet: a row group; ArrayRecord: a
            record.
        end: likewise, exclusive; None: to the end of the file. A line belongs to the split in which
            its first byte lies. A compressed stream can be read from its beginning only, so that a
            split of one which starts later streams past what is not its own, unless it is virtual.
        ordinal: the split's number in the plan of a run, in the order of (path, start); -1 outside
            of a plan.
        size: about how many stored bytes the split covers, for planning; 0 if unknown.
        virtual: whether start and end are virtual offsets: the stored offset at which a gzip member
            or zstd frame begins, times `VIRTUAL_BYTES`. What unpacks from there has the positions
            that follow. No member unpacks to so many times its stored bytes, so that positions rise
            through the file, as in BGZF.
    """

    path: str
    format: Format
    compression: Compression = Compression.NONE
    start: int = 0
    end: int | None = None
    ordinal: int = -1
    size: int = 0
    virtual: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns the split as a dictionary that JSON can hold."""
        # Millions of them are written: dataclasses.asdict would take many times as long.
        return {
            "path": self.path,
            "format": str(self.format),
            "compression": str(self.compression),
            "start": self.start,
            "end": self.end,
            "ordinal": self.ordinal,
            "size": self.size,
            "virtual": self.virtual,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Rebuilds a split from `to_json`.

        Raises:
            ValueError: if a field is unknown, or names an unknown format or compression.
        """
        known = _known_fields(cls, fields)
        known["format"] = Format(known["format"])
        known["compression"] = Compression(known.get("compression", "none"))
        return cls(**known)


def _known_fields(cls: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(fields) - names)
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(names))}"
        )
    return dict(fields)
