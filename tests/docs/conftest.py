"""The folder in which the blocks of a page and the examples run."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import jax
import pytest

from datarater.rater_model.checkpoint import RaterCheckpoint, save_rater
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.support.training import WORDS

RATERS = ("demo_output/rater", "work/rater")
CORPORA = ("demo_output/corpus", "corpus", "target", "crawl/2026-01-31")


def write_corpus(folder: Path, seed: int, documents: int = 60) -> None:
    """Writes a small corpus of two sources in two files."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for part in range(2):
        rows = (
            {
                "id": f"{seed}-{part}-{number}",
                "text": " ".join(rng.choices(WORDS, k=rng.randint(5, 60))),
                "source": ("wiki", "web")[number % 2],
            }
            for number in range(documents // 2)
        )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"part-{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def write_rater(folder: Path) -> None:
    """Saves a tiny rater that has learned nothing."""
    config = RaterConfig(
        window=64,
        transformer=TransformerConfig(width=8, heads=1, mlp_width=16, layers=1),
        ngram_rows=64,
    )
    params = initialise_rater(config, jax.random.key(0))
    save_rater(folder, RaterCheckpoint(config, params, ByteTokenizer()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with small corpora and raters under the names that the pages use.

    The test runs in it.
    """
    for seed, name in enumerate(CORPORA):
        write_corpus(tmp_path / name, seed)
    for name in RATERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_rater(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of compiled programs, which training runs share."""
    return tmp_path_factory.mktemp("compiled")
