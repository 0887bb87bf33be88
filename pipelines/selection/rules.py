"""Selection rules: how much of a corpus to keep, as exact numbers.

A rule turns the number of scored documents and tokens into a target (`Rule.target`), and begins the
search for the documents that meet it (`Rule.begin`): a descent to one cutoff, or, for the one rule
that draws documents at random, a distribution of scores.

Numbers are exact fractions, parsed from text: 0.1 is one tenth, not the nearest float. A rule
therefore keeps the same documents wherever it runs, and its text reads back as the same rule.
"""

from __future__ import annotations

import abc
import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from datarater.pipelines.selection import batch_top_k
from datarater.pipelines.selection.batch_top_k import Distribution
from datarater.pipelines.selection.descent import Boundary, Cutoff, Unit
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.quantiles import score_at
from datarater.pipelines.selection.ranking import (
    KEY_BITS,
    LAST_LEVEL,
    SHIFTS,
    SelectionError,
    orders_of,
)
from datarater.pipelines.selection.sampling import Budget, ScoreBins
from datarater.pipelines.selection.search import Decision, State

MAX_BATCH = 1 << 20


class Rule(abc.ABC):
    """How much to keep of a corpus whose documents and tokens are counted.

    Attributes:
        kind: Name of the rule in files.
        prefix: What the names of selections begin with.
        unit: Unit of the target.
        rounds: Maximum number of rounds after the first count, whatever the corpus.
        has_target: Whether the rule keeps exactly its target, or as many tokens as fit into it.
        uses_reference: Whether another corpus's distribution of scores can decide.
    """

    kind: ClassVar[str]
    prefix: ClassVar[str]
    unit: ClassVar[Unit] = Unit.DOCUMENTS
    rounds: ClassVar[int]
    has_target: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def value(self) -> str:
        """The rule's number as exact text."""

    @property
    def name(self) -> str:
        """A readable folder name for the selection, such as `keep-0.5`."""
        return f"{self.prefix}-{self.value.replace('/', '-of-')}"

    @abc.abstractmethod
    def target(self, documents: int, tokens: int) -> int:
        """Returns how many of `unit` to keep.

        Args:
            documents: Number of scored documents.
            tokens: Number of their tokens.
        """

    @abc.abstractmethod
    def begin(self, target: int, documents: int, histogram: Histogram | None = None) -> State:
        """Begins the search for what to keep of a group.

        Args:
            target: How many of `unit` to keep.
            documents: Number of scored documents.
            histogram: Histogram of all of them at level 0, if it is known.
        """

    def weighted(self, weight: Fraction) -> Rule:
        """Returns the rule with its number multiplied by a weight.

        Raises:
            SelectionError: The rule has no target.
        """
        raise SelectionError(
            f"the rule {self.kind} gives a source no share that a weight could multiply"
        )

    def by_quantiles(self, quantiles: Sequence[float]) -> Decision:
        """Returns what the quantiles of a reference decide.

        Args:
            quantiles: Rising scores at equal steps from 0 to 1.

        Raises:
            SelectionError: The rule does not use a reference, or the quantiles do not rise.
        """
        raise SelectionError(f"the rule {self.kind} does not use a reference")


class _TargetRule(Rule):
    """A rule whose target a descent meets exactly."""

    has_target: ClassVar[bool] = True
    rounds: ClassVar[int] = LAST_LEVEL

    def begin(self, target: int, documents: int, histogram: Histogram | None = None) -> State:
        """Begins the descent to the target."""
        return Boundary.begin(self.unit, target, documents, histogram)


@dataclass(frozen=True)
class KeepFraction(_TargetRule):
    """Keeps the best `fraction` of the scored documents: round(fraction * N), half to even.

    The fraction is exact: 0.1 is one tenth, not the nearest float.

    Raises:
        SelectionError: The fraction is not a number, or lies outside [0, 1].
    """

    kind: ClassVar[str] = "keep_fraction"
    prefix: ClassVar[str] = "keep"
    uses_reference: ClassVar[bool] = True
    fraction: Fraction

    def __init__(self, fraction: str | int | Fraction):
        exact = _exact(fraction, "keep fraction")
        if not 0 <= exact <= 1:
            raise SelectionError(
                f"keep fraction: {fraction} is outside [0, 1]; 0.5 keeps the better half"
            )
        object.__setattr__(self, "fraction", exact)

    @property
    def value(self) -> str:
        """The fraction as exact text."""
        return _fraction_text(self.fraction)

    def target(self, documents: int, tokens: int) -> int:
        """Returns the number of documents to keep: fraction * documents, rounded half to even."""
        return round(self.fraction * documents)

    def weighted(self, weight: Fraction) -> KeepFraction:
        """Returns the rule with its fraction multiplied by a weight, capped at 1."""
        return KeepFraction(min(Fraction(1), self.fraction * weight))

    def by_quantiles(self, quantiles: Sequence[float]) -> Cutoff:
        """Returns the cutoff at the quantile above which the fraction lies."""
        end = Threshold(Fraction(score_at(quantiles, float(1 - self.fraction)))).end
        # All or nothing, also of the scores beyond the reference's.
        if self.fraction in (0, 1):
            end = int(self.fraction) << KEY_BITS
        return Cutoff(end)


