"""Reads plain text files: one document per file, identified by its path."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from datarater.rater_model.documents.byte_reader import ByteReader
from datarater.rater_model.documents.jsonl import document_of
from datarater.rater_model.documents.records import (
    BYTE_ORDER_MARK,
    EXCERPT_BYTES,
    BadRecord,
    ReadOptions,
    Reason,
    Record,
    Split,
)


def as_line(options: ReadOptions, identifier: str, text: str, more: dict[str, object]) -> bytes:
    """Returns the JSON line for a document that was not stored as JSON.

    Args:
        options: Options with the names of the fields for id and text.
        identifier: Id of the document.
        text: Text of the document.
        more: Other fields.
    """
    return orjson.dumps({options.id_field: identifier, options.text_field: text, **more})


def read_plain_text(split: Split, options: ReadOptions) -> Iterator[Record]:
    """Reads a text file; see `datarater.rater_model.documents.reading.read_split`.

    The id is the file's path; the text is the file without a byte order mark, otherwise untouched.
    """
    with ByteReader(split) as reader:
        data = reader.read(options.max_record_bytes + len(BYTE_ORDER_MARK) + 1)
        if reader.failure is not None:
            yield reader.broken(0, data)
            return

        data = data.removeprefix(BYTE_ORDER_MARK)
        if len(data) > options.max_record_bytes:
            detail = (
                f"the file has more bytes than the limit of {options.max_record_bytes} "
                "(max_record_bytes)"
            )
            yield BadRecord(0, Reason.RECORD_TOO_LARGE, detail, data[:EXCERPT_BYTES])
            return
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            detail = f"the file is not UTF-8: {error.reason} at byte {error.start}"
            yield BadRecord(0, Reason.NOT_UTF8, detail, data[:EXCERPT_BYTES])
            return
        if not data:
            return
        yield document_of(text, split.path, None, 0, None, options)
