"""Signatures, entries and neighbors together, against the exact similarities of all pairs."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from datarater.pipelines.dedup.entries import (
    Table,
    band_entries,
    by_code,
    places_of,
    signed,
    text_entries,
)
from datarater.pipelines.dedup.neighbors import best_neighbors, neighbors
from datarater.pipelines.dedup.signatures import Bands
from tests.support.near_duplicates import changed, jaccard, planted

ERROR = 0.13
"""3.5 standard errors of the estimate."""


def deduplicated(
    texts: list[str], orders: list[int], similarity: float, splits: int, rng: random.Random
) -> dict[int, int]:
    """Returns the neighbor of each dropped document, as the steps of the graph find it.

    Args:
        texts: The texts, in the order of their places.
        orders: Orders of their scores, with ties.
        similarity: The required similarity.
        splits: Number of splits.
        rng: Shuffles what arrives in partitions.
    """
    bands = Bands.for_similarity(similarity)
    bounds = sorted(rng.sample(range(len(texts) + 1), splits - 1))
    tables: list[Table] = []
    numbers: dict[int, int] = {}
    for split, (start, end) in enumerate(itertools.pairwise([0, *bounds, len(texts)])):
        rows_N = np.arange(end - start)
        orders_N = np.asarray(orders[start:end], np.uint32)
        tables.append(signed(texts[start:end], bands, rows_N, orders_N, np.zeros_like(rows_N)))
        places = places_of(split, rows_N).tolist()
        numbers.update(zip(places, range(start, end), strict=True))

    def compared(entries: list[Table], minimum: float) -> dict[int, Table]:
        shuffled = np.concatenate(entries)[rng.sample(range(k := sum(map(len, entries))), k)]
        found: dict[int, list[Table]] = {}
        for _, part in by_code(shuffled["bucket"] % 3, shuffled):
            for split, table in neighbors(lambda part=part: [part], minimum):  # type: ignore[misc]
                found.setdefault(split, []).append(table)
        return {split: best_neighbors(np.concatenate(parts)) for split, parts in found.items()}

    equal = compared([text_entries(table, split) for split, table in enumerate(tables)], 1.0)
    left = [
        band_entries(table, split, equal[split]["row"] if split in equal else np.zeros(0))
        for split, table in enumerate(tables)
    ]
    similar = compared(left, similarity)
    dropped: dict[int, int] = {}
    for found in (equal, similar):
        for split, table in found.items():
            places = places_of(split, table["row"]).tolist()
            for place, neighbor in zip(places, table["neighbor_place"].tolist(), strict=True):
                assert numbers[place] not in dropped
                dropped[numbers[place]] = numbers[neighbor]
    return dropped


@pytest.mark.parametrize("similarity", [0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_dropped_has_a_better_neighbor_and_the_best_of_each_cluster_stays(
    seed: int, similarity: float
) -> None:
    rng = random.Random(seed)
    texts = planted(30, 90, seed).texts
    orders = [rng.randrange(10) for _ in texts]
    dropped = deduplicated(texts, orders, similarity, 4, rng)
    assert len(dropped) > 20

    ranked = sorted(range(len(texts)), key=lambda number: (orders[number], number))
    rank = {number: place for place, number in enumerate(ranked)}
    for number, neighbor in dropped.items():
        assert rank[neighbor] < rank[number]
        assert jaccard(texts[number], texts[neighbor]) > similarity - ERROR
    below = set()
    for better, worse in itertools.combinations(ranked, 2):
        similar = jaccard(texts[better], texts[worse])
        if similar > similarity + ERROR:
            assert worse in dropped
        if similar > similarity - ERROR:
            below.add(worse)

    # Of what any chain of neighbors connects, the best one has none above it.
    assert dropped.keys() <= below < set(ranked)


@pytest.mark.parametrize(("shared", "similarity"), [(0.85, 0.8), (0.6, 0.5)])
def test_near_duplicates_are_found_among_many_pages_of_a_template(
    shared: float, similarity: float
) -> None:
    """Bands of the template alone are full of pages, but those of a pair's own words are not."""
    rng = random.Random(1)
    words = [f"w{number}" for number in range(20_000)]
    template, own = rng.choices(words, k=round(200 * shared)), round(200 * (1 - shared))
    texts = [" ".join(template + rng.choices(words, k=own)) for _ in range(300)]
    texts += [changed(text, 0.01, rng, words) for text in texts[:50]]
    orders = rng.sample(range(len(texts)), len(texts))
    dropped = deduplicated(texts, orders, similarity, 2, rng)
    assert 0.05 < similarity - jaccard(texts[0], texts[1]) < 0.1
    for first, second in enumerate(range(300, 350)):
        assert (first if orders[first] > orders[second] else second) in dropped


@pytest.mark.parametrize("splits", [1, 2, 17])
def test_the_result_does_not_depend_on_the_splits_and_the_order(splits: int) -> None:
    texts = planted(20, 60, seed=9).texts
    orders = [len(text) % 5 for text in texts]
    expected = deduplicated(texts, orders, 0.8, 3, random.Random(0))
    assert deduplicated(texts, orders, 0.8, splits, random.Random(splits)) == expected
    assert expected
