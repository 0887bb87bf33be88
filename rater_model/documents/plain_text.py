"""Reads plain text files: one document per file, identified by its path."""

from __future__ import annotations

import re
from collections.abc import Iterator

from datarater.rater_model.documents.byte_reader import ByteReader
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.foreign_formats import is_named_text
from datarater.rater_model.documents.jsonl import document_of
from datarater.rater_model.documents.records import (
    BYTE_ORDER_MARK,
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead

# What a JSON object begins with; a text may begin with a brace too, as `{{Infobox` does.
_OBJECT = re.compile(rb'\{\s*(?:["}]|$)')


def _is_utf8(head: bytes) -> bool:
    """Reports whether bytes are UTF-8, whose last character may be cut."""
    try:
        head[:-4].decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 8
    return True


class PlainText(FileFormat):
    """One document per file, identified by its path; written as JSON lines."""

    name = "text"

    def sniff(self, head: FileHead) -> Compression | None:
        """Recognizes a file by its name, unless it begins like a JSON object."""
        if not is_named_text(head.path) or head.foreign is not None:
            return None
        # Noise under a compressed name is a damaged stream; a text under one was unpacked on the
        # way.
        if (
            head.compression is Compression.NONE
            and head.named is not Compression.NONE
            and not _is_utf8(head.stored)
        ):
            return head.named
        if _OBJECT.match(head.unpacked.removeprefix(BYTE_ORDER_MARK).lstrip()) is None:
            return head.compression
        return None

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Reads the file; its text is untouched, except that a byte order mark is dropped."""
        with ByteReader(split, options.max_zstd_window_bytes) as reader:
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
