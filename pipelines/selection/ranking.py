"""Ranking: the total order in which documents are kept.

Documents are in one total order, the best first:

    (score DESC, seeded hash of the key ASC, split ordinal ASC, position ASC).

Scores become integers, their *orders* (`orders_of`). The seeded hash breaks ties without favoring
any source or file. The last two make the order total: no two documents share a split and a
position. Split ordinals follow (path, start), so they represent the input path.

Joined, the four are one 192-bit integer, the *rank key*; smaller is better:

    key = order(score) * 2^160 + hash * 2^96 + ordinal * 2^64 + position

A rule keeps the documents whose key is below one number, the *cutoff*, which
`datarater.pipelines.selection.descent` finds. Everything here is arithmetic on arrays, without
input or output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
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
    """A rule has an invalid value, or counts contradict each other."""


class UnknownSourceError(SelectionError):
    """A weight names a source that the corpus does not have."""


def orders_of(scores_N: ArrayLike) -> NDArray[np.uint32]:
    """Maps float32 scores to integers, the best score to the smallest.

    The bits of negative floats, read as integers, rise as the score falls, and stay as they are.
    Those of positive floats are smaller but rise with the score, so all except the sign bit are
    flipped. -0 counts as +0: two documents that score zero are tied.

    Args:
        scores_N: Finite scores, float32.

    Returns:
        Orders of the same shape, uint32; a < b exactly where the first score is higher.

    Raises:
        SelectionError: A score is not finite.

    Example:
        >>> orders_of(np.float32([2.5, 0.0, -0.0, -1.0])).argsort(kind="stable").tolist()
        [0, 1, 2, 3]
    """
    scores_N = np.asarray(scores_N, np.float32)
    if not np.isfinite(scores_N).all():
        raise SelectionError("a score that is not finite cannot be ranked: reject the document")
    return _flip_positive((scores_N + np.float32(0)).view(np.uint32))  # -0 + 0 is +0


def scores_of(orders_N: ArrayLike) -> NDArray[np.float32]:
    """Returns the scores that orders represent; not finite where no score has the order."""
    return _flip_positive(np.asarray(orders_N, np.uint32)).view(np.float32)


def _flip_positive(bits_N: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Flips all bits except the sign where the sign bit is clear; its own inverse."""
    is_negative_N = bits_N >> np.uint32(31) == 1
    return np.where(is_negative_N, bits_N, bits_N ^ np.uint32(0x7FFFFFFF))


