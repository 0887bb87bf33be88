"""A file in an unsupported format is named once, as what it is; a text is never taken for one."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
import zstandard

from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.foreign_formats import foreign_format
from datarater.rater_model.documents.reading import plan_file, read_file, read_split, sniff
from datarater.rater_model.documents.records import (
    BadRecord,
    Compression,
    Document,
    ReadOptions,
    Reason,
)

OPTIONS = ReadOptions()
TABLE = pa.table({"text": [f"document {number} of a table" for number in range(400)]})
LINES = b"".join(orjson.dumps({"text": f"document {number}"}) + b"\n" for number in range(400))
PAGE = b"<!DOCTYPE html>\n<html><body>" + b"<p>503 Service Unavailable</p>\n" * 400
CSV = b'id,text,source\r\n1,"a text, with\nline ends",web\r\n' * 400
ARC = b"filedesc://a.arc 0.0.0.0 20080101000000 text/plain 77\n1 0 Crawler\nURL IP-address\n" * 400


def in_memory(write: Callable[[io.BytesIO], object]) -> bytes:
    output = io.BytesIO()
    write(output)
    return output.getvalue()


def ipc_stream(output: io.BytesIO) -> None:
    with pa.ipc.new_stream(output, TABLE.schema) as writer:
        writer.write_table(TABLE)


def tar(output: io.BytesIO) -> None:
    with tarfile.open(fileobj=output, mode="w") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))


def gzip_with_long_header(content: bytes, size: int) -> bytes:
    """A gzip member whose header holds an extra field and a file name of so many bytes together."""
    header = b"\x1f\x8b\x08\x0c\0\0\0\0\0\xff" + struct.pack("<H", size // 2) + b"x" * (size // 2)
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(content) + packer.flush()
    trailer = struct.pack("<II", zlib.crc32(content), len(content))
    return header + b"n" * (size // 2) + b"\0" + packed + trailer


FOREIGN = {
    "utf-16 with a mark": ("a.jsonl", LINES.decode().encode("utf-16"), "UTF-16 text"),
    "utf-16, little end first": ("a.jsonl", LINES.decode().encode("utf-16-le"), "UTF-16 text"),
    "utf-16, big end first": ("a.jsonl.gz", LINES.decode().encode("utf-16-be"), "UTF-16 text"),
    "utf-16 as a text": ("a.txt", "some words".encode("utf-16"), "UTF-16 text"),
    "utf-32": ("a.jsonl", LINES.decode().encode("utf-32"), "UTF-32 text"),
    "csv by its name": ("a.csv", b'"a text, with\nline ends",web\n' * 400, "CSV"),
    "csv by its header": ("a.jsonl", CSV, "CSV"),
    "csv behind a mark": ("a", b"\xef\xbb\xbf" + CSV, "CSV"),
    "tsv": ("a.tsv", b"a text\tweb\n" * 400, "TSV"),
    "tar": ("a.tar", in_memory(tar), "tar"),
    "tar in gzip": ("a.tar.gz", gzip.compress(in_memory(tar)), "tar"),
    "arc": ("a.arc", ARC, "ARC"),
    "arc in gzip": ("a.arc.gz", gzip.compress(ARC), "ARC"),
    "arrow file": (
        "a.arrow",
        in_memory(lambda output: feather.write_feather(TABLE, output)),
        "Arrow IPC",
    ),
    "arrow stream": ("data-00000-of-00001.arrow", in_memory(ipc_stream), "Arrow IPC stream"),
    "feather": (
        "a.feather",
        in_memory(lambda output: feather.write_feather(TABLE, output, version=1)),
        "Feather",
    ),
    "orc": ("a.orc", in_memory(lambda output: orc.write_table(TABLE, output)), "ORC"),
    "gzip in gzip": ("a.jsonl.gz", gzip.compress(gzip.compress(LINES)), "gzip within gzip"),
    "zstd in gzip": ("a.jsonl.gz", gzip.compress(zstandard.compress(LINES)), "zstd within gzip"),
    "gzip in bzip2": ("a.bz2", bz2.compress(gzip.compress(LINES)), "gzip within bzip2"),
    "parquet in zstd": (
        "a.zst",
        zstandard.compress(in_memory(lambda output: pq.write_table(TABLE, output))),
        "Parquet within zstd",
    ),
    "html under .gz": ("a.jsonl.gz", PAGE, "an HTML page"),
    "html in gzip": ("a.jsonl.gz", gzip.compress(PAGE), "an HTML page"),
    "html": ("a.jsonl", b"\n  " + PAGE.lower(), "an HTML page"),
    "xml": ("a.jsonl", b'<?xml version="1.0"?>\n<Error>AccessDenied</Error>\n', "XML"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_named_once_whatever_the_plan(tmp_path: Path, case: str) -> None:
    name, content, says = FOREIGN[case]
    (tmp_path / name).write_bytes(content)
    (info,) = list_files([str(tmp_path / name)])
    (record,) = read_file(info.path)
    assert isinstance(record, BadRecord)
    assert (record.position, record.reason) == (0, Reason.UNREADABLE_FILE)
    assert f"the file is {says}" in record.detail
    (split,) = plan_file(info, OPTIONS, 100)
    assert list(read_split(split, OPTIONS)) == [record]


def test_members_in_a_foreign_file_are_not_split(tmp_path: Path) -> None:
    content = b"".join(gzip.compress(PAGE * 20, 0) for _ in range(20))
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    (info,) = list_files([str(tmp_path / "a.jsonl.gz")])
    (split,) = plan_file(info, OPTIONS, 2**19)
    (record,) = read_split(split, OPTIONS)
    assert isinstance(record, BadRecord)
    assert "HTML" in record.detail


@pytest.mark.parametrize(
    "text",
    [
        "ORCHIDS grow on trees.",
        "ORC",
        "{{Infobox person\n| name = X}}",
        "{curly} words",
        "FEA1 is a name",
        "<html> is how a page begins",
        "id,text,source\n1,2,3\n",
        "filedesc://a.arc",
        "a\tb",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_text_file_may_begin_with_anything(tmp_path: Path, text: str, packed: bool) -> None:
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    (record,) = read_file(str(path))
    assert isinstance(record, Document)
    assert record.text == text


@pytest.mark.parametrize(
    "first",
    [
        b"Hello, world",
        b"id,text",
        b"<html>",
        b"ORC",
        b"filedesc://x",
        b"no json",
        b"\xff\xfe",
        b"",
        b'"text"',
        b"a" * 300 + b"ustar\0",
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv"])
def test_a_strange_first_line_costs_no_line_after_it(
    tmp_path: Path, first: bytes, suffix: str
) -> None:
    content = first + b"\n" + LINES
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    records = list(read_file(str(path)))
    assert sum(isinstance(record, Document) for record in records) == 400
    assert len(records) == 400 + bool(first)


@pytest.mark.parametrize("head", [b"", b"\0", b"\0" * 5000, b"{", b"\xff" * 5000, b"P", b"\x1f"])
def test_noise_is_no_format(head: bytes) -> None:
    assert foreign_format(head) is None


WARC_RECORD = (
    b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:%d>\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 4\r\n\r\ntext\r\n\r\n"
)


@pytest.mark.parametrize(
    ("before", "header"),
    itertools.product(
        [b"", b"\xef\xbb\xbf", b"\r\n\n \n", b"\xef\xbb\xbf\r\n"], [0, 8 * 2**10, 60_000]
    ),
)
def test_a_warc_file_is_known_behind_what_may_precede_it(
    tmp_path: Path, before: bytes, header: int
) -> None:
    content = before + b"".join(WARC_RECORD % number for number in range(3))
    path = tmp_path / "a.gz"
    path.write_bytes(gzip_with_long_header(content, header) if header else content)
    expected = Compression.GZIP if header else Compression.NONE
    assert sniff(str(path)) == ("warc", expected)
    records = list(read_file(str(path)))
    assert [record.key for record in records if isinstance(record, Document)] == [
        f'"<urn:{number}>"' for number in range(3)
    ]
    assert len(records) == 3
    assert isinstance(records[0], Document)
    assert records[0].raw is not None
    assert records[0].raw.startswith(b"WARC/1.0\r\n")


def test_lines_behind_a_long_gzip_header_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip_with_long_header(LINES, 8 * 2**10))
    assert sum(isinstance(record, Document) for record in read_file(str(path))) == 400
