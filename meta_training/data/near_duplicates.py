"""Near-duplicates of held-out documents, found in one pass over a corpus of any size.

Two documents are near-duplicates as in `datarater.meta_training.evaluate.clusters`: they have equal
words, or at least MIN_SHARED distinct sequences of SEQUENCE_WORDS words in common. The clusters of
a whole corpus do not fit into memory. But sets are disjoint by cluster already when every document
leaves its set that is a near-duplicate of a set above it: the rest of its cluster has no link to
the set above any more. So only the sequences of held-out documents are kept in memory.

Sets are ranked: rank 0 loses no document, and each other set loses its near-duplicates of the sets
of lower ranks. N counts documents, W words, S word sequences.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.evaluate.clusters import MAX_DOCUMENTS, MIN_SHARED, SEQUENCE_WORDS
from datarater.meta_training.evaluate.keeping import seeded_hash
from datarater.rater_model.word_sequences import sequence_hashes

_MULTIPLIER = 0x9E3779B97F4A7C15
_PIECE_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Sequences:
    """What documents are compared by.

    Attributes:
        hashes_S: Hashes of the word sequences of each document, uint64; repeats included.
        documents_S: Index of each sequence's document.
        whole_N: Hash of all words of each document, uint64.
    """

    hashes_S: NDArray[np.uint64]
    documents_S: NDArray[np.int64]
    whole_N: NDArray[np.uint64]


def sequences_of(texts: Sequence[str]) -> Sequences:
    """Returns the word sequences of a few documents, equal in every process.

    Example:
        >>> story = " ".join(f"word{i}" for i in range(14))
        >>> sequences = sequences_of([story, "Too short."])
        >>> sequences.documents_S.tolist(), len(sequences.whole_N)
        ([0, 0], 2)
    """
    words = [_word_hashes(text) for text in texts]
    whole = [hashlib.blake2b(each.tobytes(), digest_size=8).digest() for each in words]
    document_W = np.repeat(
        np.arange(len(words), dtype=np.int32), np.array([len(each) for each in words], np.int64)
    )
    words_W = np.concatenate([np.zeros(0, np.uint64), *words])
    hashes_S, documents_S = sequence_hashes(words_W, document_W, SEQUENCE_WORDS)
    return Sequences(
        hashes_S, documents_S.astype(np.int64), np.frombuffer(b"".join(whole), np.uint64)
    )


def _word_hashes(text: str) -> NDArray[np.uint64]:
    """Returns a well-mixed hash of each word; case and the kind of white space do not matter."""
    data = " ".join(text.casefold().split()).encode("utf-8")
    hashes = [_piece_hashes(np.frombuffer(piece, np.uint8)) for piece in _pieces(data)]
    return seeded_hash(np.concatenate([np.zeros(0, np.uint64), *hashes]), 0)


def _pieces(data: bytes) -> Iterator[bytes]:
    """Yields pieces of whole words, so that memory does not grow with a document."""
    start = 0
    while start < len(data):
        end = data.find(b" ", start + _PIECE_BYTES)
        end = len(data) if end < 0 else end
        yield data[start:end]
        start = end + 1


def _piece_hashes(bytes_C: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns sum over i of (b_i + 1) m^i modulo 2^64 for each word b_0 b_1 ..."""
    is_space_C = bytes_C == ord(" ")
    start_W = np.concatenate([[0], np.flatnonzero(is_space_C) + 1])
    length_W = np.diff(start_W, append=len(bytes_C) + 1)
    place_C = np.arange(len(bytes_C)) - np.repeat(start_W, length_W)[: len(bytes_C)]

    value_C = (bytes_C.astype(np.uint64) + np.uint64(1)) * _powers(int(length_W.max()))[place_C]
    value_C[is_space_C] = 0
    hashes_W: NDArray[np.uint64] = np.add.reduceat(value_C, start_W)
    return hashes_W


def _powers(count: int) -> NDArray[np.uint64]:
    """Returns at least so many powers of the multiplier, from m^0 on."""
    return _powers_of_two_many(max(64, 1 << (count - 1).bit_length()))


