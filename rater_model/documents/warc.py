r"""Reads WARC and WET files, as crawls publish them: their text records become documents.

A record of type `conversion` (the extracted text in a WET file), or `resource` with the content
type `text/plain`, is a document. Its id is `WARC-Record-ID`; its URL and date are kept as the
fields `url` and `date`, its languages, if the crawl names them, as `language`. A `response` or a
resource of another type (HTML, PDF) becomes a bad record that says so: extracting text from a page
is left to other tools. Records without content of their own (`warcinfo`, `request`, `metadata`,
`revisit`, `continuation`) are not documents and are not counted.

Source: ISO 28500, the WARC file format.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

from datarater.rater_model.documents.byte_reader import ByteReader
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.json_lines import as_line, score_text
from datarater.rater_model.documents.jsonl import document_of
from datarater.rater_model.documents.member_boundaries import cut_at_members
from datarater.rater_model.documents.records import (
    BYTE_ORDER_MARK,
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    Document,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead

SCORE_HEADER = "DataRater-Score"
WARC_MAGIC = b"WARC/"
_LINE_LIMIT = 2**16
_HEADER_LINES = 200
_WITHOUT_CONTENT = ("warcinfo", "request", "metadata", "revisit", "continuation")
_DOCUMENTS = ("conversion", "resource")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r", re.IGNORECASE)


def is_whole_record(head: bytes, size: int) -> bool:
    """Reports whether a gzip member or zstd frame unpacks to exactly one record, as in crawls.

    Args:
        head: First unpacked bytes, including the record's header.
        size: Number of unpacked bytes.
    """
    header_bytes = head.find(b"\r\n\r\n") + 4
    length = _LENGTH.search(head[:header_bytes])
    if not head.startswith(WARC_MAGIC) or header_bytes < 4 or length is None:
        return False
    # Two line ends follow the content, or what a careless writer leaves of them.
    return 0 <= size - header_bytes - int(length[1]) <= 4


def _headers(next_line: Callable[[], bytes]) -> tuple[dict[str, str], bytes] | None:
    """Returns the named fields of a record, names in lower case, and the bytes of the header.

    None if the header cannot be parsed.

    Args:
        next_line: Function that returns the next line, with its line end.
    """
    fields: dict[str, str] = {}
    lines: list[bytes] = []
    last = ""
    for _ in range(_HEADER_LINES):
        line = next_line()
        if not line.endswith(b"\n"):
            return None
        lines.append(line)
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            return fields, b"".join(lines)

        # A line that begins with white space continues the field before.
        if text[0] in " \t" and last:
            fields[last] += " " + text.strip()
            continue
        name, colon, value = text.partition(":")
        if not colon:
            return None
        last = name.strip().lower()
        fields[last] = value.strip()
    return None


def _to_next_record(reader: ByteReader) -> bytes:
    """Skips lines up to one that begins a record; returns that line, or nothing at the end."""
    fresh = True
    while line := reader.line(_LINE_LIMIT):
        if fresh and line.startswith(WARC_MAGIC):
            return line
        fresh = line.endswith(b"\n")
    return b""


def _record(
    reader: ByteReader,
    fields: dict[str, str],
    header: bytes,
    length: int,
    start: int,
    options: ReadOptions,
) -> Iterator[Record]:
    """Reads the content of one record, and yields the record unless it has no content of its own.

    Args:
        reader: Reader, at the first byte of the content.
        fields: Named fields of the header.
        header: Bytes of the header.
        length: Length of the content in bytes, according to the header.
        start: Position of the record.
        options: Options to read with.
    """
    kind = fields.get("warc-type", "").lower()
    media = fields.get("content-type", "").partition(";")[0].strip().lower()
    is_document = kind in _DOCUMENTS and media in ("text/plain", "")

    # Only the content of a document of acceptable size is held in memory.
    large = length > options.max_record_bytes
    content = b""
    if is_document and not large:
        content = reader.read(length)
        present = len(content)
    else:
        present = reader.skip(length)
    if kind in _WITHOUT_CONTENT and present == length:
        return

    name = fields.get("warc-record-id", "")
    head = f"{kind} {name} {fields.get('warc-target-uri', '')}".encode()[:EXCERPT_BYTES]
    if present < length:
        if reader.failure is None:
            yield reader.ended_early(start, head, "WARC record")
    elif not is_document:
        detail = (
            f"a {kind or 'nameless'} record of {media or 'no content type'} has no extracted text; "
            "read the WET files of the crawl, or extract the text first"
        )
        yield BadRecord(start, Reason.NO_TEXT, detail, head)
    elif large:
        detail = (
            f"the record has {length} bytes, more than the limit of {options.max_record_bytes} "
            "(max_record_bytes)"
        )
        yield BadRecord(start, Reason.RECORD_TOO_LARGE, detail, head)
    else:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            detail = f"the text is not UTF-8: {error.reason} at byte {error.start}"
            yield BadRecord(start, Reason.NOT_UTF8, detail, content[:EXCERPT_BYTES])
            return
        yield document_of(text, name, None, start, header + content, options)


def with_field(raw: bytes, name: str, value: str) -> bytes:
    r"""Returns a record with one more named field at the end of its header.

    An existing field of that name is replaced. All other bytes are unchanged.

    Args:
        raw: Header and content.
        name: Name of the field.
        value: Value of the field.

    Raises:
        ValueError: if the header has no end.

    Example:
        >>> with_field(b"WARC/1.0\r\nContent-Length: 1\r\n\r\na", "Score", "0.5")
        b'WARC/1.0\r\nContent-Length: 1\r\nScore: 0.5\r\n\r\na'
    """
    lines = io.BytesIO(raw)
    header: list[bytes] = []
    replaced = False
    for line in iter(lines.readline, b""):
        if not line.strip(b"\r\n"):
            return b"".join([*header, f"{name}: {value}\r\n".encode(), line, lines.read()])
        if line[:1] not in b" \t":
            replaced = line.partition(b":")[0].strip().lower() == name.lower().encode()
        if not replaced:
            header.append(line)
    raise ValueError("the record's header has no end")


class Warc(FileFormat):
    """WARC and WET files, written as WARC records with the score in a header line."""

    name = "warc"
    written_as = "warc"
    compresses_by_record = True

    def sniff(self, head: FileHead) -> Compression | None:
        """Recognizes a file by the first line of its first record."""
        # A byte order mark and blank lines may come first.
        start = head.unpacked.removeprefix(BYTE_ORDER_MARK).lstrip(b"\r\n\t ")
        return head.compression if start.startswith(WARC_MAGIC) else None

    def plan(self, whole: Split, head: FileHead, options: ReadOptions, target: int) -> list[Split]:
        """Cuts streams between members or frames, if each of them is one record."""
        return cut_at_members(whole, target, is_whole_record)

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Reads the records of a split.

        Positions are offsets in the decompressed stream. A record whose beginning is damaged is one
        bad record, and reading continues with the next line that begins one.
        """
        with ByteReader(split, options.max_zstd_window_bytes) as reader:
            while True:
                start = reader.position
                line = reader.line(_LINE_LIMIT)
                if not line:
                    break
                if start == 0:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if not line.strip():
                    continue

                # Find the next record after damage.
                if not line.startswith(WARC_MAGIC):
                    detail = "no WARC record begins here; everything before the next one is lost"
                    yield BadRecord(start, Reason.RECORD_CORRUPT, detail, line[:EXCERPT_BYTES])
                    line = _to_next_record(reader)
                    start = reader.position - len(line)
                    if not line:
                        break

                # Read the record, or the next one whose header can be parsed.
                while line:
                    fields, header = _headers(lambda: reader.line(_LINE_LIMIT)) or ({}, b"")
                    length = fields.get("content-length", "")
                    if length.isascii() and length.isdigit() and len(length) < 19:
                        raw = line + header
                        yield from _record(reader, fields, raw, int(length), start, options)
                        break
                    if reader.failure is None:
                        detail = (
                            "the record's header is damaged or has no length; everything before "
                            "the next record is lost"
                        )
                        yield BadRecord(start, Reason.RECORD_CORRUPT, detail, line[:EXCERPT_BYTES])
                    line = _to_next_record(reader)
                    start = reader.position - len(line)
            if reader.failure is not None:
                yield reader.broken(reader.position)

    def json_line(self, document: Document, options: ReadOptions) -> bytes:
        """Returns the id, text, URL, date and, if there are any, languages of a record."""
        lines = io.BytesIO(document.raw or b"")
        lines.readline()
        fields, _ = _headers(lines.readline) or ({}, b"")
        more = {"url": fields.get("warc-target-uri"), "date": fields.get("warc-date")}
        if "warc-identified-content-language" in fields:
            more["language"] = fields["warc-identified-content-language"]
        return as_line(options, fields.get("warc-record-id", ""), document.text, more)

    def scored_record(self, document: Document, score: float, options: ReadOptions) -> bytes:
        """Returns the record's own bytes with the score as the last line of its header."""
        return with_field(document.raw or b"", SCORE_HEADER, score_text(score))

    def frame(self, record: bytes) -> bytes:
        """Returns the record with the two line ends that follow it."""
        return record + b"\r\n\r\n"
