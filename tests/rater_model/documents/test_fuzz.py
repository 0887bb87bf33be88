"""Random damage to valid files of every format: no crash, no hang, nothing lost silently.

DATARATER_FUZZ_CASES sets how many files are damaged (400; thousands for a longer run).
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python import array_record_module  # type: ignore[import-untyped]

from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.parquet import Parquet
from datarater.rater_model.documents.reading import plan_file, read_split
from datarater.rater_model.documents.records import BadRecord, Document, ReadOptions, Reason
from tests.integration.test_formats import examples_of, tfrecord_of, wet_of
from tests.support.corpora import as_lines, make_records

CASES = int(os.environ.get("DATARATER_FUZZ_CASES", "400"))
OPTIONS = ReadOptions(max_record_bytes=5000)
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


@pytest.mark.parametrize(("name", "suffix"), KINDS)
def test_damaged_files_give_records_or_reasons(tmp_path: Path, name: str, suffix: str) -> None:
    sound = PACKERS[suffix](FORMATS[name]())
    path = tmp_path / f"a.{name}{suffix}"
    path.write_bytes(sound)
    (info,) = list_files([str(path)])
    whole = [
        record for split in plan_file(info, OPTIONS, 500) for record in read_split(split, OPTIONS)
    ]
    assert all(isinstance(record, Document) for record in whole)
    assert len(whole) == (1 if name == "txt" else len(RECORDS))
    assert suffix not in MEMBERS or len(plan_file(info, OPTIONS, 500)) > 3
    for case in range(max(1, CASES // len(KINDS))):
        rng = random.Random(f"{name}{suffix}{case}")
        path.write_bytes(damaged(sound, rng))
        (info,) = list_files([str(path)])
        splits = plan_file(info, OPTIONS, 500)
        last = -1
        for split in splits:
            records = list(read_split(split, OPTIONS))
            assert records == list(read_split(split, OPTIONS)), case
            for record in records:
                assert record.position > last, case
                last = record.position
                if isinstance(record, BadRecord):
                    assert isinstance(record.reason, Reason)
                    assert record.detail
                    assert len(record.excerpt) <= 200
                elif split.format not in ("parquet", "text"):
                    assert record.raw is not None
            if split.format == "parquet":
                rows = sum(batch.num_rows for _, batch in Parquet().read_tables(split, OPTIONS))
                assert rows >= sum(isinstance(record, Document) for record in records), case
