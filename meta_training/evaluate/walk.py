"""The walk: the windows that a run trains on, in their order.

Documents are cut into chunks of L tokens. One seeded permutation of all chunks of the pool is
walked by every arm, which skips the chunks of documents that it drops: arms of one seed see what
they have in common in the same order. A full chunk is a window. The short chunks, the ends of
documents, are joined in walking order with a separator after each, and cut into windows. A run that
reaches the end of its data walks another permutation.

Dimension letters in array names: N the documents, C the chunks, P the tokens of joined short
chunks, B x L the windows of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class TooLittleTextError(ValueError):
    """An arm keeps too little text to fill a single window."""


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The chunks of a pool, document by document.

    Attributes:
        document_C: Index of the chunk's document, int64.
        start_C: Index of its first token in the pool's tokens, int64.
        size_C: Number of its tokens, at most L, int64.
        length: L.
    """

    document_C: NDArray[np.int64]
    start_C: NDArray[np.int64]
    size_C: NDArray[np.int64]
    length: int


def cut_into_chunks(ends_N: NDArray[np.int64], length: int) -> Chunks:
    """Cuts documents into chunks.

    Args:
        ends_N: Index of the token after each document's last.
        length: L, maximum tokens of a chunk.

    Example:
        >>> chunks = cut_into_chunks(np.array([5, 7]), length=4)
        >>> chunks.start_C.tolist(), chunks.size_C.tolist()
        ([0, 4, 5], [4, 1, 2])
    """
    starts_N = np.concatenate([[0], ends_N[:-1]]).astype(np.int64)
    count_N = -(-(ends_N - starts_N) // length)
    document_C = np.repeat(np.arange(len(ends_N)), count_N)
    # Index of each chunk within its document.
    index_C = np.arange(len(document_C)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    start_C = starts_N[document_C] + index_C * length
    return Chunks(document_C, start_C, np.minimum(length, ends_N[document_C] - start_C), length)


def windows_of_a_pass(
    tokens_T: NDArray[np.generic],
    chunks: Chunks,
    kept_N: NDArray[np.bool_],
    separator: int,
    seed: int,
    number: int,
) -> Iterator[NDArray[np.int32]]:
    """Yields the windows of one pass over an arm's data, int32 of shape [L].

    Args:
        tokens_T: All tokens of the pool, which may be memory-mapped.
        chunks: Chunks of the pool.
        kept_N: Whether the arm keeps each document.
        separator: Id after each joined chunk.
        seed: Seed of the run; every arm of a seed walks the same permutation.
        number: Number of the pass, from 0.
    """
    length = chunks.length
    order_C = np.random.default_rng([seed, number]).permutation(len(chunks.size_C))
    order_C = order_C[kept_N[chunks.document_C[order_C]]]
    size_C = chunks.size_C[order_C]
    joined_C = np.where(size_C < length, size_C + 1, 0)
    # The number of windows that the short chunks fill up to each place of the walk.
    filled_C = np.cumsum(joined_C) // length

    waiting = np.zeros(0, np.int32)
    done = 0
    for chunk, size, filled in zip(order_C, size_C, filled_C, strict=True):
        start = chunks.start_C[chunk]
        piece = tokens_T[start : start + size]
        if size == length:
            yield piece.astype(np.int32)
            continue
        waiting = np.concatenate([waiting, piece.astype(np.int32), np.array([separator], np.int32)])
        for _ in range(done, filled):
            yield waiting[:length]
            waiting = waiting[length:]
        done = filled


def batches(
    tokens_T: NDArray[np.generic],
    chunks: Chunks,
    kept_N: NDArray[np.bool_],
    separator: int,
    seed: int,
    batch: int,
) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Yields batches forever, each with the number of the pass that its last window belongs to.

    Args:
        tokens_T: All tokens of the pool.
        chunks: Chunks of the pool.
        kept_N: Whether the arm keeps each document.
        separator: Id after each joined chunk.
        seed: Seed of the run.
        batch: B, windows of a batch.

    Yields:
        tokens_BxL, int32, and the number of the pass, from 0.

    Raises:
        TooLittleTextError: If a whole pass fills no window.
    """
    windows: list[NDArray[np.int32]] = []
    number = 0
    while True:
        found = False
        for window in windows_of_a_pass(tokens_T, chunks, kept_N, separator, seed, number):
            found = True
            windows.append(window)
            if len(windows) == batch:
                yield np.stack(windows), number
                windows = []
        if not found:
            raise TooLittleTextError(
                f"the kept documents do not fill a window of {chunks.length} tokens"
            )
        number += 1
