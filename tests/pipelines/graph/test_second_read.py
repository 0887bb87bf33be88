"""The second read compares documents with the scored ones, of earlier versions too."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.errors import InputChangedError
from datarater.pipelines.graph.second_read import KeptSplit, is_same_key
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.score_files import ScoreRows
from datarater.rater_model.documents.files import file_info
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import (
    BadRecord,
    Document,
    ReadOptions,
    Reason,
    Record,
    Split,
)


def scored(path: str, records: list[Record], part_rows: int = 100) -> KeptSplit:
    """Returns everything that was scored of a file, as records that a version read there.

    Args:
        path: The file.
        records: Its records.
        part_rows: Number of rows in a part of its score file.
    """
    number = sum(isinstance(record, Document) for record in records)
    rows = ScoreRows([path])
    rows.add(records, np.arange(number, dtype=np.float32), np.ones(number, np.int64))
    task = SplitTask(Split(path, "jsonl"), file_info(path).fingerprint, 0)
    table = pq.read_table(rows.to_parquet(task, "jsonl/none", "digest"))
    kept_R = np.asarray([isinstance(record, Document) for record in records])
    parts = [
        (table.slice(first, part_rows), kept_R[first : first + part_rows])
        for first in range(0, table.num_rows, part_rows)
    ]
    return KeptSplit(task, "", parts, ReadOptions())


def test_lines_that_an_earlier_version_rejected_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "b", "n": NaN}\n{"text": "c"}\n{"text": "d"}\n')
    records = list(read_file(str(path)))
    assert len(records) == 4
    for number, part_rows in itertools.product((0, 1, 3), (1, 2, 3, 4)):
        earlier = list(records)
        position = records[number].position
        earlier[number] = BadRecord(position, Reason.NOT_JSON, "not JSON", b"")
        rows = scored(str(path), earlier, part_rows)
        kept = [document.text for document, _ in rows.documents()]
        assert kept == [text for at, text in enumerate("abcd") if at != number]

    missing = [record for at, record in enumerate(records) if at != 1]
    for part_rows in (1, 2, 3):
        with pytest.raises(InputChangedError, match="the document at 14 is not the one scored"):
            list(scored(str(path), missing, part_rows).documents())
        more = scored(str(path), [*records, records[-1]], part_rows)
        with pytest.raises(InputChangedError, match="it has 4 documents, 5 were scored"):
            list(more.documents())


def test_ids_that_an_earlier_version_rounded_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "id": 18446744073709551617}\n')
    (record,) = read_file(str(path))
    assert isinstance(record, Document)
    earlier = dataclasses.replace(record, key="1.8446744073709552e+19")
    assert len(list(scored(str(path), [earlier]).documents())) == 1
    assert not is_same_key(record.key, "1.8446744073709556e+19")
    assert not is_same_key(record.key, '"18446744073709551617"')
    assert not is_same_key(record.key, "sha256:00")
    assert is_same_key("sha256:00", '"' + "i" * 5000 + '"')
    assert not is_same_key("sha256:00", '"i"')
    assert not is_same_key('"a"', '"b"')
