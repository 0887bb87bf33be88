import gzip
import io
import json
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from datarater.pipelines.run_folder import commits
from datarater.rater_model.checkpoint import RaterCheckpoint, save_rater
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.support import training
from tests.support.runners import flink_cluster

__all__ = ["flink_cluster"]  # one for all modules: imported into each, it would be one of each

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


def _save(path: Path, seed: int) -> Path:
    config = RaterConfig(
        window=64,
        transformer=TransformerConfig(width=8, heads=1, mlp_width=16, layers=1),
        ngram_rows=64,
    )
    save_rater(
        path,
        RaterCheckpoint(config, initialise_rater(config, jax.random.key(seed)), ByteTokenizer()),
    )
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by all training runs of a module."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pool to train on."""
    return training.write_texts(tmp_path_factory.mktemp("texts") / "pool.jsonl")


@pytest.fixture(scope="session")
def rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rater that has learned nothing: its scores are as good as any for the pipeline."""
    return _save(tmp_path_factory.mktemp("rater") / "rater", seed=0)


@pytest.fixture(scope="session")
def other_rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("rater") / "other", seed=1)


def make_records(count: int, seed: int) -> list[dict[str, Any]]:
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
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def write_corpus(folder: Path) -> list[dict[str, Any]]:
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
    return [record for part in records for record in part]


def check_that_one_writer_wins(folder: str) -> None:
    """Lets four writers commit different bytes at once, under five names."""
    for number in range(5):
        path = f"{folder}/{number}"
        gate = threading.Barrier(4)

        def commit(content: bytes, path: str = path, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return commits.commit_if_absent(path, content)

        contents = [bytes([65 + writer]) * 1000 for writer in range(4)]
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(commit, contents))
        assert sum(won) == 1
        assert commits.read_bytes(path) == contents[won.index(True)]
