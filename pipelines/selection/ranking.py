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
input or output. It runs over a corpus several times, so long arrays are taken in blocks that stay
in the processor's cache, and hashes are mixed only where scores are equal.
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

# Bits of float32 values, the last one as a signed integer.
_INFINITY = 0x7F800000
_MINUS_INFINITY = 0xFF800000
_MINUS_ZERO = -0x80000000

# The bits of a rank key that follow the score, and those that follow the hash.
_BELOW_SCORE = (1 << SHIFTS[1]) - 1
_BELOW_HASH = (1 << SHIFTS[5]) - 1

_SIGN = 0x80000000
_BLOCK = 65_536


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
    scores_N = _rankable(scores_N)
    orders_N = np.empty(scores_N.shape, np.uint32)
    for block in _blocks(scores_N.size):
        orders_M = orders_N.reshape(-1)[block]
        orders_M[:] = scores_N.reshape(-1)[block].view(np.uint32)
        _flip_positive(orders_M)
    return orders_N


def _rankable(scores_N: ArrayLike) -> NDArray[np.float32]:
    """Returns finite scores with +0 in place of -0; a copy only if there is a -0.

    Raises:
        SelectionError: A score is not finite.
    """
    scores_N = np.asarray(scores_N, np.float32)

    # As integers, the bits of infinity and NaN are the largest ones of their sign, and those of -0
    # the smallest.
    smallest = 0
    for block in _blocks(scores_N.size):
        bits_M = scores_N.reshape(-1)[block].view(np.int32)
        smallest = min(smallest, bits_M.min())
        if bits_M.max() >= _INFINITY or bits_M.view(np.uint32).max() >= _MINUS_INFINITY:
            raise SelectionError("a score that is not finite cannot be ranked: reject the document")
    return scores_N if smallest > _MINUS_ZERO else scores_N + np.float32(0)


def scores_of(orders_N: ArrayLike) -> NDArray[np.float32]:
    """Returns the scores that orders represent; not finite where no score has the order."""
    bits_N = np.array(orders_N, np.uint32)
    _flip_positive(bits_N.reshape(-1))
    return bits_N.view(np.float32)


def _flip_positive(bits_N: NDArray[np.uint32]) -> None:
    """Flips in place all bits except the sign where the sign bit is clear; its own inverse."""
    # A signed shift fills the mask with the sign: all ones where it is set, otherwise zeros.
    flips_N = bits_N.view(np.int32) >> 31
    np.invert(flips_N, out=flips_N)
    flips_N &= 0x7FFFFFFF
    bits_N ^= flips_N.view(np.uint32)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(first, first + _BLOCK) for first in range(0, count, _BLOCK))


def key_hash(key: str) -> int:
    """Returns the unseeded 64-bit hash of a document's key: 8 bytes of BLAKE2b, little-endian.

    Score files store this hash, so a selection with another seed does not read the keys again.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _splitmix64(values_N: NDArray[np.uint64]) -> None:
    """Applies SplitMix64's finalizer in place."""
    values_N ^= values_N >> np.uint64(30)
    values_N *= np.uint64(0xBF58476D1CE4E5B9)
    values_N ^= values_N >> np.uint64(27)
    values_N *= np.uint64(0x94D049BB133111EB)
    values_N ^= values_N >> np.uint64(31)


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
    mixed_seed = np.asarray([(seed + increment) & MASK_64], np.uint64)
    _splitmix64(mixed_seed)

    key_hashes_N = np.asarray(key_hashes_N, np.uint64)
    hashes_N = np.empty(key_hashes_N.shape, np.uint64)
    for block in _blocks(len(hashes_N)):
        np.bitwise_xor(key_hashes_N[block], mixed_seed, out=hashes_N[block])
        _splitmix64(hashes_N[block])
    return hashes_N