@functools.lru_cache(maxsize=2)
def _powers_of_two_many(count: int) -> NDArray[np.uint64]:
    factors = np.full(count, _MULTIPLIER, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


@dataclasses.dataclass(frozen=True)
class HeldOutSequences:
    """The sequences of all held-out documents.

    Attributes:
        hashes_S: Sorted hashes of sequences, without boilerplate.
        rank_S: Lowest rank of a set with the sequence.
        whole_M: Sorted hashes of all words of a document.
        rank_M: Lowest rank of a set with such a document.
    """

    hashes_S: NDArray[np.uint64]
    rank_S: NDArray[np.int64]
    whole_M: NDArray[np.uint64]
    rank_M: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequences, NDArray[np.int64]]]) -> HeldOutSequences:
        """Collects the sequences of documents.

        Args:
            parts: Sequences of documents, with the rank_N of the documents' sets.
        """
        none = np.zeros(0, np.int64)
        distinct = [(*_distinct(part.hashes_S, part.documents_S), rank_N) for part, rank_N in parts]
        hashes = np.concatenate([none.astype(np.uint64), *(each for each, _, _ in distinct)])
        ranks = np.concatenate([none, *(rank_N[which] for _, which, rank_N in distinct)])
        hashes_S, rank_S, documents_S = _lowest(hashes, ranks)
        usual_S = documents_S <= MAX_DOCUMENTS

        whole = np.concatenate([none.astype(np.uint64), *(part.whole_N for part, _ in parts)])
        whole_M, rank_M, _ = _lowest(whole, np.concatenate([none, *(r for _, r in parts)]))
        return cls(hashes_S[usual_S], rank_S[usual_S], whole_M, rank_M)

    def matches(
        self, sequences: Sequences, rank_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Returns what documents have in common with sets of lower ranks than their own.

        Args:
            sequences: Sequences of documents.
            rank_N: Rank of each document's set.

        Returns:
            Distinct rows (document, index of a sequence in `hashes_S`), and whether each document
            has the same words as one of a lower rank.
        """
        at_S, has_S = _find(self.hashes_S, sequences.hashes_S)
        has_S[has_S] = self.rank_S[at_S[has_S]] < rank_N[sequences.documents_S[has_S]]
        at_S, document_S = _distinct(at_S[has_S], sequences.documents_S[has_S])
        shared = np.column_stack([document_S, at_S])

        at_N, equal_N = _find(self.whole_M, sequences.whole_N)
        equal_N[equal_N] = self.rank_M[at_N[equal_N]] < rank_N[equal_N]
        return shared, equal_N

    def near_duplicates(
        self, shared: NDArray[np.int64], equal_N: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Returns which documents are near-duplicates of sets of lower ranks.

        Sequences in more than MAX_DOCUMENTS documents are boilerplate, and do not count.

        Args:
            shared: Rows that `matches` returned, for all documents of the corpus.
            equal_N: Whether each document has equal words.
        """
        documents_S = np.bincount(shared[:, 1], minlength=len(self.hashes_S))
        counts = documents_S[shared[:, 1]] <= MAX_DOCUMENTS
        number_N = np.bincount(shared[counts, 0], minlength=len(equal_N))
        return equal_N | (number_N >= MIN_SHARED)


def _distinct(values: NDArray[Any], documents: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """Returns values and their documents without repeats within a document."""
    order = np.lexsort((values, documents))
    values, documents = values[order], documents[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (documents[1:] != documents[:-1])
    return values[new], documents[new]


def _lowest(
    hashes: NDArray[np.uint64], ranks: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the distinct hashes, the lowest rank of each, and how often each occurs."""
    order = np.lexsort((ranks, hashes))
    distinct, first, times = np.unique(hashes[order], return_index=True, return_counts=True)
    return distinct, ranks[order][first], times


def _find(
    sorted_S: NDArray[np.uint64], wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the place of each wanted hash, and whether it is there."""
    at = np.searchsorted(sorted_S, wanted)
    found = at < len(sorted_S)
    found[found] = sorted_S[at[found]] == wanted[found]
    return at, found
