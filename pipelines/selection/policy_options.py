"""Builds a selection policy from options, for flags and for the Python interfaces alike."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.ranking import SelectionError
from datarater.pipelines.selection.rules import (
    BatchTopK,
    KeepCount,
    KeepFraction,
    Rule,
    TemperatureSample,
    Threshold,
    TokenBudget,
)

DEFAULT_MAX_COPIES = 4
"""Epochs up to which repeated data is worth nearly as much as new (arXiv 2305.16264)."""


def rule_from_options(
    keep_fraction: Any = None,
    keep_count: int | None = None,
    token_budget: int | None = None,
    threshold: Any = None,
    accept_batch: int | None = None,
    sample_tokens: int | None = None,
    sample_count: int | None = None,
    temperature: Any = None,
    max_copies: int = DEFAULT_MAX_COPIES,
) -> Rule | None:
    """Returns the one rule that is given; None for `accept_batch`, which needs a second option.

    Fractions and thresholds may be numbers or texts such as "1/3". A float means the decimal that
    its text shows, so 0.1 is one tenth exactly.

    Raises:
        SelectionError: Not exactly one rule is given, or its value is out of range.
    """
    options = {
        "keep_fraction": keep_fraction,
        "keep_count": keep_count,
        "token_budget": token_budget,
        "threshold": threshold,
        "accept_batch": accept_batch,
        "sample_tokens": sample_tokens,
        "sample_count": sample_count,
    }
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise SelectionError(
            f"give exactly one of {', '.join(options)}; given: {', '.join(given) or 'none'}"
        )
    if keep_fraction is not None:
        return KeepFraction(str(keep_fraction))
    if keep_count is not None:
        return KeepCount(keep_count)
    if token_budget is not None:
        return TokenBudget(token_budget)
    if threshold is not None:
        return Threshold(str(threshold))
    if accept_batch is not None:
        return None
    return sample_rule(sample_tokens, sample_count, temperature, max_copies)


def sample_rule(
    tokens: int | None, count: int | None, temperature: Any, max_copies: int, prefix: str = ""
) -> TemperatureSample:
    """Returns the rule of a temperature sample.

    Args:
        tokens: Budget in tokens; None if it is in copies.
        count: Budget in copies.
        temperature: Difference of scores that multiplies the copies by e.
        max_copies: Maximum number of copies of a document.
        prefix: Prefix of an option's name in messages: "--" for flags.

    Raises:
        SelectionError: There is no temperature, or a number is out of range.
    """
    size = count if tokens is None else tokens
    assert size is not None
    if temperature is None:
        raise SelectionError(
            f"{prefix}sample_{'count' if tokens is None else 'tokens'} needs {prefix}temperature: "
            "the difference of scores that multiplies the copies of a document by e; the deviation "
            "of the scores is a good first one"
        )
    try:
        return TemperatureSample(size, str(temperature), max_copies, in_tokens=tokens is not None)
    except SelectionError as error:
        raise SelectionError(f"{prefix}{error}") from error


def policy_from_options(
    rule: Rule | None,
    *,
    accept_batch: int | None = None,
    discard_fraction: Any = None,
    per: Scope | str = Scope.CORPUS,
    source_weights: Mapping[str, Any] | None = None,
    min_per_source: int = 0,
    by_reference: bool = False,
    prefix: str = "",
) -> Policy:
    """Returns the policy of a rule and the options around it.

    Args:
        rule: The rule; None for batch top-K, which `accept_batch` and `discard_fraction` make.
        accept_batch: Batch size B of batch top-K.
        discard_fraction: Share of each batch that batch top-K drops.
        per: Whether the rule applies to the corpus or to each source.
        source_weights: Weight by source, with `per` source.
        min_per_source: Number of best documents of each source that are kept in any case.
        by_reference: Whether the distribution of scores comes from a reference.
        prefix: Prefix of an option's name in messages: "--" for flags.

    Raises:
        SelectionError: Two options cannot be combined; the message names them.
    """
    if accept_batch is not None:
        if discard_fraction is None:
            raise SelectionError(
                f"{prefix}accept_batch needs {prefix}discard_fraction: 0.75 drops three quarters "
                "of every batch"
            )
        rule = BatchTopK.discarding(accept_batch, str(discard_fraction))
    elif discard_fraction is not None:
        raise SelectionError(
            f"{prefix}discard_fraction needs {prefix}accept_batch; to keep a share, use "
            f"{prefix}keep_fraction"
        )
    if rule is None:
        raise SelectionError("no selection rule is given")

    scope = Scope(per)
    if by_reference:
        if not rule.uses_reference:
            raise SelectionError(
                f"{prefix}reference needs {prefix}keep_fraction or {prefix}accept_batch"
            )
        if scope is not Scope.CORPUS or min_per_source:
            raise SelectionError(
                f"{prefix}reference describes a whole corpus: it cannot be combined with "
                f"{prefix}per source or {prefix}min_per_source"
            )
    weights = {source: Fraction(str(weight)) for source, weight in (source_weights or {}).items()}
    return Policy(rule, scope, weights, min_per_source)
