"""Near-duplicates by brute force, and corpora with planted ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import datarater
from datarater.pipelines.selection.ranking import seeded_hash

SIMILARITY = 0.8
ERROR = 0.13
"""Distance from the similarity beyond which the estimate decides rightly, 3.5 standard errors."""

WORDS = [f"{first}{last}" for first in "bcdfghjklmnpqrst" for last in ("ab", "ed", "in", "ol", "u")]


@functools.lru_cache(maxsize=4096)
def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Returns the sequences of 5 words of a text in a script with spaces; all of a shorter one."""
    words = re.findall(r"\w+", text.casefold())
    if not words:
        return frozenset()
    return frozenset(tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4)))


def jaccard(first: str, second: str) -> float:
    """Returns the exact Jaccard similarity of the shingles of two texts.

    Texts without words are as similar as their characters are equal: 1 or 0.
    """
    one, other = shingles(first), shingles(second)
    if not one and not other:
        return float("".join(first.split()) == "".join(second.split()))
    return len(one & other) / len(one | other)


@dataclasses.dataclass(frozen=True)
class PlantedCorpus:
    """A corpus with copies of some of its documents.

    Attributes:
        texts: The texts, shuffled.
        origins: Number of the document that each is a copy of, or its own.
    """

    texts: list[str]
    origins: list[int]


def changed(text: str, share: float, rng: random.Random, words: Sequence[str] = WORDS) -> str:
    """Returns a text in which a share of the words, at random places, is replaced."""
    parts = text.split()
    for place in rng.sample(range(len(parts)), max(1, round(share * len(parts)))):
        parts[place] = rng.choice(words) + rng.choice(words)
    return " ".join(parts)


def shouted(text: str) -> str:
    """Returns a text with the same words, but with other case, spaces and punctuation."""
    return f"  {text.upper()} !\n".replace(" ", "  ")


def planted(count: int, copies: int, seed: int) -> PlantedCorpus:
    """Returns documents of 5 to 300 words, and copies of several kinds.

    A third of the copies has the same words; a third has 1% of its words replaced, so that the two
    are near-duplicates at a similarity of 0.8; the rest has 12% replaced, and they are not.

    Args:
        count: Number of documents that are not copies.
        copies: Number of copies.
        seed: Seed of the texts.
    """
    rng = random.Random(seed)
    texts = [
        " ".join(rng.choice(WORDS) + rng.choice(WORDS) for _ in range(rng.randint(5, 300)))
        for _ in range(count)
    ]
    origins = list(range(count))
    for number in range(copies):
        origin = rng.randrange(len(texts))
        text = texts[origin]
        if number % 3 and len(text.split()) < 100:
            continue
        kinds = shouted(text), changed(text, 0.01, rng), changed(text, 0.12, rng)
        texts.append(kinds[number % 3])
        origins.append(origins[origin])
    order = rng.sample(range(len(texts)), len(texts))
    return PlantedCorpus([texts[i] for i in order], [origins[i] for i in order])


Place = tuple[str, int]
"""Path of a file, and position of a document in it."""


@dataclasses.dataclass(frozen=True)
class ComparedCorpus:
    """The scored documents of a run and what was found, by file and position."""

    texts: dict[Place, str]
    order: list[Place]
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Path, duplicates: Path, seed: int = 0) -> ComparedCorpus:
        """Reads a run, whose documents it ranks by itself."""
        scores = [row for row in datarater.read_scores(run).to_pylist() if row["key"] is not None]
        hashes = seeded_hash(np.asarray([row["key_hash"] for row in scores], np.uint64), seed)
        ranked = sorted(
            zip(scores, hashes.tolist(), strict=True),
            key=lambda pair: (-pair[0]["score"], pair[1], pair[0]["file"], pair[0]["position"]),
        )
        texts: dict[Place, str] = {}
        for path in {row["file"] for row in scores}:
            position = 0
            for line in Path(path).read_bytes().splitlines(keepends=True):
                if line.startswith(b"{"):
                    texts[path, position] = json.loads(line)["text"]
                position += len(line)
        order = [(row["file"], row["position"]) for row, _ in ranked]
        return cls(texts, order, pq.read_table(duplicates / "documents").to_pylist())

    def dropped(self) -> dict[Place, dict[str, Any]]:
        """Returns what was found, by the place of the document."""
        found = {(row["file"], row["position"]): row for row in self.rows}
        assert len(found) == len(self.rows)
        return found

    def check(self) -> None:
        """Compares with the exact similarities of all pairs."""
        rank = {place: number for number, place in enumerate(self.order)}
        assert rank.keys() == self.texts.keys()
        dropped = self.dropped()
        for place, row in dropped.items():
            neighbor = row["duplicate_of_file"], row["duplicate_of_position"]
            assert rank[neighbor] < rank[place]
            exact = jaccard(self.texts[place], self.texts[neighbor])
            assert exact >= SIMILARITY - ERROR
            assert abs(row["similarity"] - exact) < ERROR
            assert row["exact"] <= (exact == 1)

        # All that must be found is found, and the best of each cluster of possible neighbors stays.
        cluster = {place: place for place in self.order}
        for (better, worse), similarity in self._pairs():
            if similarity >= SIMILARITY + ERROR:
                assert worse in dropped
            if similarity >= SIMILARITY - ERROR:
                old, new = cluster[worse], cluster[better]
                cluster = {place: new if top == old else top for place, top in cluster.items()}
        for top in set(cluster.values()):
            best = min((place for place in self.order if cluster[place] == top), key=rank.get)  # type: ignore[arg-type]
            assert best not in dropped

    def _pairs(self) -> list[tuple[tuple[Place, Place], float]]:
        """Returns all pairs that are not very different, the better document first."""
        similar = (
            ((better, worse), jaccard(self.texts[better], self.texts[worse]))
            for better, worse in itertools.combinations(self.order, 2)
        )
        return [(pair, similarity) for pair, similarity in similar if similarity > 0.5]

    def left(self) -> list[Place]:
        """Returns the documents that are not near-duplicates, the best first."""
        dropped = self.dropped()
        return [place for place in self.order if place not in dropped]
