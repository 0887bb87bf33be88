"""Exact selection: which documents a rule keeps, whatever the corpus's size or the workers' order.

Documents stand in one total order, better first:

    (score DESC, seeded hash of the key ASC, split ordinal ASC, position ASC).

Scores become ordered integers (`ordered_bits`), the seeded hash breaks ties without favouring any
source or file, and the last two make the order total: no two documents share a split and a
position. Split ordinals follow (path, start), so they stand for the input path.

Joined, the four are one 192-bit integer, the *rank key*; smaller is better:

    key = (2^32 - 1 - bits(score)) * 2^160 + hash * 2^96 + ordinal * 2^64 + position

A rule keeps the documents whose key is below one number, the *cutoff*. It is found by descent, as
in a radix sort: a sparse histogram over the key's next digit says in which bin the cutoff lies, and
the next histogram counts only what lies in that bin. Histograms carry documents and tokens, and
merge by addition, so that the descent needs nothing but small sums from the workers. As soon as the
documents still undecided are few they are gathered and sorted, which ends it. All this is
arithmetic on arrays: no input, no output.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The rank key's digits from the most significant: score (2), seeded hash (4), split ordinal,
# position.
LEVEL_BITS = (16, 16, 16, 16, 16, 16, 32, 64)
LAST_LEVEL = len(LEVEL_BITS) - 1
KEY_BITS = sum(LEVEL_BITS)
SHIFTS = tuple(sum(LEVEL_BITS[level + 1 :]) for level in range(len(LEVEL_BITS)))

MASK_64 = (1 << 64) - 1


class SelectionError(ValueError):
    """A rule that says nothing, or counts that contradict each other."""


def ordered_bits(scores_N: ArrayLike) -> NDArray[np.uint32]:
    """Maps float32 scores to integers of the same order.

    A float's bits, read as an integer, are already ordered among the positive; the negative are
    ordered backwards below them. So the sign bit is set for the positive and all bits are flipped
    for the negative. -0 counts as +0: two documents that score nothing are tied.

    Args:
        scores_N: scores, float32, finite.

    Returns:
        uint32 of the same shape: a < b exactly where the scores are.

    Raises:
        SelectionError: a score is not finite.

    Example:
        >>> ordered_bits(np.float32([-1.0, -0.0, 0.0, 2.5])).argsort(kind="stable").tolist()
        [0, 1, 2, 3]
    """
    scores_N = np.asarray(scores_N, np.float32)
    if not np.isfinite(scores_N).all():
        raise SelectionError(
            "a score that is not finite has no place in the order: reject the document"
        )
    bits_N = (scores_N + np.float32(0)).view(np.uint32)  # -0 + 0 is +0
    negative_N = bits_N >> np.uint32(31) == 1
    return np.where(negative_N, ~bits_N, bits_N | np.uint32(1 << 31)).astype(np.uint32)


def key_hash(key: str) -> int:
    """The unseeded 64-bit hash of a document's key: BLAKE2b with 8 bytes, little end first.

    It is stored in score files, so that a selection with another seed reads no keys.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _splitmix64(values_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))


def seeded_hash(key_hashes_N: ArrayLike, seed: int) -> NDArray[np.uint64]:
    """Mixes a seed into key hashes: SplitMix64's finaliser of hash XOR mix(seed).

    The finaliser is a bijection: keys that differ in their hash still do.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Args:
        key_hashes_N: uint64, as `key_hash` gives them.
        seed: any integer; taken modulo 2^64.

    Returns:
        uint64 of the same shape.
    """
    increment = 0x9E3779B97F4A7C15
    mixed_seed = _splitmix64(np.asarray([(seed + increment) & MASK_64], np.uint64))
    return _splitmix64(np.asarray(key_hashes_N, np.uint64) ^ mixed_seed[0])


# --- rank keys and histograms
# ------------------------------------------------------------------------


