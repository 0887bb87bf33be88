"""Random damage to valid files of every format: no crash, no hang, nothing lost silently.

DATARATER_FUZZ_CASES sets how many files are damaged (400; thousands for a longer run).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.parquet import Parquet
from datarater.rater_model.documents.reading import plan_file, read_split
from datarater.rater_model.documents.records import BadRecord, Document, ReadOptions, Reason
from tests.support.damaged_files import FORMATS, KINDS, MEMBERS, PACKERS, RECORDS, damaged

CASES = int(os.environ.get("DATARATER_FUZZ_CASES", "400"))
OPTIONS = ReadOptions(max_record_bytes=5000)


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
