"""The registry of file formats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from datarater.rater_model.documents.array_record import ArrayRecord
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.jsonl import Jsonl
from datarater.rater_model.documents.parquet import Parquet
from datarater.rater_model.documents.plain_text import PlainText
from datarater.rater_model.documents.records import Compression
from datarater.rater_model.documents.sniffing import FileHead
from datarater.rater_model.documents.tfrecord import TFRecord
from datarater.rater_model.documents.unreadable import Unreadable
from datarater.rater_model.documents.warc import Warc

# The last one is the first that is asked whether a file is its own. JSONL takes any file.
_FORMATS: dict[str, FileFormat] = {
    file_format.name: file_format
    for file_format in (
        Unreadable(),
        Jsonl(),
        PlainText(),
        ArrayRecord(),
        TFRecord(),
        Warc(),
        Parquet(),
    )
}


def format_names() -> list[str]:
    """Returns the names of all formats."""
    return list(_FORMATS)


def format_named(name: str) -> FileFormat:
    """Returns a format by its name.

    Raises:
        ValueError: if there is no such format.
    """
    if name not in _FORMATS:
        raise ValueError(f"there is no format {name!r}, only {', '.join(_FORMATS)}")
    return _FORMATS[name]


def sniff_file(path: str) -> tuple[FileFormat, Compression, FileHead]:
    """Returns the format and compression of a file, by its first bytes, which it returns too.

    Args:
        path: Local path or URL.

    Raises:
        OSError: if the file cannot be read.
    """
    head = FileHead(path)
    for file_format in reversed(_FORMATS.values()):
        compression = file_format.sniff(head)
        if compression is not None:
            return file_format, compression, head
    raise AssertionError("JSONL takes any file")


@contextlib.contextmanager
def registered(file_format: FileFormat) -> Iterator[None]:
    """Adds a format while the block runs; it is asked before all others."""
    _FORMATS[file_format.name] = file_format
    try:
        yield
    finally:
        del _FORMATS[file_format.name]
