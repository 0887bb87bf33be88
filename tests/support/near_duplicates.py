"""Near-duplicates by brute force, and corpora with planted ones."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
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
