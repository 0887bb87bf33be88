from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarater.meta_training.demo.corpus import DemoDocument, Kind
from datarater.meta_training.demo.corruption import NOISE_LEVELS, CorruptionKind
from datarater.meta_training.demo.corruption_corpus import (
    SEQUENCE_CHARACTERS,
    cut,
    damage_at_every_level,
    split_documents,
    write_corruption_corpus,
)


def test_cut_drops_what_is_left() -> None:
    assert cut(["abcdefgh", "ijk", "l", ""], length=3) == ["abc", "def", "ijk"]


def test_no_origin_stands_on_both_sides() -> None:
    documents = [
        DemoDocument(f"m{i % 7}#intact-{i}", "text", "docstrings", Kind.INTACT) for i in range(40)
    ]
    training, evaluation = split_documents(documents, np.random.default_rng(0), share=0.3)
    assert sorted(d.id for d in training + evaluation) == sorted(d.id for d in documents)
    origins = [{d.id.split("#")[0] for d in side} for side in (training, evaluation)]
    assert not origins[0] & origins[1]
    assert len(origins[1]) == 2


def test_evaluation_has_every_level_of_a_kind_of_each_sequence() -> None:
    texts = [f"sequence number {i} of some length" for i in range(6)]
    damaged = damage_at_every_level(texts, tuple(CorruptionKind), np.random.default_rng(0))
    assert len(damaged) == 6 * len(NOISE_LEVELS)
    for original, text in enumerate(texts):
        of_one = [d for d in damaged if d.original == original]
        assert len({d.kind for d in of_one}) == 1
        assert [d.noise_level for d in of_one] == list(NOISE_LEVELS)
        assert of_one[0].text == text
        assert all(len(d.text) == len(text) for d in of_one)


@pytest.mark.slow
def test_sets_share_no_text_and_are_the_same_again(tmp_path: Path) -> None:
    counts = write_corruption_corpus(tmp_path / "one", seed=3)
    write_corruption_corpus(tmp_path / "two", seed=3)

    def records(name: str) -> list[dict[str, Any]]:
        (path,) = (tmp_path / "one" / name).glob("*.jsonl.gz")
        assert path.read_bytes() == (tmp_path / "two" / name / path.name).read_bytes()
        with gzip.open(path) as file:
            return [json.loads(line) for line in file]

    sets = {name: records(name) for name in counts}
    assert {name: len(documents) for name, documents in sets.items()} == counts
    assert all(
        len(record["text"]) == SEQUENCE_CHARACTERS
        for documents in sets.values()
        for record in documents
    )
    assert {record["noise_level"] for record in sets["target"]} == {0.0}
    assert {(r["source"], r["noise_level"]) for r in sets["pool"]} == {
        (str(kind), level) for kind in CorruptionKind for level in NOISE_LEVELS
    }
    texts = {name: {record["text"] for record in documents} for name, documents in sets.items()}
    assert not texts["pool"] & texts["evaluation"]
    assert not texts["pool"] & texts["target"]
    assert not texts["evaluation"] & texts["target"]
