"""Reads the fields of a config that name the outer sets and their weights."""

from __future__ import annotations

import math
import re

from ml_collections import ConfigDict

from datarater.meta_training.errors import ConfigError

ONLY_SET, QUESTIONS = "outer", "questions"
"""Names of the outer set where there is one, and of the questions."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def outer_patterns(outer: str) -> dict[str, str]:
    """Returns the sets that `data.outer` names, in order.

    Args:
        outer: Paths, globs or a dataset; for several sets `NAME=FILES;NAME=FILES`.

    Returns:
        Paths, globs or a dataset by the set's name, which is "outer" where there is one. Empty if
        the field is.

    Raises:
        ConfigError: It has a semicolon, and is not a list of named sets.

    Example:
        >>> outer_patterns("web=web/*.jsonl; books=a.jsonl,b.jsonl")
        {'web': 'web/*.jsonl', 'books': 'a.jsonl,b.jsonl'}
        >>> outer_patterns("target/*.jsonl")
        {'outer': 'target/*.jsonl'}
    """
    if ";" not in outer:
        return {ONLY_SET: outer} if outer else {}
    sets = _named_values("data.outer", outer, "web=web/*.jsonl;books=books/*.jsonl")
    if QUESTIONS in sets:
        raise ConfigError(
            f"data.outer: the name {QUESTIONS!r} is that of data.questions; choose another"
        )
    return sets


def outer_weights(config: ConfigDict) -> dict[str, float]:
    """Returns the weight of each outer set, so that they sum to 1, in the order of the sets.

    Raises:
        ConfigError: A set is missing or unknown, or a weight is not a number of at least 0.

    Example:
        >>> from datarater.meta_training.configs import default
        >>> config = default.get_config()
        >>> config.data.outer, config.data.outer_weights = "a=a.jsonl;b=b.jsonl", "a=3;b=1"
        >>> outer_weights(config)
        {'a': 0.75, 'b': 0.25}
    """
    names = list(outer_patterns(config.data.outer)) or [ONLY_SET]
    names += [QUESTIONS] if config.data.questions else []
    if not config.data.outer_weights:
        return {name: 1 / len(names) for name in names}

    given = _named_values(
        "data.outer_weights", config.data.outer_weights, ";".join(f"{name}=1" for name in names)
    )
    if set(given) != set(names):
        raise ConfigError(
            f"data.outer_weights names {', '.join(given)}, but the outer sets are "
            f"{', '.join(names)}: give each of them a weight"
        )
    values = {name: _weight(name, given[name]) for name in names}
    total = math.fsum(values.values())
    if not 0 < total < math.inf:
        raise ConfigError("data.outer_weights must have a sum above 0 that is finite")
    return {name: value / total for name, value in values.items()}


def _named_values(field: str, text: str, example: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{field}: {part!r} is not NAME=VALUE with a name of letters, digits, _ and -; "
                f"write several sets as {example!r}"
            )
        if name in values:
            raise ConfigError(f"{field} has two sets of the name {name!r}")
        values[name] = value
    if not values:
        raise ConfigError(f"{field} names no set; write several sets as {example!r}")
    return values


def _weight(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(
            f"data.outer_weights: the weight of {name} must be a number of at least 0, not {text!r}"
        )
    return value
