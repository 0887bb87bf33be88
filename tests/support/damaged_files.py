"""Valid files of every format and compression, and random damage to them."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from array_record.python import array_record_module  # type: ignore[import-untyped]

from tests.support.corpora import as_lines, make_records
from tests.support.file_formats import examples_of, tfrecord_of, wet_of

RECORDS = [
    {"id": record["id"], "text": record["text"], "source": record["source"]}
    for record in make_records(40, seed=0)
]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), buffer, row_group_size=9)
    return buffer.getvalue()


def array_record() -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        writer = array_record_module.ArrayRecordWriter(file.name, "group_size:1")
        for example in examples_of(tfrecord_of(RECORDS)):
            writer.write(example)
        writer.close()
        return Path(file.name).read_bytes()


FORMATS: dict[str, Callable[[], bytes]] = {
    "jsonl": lambda: as_lines(RECORDS),
    "warc": lambda: wet_of(RECORDS),
    "tfrecord": lambda: tfrecord_of(RECORDS),
    "txt": lambda: "\n".join(record["text"] for record in RECORDS).encode()[:4000],
    "parquet": parquet,
    "array_record": array_record,
}


SELF_PACKED = ("parquet", "array_record")


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def by_record(data: bytes, pack: Callable[[bytes], bytes]) -> bytes:
    """Returns one gzip member or zstd frame per record, as crawls store them."""
    opening = b"WARC/1.0\r\n" if data.startswith(b"WARC") else b'{"id"'
    first, *rest = data.split(opening)
    return b"".join(pack(part) for part in (first, *(opening + part for part in rest)))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstd,
}


# Files that are cut within their compressed streams.
MEMBERS: dict[str, Callable[[bytes], bytes]] = {
    ".members.gz": lambda data: by_record(data, gzip.compress),
    ".frames.zst": lambda data: by_record(data, zstd),
}


KINDS = [
    (name, suffix)
    for name in FORMATS
    for suffix in PACKERS
    if name not in SELF_PACKED or not suffix
]


KINDS += [(name, suffix) for name in ("jsonl", "warc") for suffix in MEMBERS]


PACKERS |= MEMBERS


def damaged(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        place = rng.randrange(len(out))
        kind = rng.randrange(8)
        if kind < 5:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 5:
            out[place : place + rng.randrange(50)] = rng.randbytes(rng.randrange(50))
        elif kind == 6 and len(out) > 20:
            del out[max(place, 10) :]
        else:
            out[place:place] = out[: rng.randrange(200)]
        if not out:
            break
    return bytes(out)
