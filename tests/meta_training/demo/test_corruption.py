from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.demo.corruption import (
    NOISE_LEVELS,
    CorruptionKind,
    bytes_to_text,
    corrupt_documents,
    replace_from_unigram,
    shuffle_within,
    text_to_bytes,
    unigram_distribution,
)

LEVELS = st.floats(0, 1)
BYTES = st.binary(max_size=300).map(lambda raw: np.frombuffer(raw, dtype=np.uint8))
TOKENS = st.lists(st.integers(0, 30_000), max_size=100).map(
    lambda ids: np.array(ids, dtype=np.int32)
)
SEQUENCES = st.one_of(BYTES, TOKENS)
SEEDS = st.integers(0, 2**32)
TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds. " * 40


@given(SEQUENCES, LEVELS, SEEDS)
def test_shuffling_keeps_the_multiset_the_length_and_the_dtype(  # type: ignore[no-untyped-def]
    sequence_L, level: float, seed: int
) -> None:
    before_L = sequence_L.copy()
    shuffled_L = shuffle_within(sequence_L, level, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(shuffled_L), np.sort(sequence_L))
    assert shuffled_L.dtype == sequence_L.dtype
    np.testing.assert_array_equal(sequence_L, before_L)
    assert (shuffled_L != sequence_L).sum() <= round(level * len(sequence_L))


@given(st.integers(0, 500), LEVELS, SEEDS)
def test_exactly_the_rounded_number_of_positions_is_redrawn(
    length: int, level: float, seed: int
) -> None:
    # Every draw is token 1 and no position has it beforehand, so every redrawn position shows.
    sequence_L = np.zeros(length, dtype=np.int64)
    replaced_L = replace_from_unigram(
        sequence_L, level, np.array([0.0, 1.0]), np.random.default_rng(seed)
    )
    assert replaced_L.sum() == round(level * length)


@given(st.integers(0, 500), LEVELS, SEEDS)
def test_shuffling_touches_no_more_positions_than_asked_and_nearly_as_many(
    length: int, level: float, seed: int
) -> None:
    # All tokens differ, so a position that kept its token is a fixed point: a permutation has one
    # on average.
    sequence_L = np.arange(length, dtype=np.int64)
    moved = int(
        (shuffle_within(sequence_L, level, np.random.default_rng(seed)) != sequence_L).sum()
    )
    asked = round(level * length)
    assert moved <= asked
    assert moved >= asked - 12


@given(SEQUENCES, SEEDS)
def test_level_zero_is_the_identity(sequence_L, seed: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    np.testing.assert_array_equal(shuffle_within(sequence_L, 0, rng), sequence_L)
    np.testing.assert_array_equal(
        replace_from_unigram(sequence_L, 0, np.array([1.0]), rng), sequence_L
    )


@given(SEQUENCES, LEVELS, SEEDS)
def test_the_same_seed_gives_the_same_damage(sequence_L, level: float, seed: int) -> None:  # type: ignore[no-untyped-def]
    for damage in (
        shuffle_within,
        lambda s_L, lvl, rng: replace_from_unigram(s_L, lvl, np.full(9, 1 / 9), rng),
    ):
        np.testing.assert_array_equal(
            damage(sequence_L, level, np.random.default_rng(seed)),
            damage(sequence_L, level, np.random.default_rng(seed)),
        )


def test_redrawn_text_has_the_corpus_unigram_distribution() -> None:
    sequence_L = text_to_bytes(TEXT * 20)
    unigram_V = unigram_distribution([sequence_L])
    redrawn_L = replace_from_unigram(sequence_L, 1, unigram_V, np.random.default_rng(0))
    distance = np.abs(unigram_distribution([redrawn_L]) - unigram_V).sum() / 2
    assert distance < 0.02  # total variation over 50,000 draws
    assert not unigram_distribution([redrawn_L])[unigram_V == 0].any()


def test_unigram_distribution_counts_over_all_sequences() -> None:
    sequences: list[npt.NDArray[np.integer]] = [
        np.array([0, 0, 1], dtype=np.uint8),
        np.array([3], dtype=np.int64),
        np.array([], dtype=np.uint8),
    ]
    assert unigram_distribution(sequences, 4).tolist() == [0.5, 0.25, 0, 0.25]
    with pytest.raises(ValueError, match="at least one token"):
        unigram_distribution([])
    with pytest.raises(ValueError, match="outside"):
        unigram_distribution([np.array([4], dtype=np.int64)], 4)


@given(st.text(st.characters(max_codepoint=255)))
def test_latin1_text_survives_the_trip_through_bytes(text: str) -> None:
    assert bytes_to_text(text_to_bytes(text)) == text
    assert len(text_to_bytes(text)) == len(text)


def test_documents_are_spread_evenly_over_kinds_and_levels_and_stay_text() -> None:
    texts = [TEXT[i : i + 200] for i in range(37)]
    documents = corrupt_documents(texts, np.random.default_rng(3), copies=4)
    assert [d.original for d in documents] == [i for i in range(37) for _ in range(4)]
    counts: dict[tuple[str, float], int] = {}
    for document in documents:
        counts[document.kind, document.noise_level] = (
            counts.get((document.kind, document.noise_level), 0) + 1
        )
        assert len(document.text) == 200
        assert document.text.isascii()
        assert json.loads(json.dumps(document.text)) == document.text
        if document.noise_level == 0:
            assert document.text == texts[document.original]
    assert len(counts) == len(NOISE_LEVELS) * len(CorruptionKind)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert corrupt_documents(texts, np.random.default_rng(3), copies=4) == documents


def test_wrong_arguments_are_refused() -> None:
    rng = np.random.default_rng(0)
    sequence_L = np.zeros(4, dtype=np.uint8)
    for level in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="noise level"):
            shuffle_within(sequence_L, level, rng)
    with pytest.raises(ValueError, match="sum to 1"):
        replace_from_unigram(sequence_L, 1, np.array([0.5, 0.4]), rng)
    with pytest.raises(ValueError, match="does not fit"):
        replace_from_unigram(sequence_L, 1, np.eye(300)[299], rng)
    with pytest.raises(ValueError, match="Latin-1"):
        corrupt_documents(["naïve", "日本"], rng)
    with pytest.raises(ValueError, match="copies"):
        corrupt_documents(["a"], rng, copies=11)
    assert corrupt_documents([], rng) == []
