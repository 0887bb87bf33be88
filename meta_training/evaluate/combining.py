"""Arms that rank by the mean of the ranks of other arms' scores (`--combine`).

N counts documents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.evaluate.errors import FlagError

_TERM = re.compile(r"(?:([0-9.]+)\s*\*\s*)?([A-Za-z0-9][A-Za-z0-9._-]*)")


def parse_combination(value: str, known: Collection[str]) -> dict[str, float]:
    """Returns the weight of each arm of a sum such as `2*rater+classifier`.

    Args:
        value: Names of at least two arms with optional weights.
        known: Arms that have scores to combine.

    Raises:
        FlagError: If it is not such a sum; the message says what is wrong.

    Example:
        >>> parse_combination("2*rater + classifier", ["rater", "classifier"])
        {'rater': 2.0, 'classifier': 1.0}
    """
    weights: dict[str, float] = {}
    for term in value.split("+"):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise FlagError(
                f"argument --combine: {term.strip()!r} is not an arm such as rater or 2*rater"
            )
        name = match[2]
        if name not in known:
            raise FlagError(
                f"argument --combine: {name!r} has no scores to combine; give "
                f"{', '.join(sorted(known))}"
            )
        if name in weights:
            raise FlagError(f"argument --combine: {name!r} is named twice; give it a weight")
        weights[name] = _weight(match[1])

    if len(weights) < 2:
        raise FlagError(
            f"argument --combine: {value!r} names a single arm; give at least two, such as "
            "both=rater+classifier"
        )
    return weights


def _weight(text: str | None) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise FlagError(f"argument --combine: the weight {text!r} must be a number above 0")
    return weight


def mean_ranks(
    scores: Sequence[NDArray[np.float64]], weights: Sequence[float]
) -> NDArray[np.float64]:
    """Returns the weighted mean of the documents' ranks in several scores.

    With r_k(x) the share of documents that score k places below x, of which those with an equal
    score count half,

        score(x) = sum over k of w_k r_k(x) / sum over k of w_k

    so that a score's scale does not matter, only its order. A document without a score in k comes
    below all others there.

    Args:
        scores: Several scores of the N documents, NaN where a document has none.
        weights: Weight of each score, above 0.

    Example:
        >>> mean_ranks([np.array([1.0, 2.0, 3.0]), np.array([9.0, 9.0, np.nan])], [1, 1]).tolist()
        [0.375, 0.625, 0.5]
    """
    from scipy.stats import rankdata

    total_N = np.zeros(len(scores[0]))
    for scores_N, weight in zip(scores, weights, strict=True):
        ranked_N = rankdata(np.where(np.isnan(scores_N), -np.inf, scores_N))
        # The mean rank among equals, from 1 to N, becomes a share from 0 to 1.
        total_N += weight * (ranked_N - 1) / max(1, len(ranked_N) - 1)
    mean_N: NDArray[np.float64] = total_N / sum(weights)
    return mean_N
