"""Policies: a selection rule, and whether it applies to the whole corpus or to each source.

A policy extends a rule in three ways. It can apply the rule to every source by itself; it can
multiply a source's own target by a weight; and it can guarantee a minimum number of documents from
each source. `datarater.pipelines.selection.cutoffs` finds what a policy keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from datarater.pipelines.selection.descent import Unit
from datarater.pipelines.selection.ranking import LAST_LEVEL, SelectionError
from datarater.pipelines.selection.rules import Rule


class Scope(StrEnum):
    """What a rule applies to."""

    CORPUS = "corpus"
    SOURCE = "source"


@dataclass(frozen=True)
class Policy:
    """A rule and what it applies to.

    Attributes:
        rule: How much to keep.
        per: Whether the rule applies to the whole corpus or to each source.
        weights: Factors by source; each multiplies the source's fraction, count or tokens, up to
            everything the source has. Sources without a factor have weight 1. Only allowed with
            `per` source.
        minimum: Minimum number of documents to keep from each source, or all if it has fewer.

    Raises:
        SelectionError: The rule or scope allows no weights, or a number is negative.
    """

    rule: Rule
    per: Scope = Scope.CORPUS
    weights: Mapping[str, Fraction] = field(default_factory=dict)
    minimum: int = 0

    def __post_init__(self) -> None:
        if self.weights and self.per is not Scope.SOURCE:
            raise SelectionError(
                "a source's weight multiplies its own share: select per source (--per source)"
            )
        for source, weight in self.weights.items():
            self.rule.weighted(abs(weight))  # raises if the rule has no target
            if weight < 0:
                raise SelectionError(f"the weight of the source {source!r} is negative")
        if self.minimum < 0:
            raise SelectionError(f"the minimum of a source, {self.minimum}, is negative")

    @property
    def name(self) -> str:
        """A readable folder name, such as `keep-0.1-per-source-weighted-min-100`."""
        parts = [self.rule.name]
        if self.per is Scope.SOURCE:
            parts.append("per-source")
        if self.weights:
            parts.append("weighted")
        if self.minimum:
            parts.append(f"min-{self.minimum}")
        return "-".join(parts)

    def rule_of(self, source: str) -> Rule:
        """Returns the rule for one source, with its weight applied."""
        weight = self.weights.get(source, Fraction(1))
        return self.rule if weight == 1 else self.rule.weighted(weight)

    def target_of(self, source: str, documents: int, tokens: int) -> int:
        """Returns the target of one source, in the unit of the rule.

        Args:
            source: Name of the source.
            documents: Number of its scored documents.
            tokens: Number of their tokens.
        """
        target = self.rule_of(source).target(documents, tokens)
        return max(target, min(self.minimum, documents)) if self.raises_targets else target

    @property
    def raises_targets(self) -> bool:
        """Whether the minimum raises a source's own target: both count its best documents."""
        return (
            self.per is Scope.SOURCE and self.rule.has_target and self.rule.unit is Unit.DOCUMENTS
        )

    @property
    def counts_minimum(self) -> bool:
        """Whether the documents that the minimum keeps count toward the corpus's target."""
        return self.minimum > 0 and self.per is Scope.CORPUS and self.rule.has_target

    @property
    def rounds(self) -> int:
        """The maximum number of rounds of the search, whatever the corpus."""
        if self.counts_minimum:
            return 2 * (LAST_LEVEL + 1)

        # The histogram of the corpus is known from the start, those of the sources are not.
        rounds = self.rule.rounds
        if rounds and self.per is Scope.SOURCE:
            rounds += 1
        return max(rounds, LAST_LEVEL + 1) if self.minimum else rounds
