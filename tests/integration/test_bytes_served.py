"""How much more than it needs each step asks an object store to serve, on s3:// and gs://."""

from __future__ import annotations

import bz2
import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from datarater.pipelines.graph import planning
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.run_folder.plan import plan_of
from datarater.rater_model.documents import files
from datarater.rater_model.documents.parquet_reader import BrokenParquetError, ParquetReader
from tests.benchmarks.bytes_served import (
    BUCKET,
    Corpus,
    corpora,
    counting_store,
    json_lines,
    measure,
)
from tests.support.request_log import Kind, RequestLog
from tests.support.run_folders import run_options

SIZE = 2 * 2**20
PLANNED_BYTES = 64 * 2**10
MAX_TIMES = 1.1
# A compressed stream in two parts is unpacked 1.5 times.
STRIDED_TIMES = 1.5 * MAX_TIMES


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, RequestLog]]:
    with counting_store(request.param) as log:
        yield request.param, log


@pytest.mark.parametrize(
    ("corpus", "splits", "max_times"),
    [
        ("JSONL", 2, MAX_TIMES),
        ("gzip JSONL", 1, MAX_TIMES),
        ("gzip JSONL", 2, STRIDED_TIMES),
        ("wide Parquet", 2, MAX_TIMES),
    ],
)
def test_each_step_is_served_little_more_than_it_needs(
    store: tuple[str, RequestLog], corpus: str, splits: int, max_times: float, tmp_path: Path
) -> None:
    protocol, log = store
    (made,) = (one for one in corpora(SIZE) if one.name == corpus)
    rows = measure(protocol, made, -(-made.stored // splits), log, tmp_path / "run")
    steps: dict[str, dict[str, Any]] = {row["step"]: row for row in rows}
    assert steps["planned"]["splits"] == splits
    assert steps["planned"]["served"] <= PLANNED_BYTES * len(made.files)
    for step in ("scored", "selected"):
        assert 1 <= steps[step]["times"] <= max_times, steps[step]


@pytest.mark.parametrize(
    ("name", "pack", "most"),
    [
        ("a.jsonl.gz", gzip.compress, PLANNED_BYTES),
        # A block unpacks as a whole, and is read up to three times: of zstd 128 KiB, of bzip2 900.
        ("a.jsonl.zst", zstandard.compress, 6 * PLANNED_BYTES),
        ("a.jsonl.bz2", bz2.compress, 17 * PLANNED_BYTES),
    ],
)
def test_planning_reads_the_beginning_of_a_stream(
    store: tuple[str, RequestLog],
    name: str,
    pack: Callable[[bytes], bytes],
    most: int,
    tmp_path: Path,
) -> None:
    protocol, log = store
    content = pack(json_lines(2 * SIZE, np.random.default_rng(0)))
    assert len(content) > most
    fsspec.filesystem(protocol).pipe_file(f"{BUCKET}/stream/{name}", content)
    request = ScoringRequest(
        Patterns((f"{protocol}://{BUCKET}/stream/{name}",)),
        "equal",
        str(tmp_path / "run"),
        run_options(split_bytes=-(-len(content) // 2)),
        workers_to_fill=4,
    )
    log.clear()
    planning.plan_now(request)
    assert log.bytes_served(f"{BUCKET}/stream") <= most
    assert plan_of(request.folder).splits == 2


def test_a_large_footer_is_not_read_before_the_file_is_scored(
    store: tuple[str, RequestLog], tmp_path: Path
) -> None:
    protocol, log = store
    columns = {f"column {number}": [number] * 40 for number in range(100)}
    table = pa.table({"text": [f"text {row} " * 400 for row in range(40)], **columns})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=2, compression="none")
    content = out.getvalue()
    assert int.from_bytes(content[-8:-4], "little") > 2 * PLANNED_BYTES
    made = Corpus("large footer", {"a.parquet": content}, "scores", len(content))
    rows = measure(protocol, made, -(-len(content) // 3), log, tmp_path / "run")
    planned = rows[0]
    assert (planned["splits"], planned["served"] <= PLANNED_BYTES) == (3, True)


def test_a_range_beyond_the_end_of_a_file_is_empty(store: tuple[str, RequestLog]) -> None:
    protocol, _ = store
    for name, content in (("empty", b""), ("short", b"0123456789")):
        fsspec.filesystem(protocol).pipe_file(f"{BUCKET}/{name}", content)
        path = f"{protocol}://{BUCKET}/{name}"
        assert files.read_head(path, 4096) == content
        assert files.read_range(path, 10, 10) == b""
        with files.open_file(path) as file:
            assert file.read(10) == content
            assert file.read(10) == b""
    with pytest.raises(FileNotFoundError):
        files.read_head(f"{protocol}://{BUCKET}/missing", 10)


def test_the_footer_of_a_parquet_file_is_read_once_for_all_its_splits(
    store: tuple[str, RequestLog],
) -> None:
    protocol, log = store
    (made,) = (one for one in corpora(SIZE, seed=1) if one.name == "wide Parquet")
    for content in (made.files["a.parquet"], corpora(SIZE, seed=2)[-1].files["a.parquet"]):
        fsspec.filesystem(protocol).pipe_file(f"{BUCKET}/a.parquet", content)
        log.clear()
        for _ in range(3):
            with ParquetReader(f"{protocol}://{BUCKET}/a.parquet") as reader:
                rows = reader.metadata.num_rows
        assert log.requests(f"{BUCKET}/a.parquet", Kind.GET) == 1
        assert rows == pq.read_metadata(io.BytesIO(content)).num_rows


def test_a_store_that_fails_at_a_footer_is_not_a_broken_file(
    store: tuple[str, RequestLog],
) -> None:
    protocol, _ = store
    with pytest.raises(FileNotFoundError):
        ParquetReader(f"{protocol}://{BUCKET}/missing.parquet")
    fsspec.filesystem(protocol).pipe_file(f"{BUCKET}/broken.parquet", b"PAR1" + b"?" * 999)
    with pytest.raises(BrokenParquetError):
        ParquetReader(f"{protocol}://{BUCKET}/broken.parquet")
