"""How the scores of documents depend on their length.

A rater that is trained on windows of one length scores documents of every length. A short document
is one short window, and a long one the mean over many windows, whose spread is smaller. The effect
is recorded with each rater, so that a selection by score can be checked for a selection by length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from datarater.meta_training.analysis.groups import rank_correlation

_PARTS = 4
_MINIMUM_DOCUMENTS = 8


def length_effect(tokens_N: np.ndarray, scores_N: np.ndarray) -> dict[str, Any]:
    """Returns what a rater's provenance records of scores and length.

    Args:
        tokens_N: Tokens of each document.
        scores_N: Centered score of each document.

    Returns:
        `rank_correlation`, Spearman's, of score and tokens (None if either is constant), and
        `parts`: quarters of the documents by length, each with the range of its `tokens`, its
        number of `documents`, and the `mean` and `standard_deviation` of its scores. Fewer than 8
        documents are one part.

    Example:
        >>> effect = length_effect(np.arange(8), np.arange(8.0))
        >>> effect["rank_correlation"], effect["parts"][0]
        (1.0, {'tokens': [0, 1], 'documents': 2, 'mean': 0.5, 'standard_deviation': 0.5})
    """
    order_N = np.argsort(tokens_N, kind="stable")
    parts = _PARTS if len(order_N) >= _MINIMUM_DOCUMENTS else 1
    correlation = rank_correlation(tokens_N, scores_N)
    return {
        "rank_correlation": None if correlation is None else round(correlation, 6),
        "parts": [
            {
                "tokens": [int(tokens_N[part[0]]), int(tokens_N[part[-1]])],
                "documents": len(part),
                "mean": float(scores_N[part].mean()),
                "standard_deviation": float(scores_N[part].std()),
            }
            for part in np.array_split(order_N, parts)
        ],
    }


def length_text(effect: Mapping[str, Any]) -> str:
    """Returns the line of a run's closing summary that shows the effect of length.

    Args:
        effect: Result of `length_effect`.

    Example:
        >>> length_text(length_effect(np.arange(3), np.arange(3.0) - 1))
        'scores by length      rank correlation +1.00; mean and spread by tokens: 0 to 2 +0.00 0.82'
    """
    correlation = effect["rank_correlation"]
    parts = ", ".join(
        f"{part['tokens'][0]} to {part['tokens'][1]} {part['mean']:+.2f} "
        f"{part['standard_deviation']:.2f}"
        for part in effect["parts"]
    )
    shown = "none" if correlation is None else f"{correlation:+.2f}"
    return f"scores by length      rank correlation {shown}; mean and spread by tokens: {parts}"