@dataclass(frozen=True)
class RankKeys:
    """The rank keys of N documents, by column, with their tokens.

    Attributes:
        order_N: uint32, 2^32 - 1 - ordered bits of the score: smaller is better.
        hashes_N: uint64, seeded hashes.
        ordinals_N: uint32, split ordinals.
        positions_N: uint64, positions in the input.
        tokens_N: int64.
    """

    order_N: NDArray[np.uint32]
    hashes_N: NDArray[np.uint64]
    ordinals_N: NDArray[np.uint32]
    positions_N: NDArray[np.uint64]
    tokens_N: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        scores_N: ArrayLike,
        key_hashes_N: ArrayLike,
        seed: int,
        ordinals_N: ArrayLike,
        positions_N: ArrayLike,
        tokens_N: ArrayLike,
    ) -> "RankKeys":
        """The keys of scored documents.

        Args:
            scores_N: float32, finite.
            key_hashes_N: uint64, unseeded (`key_hash`).
            seed: of the hash that breaks ties.
            ordinals_N: split ordinals; one number stands for all.
            positions_N: positions in the input, not negative.
            tokens_N: tokens of the whole document.

        Raises:
            SelectionError: a score is not finite.
        """
        order_N = np.uint32(0xFFFFFFFF) - ordered_bits(scores_N)
        count = len(order_N)
        return cls(
            order_N,
            seeded_hash(key_hashes_N, seed),
            np.broadcast_to(np.asarray(ordinals_N, np.uint32), (count,)),
            np.asarray(positions_N, np.uint64),
            np.asarray(tokens_N, np.int64),
        )

    @classmethod
    def empty(cls) -> "RankKeys":
        """No documents."""
        return cls.of(np.zeros(0, np.float32), np.zeros(0, np.uint64), 0, 0, [], [])

    @classmethod
    def concatenate(cls, parts: Iterable["RankKeys"]) -> "RankKeys":
        """All documents of several."""
        columns = [(p.order_N, p.hashes_N, p.ordinals_N, p.positions_N, p.tokens_N) for p in parts]
        if not columns:
            return cls.empty()
        return cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    def __len__(self) -> int:
        return len(self.order_N)

    def take(self, chosen: NDArray[Any]) -> "RankKeys":
        """The documents of a mask or of indices."""
        return RankKeys(
            self.order_N[chosen],
            self.hashes_N[chosen],
            self.ordinals_N[chosen],
            self.positions_N[chosen],
            self.tokens_N[chosen],
        )

    def below(self, end: int) -> NDArray[np.bool_]:
        """Which keys are smaller (better) than a 192-bit number."""
        if end <= 0:
            return np.zeros(len(self), bool)
        if end >> KEY_BITS:
            return np.ones(len(self), bool)
        order, rest = divmod(end, 1 << 160)
        hash_, rest = divmod(rest, 1 << 96)
        ordinal, position = divmod(rest, 1 << 64)
        mask_N = self.positions_N < np.uint64(position)
        for column_N, bound in (
            (self.ordinals_N, np.uint32(ordinal)),
            (self.hashes_N, np.uint64(hash_)),
            (self.order_N, np.uint32(order)),
        ):
            mask_N = (column_N < bound) | ((column_N == bound) & mask_N)
        return mask_N

    def below_each(self, ends: "Ends", codes_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which keys are smaller (better) than the end of their own group.

        Args:
            ends: of S groups.
            codes_N: the group of each key, an index into them.
        """
        mask_N = self.positions_N < ends.positions_S[codes_N]
        for column_N, ends_S in (
            (self.ordinals_N, ends.ordinals_S),
            (self.hashes_N, ends.hashes_S),
            (self.order_N, ends.order_S),
        ):
            bounds_N = ends_S[codes_N]
            mask_N = (column_N < bounds_N) | ((column_N == bounds_N) & mask_N)
        return mask_N

    def digits(self, level: int) -> NDArray[np.uint64]:
        """The keys' digit at a level (see `LEVEL_BITS`)."""
        if level == LAST_LEVEL:
            return self.positions_N
        if level == LAST_LEVEL - 1:
            return self.ordinals_N.astype(np.uint64)
        if level < 2:
            return (self.order_N >> np.uint32(16 - 16 * level)).astype(np.uint64) & np.uint64(
                0xFFFF
            )
        return (self.hashes_N >> np.uint64(48 - 16 * (level - 2))) & np.uint64(0xFFFF)

    def key(self, index: int) -> int:
        """One document's rank key as an integer."""
        return (
            (int(self.order_N[index]) << 160)
            | (int(self.hashes_N[index]) << 96)
            | (int(self.ordinals_N[index]) << 64)
            | int(self.positions_N[index])
        )


@dataclass(frozen=True)
class Ends:
    """The 192-bit ends of S groups, by column; an end past all keys has an order of 2^32."""

    order_S: NDArray[np.uint64]
    hashes_S: NDArray[np.uint64]
    ordinals_S: NDArray[np.uint64]
    positions_S: NDArray[np.uint64]

    @classmethod
    def of(cls, ends: Sequence[int]) -> "Ends":
        """From integers."""
        columns = [
            (end >> 160, end >> 96 & MASK_64, end >> 64 & 0xFFFFFFFF, end & MASK_64) for end in ends
        ]
        return cls(*np.asarray(columns, np.uint64).reshape(len(columns), 4).T)
