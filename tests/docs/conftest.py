"""The folder in which the blocks of a page and the examples run."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.pages import without_blocks
from tests.support.raters import save_tiny_rater
from tests.support.training import WORDS

RATERS = ("demo_output/rater", "work/rater")
CORPORA = ("demo_output/corpus", "corpus", "target", "crawl/2026-01-31")


def english_sentences() -> list[str]:
    """Returns sentences that a language identifier takes for English."""
    text = without_blocks((ROOT / "docs/design.md").read_text())
    return [sentence for sentence in re.split(r"(?<=[.:])\s+", text) if len(sentence) > 40]


def write_corpus(folder: Path, seed: int, documents: int = 60, *, english: bool = False) -> None:
    """Writes a small corpus of two sources in two files.

    Args:
        folder: The folder of the corpus.
        seed: Seed of its texts.
        documents: Number of documents.
        english: Whether every second document has hundreds of words of English.
    """
    rng = random.Random(seed)
    sentences = english_sentences()

    def text(number: int) -> str:
        if english and number % 2 == 0:
            return " ".join(rng.choices(sentences, k=rng.randint(40, 80)))
        return " ".join(rng.choices(WORDS, k=rng.randint(5, 60)))

    folder.mkdir(parents=True)
    for part in range(2):
        rows = (
            {
                "id": f"{seed}-{part}-{number}",
                "text": text(number),
                "source": ("wiki", "web")[number % 2],
            }
            for number in range(documents // 2)
        )
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"part-{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder with small corpora and raters under the names that the pages use.

    The test runs in it.
    """
    for seed, name in enumerate(CORPORA):
        write_corpus(tmp_path / name, seed, english=name == "demo_output/corpus")
    for name in RATERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_tiny_rater(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
