"""Reads and scores hostile files in worker processes, and measures the memory that they take.

    python -m tests.support.hostile_memory FOLDER KIND...

A file of each kind is made in the folder, then scored as one split with a scorer that costs
nothing. Both steps run in a process of their own, forked from this one, so that its peak of
resident memory is that of the kind alone. For each kind one line of JSON is printed.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from datarater.pipelines.graph.score_split import score_split
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.rater_model.documents.files import file_info
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.reading import sniff
from datarater.rater_model.documents.records import (
    DEFAULT_ZSTD_WINDOW_BYTES,
    ReadOptions,
    Split,
)
from datarater.rater_model.documents.tfrecord import TFRecord
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer

MEBIBYTE = 2**20
OPTIONS = ReadOptions(max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES)


class FreeScorer(TextScorer):
    """Gives every text the score 0."""

    digest = "free"

    def score(self, texts: Any) -> ScoredTexts:
        """Returns a score and a token for each text."""
        return ScoredTexts(np.zeros(len(texts), np.float32), np.ones(len(texts), np.int64))


def _gzipped(path: Path, parts: Iterator[bytes]) -> None:
    with gzip.open(path, "wb", 1) as file:
        for part in parts:
            file.write(part)


def _zeros(mebibytes: int, byte: bytes = b"a") -> Iterator[bytes]:
    part = byte * MEBIBYTE
    for _ in range(mebibytes):
        yield part


def _bad_lines(path: Path) -> None:
    _gzipped(path, (b"x\n" * 100_000 for _ in range(40)))


def _one_line(path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"text": "'
        yield from _zeros(3000)
        yield b'"}\n{"text": "after"}\n'

    if path.suffix == ".gz":
        _gzipped(path, parts())
    else:
        with zstandard.open(path, "wb") as file:
            for part in parts():
                file.write(part)


def _lines_of_maximum_size(path: Path) -> None:
    # A text with one wide character takes 4 bytes a character in Python.
    line = b'{"text": "' + "\U0001f600".encode() + b"a" * (60 * MEBIBYTE) + b'"}\n'
    _gzipped(path, (line for _ in range(20)))


def _large_ids(path: Path) -> None:
    id_ = b"i" * MEBIBYTE
    lines = (b'{"id": "%s%d", "source": "s", "text": "t"}\n' % (id_, row) for row in range(2500))
    _gzipped(path, lines)


def _long_names(path: Path) -> None:
    def parts() -> Iterator[bytes]:
        for row in range(300_000):
            name = b"%d" % row + b"n" * 4000
            yield b'{"id": "%s", "source": "%s", "text": "t"}\n' % (name, name)

    _gzipped(path, parts())


def _wide_window(path: Path) -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    with path.open("wb") as file:
        for part in _zeros(3000, b'{"text": "a"}\n' * 64):
            file.write(packer.compress(part[:MEBIBYTE]))
        file.write(packer.flush())


def _write_parquet(path: Path, columns: dict[str, Any], **settings: Any) -> None:
    settings = {"compression": "zstd", "use_dictionary": False, **settings}
    pq.write_table(pa.table(columns), path, **settings)


def _large_text(path: Path) -> None:
    _write_parquet(path, {"text": ["first", "y" * 500 * MEBIBYTE, "last"]}, row_group_size=1)


def _large_unused(path: Path) -> None:
    large = "y" * 500 * MEBIBYTE
    columns = {f"c{number}": [large, "small"] for number in range(2)}
    _write_parquet(path, {"text": ["first", "last"], **columns})


def _large_dictionary(path: Path) -> None:
    codes = pa.array([0] * 100, pa.int32())
    text = pa.DictionaryArray.from_arrays(codes, ["y" * 60 * MEBIBYTE])
    pq.write_table(
        pa.table({"text": text, "id": text, "source": text}),
        path,
        store_schema=False,
        compression="zstd",
        dictionary_pagesize_limit=2**30,
    )


def _listed_bomb(path: Path) -> None:
    # A run of one number takes a few bytes, however long it is.
    values = pa.array(np.ones(150_000_000, np.int8))
    lists = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    pq.write_table(pa.table({"text": ["a"], "id": lists, "source": lists}), path)


def _long_lists(path: Path) -> None:
    # Lists below the limit, of which each text would be copied.
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**20, np.int32)), ["y" * 2**20])
    lists = pa.ListArray.from_arrays(pa.array([0, 2**19, 2**20], pa.int32()), texts)
    pq.write_table(
        pa.table({"text": ["a", "b"], "id": lists, "source": lists}),
        path,
        store_schema=False,
        dictionary_pagesize_limit=2**30,
    )


def _many_large_texts(path: Path) -> None:
    text = "\U0001f600" + "y" * 30 * MEBIBYTE
    with pq.ParquetWriter(
        path,
        pa.schema([("text", pa.string())]),
        compression="zstd",
        use_dictionary=False,
        write_batch_size=1,
    ) as writer:
        for _ in range(4):
            writer.write_table(pa.table({"text": [text] * 25}), row_group_size=25)


def _many_columns(path: Path) -> None:
    columns = {f"c{number}": ["v" * 100] * 100 for number in range(5000)}
    _write_parquet(path, {**columns, "text": [f"text {row}" for row in range(100)]})


def _large_warc_header(path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"WARC/1.0\r\nX: "
        yield from _zeros(3000)

    _gzipped(path, parts())


def _large_warc_content(path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 3145728000\r\n\r\n"
        yield from _zeros(3000)
        yield b"\r\n\r\n"

    _gzipped(path, parts())


def _large_tfrecord(path: Path) -> None:
    # A record's frame: length, its checksum, data. The last 4 bytes would be that of the data.
    length = 3000 * MEBIBYTE
    header = struct.pack("<Q", length)
    checksum = TFRecord().frame(header)[-4:]
    _gzipped(path, (part for parts in ([header, checksum], _zeros(3001)) for part in parts))


def _write_array_record(path: Path, records: Iterator[bytes], options: str) -> None:
    from array_record.python import array_record_module  # type: ignore[import-untyped]

    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def _large_array_record(path: Path) -> None:
    large = b"a" * 1000 * MEBIBYTE
    _write_array_record(path, iter([b"first", large, b"last"]), "group_size:1,zstd")


def _array_record_chunk(path: Path) -> None:
    record = b"a" * 30 * MEBIBYTE
    _write_array_record(path, (record for _ in range(80)), "group_size:40,zstd")


def _large_plain_text(path: Path) -> None:
    _gzipped(path, _zeros(3000))


KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "4 million bad lines": ("a.jsonl.gz", _bad_lines),
    "a line of 3 GB in gzip": ("b.jsonl.gz", _one_line),
    "a line of 3 GB in zstd": ("c.jsonl.zst", _one_line),
    "lines of 60 MB with wide characters": ("d.jsonl.gz", _lines_of_maximum_size),
    "2,500 ids of 1 MB": ("e.jsonl.gz", _large_ids),
    "300,000 long ids and sources": ("p.jsonl.gz", _long_names),
    "a zstd window of 2 GiB": ("f.jsonl.zst", _wide_window),
    "a Parquet text of 500 MB": ("g.parquet", _large_text),
    "unused Parquet values of 500 MB": ("h.parquet", _large_unused),
    "a Parquet dictionary of 60 MB, repeated": ("i.parquet", _large_dictionary),
    "a Parquet list of 150 million ids": ("q.parquet", _listed_bomb),
    "Parquet lists of half a million texts": ("r.parquet", _long_lists),
    "100 Parquet texts of 30 MB": ("j.parquet", _many_large_texts),
    "5,000 Parquet columns": ("k.parquet", _many_columns),
    "a WARC header of 3 GB": ("l.warc.gz", _large_warc_header),
    "a WARC record of 3 GB": ("m.warc.gz", _large_warc_content),
    "a TFRecord of 3 GB": ("n.tfrecord.gz", _large_tfrecord),
    "an ArrayRecord of 1 GB": ("s.array_record", _large_array_record),
    "ArrayRecord chunks of 1.2 GB": ("t.array_record", _array_record_chunk),
    "a plain text of 3 GB": ("o.txt.gz", _large_plain_text),
}


def score_file(path: Path) -> dict[str, Any]:
    """Scores a file as one split; returns its counts, and how its rows can be copied."""
    name, compression = sniff(str(path))
    split = Split(str(path), name, compression, ordinal=0, size=path.stat().st_size)
    task = SplitTask(split, file_info(str(path)).fingerprint, 0)
    file = score_split(task, OPTIONS, FreeScorer())
    footer = json.loads(pq.ParquetFile(file).schema_arrow.metadata[b"datarater"])
    counts: dict[str, Any] = footer["counts"]
    # The second read, whose rows a table has as they are.
    if format_named(name).is_table:
        tables = format_named(name).read_tables(split, OPTIONS)
        counts["copied"] = sum(batch.num_rows for _, batch in tables)
    return counts


def _in_a_process(work: Callable[[], object]) -> tuple[Any, int]:
    """Runs a function in a forked process; returns its result, and its peak memory in MiB."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read()
    _, _, usage = os.wait4(process, 0)
    return json.loads(result or b"null"), usage.ru_maxrss // 1024


def main(folder: Path, kinds: list[str]) -> None:
    """Prints the counts and the memory of each kind."""
    for kind in kinds:
        name, make = KINDS[kind]
        path = folder / name
        _in_a_process(lambda make=make, path=path: make(path))  # type: ignore[misc]
        counts, mebibytes = _in_a_process(lambda path=path: score_file(path))  # type: ignore[misc]
        line = {"kind": kind, "stored": path.stat().st_size, "mebibytes": mebibytes}
        print(json.dumps({**line, "counts": counts}), flush=True)
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(KINDS))
