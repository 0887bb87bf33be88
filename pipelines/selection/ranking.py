"""Exact selection: which documents a rule keeps, whatever the corpus's size or the workers' order.

Documents stand in one total order, better first:

    (score DESC, seeded hash of the key ASC, split ordinal ASC, position ASC).

Scores become ordered integers (`ordered_bits`), the seeded hash breaks ties without favouring any
source or file, and the last two make the order total: no two documents share a split and a position.
Split ordinals follow (path, start), so they stand for the input path.

Joined, the four are one 192-bit integer, the *rank key*; smaller is better:

    key = (2^32 - 1 - bits(score)) * 2^160 + hash * 2^96 + ordinal * 2^64 + position

A rule keeps the documents whose key is below one number, the *cutoff*. It is found by descent, as in a
radix sort: a sparse histogram over the key's next digit says in which bin the cutoff lies, and the next
histogram counts only what lies in that bin. Histograms carry documents and tokens, and merge by addition,
so that the descent needs nothing but small sums from the workers. As soon as the documents still undecided
are few they are gathered and sorted, which ends it. All this is arithmetic on arrays: no input, no output.
"""

import decimal
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The rank key's digits from the most significant: score (2), seeded hash (4), split ordinal, position.
LEVEL_BITS = (16, 16, 16, 16, 16, 16, 32, 64)
LEVEL_NAMES = (
    "score, high half",
    "score, low half",
    "hash, first quarter",
    "hash, second quarter",
    "hash, third quarter",
    "hash, last quarter",
    "split ordinal",
    "position",
)
LAST_LEVEL = len(LEVEL_BITS) - 1
KEY_BITS = sum(LEVEL_BITS)
_SHIFTS = tuple(sum(LEVEL_BITS[level + 1 :]) for level in range(len(LEVEL_BITS)))

# At most this many undecided documents are gathered and sorted (40 bytes each) in place of a next level.
SORT_LIMIT = 65_536

# From so many keys on, counting into all 65,536 bins is faster than sorting.
_DENSE_FROM = 8192

_MASK_64 = (1 << 64) - 1


class SelectionError(ValueError):
    """A rule that says nothing, or counts that contradict each other."""


def ordered_bits(scores_N: ArrayLike) -> NDArray[np.uint32]:
    """Maps float32 scores to integers of the same order.

    A float's bits, read as an integer, are already ordered among the positive; the negative are ordered
    backwards below them. So the sign bit is set for the positive and all bits are flipped for the negative.
    -0 counts as +0: two documents that score nothing are tied.

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
        raise SelectionError("a score that is not finite has no place in the order: reject the document")
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
    mixed_seed = _splitmix64(np.asarray([(seed + increment) & _MASK_64], np.uint64))
    return _splitmix64(np.asarray(key_hashes_N, np.uint64) ^ mixed_seed[0])


# --- rules -------------------------------------------------------------------------------------------


class Unit(StrEnum):
    """What a rule's target counts."""

    DOCUMENTS = "documents"
    TOKENS = "tokens"


class Rule(Protocol):
    """A selection rule: what to keep of a corpus whose documents and tokens are counted."""

    kind: ClassVar[str]
    unit: ClassVar[Unit]

    @property
    def value(self) -> str:
        """The rule's number as exact text."""

    @property
    def name(self) -> str:
        """A readable folder name for the selection, such as `keep-0.5`."""

    def target(self, documents: int, tokens: int) -> int:
        """How many of `unit` to keep of so many scored documents and tokens."""


