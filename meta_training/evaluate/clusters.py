"""Clusters of near-duplicate documents, so that learning and testing share none.

Two documents are near-duplicates if they have at least 3 distinct sequences of 13 consecutive words
in common. 13 words is the length at which GPT-3's and later evaluations look for contamination
(Brown et al., arXiv 2005.14165, appendix C). Words are separated by white space and compared
without case.

N counts documents, W words, S word sequences that several documents have.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.evaluate.keeping import seeded_hash
from datarater.rater_model.counted import counted
from datarater.rater_model.word_sequences import sequence_hashes

SEQUENCE_WORDS = 13
MIN_SHARED = 3
MAX_DOCUMENTS = 20
"""Sequences in more documents than this are boilerplate: a license, a mail header, a menu. Within
one corpus a text is quoted or published again a few times, seldom more often. The limit also bounds
the pairs of documents to (MAX_DOCUMENTS - 1) / 2 per sequence."""

_BATCH_WORDS = 1_000_000


def near_duplicate_clusters(
    texts: Iterable[str],
    works: Sequence[str] | None = None,
    max_documents: int = MAX_DOCUMENTS,
) -> NDArray[np.int64]:
    """Returns the cluster of each document, numbered in the order of their first documents.

    Documents are in one cluster if a chain of links connects them. Two are linked if they have
    equal words, at least MIN_SHARED distinct sequences of SEQUENCE_WORDS words in common, or the
    same work. Time and memory grow with the number of words: 40 MB of text take 5 seconds of a core
    and 400 MB. Sequences are compared by 64-bit hashes: among n of them, two differing ones have
    the same hash with a probability of n^2 / 2^65, 10^-6 for 5 million.

    Args:
        texts: Texts, read once.
        works: The work that each document is a part of; empty for unknown.
        max_documents: Sequences in more documents than this link none.

    Returns:
        Labels from 0, of shape N.

    Example:
        >>> story = " ".join(f"word{i}" for i in range(20))
        >>> near_duplicate_clusters([story, "Something else.", "He said: " + story]).tolist()
        [0, 1, 0]
    """
    parts = list(_Sequences().batches(texts))
    count = sum(len(part.whole) for part in parts)
    hashes_W = np.concatenate([part.hashes_W for part in parts] or [np.zeros(0, np.uint64)])
    documents_W = np.concatenate([part.documents_W for part in parts] or [np.zeros(0, np.int32)])
    links = [
        _equal_links([whole for part in parts for whole in part.whole]),
        _sequence_links(hashes_W, documents_W, count, max_documents),
    ]
    if works is not None:
        if len(works) != count:
            raise ValueError(
                f"{counted(len(works), 'work')} were given for {counted(count, 'document')}"
            )
        links.append(_equal_links(works))
    return _components(np.concatenate(links), count)


def near_duplicates_of(
    texts: Iterable[str], target: Iterable[str], max_documents: int = MAX_DOCUMENTS
) -> NDArray[np.bool_]:
    """Returns which documents are near-duplicates of the target.

    A document is one if the target as a whole has at least MIN_SHARED of its distinct sequences of
    SEQUENCE_WORDS words, or a document of the target has equal words.

    Args:
        texts: Texts of the pool, read once.
        target: Texts of the target, read once.
        max_documents: Sequences in more documents than this, of the pool or of the target, do not
            count.
    """
    sequences = _Sequences()
    whole: set[str] = set()
    found = [np.zeros((0, 2), np.uint64)]
    for part in sequences.batches(target):
        whole.update(part.whole)
        found.append(np.unique(np.column_stack([part.hashes_W, part.documents_W]), axis=0))
    hashes_S, documents_S = np.unique(np.concatenate(found)[:, 0], return_counts=True)
    hashes_S = hashes_S[documents_S <= max_documents]

    equal: list[bool] = []
    # Rows of (document, index of a sequence of the target), each once.
    shared = [np.zeros((0, 2), np.int64)]
    for part in sequences.batches(texts):
        equal.extend(each in whole for each in part.whole)
        at_W = np.searchsorted(hashes_S, part.hashes_W)
        hit_W = at_W < len(hashes_S)
        hit_W[hit_W] = hashes_S[at_W[hit_W]] == part.hashes_W[hit_W]
        shared.append(np.unique(np.column_stack([part.documents_W, at_W])[hit_W], axis=0))
    shared_pairs = np.concatenate(shared)
    of_pool_S = np.bincount(shared_pairs[:, 1], minlength=len(hashes_S))
    counted = of_pool_S[shared_pairs[:, 1]] <= max_documents
    number_N = np.bincount(shared_pairs[counted, 0], minlength=len(equal))
    return np.array(equal, bool) | (number_N >= MIN_SHARED)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The word sequences of consecutive documents.

    Attributes:
        whole: Digest of all words of each document.
        hashes_W: Hash of each sequence, uint64, in the documents' order.
        documents_W: Index of each sequence's document, int32.
    """

    whole: list[str]
    hashes_W: NDArray[np.uint64]
    documents_W: NDArray[np.int32]


