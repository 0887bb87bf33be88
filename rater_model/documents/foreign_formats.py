"""Names the formats that are not read, so that such a file is one bad record with a clear reason.

Read as lines, such a file would be rejected line by line. A text format (CSV, HTML) is named only
where no line of the file's beginning looks like a JSON object, since naming a format gives up the
whole file.
"""

from __future__ import annotations

import posixpath
import re

from datarater.rater_model.documents.decompression import GZIP_MAGIC, is_bzip2, is_zstd
from datarater.rater_model.documents.records import BYTE_ORDER_MARK, Compression

_MAGIC = {
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "compress (.Z)",
    b"Obj\x01": "Avro",
    b"ARROW1\0\0": "Arrow IPC",
    b"SQLite format 3\0": "SQLite",
    b"\x89HDF\r\n\x1a\n": "HDF5",
}
# These begin with letters that a text may begin with too: the bytes that follow must be binary.
_LETTERS = {b"ORC": "ORC", b"FEA1": "Feather"}
_COMPRESSED_NAMES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".bzip2")
_TEXT_NAMES = (".txt", ".text")
_TABLE_NAMES = {".csv": "CSV", ".tsv": "TSV"}
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_TAR_MARK = slice(257, 262)
_TAR_FIELDS = slice(100, 257)
_MAX_ARROW_MESSAGE_BYTES = 2**24
_UTF16_PAIRS = 8
_FIELD = rb'"?[A-Za-z_][A-Za-z0-9_.-]*"?'
_TABLE_HEADER = re.compile(rb"%s(?:([,;\t])%s)(?:\1%s)*\r?\n" % (_FIELD, _FIELD, _FIELD))
_OBJECT_LINE = re.compile(rb"^[ \t]*\{", re.MULTILINE)


def name_without_compression(path: str) -> str:
    """Returns a file's name in lower case without the suffix of a compression.

    Example:
        >>> name_without_compression("gs://bucket/A.txt.gz")
        'a.txt'
    """
    name = posixpath.basename(path).lower()
    stem, suffix = posixpath.splitext(name)
    return stem if suffix in _COMPRESSED_NAMES else name


def is_named_text(path: str) -> bool:
    """Reports whether a file's name says that it is plain text, compressed or not."""
    return posixpath.splitext(name_without_compression(path))[1] in _TEXT_NAMES


def foreign_format(
    head: bytes, path: str = "", compression: Compression = Compression.NONE
) -> str | None:
    """Returns the name of the unsupported format that a file's first bytes show; None without one.

    Args:
        head: The first bytes, unpacked.
        path: Path or URL of the file: a `.txt` may be any text, a `.csv` is CSV.
        compression: Compression that the bytes were unpacked from.
    """
    if compression is not Compression.NONE:
        inner = _packed_format(head)
        if inner is not None:
            return f"{inner} within {compression}"
    return _binary_format(head) or (None if is_named_text(path) else _text_format(head, path))


def foreign_detail(name: str) -> str:
    """Returns the sentence that says what a file of an unsupported format is, and what to do."""
    if name == "HTML":
        return (
            "the file is an HTML page, perhaps a server's error message saved under the file's "
            "name; fetch the file again, or extract the text first"
        )
    if name.startswith("UTF-"):
        return f"the file is {name} text, which is not supported; convert it to UTF-8"
    return (
        f"the file is {name}, which is not supported; convert it to JSONL (plain, gzip, zstd) or "
        "Parquet"
    )


def _packed_format(head: bytes) -> str | None:
    """Returns the format of a file that must not be compressed as a whole."""
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    if is_zstd(head):
        return "zstd"
    if is_bzip2(head):
        return "bzip2"
    return "Parquet" if head.startswith(b"PAR1") else None


def _binary_format(head: bytes) -> str | None:
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    for magic, name in _LETTERS.items():
        if head.startswith(magic) and _is_binary(head):
            return name
    if head[_TAR_MARK] == b"ustar" and b"\0" in head[_TAR_FIELDS]:
        return "tar"

    # A stream of Arrow messages, as the datasets library stores it: a marker, then a length.
    if head.startswith(b"\xff\xff\xff\xff"):
        length = int.from_bytes(head[4:8], "little")
        if len(head) > 8 and 0 < length < _MAX_ARROW_MESSAGE_BYTES and length % 8 == 0:
            return "Arrow IPC stream"
    return _wide_text(head)


def _wide_text(head: bytes) -> str | None:
    """Returns the encoding of a text whose characters take 2 or 4 bytes; None for any other."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    # Any text has a space, a digit or a line end, of which one byte is zero.
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in head[2:] and len(head) > 3:
        try:
            head[: len(head) // 2 * 2].decode("utf-16")
        except UnicodeDecodeError as error:
            # A pair of surrogates may be cut at the end.
            return "UTF-16" if error.start >= len(head) - 4 else None
        return "UTF-16"

    # Without a byte order mark: every other byte of ASCII is zero.
    pairs = head[: 2 * _UTF16_PAIRS]
    for zeros, letters in ((pairs[1::2], pairs[0::2]), (pairs[0::2], pairs[1::2])):
        if len(pairs) >= 8 and not zeros.strip(b"\0") and _is_printable(letters):
            return "UTF-16"
    return None


def _text_format(head: bytes, path: str) -> str | None:
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not text or _OBJECT_LINE.search(text) is not None or _is_binary(head):
        return None
    start = text[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "HTML"
    if start.startswith(b"<?xml"):
        return "XML"
    if start.startswith(b"filedesc://"):
        return "ARC"

    # CSV by its name, or by a header of two or more names.
    suffix = posixpath.splitext(name_without_compression(path))[1]
    if suffix in _TABLE_NAMES and not text.startswith(b"["):
        return _TABLE_NAMES[suffix]
    header = _TABLE_HEADER.match(text)
    if header is None:
        return None
    return "TSV" if header[1] == b"\t" else "CSV"


def _is_binary(head: bytes) -> bool:
    """Reports whether bytes include control characters, which text does not have."""
    return len(head.translate(None, _CONTROLS)) < len(head)


def _is_printable(letters: bytes) -> bool:
    return all(32 <= letter < 127 or letter in b"\t\r\n" for letter in letters)
