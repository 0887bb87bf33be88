"""Quantiles: a distribution of scores known by its scores at equal steps of rank from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.ranking import SelectionError


def rising(quantiles: Sequence[float]) -> NDArray[np.float64]:
    """Returns quantiles as an array.

    Raises:
        SelectionError: The quantiles do not rise.
    """
    scores_Q = np.asarray(quantiles, np.float64)
    if len(scores_Q) < 2 or not np.isfinite(scores_Q).all() or (np.diff(scores_Q) < 0).any():
        raise SelectionError("the quantiles of the reference are not at least two rising numbers")
    return scores_Q


def score_at(quantiles: Sequence[float], rank: float) -> float:
    """Returns the score at a rank, interpolated linearly.

    Args:
        quantiles: Rising scores at equal steps from 0 to 1.
        rank: Number in [0, 1].

    Raises:
        SelectionError: The quantiles do not rise.
    """
    scores_Q = rising(quantiles)
    return float(np.interp(rank * (len(scores_Q) - 1), np.arange(len(scores_Q)), scores_Q))