@dataclass(frozen=True)
class KeepCount(_TargetRule):
    """Keeps the best `count` documents, or all of them if there are fewer.

    Raises:
        SelectionError: The count is negative.
    """

    kind: ClassVar[str] = "keep_count"
    prefix: ClassVar[str] = "keep-count"
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise SelectionError(f"keep count: {self.count} is negative")

    @property
    def value(self) -> str:
        """The count as text."""
        return str(self.count)

    def target(self, documents: int, tokens: int) -> int:
        """Returns the number of documents to keep."""
        return min(self.count, documents)

    def weighted(self, weight: Fraction) -> KeepCount:
        """Returns the rule with its count multiplied by a weight, rounded half to even."""
        return KeepCount(round(self.count * weight))


@dataclass(frozen=True)
class TokenBudget(_TargetRule):
    """Keeps the longest best-first run of documents whose tokens together fit the budget.

    The run ends at the first document that does not fit. Smaller documents after it are not added,
    because they are worse.

    Raises:
        SelectionError: The budget is negative.
    """

    kind: ClassVar[str] = "token_budget"
    prefix: ClassVar[str] = "tokens"
    unit: ClassVar[Unit] = Unit.TOKENS
    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise SelectionError(f"token budget: {self.tokens} is negative")

    @property
    def value(self) -> str:
        """The budget as text."""
        return str(self.tokens)

    def target(self, documents: int, tokens: int) -> int:
        """Returns the maximum number of tokens to keep."""
        return min(self.tokens, tokens)

    def weighted(self, weight: Fraction) -> TokenBudget:
        """Returns the rule with its budget multiplied by a weight, rounded down."""
        return TokenBudget(int(self.tokens * weight))


@dataclass(frozen=True)
class Threshold(Rule):
    """Keeps the documents that score at least `score`.

    Raises:
        SelectionError: The score is not a finite float32.
    """

    kind: ClassVar[str] = "threshold"
    prefix: ClassVar[str] = "threshold"
    rounds: ClassVar[int] = 0
    score: Fraction

    def __init__(self, score: str | int | Fraction):
        object.__setattr__(self, "score", _exact(score, "threshold"))
        if abs(self.score) > Fraction(float(np.finfo(np.float32).max)):
            raise SelectionError(f"threshold: {score} is beyond the range of a float32 score")

    @property
    def value(self) -> str:
        """The threshold as exact text."""
        return _fraction_text(self.score)

    def target(self, documents: int, tokens: int) -> int:
        """Returns all documents: a threshold has no target, its cutoff is known from the start."""
        return documents

    @property
    def end(self) -> int:
        """The cutoff: the rank key below which every score reaches the threshold."""
        lowest = np.float32(float(self.score))
        if Fraction(float(lowest)) < self.score:
            lowest = np.nextafter(lowest, np.float32(np.inf))
        return (int(orders_of(lowest)) + 1) << SHIFTS[1]

    def begin(self, target: int, documents: int, histogram: Histogram | None = None) -> State:
        """Returns the cutoff, without counting what it keeps."""
        return Cutoff(self.end)


@dataclass(frozen=True)
class BatchTopK(Rule):
    """The paper's batch top-K: accepts each document with its chance in a random batch.

    A document at the quantile p of the scores is among the best K of a batch of B, whose other
    B - 1 documents are drawn at random, with probability

        P(p) = BinomCDF(K - 1; B - 1, 1 - p) = I_p(B - K, K),

    the regularized incomplete beta function. Its mean over uniform p is exactly K/B. The seeded
    hash of a document's key decides the draw, so the result is repeatable and does not depend on
    the workers.

    Source: DataRater, arXiv 2505.17895.

    Attributes:
        kept: K, the number of documents kept of a batch.
        batch: B, the number of documents in a batch.

    Raises:
        SelectionError: K is not a whole number from 0 to B.

    Example:
        >>> BatchTopK.discarding(1024, "0.75")
        BatchTopK(kept=256, batch=1024)
    """

    kind: ClassVar[str] = "batch_top_k"
    prefix: ClassVar[str] = "batch"
    rounds: ClassVar[int] = 2
    uses_reference: ClassVar[bool] = True
    kept: int
    batch: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MAX_BATCH:
            raise SelectionError(
                f"accept batch: {self.batch} is not a whole number from 1 to {MAX_BATCH}"
            )
        if not 0 <= self.kept <= self.batch:
            raise SelectionError(f"accept batch: {self.kept} of {self.batch} cannot be kept")

    @classmethod
    def discarding(cls, batch: int, discard_fraction: str | int | Fraction) -> BatchTopK:
        """Returns the rule that drops a share of every batch.

        Raises:
            SelectionError: The share lies outside [0, 1], or does not leave a whole number of
                documents.
        """
        share = _exact(discard_fraction, "discard fraction")
        if not 0 <= share <= 1:
            raise SelectionError(
                f"discard fraction: {discard_fraction} is outside [0, 1]; 0.75 drops three of four"
            )
        kept = (1 - share) * batch
        if kept.denominator != 1:
            raise SelectionError(
                f"discard fraction: {discard_fraction} of a batch of {batch} leaves "
                f"{float(kept):g} documents; choose a batch that it divides"
            )
        return cls(int(kept), batch)

    @property
    def value(self) -> str:
        """K and B as text, such as `256/1024`."""
        return f"{self.kept}/{self.batch}"

    def target(self, documents: int, tokens: int) -> int:
        """Returns the expected number of accepted documents, rounded."""
        return round(Fraction(self.kept, self.batch) * documents)

    def begin(self, target: int, documents: int, histogram: Histogram | None = None) -> State:
        """Begins the distribution of the group's scores."""
        unknown = Distribution.begin(self.kept, self.batch, documents)
        return unknown if histogram is None else unknown.descend(histogram)

    def by_quantiles(self, quantiles: Sequence[float]) -> Decision:
        """Returns the chances of acceptance under the quantiles."""
        return batch_top_k.acceptance_by_quantiles(self.kept, self.batch, quantiles)


