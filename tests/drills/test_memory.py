"""The memory of a worker is bounded by its configuration, whatever it reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.hostile_memory import KINDS

MAX_MEBIBYTES = 2000
"""Most that a worker may take, 200 MiB of it for the program itself."""

EXPECTED: dict[str, dict[str, int]] = {
    "4 million bad lines": {"not_json": 4_000_000},
    "a line of 3 GB in gzip": {"record_too_large": 1, "scored": 1},
    "a line of 3 GB in zstd": {"record_too_large": 1, "scored": 1},
    "lines of 60 MB with wide characters": {"scored": 20},
    "2,500 ids of 1 MB": {"scored": 2500},
    "300,000 long ids and sources": {"scored": 300_000},
    "a zstd window of 2 GiB": {"window_too_large": 1},
    "a Parquet text of 500 MB": {"record_too_large": 1, "scored": 2},
    "unused Parquet values of 500 MB": {"scored": 2},
    "a Parquet dictionary of 60 MB, repeated": {"scored": 100},
    "a Parquet list of 150 million ids": {"record_too_large": 1},
    "Parquet lists of half a million texts": {"scored": 2},
    "100 Parquet texts of 30 MB": {"record_too_large": 100},
    "5,000 Parquet columns": {"scored": 100},
    "a WARC header of 3 GB": {"record_corrupt": 1},
    "a WARC record of 3 GB": {"record_too_large": 1},
    "a TFRecord of 3 GB": {"record_too_large": 1, "record_corrupt": 1},
    "an ArrayRecord of 1 GB": {"record_too_large": 1, "record_corrupt": 2},
    "ArrayRecord chunks of 1.2 GB": {"record_too_large": 80},
    "a plain text of 3 GB": {"record_too_large": 1},
}


@pytest.mark.drill
def test_no_hostile_file_takes_more_than_2_gb_of_a_worker(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_memory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )
    results: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        result = json.loads(line)
        results[result["kind"]] = result
    assert list(results) == list(KINDS) == list(EXPECTED)
    counted = {
        kind: {**result["counts"]["rejected"], "scored": result["counts"]["scored"]}
        for kind, result in results.items()
    }
    assert counted == {kind: {"scored": 0, **counts} for kind, counts in EXPECTED.items()}
    too_large = {
        kind: result["mebibytes"]
        for kind, result in results.items()
        if result["mebibytes"] > MAX_MEBIBYTES
    }
    assert too_large == {}, done.stdout
