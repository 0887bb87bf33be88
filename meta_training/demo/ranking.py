"""How well scores separate or order documents: AUC and Spearman's rank correlation.

Both depend only on the order of the scores, which suits raters, whose scores are defined up to a
constant.

Dimension letters in array names: N the documents, K their distinct values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_ranks(values_N: ArrayLike) -> NDArray[np.float64]:
    """Returns ranks from 1 to N in ascending order; ties share the mean of the ranks they span.

    Args:
        values_N: Finite or infinite numbers, not NaN.

    Returns:
        float64 ranks of the same length.

    Raises:
        ValueError: If the values are not one-dimensional or contain a NaN.

    Example:
        >>> average_ranks([10.0, 30.0, 10.0]).tolist()
        [1.5, 3.0, 1.5]
    """
    values_N = _vector("values", values_N)
    _, inverse_N, counts_K = np.unique(values_N, return_inverse=True, return_counts=True)
    last_rank_K = np.cumsum(counts_K)
    rank_K = last_rank_K - (counts_K - 1) / 2.0
    return rank_K[inverse_N.reshape(-1)].astype(np.float64)


def auc(scores_N: ArrayLike, positive_N: ArrayLike | Sequence[bool]) -> float:
    """Returns the area under the ROC curve.

    This is the probability that a positive outscores a negative, ties counting half. By the
    Mann-Whitney statistic, with R the sum of the positives' average ranks among all N scores, P
    positives and M = N - P negatives,

        AUC = (R - P (P + 1) / 2) / (P M)

    Args:
        scores_N: Scores, not NaN; higher means more likely positive.
        positive_N: Booleans of the same length, True for the positives.

    Returns:
        A number in [0, 1]; uninformative scores have an AUC of 0.5.

    Raises:
        ValueError: If the lengths differ, a score is NaN, or all elements are of one class.

    Example:
        >>> auc([0.9, 0.8, 0.3, 0.8], [True, True, False, False])
        0.875
    """
    scores_N = _vector("scores", scores_N)
    positive_N = np.asarray(positive_N)
    if positive_N.dtype != np.bool_ and not np.isin(positive_N, (0, 1)).all():
        raise ValueError("positive must contain booleans, or zeros and ones")
    positive_N = positive_N.astype(np.bool_)
    if positive_N.shape != scores_N.shape:
        raise ValueError(
            f"scores and positive differ in shape: {scores_N.shape} and {positive_N.shape}"
        )

    positives = int(positive_N.sum())
    negatives = len(scores_N) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(
            f"AUC is undefined with {positives} positives and {negatives} negatives; give both"
        )
    rank_sum = float(average_ranks(scores_N)[positive_N].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def spearman(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Returns Spearman's rank correlation, Pearson's correlation of the average ranks.

        rho = sum((r - mean r) (s - mean s)) / sqrt(sum((r - mean r)^2) sum((s - mean s)^2))

    with r and s the average ranks of x and y.

    Args:
        x_N: Numbers, not NaN.
        y_N: Numbers of the same length, not NaN.

    Returns:
        A number in [-1, 1].

    Raises:
        ValueError: If the lengths differ, a value is NaN, or either side is constant (the
            correlation is undefined); an empty or one-element input is constant.

    Example:
        >>> spearman([1, 2, 3], [10, 100, 1000])
        1.0
    """
    x_N, y_N = _vector("x", x_N), _vector("y", y_N)
    if x_N.shape != y_N.shape:
        raise ValueError(f"x and y differ in shape: {x_N.shape} and {y_N.shape}")
    for name, values_N in (("x", x_N), ("y", y_N)):
        if len(values_N) < 2 or (values_N == values_N[0]).all():
            raise ValueError(
                f"the rank correlation is undefined: {name} has fewer than two distinct values"
            )

    r_N, s_N = average_ranks(x_N), average_ranks(y_N)
    r_N, s_N = r_N - r_N.mean(), s_N - s_N.mean()
    rho = float(r_N @ s_N / np.sqrt((r_N @ r_N) * (s_N @ s_N)))
    return min(1.0, max(-1.0, rho))


def _vector(name: str, values_N: ArrayLike) -> NDArray[np.float64]:
    """Returns the values as a float64 vector without NaN."""
    array_N = np.asarray(values_N, dtype=np.float64)
    if array_N.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not shape {array_N.shape}")
    if np.isnan(array_N).any():
        raise ValueError(f"{name} contains a NaN: ranks are undefined")
    return array_N
