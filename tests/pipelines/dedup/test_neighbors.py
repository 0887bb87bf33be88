from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.dedup.entries import Table, entry_type, places_of
from datarater.pipelines.dedup.neighbors import best_neighbors, neighbors
from datarater.pipelines.dedup.signatures import similarities

KIND = entry_type(1)
ENTRY = st.tuples(
    st.integers(0, 3),  # bucket
    st.integers(0, 2),  # order
    st.integers(0, 2),  # tie
    st.integers(0, 1),  # kind of sketch
)


def table(rows: list[tuple[int, int, int, int]]) -> Table:
    """Returns entries of as many documents, in splits of 7 rows; similar if of the same kind."""
    entries = np.zeros(len(rows), KIND)
    for number, (bucket, order, tie, sketch) in enumerate(rows):
        place = places_of(number // 7, np.asarray([number % 7]))[0]
        entries[number] = bucket, order, tie, place, [(0, 2**64 - 1)[sketch]]
    return entries


def found_in(
    entries: Table, max_compared: int = 32, max_entries: int = 10**6, blocks: int = 1
) -> dict[tuple[int, int], int]:
    """Returns the place of the neighbor of each document, by its split and row."""
    found: dict[tuple[int, int], int] = {}
    parts = np.array_split(entries, blocks)
    for split, part in neighbors(
        lambda: parts, 0.8, max_compared=max_compared, max_entries=max_entries
    ):
        for row, neighbor in zip(
            part["row"].tolist(), part["neighbor_place"].tolist(), strict=True
        ):
            assert (split, row) not in found
            found[split, row] = neighbor
    return found


def by_brute_force(entries: Table, most: int) -> dict[tuple[int, int], int]:
    """The best of the similar documents above each one, among the best of its bucket."""
    expected = {}
    ranked = sorted(entries.tolist(), key=lambda row: row[1:4])
    for bucket, order, tie, place, sketch in entries.tolist():
        best = [row for row in ranked if row[0] == bucket][:most]
        for other in best:
            if other[1:4] < (order, tie, place) and (other[4] == sketch).all():
                expected[place >> 32, place & 0xFFFFFFFF] = other[3]
                break
    return expected


@given(
    st.lists(ENTRY, max_size=40),
    st.integers(1, 12),
    st.integers(1, 50),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_neighbors_are_those_of_brute_force_whatever_the_order_and_the_memory(
    rows: list[tuple[int, int, int, int]], most: int, memory: int, blocks: int, rng: object
) -> None:
    entries = table(rows)
    order = list(range(len(entries)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    options = {"max_compared": most, "max_entries": memory, "blocks": blocks}
    assert found_in(entries[order], **options) == by_brute_force(entries, most)


def test_the_best_document_of_a_bucket_is_never_dropped_and_all_its_copies_are() -> None:
    entries = table([(0, 1, 0, 0)] * 100_000)
    entries["order"][54_321] = 0
    found = found_in(entries, max_entries=4096, blocks=50)
    assert len(found) == len(entries) - 1
    assert set(found.values()) == {int(entries["place"][54_321])}


def test_documents_of_a_full_bucket_are_compared_with_its_best_alone() -> None:
    """The work is linear: what ranks after the best ones is compared with nothing else."""
    rows = [(0, 0, 0, 0)] * 5 + [(0, 1, 0, 1)] * 5
    assert len(found_in(table(rows), max_compared=5)) == 4
    assert len(found_in(table(rows), max_compared=6)) == 8


def test_a_document_keeps_its_best_neighbor_of_several_buckets() -> None:
    rows = [(0, 1, 0, 0), (1, 0, 0, 0), (0, 2, 0, 0), (1, 2, 0, 0)]
    entries = table(rows)
    entries["place"][3] = entries["place"][2]
    parts = [part for _, part in neighbors(lambda: [entries], 0.8)]
    best = best_neighbors(np.concatenate(parts))
    assert best["neighbor_place"].tolist() == [entries["place"][1]]


def test_similarities_are_shares_of_equal_parts_without_those_by_chance() -> None:
    one = np.zeros((5, 2), np.uint64)
    other = np.asarray([[0, 0], [1, 0], [0xF0, 0], [2**64 - 1, 0], [2**64 - 1] * 2], np.uint64)
    shares = np.asarray([32, 31, 31, 16, 0]) / 32
    expected = np.maximum(0, (16 * shares - 1) / 15)
    np.testing.assert_allclose(similarities(one, other), expected, rtol=1e-6)