@dataclass(frozen=True)
class RankKeys:
    """The rank keys of N documents, by column, with their tokens.

    Attributes:
        seed: Seed for tie-breaking.
        scores_N: Finite scores without -0, float32.
        key_hashes_N: Unseeded hashes of the keys, uint64.
        ordinals_N: Split ordinals, uint32.
        positions_N: Positions in the input, uint64.
        tokens_N: Token counts, int64.
    """

    seed: int
    scores_N: NDArray[np.float32]
    key_hashes_N: NDArray[np.uint64]
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
        scores_N = _rankable(scores_N)
        positions_N = np.asarray(positions_N)
        if positions_N.dtype == np.int64:
            positions_N = positions_N.view(np.uint64)  # saves a copy
        return cls(
            seed,
            scores_N,
            np.asarray(key_hashes_N, np.uint64),
            np.broadcast_to(np.asarray(ordinals_N, np.uint32), scores_N.shape),
            positions_N.astype(np.uint64, copy=False),
            np.asarray(tokens_N, np.int64),
        )

    @classmethod
    def empty(cls) -> RankKeys:
        """Returns the keys of no documents."""
        return cls.of(np.zeros(0, np.float32), np.zeros(0, np.uint64), 0, 0, [], [])

    @classmethod
    def concatenate(cls, parts: Iterable[RankKeys]) -> RankKeys:
        """Returns the keys of all parts, in their order.

        Raises:
            SelectionError: The parts have several seeds.
        """
        several = [part for part in parts if len(part)]
        if not several:
            return cls.empty()
        seeds = {part.seed for part in several}
        if len(seeds) > 1:
            raise SelectionError(f"rank keys of several seeds cannot be compared: {sorted(seeds)}")
        columns = zip(*(part._columns for part in several), strict=True)
        return cls(several[0].seed, *map(np.concatenate, columns))

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return (
            self.scores_N,
            self.key_hashes_N,
            self.ordinals_N,
            self.positions_N,
            self.tokens_N,
        )

    def orders(self) -> NDArray[np.uint32]:
        """Returns the orders of the scores; smaller is better."""
        return orders_of(self.scores_N)

    def hashes(self) -> NDArray[np.uint64]:
        """Returns the seeded hashes of the keys."""
        return seeded_hash(self.key_hashes_N, self.seed)

    def __len__(self) -> int:
        return len(self.scores_N)

    def take(self, chosen: NDArray[Any]) -> RankKeys:
        """Returns the keys that a mask or an array of indices selects."""
        rows_M = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        # A column that repeats one value, without storing it N times, is only cut to length.
        return RankKeys(
            self.seed,
            *(
                column_N[: len(rows_M)] if column_N.strides == (0,) else column_N.take(rows_M)
                for column_N in self._columns
            ),
        )

    def parts(self, size: int = _BLOCK) -> Iterator[RankKeys]:
        """Yields the keys in parts of at most `size`, without copying them."""
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield RankKeys(self.seed, *(column_N[part] for column_N in self._columns))

    def between(self, low: int, high: int) -> RankKeys:
        """Returns the keys from one 192-bit number up to, but not including, another."""
        if low <= 0 and high >> KEY_BITS:
            return self
        low, high = max(low, 0), min(high, 1 << KEY_BITS)
        if low >= high:
            return self.take(np.zeros(0, np.int64))

        # Most keys are outside because of their scores alone, and most tied ones because of their
        # hashes. The other columns are only read of the rest.
        first, last = low >> SHIFTS[1], (high - 1) >> SHIFTS[1]
        rows_M = np.flatnonzero(self._ordered(first, last))
        ends = low | high
        if first == last and ends & _BELOW_SCORE:
            hashes_M = seeded_hash(self.key_hashes_N.take(rows_M), self.seed)
            smallest, largest = low >> SHIFTS[5] & MASK_64, (high - 1) >> SHIFTS[5] & MASK_64
            rows_M = rows_M[hashes_M - np.uint64(smallest) <= np.uint64(largest - smallest)]
            ends &= _BELOW_HASH
        near = self.take(rows_M)
        if not ends & _BELOW_SCORE:
            return near
        return near.take(near.below(high) & ~near.below(low))

    def below(self, end: int) -> NDArray[np.bool_]:
        """Returns a mask of the keys that are smaller (better) than a 192-bit number."""
        if end <= 0:
            return np.zeros(len(self), bool)
        if end >> KEY_BITS:
            return np.ones(len(self), bool)
        order = end >> SHIFTS[1]
        mask_N = self._ordered(0, order - 1) if order else np.zeros(len(self), bool)
        if end & _BELOW_SCORE:
            self._mark_ties(mask_N, self._ordered(order, order), Ends.of([end]), None)
        return mask_N

    def below_each(self, ends: Ends, codes_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns a mask of the keys that are smaller (better) than the end of their own group.

        Args:
            ends: Ends of S groups.
            codes_N: Group of each key, an index into `ends`.
        """
        orders_N, bounds_N = self.orders(), ends.order_S[codes_N]
        mask_N = orders_N < bounds_N
        self._mark_ties(mask_N, orders_N == bounds_N, ends, codes_N)
        return mask_N

    def _ordered(self, first: int, last: int) -> NDArray[np.bool_]:
        """Returns a mask of the scores from one order to another one, which is included."""
        bits_N = self.scores_N.view(np.uint32)
        if last < _SIGN:
            first, last = last ^ (_SIGN - 1), first ^ (_SIGN - 1)  # positive scores; see orders_of
        elif first < _SIGN:
            bits_N = self.orders()

        # Unsigned differences wrap around, so one comparison checks both ends.
        return bits_N - np.uint32(first) <= np.uint32(last - first)

    def _mark_ties(
        self,
        mask_N: NDArray[np.bool_],
        tied_N: NDArray[np.bool_],
        ends: Ends,
        codes_N: NDArray[np.int64] | None,
    ) -> None:
        """Completes a mask of the keys below an end by those whose score is that of the end.

        Args:
            mask_N: Mask of the keys whose score alone is below the end; it is completed in place.
            tied_N: Mask of the keys whose score is that of the end.
            ends: Ends of S groups.
            codes_N: Group of each key, an index into `ends`; None if there is one group.
        """
        rows_M = np.flatnonzero(tied_N)
        if not len(rows_M):
            return
        tied, codes_M = self.take(rows_M), 0 if codes_N is None else codes_N[rows_M]

        # Lexicographically, from the least significant column up.
        below_M = tied.positions_N < ends.positions_S[codes_M]
        columns = (tied.ordinals_N, ends.ordinals_S), (tied.hashes(), ends.hashes_S)
        for column_M, ends_S in columns:
            ends_M = ends_S[codes_M]
            below_M = (column_M < ends_M) | ((column_M == ends_M) & below_M)
        mask_N[rows_M] = below_M

    def digits(self, level: int) -> NDArray[np.uint64]:
        """Returns the digit of each key at a level (see `LEVEL_BITS`)."""
        if level == LAST_LEVEL:
            return self.positions_N
        if level == LAST_LEVEL - 1:
            return self.ordinals_N.astype(np.uint64)
        if level < 2:
            digits_N = self.orders() >> np.uint32(16 - 16 * level)
            return (digits_N & np.uint32(0xFFFF)).astype(np.uint64)
        return (self.hashes() >> np.uint64(48 - 16 * (level - 2))) & np.uint64(0xFFFF)

    def key(self, index: int) -> int:
        """Returns the rank key of one document as a 192-bit integer."""
        (order,) = orders_of(self.scores_N[index : index + 1])
        (hash_,) = seeded_hash(self.key_hashes_N[index : index + 1], self.seed)
        return (
            (int(order) << 160)
            | (int(hash_) << 96)
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
    codes_M = codes_N[rows_M]
    if len(codes_M) and codes_M.max() <= np.iinfo(np.uint16).max:
        codes_M = codes_M.astype(np.uint16)  # NumPy sorts these by radix, five times as fast
    order_M = np.argsort(codes_M, kind="stable")
    rows_M, codes_M = rows_M[order_M], codes_M[order_M]
    codes, firsts = np.unique(codes_M, return_index=True)
    yield from zip(codes.tolist(), np.split(rows_M, firsts[1:]) if len(rows_M) else [], strict=True)
