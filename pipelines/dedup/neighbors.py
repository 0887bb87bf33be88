"""Neighbors: finds, among documents that share a bucket, those with a similar one above them.

A bucket is everything with the same hash: of a band, or of the whole text. Its documents are in the
run's total order (`datarater.pipelines.selection.ranking`). A document is compared with the best
ones of the bucket that rank above it, until one of them is similar enough. That one is its neighbor
in the bucket: the best of all similar ones.

At most `MAX_COMPARED` documents of a bucket are compared with all others. So the work is linear in
the number of documents, also where a bucket has a million, and no result depends on the order in
which they arrive. Buckets of up to `MAX_COMPARED` + 1 documents are compared in full.

Everything here is arithmetic on arrays, without input or output. E counts entries of documents in
buckets, K 64-bit words of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.dedup.entries import (
    RANK_FIELDS,
    Table,
    by_code,
    row_of,
    split_of,
)
from datarater.pipelines.dedup.signatures import similarities

MAX_COMPARED = 32
"""Number of documents of a bucket that all others are compared with, the best ones."""
MAX_ENTRIES = 2**20
"""Number of entries that are in memory at a time, unless more are of different buckets."""

_RANK = tuple(name for name, _ in RANK_FIELDS)
FOUND = np.dtype(
    [
        ("row", "<u4"),
        *((f"neighbor_{name}", kind) for name, kind in RANK_FIELDS),
        ("similarity", "<f4"),
        ("exact", "?"),
    ]
)
"""A document that has a neighbor: its row in its split's score file, and the neighbor's rank."""


def neighbors(
    blocks: Callable[[], Iterable[Table]],
    minimum: float,
    *,
    exact: bool = False,
    max_compared: int = MAX_COMPARED,
    max_entries: int = MAX_ENTRIES,
) -> Iterator[tuple[int, Table]]:
    """Finds the documents of buckets that have a neighbor above them.

    Args:
        blocks: Returns entries of whole buckets in blocks, in any order; called twice if they are
            too many to be in memory.
        minimum: Similarity from which two documents are neighbors.
        exact: Whether the neighbors have the same words.
        max_compared: Number of documents of a bucket that all others are compared with.
        max_entries: Number of entries to take into memory at a time.

    Yields:
        Ordinals of splits, and `FOUND` documents of each: one row for each bucket in which a
        document has a neighbor. A split can come several times.
    """
    # The best ones of each bucket stay in memory, and one more, which shows that there are others.
    # All are read again if they are many.
    best, part = None, None
    number = 0
    for part in _joined(blocks(), max_entries):
        best = _best(part if best is None else np.concatenate([best, part]), max_compared + 1)
        number += 1
    if best is None or part is None:
        return
    best = best[_by_bucket_and_rank(best)]

    parts = iter([part]) if number == 1 else _joined(blocks(), max_entries)
    for entries in parts:
        documents, found = _compared(entries, best, minimum, max_compared, exact)
        yield from by_code(split_of(documents["place"]), found)


def _joined(blocks: Iterable[Table], max_entries: int) -> Iterator[Table]:
    """Yields blocks that follow each other as one, of about `max_entries`."""
    waiting: list[Table] = []
    size = 0
    for block in blocks:
        waiting.append(block)
        size += len(block)
        if size >= max_entries:
            yield np.concatenate(waiting)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _best(entries: Table, most: int) -> Table:
    """Returns the entries without those that are not among the best of their buckets.

    Args:
        entries: Entries in any order.
        most: Number of entries of a bucket to keep.
    """
    _, buckets_E, sizes = np.unique(entries["bucket"], return_inverse=True, return_counts=True)
    is_large_E = sizes[buckets_E] > most
    if not is_large_E.any():
        return entries
    large = entries[is_large_E]
    large = large[_by_bucket_and_rank(large)]
    _, firsts, sizes = np.unique(large["bucket"], return_index=True, return_counts=True)
    within_L = np.arange(len(large)) - np.repeat(firsts, sizes)
    return np.concatenate([entries[~is_large_E], large[within_L < most]])


def _by_bucket_and_rank(entries: Table) -> NDArray[np.int64]:
    return np.lexsort([entries[name] for name in (*reversed(_RANK), "bucket")])


def _compared(
    entries: Table, best: Table, minimum: float, max_compared: int, exact: bool
) -> tuple[Table, Table]:
    """Compares entries with the best ones of their buckets.

    Args:
        entries: Entries in any order.
        best: The best entries of all their buckets, sorted by bucket and rank.
        minimum: Similarity from which two documents are neighbors.
        max_compared: Number of documents of a bucket that all others are compared with.
        exact: Whether the neighbors have the same words.

    Returns:
        The entries with a neighbor, and what was `FOUND` for each.
    """
    buckets, firsts, sizes = np.unique(best["bucket"], return_index=True, return_counts=True)
    several = sizes > 1
    buckets, firsts, sizes = buckets[several], firsts[several], sizes[several]
    entries = entries[np.isin(entries["bucket"], buckets)]
    buckets_E = np.searchsorted(buckets, entries["bucket"])

    # Round by round, all documents without a neighbor are compared with the next best one.
    waiting_M = np.arange(len(entries))
    who, whose, how_similar = [], [], []
    for number in range(min(int(sizes.max(initial=0)), max_compared)):
        waiting_M = waiting_M[sizes[buckets_E[waiting_M]] > number]
        others_M = firsts[buckets_E[waiting_M]] + number
        above_M = _is_above(best[others_M], entries[waiting_M])
        waiting_M, others_M = waiting_M[above_M], others_M[above_M]
        if not len(waiting_M):
            break
        similar_M = similarities(entries["sketch"][waiting_M], best["sketch"][others_M])
        close_M = similar_M >= np.float32(minimum)
        who.append(waiting_M[close_M])
        whose.append(others_M[close_M])
        how_similar.append(similar_M[close_M])
        waiting_M = waiting_M[~close_M]

    none = np.zeros(0, np.int64)
    entries, chosen = entries[np.concatenate([none, *who])], best[np.concatenate([none, *whose])]
    found = np.zeros(len(entries), FOUND)
    found["row"] = row_of(entries["place"])
    for name in _RANK:
        found[f"neighbor_{name}"] = chosen[name]
    found["similarity"] = np.concatenate([np.zeros(0, np.float32), *how_similar])
    found["exact"] = exact
    return entries, found


def _is_above(first: Table, second: Table) -> NDArray[np.bool_]:
    """Returns whether each entry ranks above the one at its place in another table."""
    above_M: NDArray[np.bool_] = first["place"] < second["place"]
    for name in ("tie", "order"):
        first_M, second_M = first[name], second[name]
        above_M = (first_M < second_M) | ((first_M == second_M) & above_M)
    return above_M


def best_neighbors(found: Table) -> Table:
    """Returns one row for each document: that of its best neighbor of all buckets, by row."""
    ranks = [found[f"neighbor_{name}"] for name in reversed(_RANK)]
    found = found[np.lexsort([*ranks, found["row"]])]
    _, firsts = np.unique(found["row"], return_index=True)
    return found[firsts]
