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
from typing import Any

from datarater.pipelines.selection import rules
from datarater.pipelines.selection.ranking import LAST_LEVEL, SelectionError
from datarater.pipelines.selection.rules import (
    BatchTopK,
    KeepCount,
    KeepFraction,
    Rule,
    Threshold,
    TokenBudget,
)


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
        if self.weights and not isinstance(self.rule, KeepFraction | KeepCount | TokenBudget):
            raise SelectionError(
                f"the rule {self.rule.kind} gives a source no share that a weight could multiply"
            )
        for source, weight in self.weights.items():
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
        if weight != 1 and isinstance(self.rule, KeepFraction | KeepCount | TokenBudget):
            return self.rule.weighted(weight)
        return self.rule

    @property
    def counts_minimum(self) -> bool:
        """Whether the documents that the minimum keeps count toward the corpus's target."""
        return (
            self.minimum > 0
            and self.per is Scope.CORPUS
            and isinstance(self.rule, KeepFraction | KeepCount | TokenBudget)
        )

    @property
    def rounds(self) -> int:
        """The maximum number of rounds of the descent, whatever the corpus."""
        first = int(self.per is Scope.SOURCE)
        if isinstance(self.rule, Threshold):
            rounds = 0
        elif isinstance(self.rule, BatchTopK):
            rounds = first + 2
        else:
            rounds = first + LAST_LEVEL

        if self.counts_minimum:
            return 2 * (LAST_LEVEL + 1)
        return max(rounds, LAST_LEVEL + 1) if self.minimum else rounds

    def to_json(self) -> dict[str, Any]:
        """Returns the policy as JSON fields, with numbers as exact text."""
        return {
            "rule": rules.rule_to_json(self.rule),
            "per": str(self.per),
            "source_weights": {
                source: str(weight) for source, weight in sorted(self.weights.items())
            },
            "min_per_source": self.minimum,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Policy:
        """Returns the policy that `to_json` wrote."""
        weights = {source: Fraction(weight) for source, weight in fields["source_weights"].items()}
        return cls(
            rules.rule_from_json(fields["rule"]),
            Scope(fields["per"]),
            weights,
            fields["min_per_source"],
        )
