"""The walk: the windows that a run trains on, in their order.

Documents are cut into chunks of L tokens. One seeded permutation of all chunks of the pool is
walked by every arm, which skips the chunks that its selection drops: arms of one seed see what they
have in common in the same order. A full chunk is a window. The short chunks, the ends of documents,
are joined in walking order with a separator after each, and cut into windows. A run that reaches
the end of its data walks another permutation.

A selection either drops documents once and for all, or drops the worst of each stretch of the walk,
the paper's batch top-K.

Dimension letters in array names: N the documents, C the chunks, P the tokens of joined short
chunks, B x L the windows of a batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
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


@dataclasses.dataclass(frozen=True)
class KeptDocuments:
    """A selection that trains on all chunks of the kept documents.

    Attributes:
        kept_N: Whether each document is kept.
    """

    kept_N: NDArray[np.bool_]

    @property
    def digest(self) -> str:
        """SHA-256 of which documents are kept, in hexadecimal."""
        count = len(self.kept_N).to_bytes(8, "little")
        return hashlib.sha256(count + np.packbits(self.kept_N).tobytes()).hexdigest()

    def choose(self, documents_C: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which chunks of a pass are trained on.

        Args:
            documents_C: Index of each chunk's document, in walking order.
        """
        chosen_C: NDArray[np.bool_] = self.kept_N[documents_C]
        return chosen_C


@dataclasses.dataclass(frozen=True)
class BatchTopK:
    """A selection that trains on the best chunks of each oversampled batch.

    To train on B chunks at the kept share k, round(B / k) consecutive chunks of the walk are drawn
    and the best B of them are trained on (arXiv 2505.17895, section 4). Of the n chunks that remain
    at the end of a pass, round(n B / round(B / k)) are. A chunk is as good as its document; chunks
    of one document are taken in walking order.

    Attributes:
        rank_N: Rank of each document, 0 for the best, all different, int64.
        best: B, the chunks that are trained on.
        drawn: round(B / k), the chunks of an oversampled batch, at least B.
    """

    rank_N: NDArray[np.int64]
    best: int
    drawn: int

    @property
    def digest(self) -> str:
        """SHA-256 of the ranks and of both sizes, in hexadecimal."""
        sizes = f"batch_top_k {self.best} {self.drawn} ".encode()
        return hashlib.sha256(sizes + self.rank_N.astype("<i8").tobytes()).hexdigest()

    def choose(self, documents_C: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which chunks of a pass are trained on.

        Args:
            documents_C: Index of each chunk's document, in walking order.
        """
        count = len(documents_C)
        batch_C = np.arange(count) // self.drawn
        # The stable sort puts the batches one after another, each with its best chunks first.
        order_C = np.lexsort((self.rank_N[documents_C], batch_C))
        place_C = np.arange(count) % self.drawn
        last = count % self.drawn
        allowed_C = np.where(
            batch_C < count // self.drawn, self.best, round(last * self.best / self.drawn)
        )
        chosen_C = np.zeros(count, bool)
        chosen_C[order_C] = place_C < allowed_C
        return chosen_C


Selection = KeptDocuments | BatchTopK
"""Which chunks of the walk a run trains on: plain data that pickles."""


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


def order_of_a_pass(
    chunks: Chunks, selection: Selection, seed: int, number: int
) -> NDArray[np.int64]:
    """Returns the indices of the chunks that a pass trains on, in walking order.

    Args:
        chunks: Chunks of the pool.
        selection: Which of them are trained on.
        seed: Seed of the run; every arm of a seed walks the same permutation.
        number: Number of the pass, from 0.
    """
    order_C = np.random.default_rng([seed, number]).permutation(len(chunks.size_C))
    chosen_C: NDArray[np.int64] = order_C[selection.choose(chunks.document_C[order_C])]
    return chosen_C


def windows_of_a_pass(
    tokens_T: NDArray[np.generic],
    chunks: Chunks,
    selection: Selection,
    separator: int,
    seed: int,
    number: int,
) -> Iterator[NDArray[np.int32]]:
    """Yields the windows of one pass over an arm's data, int32 of shape [L].

    Args:
        tokens_T: All tokens of the pool, which may be memory-mapped.
        chunks: Chunks of the pool.
        selection: Which of them are trained on.
        separator: Id after each joined chunk.
        seed: Seed of the run; every arm of a seed walks the same permutation.
        number: Number of the pass, from 0.
    """
    length = chunks.length
    order_C = order_of_a_pass(chunks, selection, seed, number)
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
    selection: Selection,
    separator: int,
    seed: int,
    batch: int,
) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Yields batches forever, each with the number of the pass that its last window belongs to.

    Args:
        tokens_T: All tokens of the pool.
        chunks: Chunks of the pool.
        selection: Which of them are trained on.
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
        for window in windows_of_a_pass(tokens_T, chunks, selection, separator, seed, number):
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