class _Sequences:
    """Hashes word sequences; equal ones have equal hashes in everything that one object reads."""

    def __init__(self) -> None:
        # A new word gets the next number, so hashes do not depend on Python's salted ones.
        self._numbers: defaultdict[str, int] = defaultdict(lambda: len(self._numbers))

    def batches(self, texts: Iterable[str]) -> Iterator[_Batch]:
        """Yields the sequences of texts, about _BATCH_WORDS words at a time."""
        first, words, documents = 0, 0, list[NDArray[np.uint64]]()
        for text in texts:
            parts = text.casefold().split()
            numbers = map(self._numbers.__getitem__, parts)
            documents.append(np.fromiter(numbers, np.uint64, len(parts)))
            words += len(parts)
            if words >= _BATCH_WORDS:
                yield _batch(documents, first)
                first, words, documents = first + len(documents), 0, []
        if documents:
            yield _batch(documents, first)


def _batch(documents: Sequence[NDArray[np.uint64]], first: int) -> _Batch:
    whole = [hashlib.blake2b(each.tobytes(), digest_size=16).hexdigest() for each in documents]
    index_W = np.repeat(
        np.arange(first, first + len(documents), dtype=np.int32), [len(each) for each in documents]
    )
    mixed_W = seeded_hash(np.concatenate(documents), 0)
    return _Batch(whole, *sequence_hashes(mixed_W, index_W, SEQUENCE_WORDS))


def _equal_links(values: Sequence[str]) -> NDArray[np.int64]:
    """Returns pairs of consecutive documents with the same non-empty value, of shape links x 2."""
    same: defaultdict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        if value:
            same[value].append(index)
    links = [pair for documents in same.values() for pair in pairwise(documents)]
    return np.array(links, np.int64).reshape(-1, 2)


def _sequence_links(
    hashes_W: NDArray[np.uint64],
    documents_W: NDArray[np.int32],
    count: int,
    max_documents: int,
) -> NDArray[np.int64]:
    """Returns pairs of documents that connect all with MIN_SHARED sequences in common."""
    hashes_W, documents_W = _shared_once(hashes_W, documents_W)
    first_S = np.flatnonzero(np.diff(hashes_W, prepend=~hashes_W[:1]))
    size_S = np.diff(first_S, append=len(hashes_W))
    usable_S = (size_S >= 2) & (size_S <= max_documents)
    documents_W = documents_W[np.repeat(usable_S, size_S)].astype(np.int64)
    size_S = size_S[usable_S]
    if not len(size_S):
        return np.zeros((0, 2), np.int64)
    first_S = np.cumsum(size_S) - size_S

    # Copies have hundreds of sequences in common, all in the same set of documents. So count how
    # often each set occurs, and go on with one sequence per set.
    signature_S = np.add.reduceat(seeded_hash(documents_W, 1), first_S)
    _, example_S, times_S = np.unique(signature_S, return_index=True, return_counts=True)
    first_S, size_S = first_S[example_S], size_S[example_S]
    pairs, times = [], []
    for i, j in combinations(range(int(size_S.max())), 2):
        has_S = size_S > j
        pair = documents_W[first_S[has_S] + i], documents_W[first_S[has_S] + j]
        pairs.append(np.column_stack(pair))
        times.append(times_S[has_S])
    both = np.concatenate(pairs)
    key, inverse = np.unique(both[:, 0] * count + both[:, 1], return_inverse=True)
    shared = np.bincount(inverse, weights=np.concatenate(times))
    linked = key[shared >= MIN_SHARED]
    return np.column_stack([linked // count, linked % count])


def _shared_once(
    hashes_W: NDArray[np.uint64], documents_W: NDArray[np.int32]
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Sorts by hash, then document, and leaves out repeats within a document."""
    # Stable, so documents stay in ascending order among equal hashes.
    order_W = np.argsort(hashes_W, kind="stable")
    hashes_W, documents_W = hashes_W[order_W], documents_W[order_W]
    again_W = np.zeros(len(hashes_W), bool)
    again_W[1:] = (hashes_W[1:] == hashes_W[:-1]) & (documents_W[1:] == documents_W[:-1])
    return hashes_W[~again_W], documents_W[~again_W]


def _components(links: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns the connected component of each document, numbered by their first documents."""
    # SciPy takes long to import.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(links), np.int8)
    graph = coo_array((ones, (links[:, 0], links[:, 1])), shape=(count, count))
    _, component_N = connected_components(graph, directed=False)
    _, first, inverse_N = np.unique(component_N, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse_N]
