"""Documents are read by their positions, whatever the format, with few others on the way."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python import array_record_module  # type: ignore[import-untyped]

from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.places import read_documents_at
from datarater.rater_model.documents.reading import plan_file, read_split
from datarater.rater_model.documents.records import Document, ReadOptions
from datarater.rater_model.documents.tfrecord import make_example
from tests.support.file_formats import tfrecord_of, wet_of

ROWS = [{"id": str(number), "text": f"text {number} " * 50} for number in range(40)]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]


def _parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=7)
    return out.getvalue()


def _array_record(folder: Path) -> bytes:
    path = folder / "made"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for row in ROWS:
        writer.write(make_example(row))
    writer.close()
    content = path.read_bytes()
    path.unlink()
    return content


def contents(folder: Path) -> dict[str, bytes]:
    return {
        "a.jsonl": b"".join(LINES),
        "a.jsonl.gz": gzip.compress(b"".join(LINES)),
        "members.jsonl.gz": b"".join(map(gzip.compress, LINES)),
        "a.parquet": _parquet(),
        "a.array_record": _array_record(folder),
        "a.tfrecord": tfrecord_of(ROWS),
        "a.wet": wet_of(ROWS),
    }


# The most records that are passed on the way to two documents that are far apart.
PASSED = {"a.jsonl": 0, "a.array_record": 0, "a.parquet": 2 * 6}


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "members.jsonl.gz", "a.parquet", "a.array_record", "a.tfrecord",
     "a.wet"],
)  # fmt: skip
@pytest.mark.parametrize("target_bytes", [300, 2**24])
def test_the_documents_at_positions_are_those_that_reading_everything_finds(
    tmp_path: Path, name: str, target_bytes: int
) -> None:
    (tmp_path / name).write_bytes(contents(tmp_path)[name])
    (info,) = list_files([str(tmp_path / name)])
    options = ReadOptions()
    for split in plan_file(info, options, target_bytes):
        everything = [one for one in read_split(split, options) if isinstance(one, Document)]
        chosen = everything[1:2] + everything[-2:-1]
        found = list(read_documents_at(split, [one.position for one in chosen], options))
        unique = {one.position: one for one in chosen}
        assert [one for one in found if one is not None] == list(unique.values())
        assert found.count(None) <= PASSED.get(name, len(everything))
