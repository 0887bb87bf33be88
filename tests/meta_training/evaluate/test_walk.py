from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.walk import (
    BatchTopK,
    Chunks,
    KeptDocuments,
    TooLittleTextError,
    batches,
    cut_into_chunks,
    order_of_a_pass,
    windows_of_a_pass,
)

LENGTH, SEPARATOR = 8, 99_999


def pool(sizes: list[int]) -> tuple[np.ndarray, Chunks]:
    """Returns tokens that are all different, and the chunks of documents of these sizes."""
    return np.arange(sum(sizes), dtype=np.uint16), cut_into_chunks(np.cumsum(sizes), LENGTH)


def one_pass(sizes: list[int], kept: list[bool], seed: int = 0, number: int = 0) -> list[list[int]]:
    tokens, chunks = pool(sizes)
    windows = windows_of_a_pass(
        tokens, chunks, KeptDocuments(np.array(kept)), SEPARATOR, seed, number
    )
    return [window.tolist() for window in windows]


def full(windows: list[list[int]]) -> list[list[int]]:
    return [
        window for window in windows if SEPARATOR not in window and len(set(np.diff(window))) == 1
    ]


documents = st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=20)


@given(documents)
def test_chunks_cover_every_token_once(drawn: list[tuple[int, bool]]) -> None:
    sizes = [size for size, _ in drawn]
    tokens, chunks = pool(sizes)
    covered = np.concatenate(
        [
            tokens[start : start + size]
            for start, size in zip(chunks.start_C, chunks.size_C, strict=True)
        ]
    )
    np.testing.assert_array_equal(covered, tokens)
    assert chunks.size_C.max() <= LENGTH
    ends = np.cumsum(sizes)
    owners = np.searchsorted(ends, chunks.start_C, side="right")
    np.testing.assert_array_equal(owners, chunks.document_C)


@given(documents, st.integers(0, 5))
def test_a_pass_contains_kept_tokens_once_and_no_dropped_ones(
    drawn: list[tuple[int, bool]], seed: int
) -> None:
    sizes, kept = [size for size, _ in drawn], [keep for _, keep in drawn]
    windows = one_pass(sizes, kept, seed)
    seen = [token for window in windows for token in window if token != SEPARATOR]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    expected = set(np.flatnonzero(np.array(kept)[owner]).tolist())
    assert len(seen) == len(set(seen))
    assert set(seen) <= expected
    # Only an unfinished window of ends of documents is left out.
    assert len(expected) - len(seen) < LENGTH
    assert all(len(window) == LENGTH for window in windows)


@given(documents, st.integers(0, 5))
def test_an_arm_sees_its_full_windows_in_the_order_of_the_whole_pool(
    drawn: list[tuple[int, bool]], seed: int
) -> None:
    # Documents of whole windows, so that each window belongs to one document.
    sizes, kept = [8 * size for size, _ in drawn], [keep for _, keep in drawn]
    everything = one_pass(sizes, [True] * len(sizes), seed)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    assert one_pass(sizes, kept, seed) == [
        window for window in everything if kept[int(owner[window[0]])]
    ]


def test_ends_of_documents_are_joined_with_separators() -> None:
    windows = one_pass([3, 3, 3, 3], [True] * 4)
    tokens = [token for window in windows for token in window]
    assert len(windows) == 2
    assert tokens.count(SEPARATOR) == 4
    pieces = "".join("|" if token == SEPARATOR else "x" for token in tokens)
    assert pieces == "xxx|xxx|xxx|xxx|"


def test_seeds_and_passes_walk_different_permutations_and_a_seed_repeats_its_own() -> None:
    sizes, kept = [80] * 5, [True] * 5
    first = one_pass(sizes, kept)
    assert first == one_pass(sizes, kept)
    assert first != one_pass(sizes, kept, seed=1)
    assert first != one_pass(sizes, kept, number=1)
    assert sorted(first) == sorted(one_pass(sizes, kept, number=1))


def test_batches_go_on_to_another_pass() -> None:
    tokens, chunks = pool([24])
    drawn = list(
        islice(batches(tokens, chunks, KeptDocuments(np.array([True])), SEPARATOR, 0, 2), 3)
    )
    assert [number for _, number in drawn] == [0, 1, 1]
    starts = np.concatenate([batch[:, 0] for batch, _ in drawn])
    assert sorted(starts[:3]) == sorted(starts[3:]) == [0, 8, 16]


def test_too_little_text_is_refused() -> None:
    tokens, chunks = pool([3, 24])
    with pytest.raises(TooLittleTextError, match="window of 8 tokens"):
        next(batches(tokens, chunks, KeptDocuments(np.array([True, False])), SEPARATOR, 0, 2))


ranked = st.lists(st.integers(1, 40), min_size=1, max_size=20).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.permutations(range(len(sizes))))
)


@given(ranked, st.integers(1, 6), st.integers(0, 6), st.integers(0, 3))
def test_the_best_chunks_of_each_oversampled_batch_are_trained_on(
    drawn: tuple[list[int], list[int]], best: int, more: int, seed: int
) -> None:
    sizes, ranks = drawn
    _, chunks = pool(sizes)
    selection = BatchTopK(np.array(ranks), best, best + more)
    everything = order_of_a_pass(chunks, KeptDocuments(np.ones(len(sizes), bool)), seed, 0).tolist()

    expected: list[int] = []
    for start in range(0, len(everything), best + more):
        batch = everything[start : start + best + more]
        count = round(len(batch) * best / (best + more))
        # `sorted` is stable: chunks of one document stay in walking order.
        chosen = sorted(batch, key=lambda chunk: ranks[chunks.document_C[chunk]])[:count]
        expected += [chunk for chunk in batch if chunk in chosen]
    assert order_of_a_pass(chunks, selection, seed, 0).tolist() == expected


def test_a_batch_of_full_windows_is_the_best_of_its_oversampled_batch() -> None:
    sizes = [LENGTH] * 24
    tokens, chunks = pool(sizes)
    ranks = np.random.default_rng(0).permutation(24)
    selection = BatchTopK(ranks, best=4, drawn=8)
    trained = [
        sorted(batch[:, 0] // LENGTH)
        for batch, number in islice(batches(tokens, chunks, selection, SEPARATOR, 5, 4), 4)
        if number == 0
    ]
    walk = order_of_a_pass(chunks, KeptDocuments(np.ones(24, bool)), 5, 0).reshape(3, 8)
    assert trained == [sorted(each[np.argsort(ranks[each])[:4]]) for each in walk]
