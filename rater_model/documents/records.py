"""Defines what reading yields: documents, bad records with their reasons, and splits of files."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Sequence

from datarater.rater_model.json_codec import IF_SET

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

EXCERPT_BYTES = 200
"""Bytes of a bad record that are kept in its report."""

UNKNOWN_FORMAT = ""
"""Format of a split whose file has not been looked at."""

MAX_NAME_CHARACTERS = 4096
"""Maximum length of an id and of a source, of which a worker holds one for every document."""

VIRTUAL_BYTES = 2**16
"""Factor of a stored offset in a virtual offset.

Deflate expands at most 1,032 times, zstd at most 32,768 times.
"""


MAX_ZSTD_WINDOW_BYTES = 2**31
"""The largest window of zstd, that of `zstd --long=31`."""

DEFAULT_ZSTD_WINDOW_BYTES = 2**27
"""Window that every reader of zstd accepts unasked, that of `zstd --long=27`."""


class Reason(enum.StrEnum):
    """Why a record, or the rest of a file, could not be read as a document.

    The values are written to score files and to the files of rejected records: once published, a
    value never changes its meaning.
    """

    NOT_UTF8 = "not_utf8"
    """The line is not UTF-8."""
    NOT_JSON = "not_json"
    """The line is not JSON, even if NaN and Infinity, which some writers emit, are taken for it."""
    NOT_AN_OBJECT = "not_an_object"
    """The line is JSON, but not an object."""
    NO_TEXT = "no_text"
    """The record has no text field, or it is null."""
    TEXT_NOT_A_STRING = "text_not_a_string"
    """The text is a number, a boolean, a list, an object or bytes."""
    TEXT_EMPTY = "text_empty"
    """The text is empty or only white space (by `str.isspace`: zero-width characters are text)."""
    TEXT_NOT_UNICODE = "text_not_unicode"
    """The text has a lone surrogate, or bytes that are not UTF-8: it cannot be written."""
    RECORD_TOO_LARGE = "record_too_large"
    """The record exceeds `ReadOptions.max_record_bytes`, or a Parquet page exceeds its bound."""
    STREAM_CORRUPT = "stream_corrupt"
    """A compressed stream is damaged: everything after the damage is lost."""
    WINDOW_TOO_LARGE = "window_too_large"
    """A zstd frame needs more memory than `ReadOptions.max_zstd_window_bytes`: the rest is lost."""
    STREAM_TRUNCATED = "stream_truncated"
    """A compressed stream ends early: the last, partial record and all after it are lost."""
    TRAILING_GARBAGE = "trailing_garbage"
    """A complete compressed stream is followed by other bytes; everything before them was read."""
    UNREADABLE_FILE = "unreadable_file"
    """The whole file cannot be read: a broken Parquet footer, or an unsupported format."""
    NO_TEXT_COLUMN = "no_text_column"
    """A Parquet file has no column with the name of the text field: all its rows are lost."""
    RECORD_CORRUPT = "record_corrupt"
    """A WARC or TFRecord record has a bad header or checksum, or is not a `tf.train.Example`."""
    PAGE_CORRUPT = "page_corrupt"
    """A Parquet row group is damaged: its remaining rows are lost, the next row group is read."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReadOptions:
    """Every option that changes what is read; a part of a run's identity.

    A field name may be a dotted path into nested objects (`metadata.text`). A field whose own name
    contains the dots takes precedence.

    Attributes:
        text_field: Field of the text.
        id_field: Field of the document's id; a document without one is identified by its text's
            digest.
        source_field: Field of the name of the document's source.
        max_record_bytes: Maximum size of a record (JSONL: the line; Parquet: the text). A larger
            one is rejected without being held in memory as a whole, where its format allows that.
        max_zstd_window_bytes: Maximum window of a zstd frame, which its reader holds in memory. The
            default is what versions without this option allowed.
    """

    text_field: str = "text"
    id_field: str = "id"
    source_field: str = "source"
    max_record_bytes: int = 64 * 2**20
    max_zstd_window_bytes: int = dataclasses.field(default=MAX_ZSTD_WINDOW_BYTES, metadata=IF_SET)

    def __post_init__(self) -> None:
        for name in ("text_field", "id_field", "source_field"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must be the name of a field, not {value!r}")
        if not isinstance(self.max_record_bytes, int) or self.max_record_bytes < 1:
            raise ValueError(
                f"max_record_bytes must be a whole number above 0, not {self.max_record_bytes!r}"
            )
        window = self.max_zstd_window_bytes
        if not isinstance(window, int) or not 1 <= window <= MAX_ZSTD_WINDOW_BYTES:
            raise ValueError(
                f"max_zstd_window_bytes must be a whole number from 1 to {MAX_ZSTD_WINDOW_BYTES}, "
                f"not {window!r}"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    r"""A document that was read.

    Attributes:
        key: Id as canonical JSON, so that the ids 1 and "1" differ (`1` and `"1"`); without an id
            (missing, null, empty, nested deeper than 200 levels or longer than
            `MAX_NAME_CHARACTERS`) `sha256:` and the hex SHA-256 of the text in UTF-8. Keys need not
            be unique in a corpus.
        text: Text, never empty.
        source: Name of the document's source; "" without one, or for a Parquet list that is longer
            than `MAX_NAME_CHARACTERS`; canonical JSON if it is not a string; cut to that length.
        position: Offset of the record (JSONL: its line) in the decompressed stream, in bytes; in a
            virtual split (see `Split`) plus a virtual offset; Parquet: number of the row in the
            file; ArrayRecord: number of the record.
        size: Length of the text in UTF-8, in bytes.
        raw: Bytes of the record. JSONL: the line, without its `\n` and the file's byte order mark,
            otherwise untouched (a `\r` stays); TFRecord and ArrayRecord: the data; WARC: header
            and content, without the line ends that follow; Parquet and plain text: None.
    """

    key: str
    text: str
    source: str
    position: int
    size: int
    raw: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class BadRecord:
    """A record, or the rest of a file, that could not be read as a document.

    Attributes:
        position: Position as in `Document`; 0 if the whole file cannot be read.
        reason: Reason, which never changes its meaning.
        detail: Explanation in one sentence, for a person.
        excerpt: First bytes of the record, at most `EXCERPT_BYTES`.
        records: Number of records that are lost: more than 1 for rows of which the footer gives
            only the number. They have the positions from `position` on.
    """

    position: int
    reason: Reason
    detail: str
    excerpt: bytes
    records: int = 1


Record = Document | BadRecord


class Compression(enum.StrEnum):
    """Compression of a whole file; `NONE` for Parquet, which compresses its own pages."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"

    @property
    def suffix(self) -> str:
        """Suffix of the names of files, such as `.gz`; "" for `NONE`."""
        return {"none": "", "gzip": ".gz", "zstd": ".zst", "bzip2": ".bz2"}[self]

    @classmethod
    def of_suffix(cls, suffix: str) -> Compression:
        """Returns the compression of a suffix."""
        return next(compression for compression in cls if compression.suffix == suffix)


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """An input file as it was listed.

    Attributes:
        path: Local path or URL.
        size: Stored bytes.
        fingerprint: Text that changes with the content: the store's generation, digest or entity
            tag if there is one, otherwise the time of modification and the size.
    """

    path: str
    size: int
    fingerprint: str


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """A part of a file, read as one unit of work.

    The splits of a file, read in order, give the records of the whole file, each exactly once.

    Attributes:
        path: Local path or URL of the file.
        format: Name of the file's format; `UNKNOWN_FORMAT` until the file is looked at.
        compression: Compression of the whole file.
        start: Beginning of the split. JSONL: an offset in the decompressed stream; Parquet: a row
            group; ArrayRecord: a record.
        end: End of the split, exclusive; None for the end of the file. A line belongs to the split
            that contains its first byte. A compressed stream can only be read from its beginning,
            so a later split of one first reads past everything before it, unless it is virtual.
        ordinal: Number of the split in the plan of a run, in the order of (path, start); -1 outside
            a plan.
        size: Stored bytes that the split covers, approximately, for planning; 0 if unknown.
        virtual: Whether start and end are virtual offsets: the stored offset at which a gzip member
            or zstd frame begins, times `VIRTUAL_BYTES`. The bytes that unpack from there have the
            positions that follow. No member expands that much, so positions increase through the
            file, as in BGZF. Parquet: any stored offset times `VIRTUAL_BYTES`; a row group belongs
            to the split in which it begins, by its share of the uncompressed bytes.
    """

    path: str
    format: str
    compression: Compression = Compression.NONE
    start: int = 0
    end: int | None = None
    ordinal: int = -1
    size: int = 0
    virtual: bool = False

    @property
    def continues_stream(self) -> bool:
        """Whether reading the split first unpacks the parts of the stream before it."""
        return bool(self.start) and not self.virtual and self.compression is not Compression.NONE

    def cut_at(self, offsets: Sequence[int], virtual: bool = False) -> list[Split]:
        """Cuts the split that covers a whole file.

        Args:
            offsets: Stored offsets to cut at, increasing, 0 left out.
            virtual: Whether the parts get virtual offsets; stored offsets otherwise.
        """
        if not offsets:
            return [self]
        unit = VIRTUAL_BYTES if virtual else 1
        return [
            # The last split has no end: the store may report too small a size.
            dataclasses.replace(
                self,
                start=start * unit,
                end=end * unit if end < self.size else None,
                size=end - start,
                virtual=virtual,
            )
            for start, end in itertools.pairwise([0, *offsets, self.size])
        ]
