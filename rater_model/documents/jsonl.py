"""Reads JSON lines from plain or compressed streams, from any split, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from datarater.rater_model.documents.decompression import CHUNK_BYTES, StreamError
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.files import open_file
from datarater.rater_model.documents.foreign_formats import foreign_detail
from datarater.rater_model.documents.json_lines import dump_json, storable
from datarater.rater_model.documents.member_boundaries import (
    SplitStream,
    cut_at_members,
    stored_end,
)
from datarater.rater_model.documents.records import (
    BYTE_ORDER_MARK,
    EXCERPT_BYTES,
    MAX_NAME_CHARACTERS,
    BadRecord,
    Compression,
    Document,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead

_MISSING = object()
_MAX_LEVELS = 200
_FIELDS_SHOWN, _NAMES_SHOWN = 20, 300
_MAY_BE_INEXACT = (float, list, dict)


def canonical_json(value: Any) -> str | None:
    """Returns a value as JSON with sorted keys and no spaces, the same for equal values.

    Values that JSON has no type for become strings.

    Returns:
        The JSON; None for a value that is nested more than 200 levels deep or has no such form.
    """
    try:
        options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        return orjson.dumps(value, option=options, default=_unusual).decode()
    except orjson.JSONEncodeError:
        pass
    # An integer past 64 bits or a lone surrogate, or the nesting.
    try:
        return None if _is_deep(value) else dump_json(value, sort_keys=True)
    except (TypeError, ValueError):
        return None


def _is_deep(value: Any, levels: int = _MAX_LEVELS) -> bool:
    """Reports whether a value is nested deeper than a number of levels."""
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and (
        levels == 0 or any(_is_deep(inner, levels - 1) for inner in value)
    )


def _unusual(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    return str(value)


def utf8_size(text: str) -> int:
    """Returns a text's length in UTF-8, in bytes."""
    return len(text) if text.isascii() else len(text.encode())


def key_of(identifier: Any, text: str) -> str:
    """Returns a document's key; see `Document.key`.

    Args:
        identifier: Id as it was read, None without one.
        text: Text of the document.
    """
    if type(identifier) is str and 0 < len(identifier) <= MAX_NAME_CHARACTERS:
        try:
            return orjson.dumps(identifier).decode()
        except orjson.JSONEncodeError:
            return dump_json(identifier)
    is_long = isinstance(identifier, str | bytes) and len(identifier) > MAX_NAME_CHARACTERS
    if identifier is not None and not is_long and identifier not in ("", b"", [], {}):
        key = canonical_json(identifier)
        # A float that is not a number is null.
        if key is not None and key != "null" and len(key) <= MAX_NAME_CHARACTERS:
            return key
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def source_of(source: Any) -> str:
    """Returns the name of a document's source; see `Document.source`."""
    if isinstance(source, str):
        return source
    return "" if source is None else canonical_json(source) or ""


def field_getter(field: str) -> Callable[[dict[str, Any]], Any]:
    """Returns a function that gets a field, possibly by a dotted path, from an object.

    It returns None if the field is missing.
    """
    parts = field.split(".")
    if len(parts) == 1:
        return lambda fields: fields.get(field)

    def get(fields: dict[str, Any]) -> Any:
        value = fields.get(field, _MISSING)
        if value is not _MISSING:
            return value
        inner: Any = fields
        for part in parts:
            if not isinstance(inner, dict):
                return None
            inner = inner.get(part)
        return inner

    return get


def document_of(
    text: Any, identifier: Any, source: Any, position: int, raw: bytes | None, options: ReadOptions
) -> Record:
    """Returns the document that a record's fields make, or the bad record that says why not.

    Args:
        text: Text as it was read; None if it is missing.
        identifier: Id, None without one.
        source: Source, None without one.
        position: Position of the record.
        raw: Bytes of the record; None if its format does not store it on its own.
        options: Options with the names of the fields, for the message.
    """
    if not isinstance(text, str):
        if text is None:
            reason, detail = Reason.NO_TEXT, f"the field {options.text_field!r} is missing or null"
        else:
            reason = Reason.TEXT_NOT_A_STRING
            detail = f"the field {options.text_field!r} is {_json_type(text)}, not a string"
        return BadRecord(position, reason, detail, (raw or b"")[:EXCERPT_BYTES])
    if not text or text.isspace():
        detail = f"the field {options.text_field!r} has nothing but white space"
        return BadRecord(position, Reason.TEXT_EMPTY, detail, (raw or b"")[:EXCERPT_BYTES])

    try:
        size = utf8_size(text)
    except UnicodeEncodeError:
        detail = (
            f"the field {options.text_field!r} has a lone surrogate, which UTF-8 cannot express"
        )
        return BadRecord(position, Reason.TEXT_NOT_UNICODE, detail, (raw or b"")[:EXCERPT_BYTES])

    key = key_of(identifier, text)
    source = source if type(source) is str else source_of(source)
    source = storable(source[:MAX_NAME_CHARACTERS])
    return Document(key, text, source, position, size, raw)