@dataclass(frozen=True)
class TemperatureSample(Rule):
    """Keeps documents in as many copies as their scores deserve, up to a budget.

    See `datarater.pipelines.selection.sampling` for the number of copies.

    Attributes:
        target_size: The budget, in copies or in their tokens.
        temperature: Difference of scores that multiplies the copies by e, exactly.
        max_copies: Maximum number of copies of a document.
        in_tokens: Whether the budget is in tokens.

    Raises:
        SelectionError: The budget is negative, the temperature is not positive, or no copy is
            allowed.
    """

    rounds: ClassVar[int] = 2
    prefix: ClassVar[str] = "sample"
    target_size: int
    temperature: Fraction
    max_copies: int
    in_tokens: bool

    def __init__(
        self, target_size: int, temperature: str | Fraction, max_copies: int, *, in_tokens: bool
    ):
        exact = _exact(temperature, "temperature")
        if exact <= 0:
            raise SelectionError(f"temperature: {temperature} is not above 0")
        if target_size < 0:
            raise SelectionError(f"sample: {target_size} is negative")
        if max_copies < 1:
            raise SelectionError(f"max_copies: {max_copies} is not above 0")
        object.__setattr__(self, "target_size", target_size)
        object.__setattr__(self, "temperature", exact)
        object.__setattr__(self, "max_copies", max_copies)
        object.__setattr__(self, "in_tokens", in_tokens)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Name of the rule in files."""
        return "sample_tokens" if self.in_tokens else "sample_count"

    @property
    def value(self) -> str:
        """The budget, the temperature and the maximum number of copies as exact text."""
        temperature = _fraction_text(self.temperature)
        return f"{self.target_size} temperature={temperature} max_copies={self.max_copies}"

    @property
    def name(self) -> str:
        """A readable folder name, such as `sample-tokens-1000-t0.5-x4`."""
        what = "tokens" if self.in_tokens else "count"
        temperature = _fraction_text(self.temperature).replace("/", "-of-")
        return f"sample-{what}-{self.target_size}-t{temperature}-x{self.max_copies}"

    def target(self, documents: int, tokens: int) -> int:
        """Returns the budget, or what `max_copies` of everything are."""
        return min(self.target_size, self.max_copies * (tokens if self.in_tokens else documents))

    def weighted(self, weight: Fraction) -> TemperatureSample:
        """Returns the rule with its budget multiplied by a weight, rounded half to even."""
        return TemperatureSample(
            round(self.target_size * weight),
            self.temperature,
            self.max_copies,
            in_tokens=self.in_tokens,
        )

    def begin(self, target: int, documents: int, histogram: Histogram | None = None) -> State:
        """Begins the distribution of the group's scores."""
        unit = Unit.TOKENS if self.in_tokens else Unit.DOCUMENTS
        budget = Budget(unit, target, float(self.temperature), self.max_copies)
        unknown = ScoreBins.begin(budget, documents)
        return unknown if histogram is None else unknown.descend(histogram)


def _exact(text: str | int | Fraction, name: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise SelectionError(f"{name}: {text!r} is not a number; write 0.5, 1e-3 or 1/3") from None


def _fraction_text(fraction: Fraction) -> str:
    """Returns the shortest exact text: a decimal where it terminates, otherwise p/q."""
    rest = fraction.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1 or fraction.denominator.bit_length() > 200:
        return f"{fraction.numerator}/{fraction.denominator}"

    with decimal.localcontext(prec=400):
        quotient = decimal.Decimal(fraction.numerator) / decimal.Decimal(fraction.denominator)
        return format(quotient.normalize(), "f")