def _exact(text: str | int | Fraction, what: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise SelectionError(f"{what}: {text!r} is not a number; write 0.5, 1e-3 or 1/3") from None


def _fraction_text(fraction: Fraction) -> str:
    """The shortest exact text: a decimal where it ends, else p/q."""
    rest = fraction.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1 or fraction.denominator.bit_length() > 200:
        return f"{fraction.numerator}/{fraction.denominator}"
    with decimal.localcontext(prec=400):
        return format((decimal.Decimal(fraction.numerator) / decimal.Decimal(fraction.denominator)).normalize(), "f")


@dataclass(frozen=True)
class KeepFraction:
    """Keeps the best `fraction` of the scored documents: exactly round(fraction * N), half to even.

    The fraction is exact: 0.1 is one tenth, not the float beside it.

    Raises:
        SelectionError: not a number, or outside [0, 1].
    """

    kind: ClassVar[str] = "keep_fraction"
    unit: ClassVar[Unit] = Unit.DOCUMENTS
    fraction: Fraction

    def __init__(self, fraction: str | int | Fraction):
        exact = _exact(fraction, "keep fraction")
        if not 0 <= exact <= 1:
            raise SelectionError(f"keep fraction: {fraction} is outside [0, 1]; 0.5 keeps the better half")
        object.__setattr__(self, "fraction", exact)

    @property
    def value(self) -> str:
        """The fraction as exact text."""
        return _fraction_text(self.fraction)

    @property
    def name(self) -> str:
        """`keep-0.5`."""
        return "keep-" + self.value.replace("/", "-of-")

    def target(self, documents: int, tokens: int) -> int:
        """Documents to keep: round half to even of fraction * documents."""
        return round(self.fraction * documents)

    def weighted(self, weight: Fraction) -> "KeepFraction":
        """The rule with its fraction times a weight, all at most."""
        return KeepFraction(min(Fraction(1), self.fraction * weight))


@dataclass(frozen=True)
class KeepCount:
    """Keeps the best `count` documents, or all where there are fewer."""

    kind: ClassVar[str] = "keep_count"
    unit: ClassVar[Unit] = Unit.DOCUMENTS
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise SelectionError(f"keep count: {self.count} is negative")

    @property
    def value(self) -> str:
        """The count as text."""
        return str(self.count)

    @property
    def name(self) -> str:
        """`keep-count-1000`."""
        return f"keep-count-{self.count}"

    def target(self, documents: int, tokens: int) -> int:
        """Documents to keep."""
        return min(self.count, documents)

    def weighted(self, weight: Fraction) -> "KeepCount":
        """The rule with its count times a weight, rounded half to even."""
        return KeepCount(round(self.count * weight))


@dataclass(frozen=True)
class TokenBudget:
    """Keeps the longest best-first run of documents whose tokens together fit the budget.

    The run ends at the first document that does not fit; smaller ones after it are not squeezed in, since
    they are worse.
    """

    kind: ClassVar[str] = "token_budget"
    unit: ClassVar[Unit] = Unit.TOKENS
    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise SelectionError(f"token budget: {self.tokens} is negative")

    @property
    def value(self) -> str:
        """The budget as text."""
        return str(self.tokens)

    @property
    def name(self) -> str:
        """`tokens-1000000`."""
        return f"tokens-{self.tokens}"

    def target(self, documents: int, tokens: int) -> int:
        """Tokens to keep at most."""
        return min(self.tokens, tokens)

    def weighted(self, weight: Fraction) -> "TokenBudget":
        """The rule with its budget times a weight, rounded down."""
        return TokenBudget(int(self.tokens * weight))


@dataclass(frozen=True)
class Threshold:
    """Keeps the documents that score at least `score`.

    Raises:
        SelectionError: not a finite number.
    """

    kind: ClassVar[str] = "threshold"
    unit: ClassVar[Unit] = Unit.DOCUMENTS
    score: Fraction

    def __init__(self, score: str | int | Fraction):
        object.__setattr__(self, "score", _exact(score, "threshold"))
        if abs(self.score) > Fraction(float(np.finfo(np.float32).max)):
            raise SelectionError(f"threshold: {score} is beyond what a float32 score can reach")

    @property
    def value(self) -> str:
        """The threshold as exact text."""
        return _fraction_text(self.score)

    @property
    def name(self) -> str:
        """`threshold-0.25`."""
        return "threshold-" + self.value.replace("/", "-of-")

    def target(self, documents: int, tokens: int) -> int:
        """All documents: a threshold has no target, its cutoff is known from the start."""
        return documents

    @property
    def end(self) -> int:
        """The cutoff: the rank key before which every score reaches the threshold."""
        lowest = np.float32(float(self.score))
        if Fraction(float(lowest)) < self.score:
            lowest = np.nextafter(lowest, np.float32(np.inf))
        return (0xFFFFFFFF - int(ordered_bits(lowest)) + 1) << _SHIFTS[1]


MAX_BATCH = 1 << 20


@dataclass(frozen=True)
class BatchTopK:
    """The paper's batch top-K, document by document: accept each with the chance it has in a random batch.

    A document at the quantile p of the scores is among the best K of a batch of B, whose other B - 1 documents are
    drawn at random, with probability

        P(p) = BinomCDF(K - 1; B - 1, 1 - p) = I_p(B - K, K),

    the regularised incomplete beta function; its mean over uniform p is exactly K/B. Whether a document is accepted
    is drawn by the seeded hash of its key, so that it does not depend on the workers and can be repeated.

    Source: DataRater, arXiv 2505.17895.

    Attributes:
        kept: K, documents kept of a batch.
        batch: B, documents in a batch.

    Raises:
        SelectionError: K is not a whole number from 0 to B.

    Example:
        >>> BatchTopK.discarding(1024, "0.75")
        BatchTopK(kept=256, batch=1024)
    """

    kind: ClassVar[str] = "batch_top_k"
    unit: ClassVar[Unit] = Unit.DOCUMENTS
    kept: int
    batch: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MAX_BATCH:
            raise SelectionError(f"accept batch: {self.batch} is not a whole number from 1 to {MAX_BATCH}")
        if not 0 <= self.kept <= self.batch:
            raise SelectionError(f"accept batch: {self.kept} of {self.batch} cannot be kept")

    @classmethod
    def discarding(cls, batch: int, discard_fraction: str | int | Fraction) -> "BatchTopK":
        """The rule that drops a share of every batch.

        Raises:
            SelectionError: the share is outside [0, 1], or does not make a whole number of documents.
        """
        share = _exact(discard_fraction, "discard fraction")
        if not 0 <= share <= 1:
            raise SelectionError(f"discard fraction: {discard_fraction} is outside [0, 1]; 0.75 drops three of four")
        kept = (1 - share) * batch
        if kept.denominator != 1:
            raise SelectionError(
                f"discard fraction: {discard_fraction} of a batch of {batch} leaves {float(kept):g} documents; "
                "take a batch that it divides"
            )
        return cls(int(kept), batch)

    @property
    def value(self) -> str:
        """`256/1024`."""
        return f"{self.kept}/{self.batch}"

    @property
    def name(self) -> str:
        """`batch-256-of-1024`."""
        return f"batch-{self.kept}-of-{self.batch}"

    def target(self, documents: int, tokens: int) -> int:
        """Documents that are expected to be accepted, to the nearest."""
        return round(Fraction(self.kept, self.batch) * documents)


def rule_from_json(fields: Mapping[str, Any]) -> Rule:
    """The rule that `rule_to_json` wrote.

    Raises:
        SelectionError: no such kind of rule.
    """
    kind, value = fields.get("kind"), fields.get("value")
    text = str(value)
    if kind == KeepFraction.kind:
        return KeepFraction(text)
    if kind == Threshold.kind:
        return Threshold(text)
    if kind == BatchTopK.kind:
        kept, slash, batch = text.partition("/")
        if not (slash and kept.isdigit() and batch.isdigit()):
            raise SelectionError(f"{kind}: {value!r} is not K/B")
        return BatchTopK(int(kept), int(batch))
    if kind in (KeepCount.kind, TokenBudget.kind):
        try:
            number = int(text)
        except ValueError:
            raise SelectionError(f"{kind}: {value!r} is not a whole number") from None
        return KeepCount(number) if kind == KeepCount.kind else TokenBudget(number)
    raise SelectionError(f"no selection rule is called {kind!r}")


def rule_to_json(rule: Rule) -> dict[str, str]:
    """A rule as JSON fields: its kind and its number as exact text."""
    return {"kind": rule.kind, "value": rule.value}


# --- rank keys and histograms ------------------------------------------------------------------------


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
            return (self.order_N >> np.uint32(16 - 16 * level)).astype(np.uint64) & np.uint64(0xFFFF)
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
        columns = [(end >> 160, end >> 96 & _MASK_64, end >> 64 & 0xFFFFFFFF, end & _MASK_64) for end in ends]
        return cls(*np.asarray(columns, np.uint64).reshape(len(columns), 4).T)


@dataclass(frozen=True)
class Histogram:
    """A sparse, mergeable histogram over one digit of the rank keys.

    Attributes:
        bins_K: uint64, ascending and distinct: the best first.
        counts_K: int64, documents in each bin.
        tokens_K: int64, their tokens.
    """

    bins_K: NDArray[np.uint64]
    counts_K: NDArray[np.int64]
    tokens_K: NDArray[np.int64]

    @classmethod
    def empty(cls) -> "Histogram":
        """Counts nothing."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, keys: RankKeys, level: int) -> "Histogram":
        """Counts the digits of keys at a level."""
        if LEVEL_BITS[level] == 16 and len(keys) >= _DENSE_FROM:
            digits_N = keys.digits(level).astype(np.int64)
            counts_B = np.bincount(digits_N, minlength=1 << 16)
            tokens_B = np.zeros(1 << 16, np.int64)
            np.add.at(tokens_B, digits_N, keys.tokens_N)
            bins_K = np.flatnonzero(counts_B)
            return cls(bins_K.astype(np.uint64), counts_B[bins_K].astype(np.int64), tokens_B[bins_K])
        return cls._summed(keys.digits(level), np.ones(len(keys), np.int64), keys.tokens_N)

    @classmethod
    def merge(cls, parts: Iterable["Histogram"]) -> "Histogram":
        """The sum of several; in any order, in any grouping."""
        columns = [(part.bins_K, part.counts_K, part.tokens_K) for part in parts]
        if not columns:
            return cls.empty()
        bins_N, counts_N, tokens_N = (np.concatenate(column) for column in zip(*columns, strict=True))
        return cls._summed(bins_N, counts_N, tokens_N)

    @classmethod
    def _summed(
        cls, bins_N: NDArray[np.uint64], counts_N: NDArray[np.int64], tokens_N: NDArray[np.int64]
    ) -> "Histogram":
        bins_K, index_N = np.unique(bins_N, return_inverse=True)
        counts_K, tokens_K = np.zeros(len(bins_K), np.int64), np.zeros(len(bins_K), np.int64)
        np.add.at(counts_K, index_N, counts_N)
        np.add.at(tokens_K, index_N, tokens_N)
        return cls(bins_K.astype(np.uint64), counts_K, tokens_K)

    @property
    def documents(self) -> int:
        """All documents counted."""
        return int(self.counts_K.sum())

    @property
    def tokens(self) -> int:
        """All their tokens."""
        return int(self.tokens_K.sum())

    def holds(self, bin_: int) -> bool:
        """Whether a bin counts any document."""
        index = int(np.searchsorted(self.bins_K, np.uint64(bin_)))
        return index < len(self.bins_K) and int(self.bins_K[index]) == bin_

    def to_json(self) -> dict[str, list[int]]:
        """As JSON fields."""
        return {
            "bins": self.bins_K.tolist(),
            "counts": self.counts_K.tolist(),
            "tokens": self.tokens_K.tolist(),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Sequence[int]]) -> "Histogram":
        """What `to_json` wrote."""
        return cls(
            np.asarray(fields["bins"], np.uint64),
            np.asarray(fields["counts"], np.int64),
            np.asarray(fields["tokens"], np.int64),
        )


# --- the descent -------------------------------------------------------------------------------------


class Step(StrEnum):
    """What a boundary needs next."""

    HISTOGRAM = "histogram"
    SORT = "sort"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Boundary:
    """How far the cutoff is known: keep below `low`, drop from `high` on, undecided between.

    Constant in size and JSON-able: it is all that workers are told.

    Attributes:
        unit: what `left` counts.
        level: the level whose histogram comes next.
        low: rank key; everything below is kept.
        high: rank key; everything from it on is dropped.
        left: how many of `unit` to keep of those undecided; in the end, how many documents of those whose key is
            `end` itself, which is 0 where keys differ.
        undecided: documents with low <= key < high.
        kept: documents below low.
        kept_tokens: their tokens.
        end: the cutoff, once it is known: keep exactly the keys below it.
    """

    unit: Unit
    level: int
    low: int
    high: int
    left: int
    undecided: int
    kept: int = 0
    kept_tokens: int = 0
    end: int | None = None

    @classmethod
    def begin(cls, rule: Rule, histogram: Histogram) -> "Boundary":
        """The boundary after the first level.

        Args:
            rule: what to keep.
            histogram: of all scored documents, level 0.
        """
        whole = cls(rule.unit, 0, 0, 1 << KEY_BITS, 0, histogram.documents)
        if isinstance(rule, Threshold):
            return cls(rule.unit, LAST_LEVEL, rule.end, rule.end, 0, 0, kept=-1, kept_tokens=-1, end=rule.end)
        left = rule.target(histogram.documents, histogram.tokens)
        return replace(whole, left=left).descend(histogram)

    @classmethod
    def whole(cls, unit: Unit, target: int, documents: int) -> "Boundary":
        """The boundary before the first level: every document is undecided.

        Args:
            unit: what the target counts.
            target: how many of it to keep.
            documents: how many are scored.
        """
        boundary = cls(unit, 0, 0, 1 << KEY_BITS, target, documents)
        # Nothing to look for; a token budget of 0 may still keep documents without tokens.
        if documents == 0 or (target == 0 and unit is Unit.DOCUMENTS):
            return replace(boundary, high=0, left=0, undecided=0, end=0)
        return boundary

    @property
    def step(self) -> Step:
        """What is needed next: a histogram of the undecided, their keys to be sorted, or nothing."""
        if self.end is not None:
            return Step.NOTHING
        if (self.undecided <= SORT_LIMIT and self.level > 0) or self.level == LAST_LEVEL:
            return Step.SORT
        return Step.HISTOGRAM

    @property
    def counted(self) -> bool:
        """Whether `kept` is known: a threshold's is only known once its documents are counted."""
        return self.kept >= 0

    def undecided_of(self, keys: RankKeys) -> RankKeys:
        """The keys among these that are undecided."""
        return keys.take(keys.below(self.high) & ~keys.below(self.low))

    def first_digit(self) -> int:
        """The first level's digit in which all that is undecided lies (after the first level)."""
        return self.low >> _SHIFTS[0]

    def descend(self, histogram: Histogram) -> "Boundary":
        """The boundary one level further down.

        Args:
            histogram: of all undecided documents, at `level`.

        Raises:
            SelectionError: the histogram does not count the undecided documents.
        """
        if histogram.documents != self.undecided:
            raise SelectionError(
                f"level {self.level} ({LEVEL_NAMES[self.level]}) counts {histogram.documents} documents where "
                f"the level above counted {self.undecided}: the scores changed during the selection"
            )
        measures_K = histogram.counts_K if self.unit is Unit.DOCUMENTS else histogram.tokens_K
        cumulative_K = np.cumsum(measures_K)
        whole = int(np.searchsorted(cumulative_K, self.left, side="right"))
        kept = self.kept + int(histogram.counts_K[:whole].sum())
        kept_tokens = self.kept_tokens + int(histogram.tokens_K[:whole].sum())
        left = self.left - (int(cumulative_K[whole - 1]) if whole else 0)
        if whole == len(cumulative_K):
            return replace(self, low=self.high, left=0, undecided=0, kept=kept, kept_tokens=kept_tokens, end=self.high)
        shift = _SHIFTS[self.level]
        low = self.low + (int(histogram.bins_K[whole]) << shift)
        # A token budget goes on at 0 left: documents without tokens may stand first in the bin.
        done = self.unit is Unit.DOCUMENTS and left == 0
        return replace(
            self,
            level=self.level + 1,
            low=low,
            high=low + (1 << shift),
            left=left,
            undecided=0 if done else int(histogram.counts_K[whole]),
            kept=kept,
            kept_tokens=kept_tokens,
            end=low if done else None,
        )

    def settle(self, keys: RankKeys, *, through_equals: bool = False) -> "Boundary":
        """The cutoff, from the keys of all undecided documents.

        Documents of a run have keys that differ. Where some have not (elements of a pipeline that are equal in
        everything), the cutoff can fall between equals: `left` then says how many of those at `end` are to be kept.

        Args:
            keys: of the undecided.
            through_equals: keep all equals of the last one kept.

        Raises:
            SelectionError: they are not as many as were counted.
        """
        if len(keys) != self.undecided:
            raise SelectionError(
                f"{len(keys)} undecided documents were gathered where {self.undecided} were counted: "
                "the scores changed during the selection"
            )
        keys = keys.take(np.lexsort((keys.positions_N, keys.ordinals_N, keys.hashes_N, keys.order_N)))
        measures_N = np.ones(len(keys), np.int64) if self.unit is Unit.DOCUMENTS else keys.tokens_N.astype(np.int64)
        whole = int(np.searchsorted(np.cumsum(measures_N), self.left, side="right"))
        equal = 0
        if 0 < whole < len(keys) and keys.key(whole) == keys.key(whole - 1):
            equals_N = keys.below(keys.key(whole) + 1) & ~keys.below(keys.key(whole))
            equal = whole - int(np.flatnonzero(equals_N)[0])
            if through_equals:
                whole, equal = int(np.flatnonzero(equals_N)[-1]) + 1, 0
        end = self.high if whole == len(keys) else keys.key(whole)
        return replace(
            self,
            low=end,
            high=end,
            left=equal,
            undecided=0,
            kept=self.kept + whole,
            kept_tokens=self.kept_tokens + int(keys.tokens_N[:whole].sum()),
            end=end,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON fields; rank keys as hexadecimal text."""
        fields = dict(self.__dict__)
        return {
            **fields,
            "unit": str(self.unit),
            "low": f"{self.low:x}",
            "high": f"{self.high:x}",
            "end": None if self.end is None else f"{self.end:x}",
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Boundary":
        """What `to_json` wrote."""
        end = fields["end"]
        return cls(
            **{
                **fields,
                "unit": Unit(fields["unit"]),
                "low": int(fields["low"], 16),
                "high": int(fields["high"], 16),
                "end": None if end is None else int(end, 16),
            }
        )

    def lowest_score(self) -> float | None:
        """The score at the cutoff, for a person to read: the last kept documents score about this.

        Returns:
            The lowest score that the cutoff lets through (some that score exactly this may be dropped);
            None where nothing or everything is kept, or nothing is known yet.
        """
        if self.end is None or self.end <= 0 or self.end >> KEY_BITS:
            return None
        bits = 0xFFFFFFFF - ((self.end - 1) >> 160)
        raw = bits & 0x7FFFFFFF if bits >> 31 else ~bits & 0xFFFFFFFF
        score = float(np.uint32(raw).view(np.float32))
        return score if np.isfinite(score) else None
