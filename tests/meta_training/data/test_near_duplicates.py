"""Near-duplicates of held-out documents: the ones that the clusters' definition links."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.meta_training.data.cutting import CutOptions
from datarater.meta_training.data.near_duplicates import HeldOutSequences, sequences_of
from datarater.meta_training.data.prepare import write_prepared
from datarater.meta_training.data.sets import TextSet
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.meta_training.evaluate.clusters import near_duplicates_of
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.support.prepared import ListedTexts, plan_of


def words(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(1000)}" for _ in range(count)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(12, 20), st.booleans())
def test_they_are_those_of_the_clusters(seed: int, shared: int, spaced: bool) -> None:
    rng = random.Random(seed)
    quote = words(seed + 1, shared)
    target = [" ".join([*words(seed + i, 10), *quote, *words(seed - i, 10)]) for i in range(2)]
    target.append("Only  Four Words here")
    pool = [
        " ".join([*words(seed + 50 + i, rng.randrange(30)), *quote[: 10 + i]]) for i in range(9)
    ]
    pool += ["only four words HERE", "unrelated text", target[0].upper()]
    if spaced:
        pool = [text.replace(" ", "\u3000\n") for text in pool]

    held_out = HeldOutSequences.of([(sequences_of(target), np.zeros(3, np.int64))])
    found = held_out.near_duplicates(
        *held_out.matches(sequences_of(pool), np.ones(len(pool), np.int64))
    )
    assert found.tolist() == near_duplicates_of(pool, target).tolist()


def test_words_in_long_documents_have_the_hashes_of_short_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = " ".join([*words(0, 300), "x" * 500, *words(1, 300)])
    whole = sequences_of([text])
    monkeypatch.setattr("datarater.meta_training.data.near_duplicates._PIECE_BYTES", 64)
    np.testing.assert_array_equal(sequences_of([text]).hashes_S, whole.hashes_S)
    np.testing.assert_array_equal(sequences_of([text]).whole_N, whole.whole_N)


def test_boilerplate_of_the_pool_links_nothing() -> None:
    license_text = " ".join(words(3, 40))
    held_out = HeldOutSequences.of([(sequences_of([license_text]), np.zeros(1, np.int64))])
    for copies, expected in ((20, True), (21, False)):
        pool = [f"{' '.join(words(10 + i, 5))} {license_text}" for i in range(copies)]
        matches = held_out.matches(sequences_of(pool), np.ones(copies, np.int64))
        assert held_out.near_duplicates(*matches).tolist() == [expected] * copies


@pytest.mark.parametrize("unit_bytes", [1, 100])
def test_a_document_leaves_its_set_for_one_that_ranks_above(
    tmp_path: Path, unit_bytes: int
) -> None:
    stories = [" ".join(words(i, 30)) for i in range(8)]
    source = ListedTexts([f"{story} {ending}" for ending in "abcd" for story in stories])
    in_set_N = {
        "inner": np.arange(32) < 16,
        "outer": (np.arange(32) >= 16) & (np.arange(32) < 20),  # stories 0 to 3
        "test": np.arange(32) == 30,  # story 6
        "validation": (np.arange(32) == 31) | (np.arange(32) == 24),  # stories 7 and 0
    }
    sets = {role: TextSet(role, source, member_N) for role, member_N in in_set_N.items()}
    options = CutOptions(length=1000, mode="document")
    counts = {}
    for excluding in (True, False):
        plan = plan_of(
            sets,
            options,
            ByteTokenizer(),
            exclude_near_duplicates=excluding,
            unit_bytes=unit_bytes,
            reference_documents=100,
        )
        index = write_prepared(plan, tmp_path / str(excluding), WorkerPool(0))
        counts[excluding] = {
            role: (each.documents, each.near_duplicates) for role, each in index.sets.items()
        }
    # Inner: stories 0 to 3, 6 and 7 leave twice each; outer: story 0 leaves for validation.
    assert counts[True] == {
        "inner": (4, 12),
        "outer": (3, 1),
        "test": (1, 0),
        "validation": (2, 0),
    }
    assert counts[False] == {
        "inner": (16, 0),
        "outer": (4, 0),
        "test": (1, 0),
        "validation": (2, 0),
    }