def key_hash(key: str) -> int:
    """Returns the unseeded 64-bit hash of a document's key: 8 bytes of BLAKE2b, little-endian.

    Score files store this hash, so a selection with another seed does not read the keys again.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _splitmix64(values_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))


def seeded_hash(key_hashes_N: ArrayLike, seed: int) -> NDArray[np.uint64]:
    """Mixes a seed into key hashes: SplitMix64's finalizer of hash XOR mix(seed).

    The finalizer is a bijection: different hashes stay different.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Args:
        key_hashes_N: Unseeded hashes from `key_hash`, uint64.
        seed: Any integer; taken modulo 2^64.

    Returns:
        Seeded hashes of the same shape, uint64.
    """
    increment = 0x9E3779B97F4A7C15
    mixed_seed = _splitmix64(np.asarray([(seed + increment) & MASK_64], np.uint64))
    return _splitmix64(np.asarray(key_hashes_N, np.uint64) ^ mixed_seed[0])


@dataclass(frozen=True)
class RankKeys:
    """The rank keys of N documents, by column, with their tokens.

    Attributes:
        order_N: Orders of the scores, uint32; smaller is better.
        hashes_N: Seeded hashes of the keys, uint64.
        ordinals_N: Split ordinals, uint32.
        positions_N: Positions in the input, uint64.
        tokens_N: Token counts, int64.
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
    ) -> RankKeys:
        """Returns the rank keys of scored documents.

        Args:
            scores_N: Finite scores, float32.
            key_hashes_N: Unseeded hashes from `key_hash`, uint64.
            seed: Seed for tie-breaking.
            ordinals_N: Split ordinals, or one ordinal for all documents.
            positions_N: Nonnegative positions in the input.
            tokens_N: Token counts of the whole documents.

        Raises:
            SelectionError: A score is not finite.
        """
        order_N = orders_of(scores_N)
        count = len(order_N)
        return cls(
            order_N,
            seeded_hash(key_hashes_N, seed),
            np.broadcast_to(np.asarray(ordinals_N, np.uint32), (count,)),
            np.asarray(positions_N, np.uint64),
            np.asarray(tokens_N, np.int64),
        )

    @classmethod
    def empty(cls) -> RankKeys:
        """Returns the keys of no documents."""
        return cls.of(np.zeros(0, np.float32), np.zeros(0, np.uint64), 0, 0, [], [])

    @classmethod
    def concatenate(cls, parts: Iterable[RankKeys]) -> RankKeys:
        """Returns the keys of all parts, in their order."""
        columns = [part._columns for part in parts]
        if not columns:
            return cls.empty()
        return cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.order_N, self.hashes_N, self.ordinals_N, self.positions_N, self.tokens_N

    def __len__(self) -> int:
        return len(self.order_N)

    def take(self, chosen: NDArray[Any]) -> RankKeys:
        """Returns the keys that a mask or an array of indices selects."""
        return RankKeys(*(column_N[chosen] for column_N in self._columns))

    def between(self, low: int, high: int) -> RankKeys:
        """Returns the keys from one 192-bit number up to, but not including, another."""
        if low <= 0 and high >> KEY_BITS:
            return self
        return self.take(self.below(high) & ~self.below(low))

    def below(self, end: int) -> NDArray[np.bool_]:
        """Returns a mask of the keys that are smaller (better) than a 192-bit number."""
        if end <= 0:
            return np.zeros(len(self), bool)
        if end >> KEY_BITS:
            return np.ones(len(self), bool)

        order, rest = divmod(end, 1 << 160)
        hash_, rest = divmod(rest, 1 << 96)
        ordinal, position = divmod(rest, 1 << 64)

        bounds = np.uint64(position), np.uint32(ordinal), np.uint64(hash_), np.uint32(order)
        return self._below(iter(bounds))

    def below_each(self, ends: Ends, codes_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns a mask of the keys that are smaller (better) than the end of their own group.

        Args:
            ends: Ends of S groups.
            codes_N: Group of each key, an index into `ends`.
        """
        columns = ends.positions_S, ends.ordinals_S, ends.hashes_S, ends.order_S
        return self._below(column_S[codes_N] for column_S in columns)

    def _below(self, bounds: Iterator[Any]) -> NDArray[np.bool_]:
        """Compares lexicographically, from the least significant column up."""
        mask_N = self.positions_N < next(bounds)
        columns = self.ordinals_N, self.hashes_N, self.order_N
        for column_N, bound in zip(columns, bounds, strict=True):
            mask_N = (column_N < bound) | ((column_N == bound) & mask_N)
        return mask_N

    def digits(self, level: int) -> NDArray[np.uint64]:
        """Returns the digit of each key at a level (see `LEVEL_BITS`)."""
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
        """Returns the rank key of one document as a 192-bit integer."""
        return (
            (int(self.order_N[index]) << 160)
            | (int(self.hashes_N[index]) << 96)
            | (int(self.ordinals_N[index]) << 64)
            | int(self.positions_N[index])
        )


@dataclass(frozen=True)
class Ends:
    """The 192-bit ends of S groups, by column; an end above all keys has an order of 2^32."""

    order_S: NDArray[np.uint64]
    hashes_S: NDArray[np.uint64]
    ordinals_S: NDArray[np.uint64]
    positions_S: NDArray[np.uint64]

    @classmethod
    def of(cls, ends: Sequence[int]) -> Ends:
        """Returns the columns of a sequence of integers."""
        columns = [
            (end >> 160, end >> 96 & MASK_64, end >> 64 & 0xFFFFFFFF, end & MASK_64) for end in ends
        ]
        return cls(*np.asarray(columns, np.uint64).reshape(len(columns), 4).T)


def rows_by_code(
    codes_N: NDArray[np.int64], mask_N: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields the row numbers of a mask, code by code."""
    rows_M = np.flatnonzero(mask_N)
    rows_M = rows_M[np.argsort(codes_N[rows_M], kind="stable")]
    codes, firsts = np.unique(codes_N[rows_M], return_index=True)
    yield from zip(codes.tolist(), np.split(rows_M, firsts[1:]) if len(rows_M) else [], strict=True)