class LineParser:
    """Parses lines into records."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._text = field_getter(options.text_field)
        self._id = field_getter(options.id_field)
        self._source = field_getter(options.source_field)

    def __call__(self, line: bytes, position: int) -> Record | None:
        r"""Parses one line.

        Args:
            line: Line without its `\n`.
            position: Offset of the line.

        Returns:
            The record; None for a blank line.
        """
        if position == 0 and line.startswith(BYTE_ORDER_MARK):
            line = line[len(BYTE_ORDER_MARK) :]
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if not line or line.isspace():
                return None
            try:
                fields = _lenient(line)
            except ValueError:
                reason, detail = _diagnose(line, error)
                return BadRecord(position, reason, detail, line[:EXCERPT_BYTES])

        if type(fields) is not dict:
            detail = (
                f"the line is {_json_type(fields)}, not an object; each line must be one whole "
                "object"
            )
            return BadRecord(position, Reason.NOT_AN_OBJECT, detail, line[:EXCERPT_BYTES])
        identifier, source = self._id(fields), self._source(fields)
        if type(identifier) in _MAY_BE_INEXACT or type(source) in _MAY_BE_INEXACT:
            # Integers past 64 bits are read as floats.
            with contextlib.suppress(ValueError):
                exact = _lenient(line)
                identifier, source = self._id(exact), self._source(exact)
        text = self._text(fields)
        if text is None:
            detail = _missing_field(self._options.text_field, fields)
            return BadRecord(position, Reason.NO_TEXT, detail, line[:EXCERPT_BYTES])
        return document_of(text, identifier, source, position, line, self._options)


def _missing_field(name: str, fields: dict[str, Any]) -> str:
    """Returns the sentence that names the fields of a record without the text."""
    names = ", ".join(itertools.islice(fields, _FIELDS_SHOWN)) or "none"
    names = storable(names[:_NAMES_SHOWN]).replace("\n", " ")
    more = " and more" if len(fields) > _FIELDS_SHOWN or len(names) == _NAMES_SHOWN else ""
    return f"the field {name!r} is missing or null; the record's fields are: {names}{more}"


def _lenient(line: bytes) -> Any:
    """Parses a line as most writers write JSON: with NaN, Infinity, 1e400 and lone surrogates.

    Integers of any size are exact.

    Raises:
        ValueError: if the line is not even that.
    """
    try:
        return json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        dict: "an object",
    }
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity"
    return names.get(type(value), "an array")


def _diagnose(line: bytes, error: orjson.JSONDecodeError) -> tuple[Reason, str]:
    """Returns why a line cannot be parsed: the reason and a sentence."""
    try:
        line.decode()
    except UnicodeDecodeError as unicode_error:
        return (
            Reason.NOT_UTF8,
            f"the line is not UTF-8: {unicode_error.reason} at byte {unicode_error.start}",
        )

    return Reason.NOT_JSON, f"the line is not JSON: {error}"


def _foreign_file(split: Split) -> BadRecord | None:
    """Returns the bad record for a file in an unsupported format; None for any other file."""
    head = FileHead(split.path)
    if head.foreign is None:
        return None
    return BadRecord(
        0, Reason.UNREADABLE_FILE, foreign_detail(head.foreign), head.unpacked[:EXCERPT_BYTES]
    )


def _lines(file: Any, split: Split, options: ReadOptions, chunk_bytes: int) -> Iterator[Any]:
    r"""Yields a split's lines as (line without its `\n`, position), or a `BadRecord` for one."""
    max_bytes = options.max_record_bytes
    stream = SplitStream(
        file, split, chunk_bytes=chunk_bytes, max_window_bytes=options.max_zstd_window_bytes
    )

    # Where to begin to look for the end of the line in which the split starts: the byte before the
    # split may be that end. In a virtual split that byte is unknown, and a line that starts exactly
    # at its beginning belongs to the split before.
    passing = split.start if split.virtual else max(split.start - 1, 0)
    skip_line = split.start > 0

    # Position of the line that `pending` begins, or while skipping, of the next chunk.
    position = stream.position
    pending: list[bytes] = []
    pending_size = 0
    oversize_head: bytes | None = None
    failure: StreamError | None = None
    chunks = iter(stream)
    while True:
        try:
            chunk = next(chunks, None)
        except StreamError as error:
            failure = error
            break
        finally:
            end = stream.end
        if chunk is None:
            break

        # Skip the rest of the line that belongs to the split before.
        if skip_line:
            if position + len(chunk) <= passing:
                position += len(chunk)
                continue
            newline = chunk.find(b"\n", passing - position)
            if newline < 0:
                position += len(chunk)
                passing = position
                continue
            position += newline + 1
            chunk = chunk[newline + 1 :]
            skip_line = False
            if end is not None and position >= end:
                return

        # Skip the rest of a line that is too long, keeping only its head.
        if oversize_head is not None:
            newline = chunk.find(b"\n")
            oversize_head += chunk[: newline if newline >= 0 else None][
                : EXCERPT_BYTES - len(oversize_head)
            ]
            if newline < 0:
                pending_size += len(chunk)
                continue
            yield _too_large(position, pending_size + newline, max_bytes, oversize_head)
            position += pending_size + newline + 1
            chunk = chunk[newline + 1 :]
            oversize_head, pending_size = None, 0
            if end is not None and position >= end:
                return
        lines = chunk.split(b"\n")
        if len(lines) > 1:
            if pending:
                pending.append(lines[0])
                lines[0] = b"".join(pending)
            rest = lines.pop()
            pending, pending_size = [], 0
            for line in lines:
                if end is not None and position >= end:
                    return
                size = len(line)
                if size > max_bytes:
                    yield _too_large(position, size, max_bytes, line[:EXCERPT_BYTES])
                else:
                    yield line, position
                position += size + 1
            if end is not None and position >= end:
                return
        else:
            rest = chunk
        if rest:
            pending.append(rest)
            pending_size += len(rest)
            if pending_size > max_bytes:
                oversize_head = _head(pending)
                pending = []
    garbage = failure is not None and failure.reason is Reason.TRAILING_GARBAGE
    if skip_line:
        # The last line is an earlier split's, and with it any cut or damage in it.
        if not garbage or position < split.start:
            return
    elif end is not None and position >= end:
        return
    head = oversize_head if oversize_head is not None else b"".join(pending)
    if pending_size and (failure is None or garbage):
        if oversize_head is not None:
            yield _too_large(position, pending_size, max_bytes, oversize_head)
        else:
            yield head, position
        position += pending_size
        head = b""
    if failure is not None and (end is None or position < end):
        yield BadRecord(
            position, failure.reason, failure.detail, (failure.excerpt or head)[:EXCERPT_BYTES]
        )


