"""Small corpora of every kind, made from a few words."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "runs",
    "far",
    "away",
    "from",
    "here",
    "to",
    "there",
]


def make_records(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns records of random words from three sources, some of them with a nested field."""
    rng = random.Random(seed)
    records: list[dict[str, Any]] = []
    for index in range(count):
        text = " ".join(rng.choices(_WORDS, k=rng.randint(1, 60)))
        record: dict[str, Any] = {"id": f"{seed}-{index}", "text": text, "source": f"s{index % 3}"}
        if index % 5 == 0:
            record["url"] = {"host": "example.org", "depth": index}
        records.append(record)
    return records


def as_lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns records as lines of JSON."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def corpus_records() -> list[dict[str, Any]]:
    """Returns the records that `write_corpus` writes, in the order of the files."""
    return [record for seed in range(4) for record in make_records(60, seed)]


def write_corpus(folder: Path) -> None:
    """Writes one file of each kind; some lines of the plain one are no documents."""
    folder.mkdir()
    records = [make_records(60, seed) for seed in range(4)]
    plain = as_lines(records[0][:30]) + b'not json\n\n{"id": 5}\n' + as_lines(records[0][30:])
    (folder / "a.jsonl").write_bytes(plain)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(as_lines(records[1])))
    (folder / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(as_lines(records[2])))
    buffer = io.BytesIO()
    table = pa.Table.from_pylist([{**r, "url": json.dumps(r.get("url"))} for r in records[3]])
    pq.write_table(table, buffer, row_group_size=25)
    (folder / "d.parquet").write_bytes(buffer.getvalue())