def _head(parts: list[bytes]) -> bytes:
    """Returns the first bytes of several parts, without joining them: they may be large."""
    head = b""
    for part in parts:
        head += part[: EXCERPT_BYTES - len(head)]
        if len(head) == EXCERPT_BYTES:
            break
    return head


def _too_large(position: int, size: int, max_bytes: int, head: bytes) -> BadRecord:
    detail = f"the record has {size} bytes, more than the limit of {max_bytes} (max_record_bytes)"
    return BadRecord(position, Reason.RECORD_TOO_LARGE, detail, head)


class Jsonl(FileFormat):
    """One JSON object per line.

    Args:
        chunk_bytes: Maximum number of bytes that are unpacked at a time.
    """

    name = "jsonl"
    cuts_streams = True

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes

    def sniff(self, head: FileHead) -> Compression:
        """Takes any file: what is not JSON is read as bad records."""
        if head.foreign is not None or head.compression is not Compression.NONE:
            return head.compression
        # A stream whose beginning is damaged or missing is one bad record, not one for every line
        # of noise.
        start = head.stored.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
        return Compression.NONE if start in (b"{", b"[", b'"') else head.named

    def plan(self, whole: Split, head: FileHead, options: ReadOptions, target: int) -> list[Split]:
        """Cuts plain files at byte offsets, streams between members or frames if there are many."""
        if head.foreign is not None:
            return [whole]
        if whole.compression is not Compression.NONE:
            return cut_at_members(whole, target)
        count = max(1, -(-whole.size // target))
        return whole.cut_at([whole.size * index // count for index in range(1, count)])

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Reads the lines of a split; a file in an unsupported format is one bad record."""
        # Such a file begins with a bad record, so only then is the head checked.
        may_be_foreign = split.start == 0
        parse = LineParser(options)
        with open_file(split.path, in_order_to=stored_end(split)) as file:
            for item in _lines(file, split, options, self._chunk_bytes):
                record = parse(*item) if type(item) is tuple else item
                if record is None:
                    continue
                if may_be_foreign and isinstance(record, BadRecord):
                    foreign = _foreign_file(split)
                    if foreign is not None:
                        yield foreign
                        return
                may_be_foreign = False
                yield record

    def narrowed(self, split: Split, positions: Sequence[int]) -> list[Split]:
        """Returns the line at each position of a plain file; a stream as it is."""
        if split.compression is not Compression.NONE:
            return [split]
        return [dataclasses.replace(split, start=at, end=at + 1) for at in positions]

    def json_line(self, document: Document, options: ReadOptions) -> bytes:
        """Returns the document's own line."""
        return document.raw or b""
