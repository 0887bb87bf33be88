"""Groups of documents: by source, by length, or by any field.

N counts documents, G groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datarater.meta_training.evaluate.keeping import keep_best, seeded_hash

DISCARDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Discard fractions of the shares of sources, those of the paper's figure."""

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
WITHOUT = "(none)"
_BINS = 10
_MAX_VALUES = 20


def label_groups(values: Sequence[str], min_group: int) -> list[str]:
    """Returns the group of each document: its value, or one group for all that are rare.

    A field with more than 20 values, all of them numbers, is cut at its deciles.

    Args:
        values: Value of each document, "" without one.
        min_group: Documents that a group has at least; those of smaller ones make up a common one.

    Example:
        >>> label_groups(["a", "a", "b", "c", ""], min_group=2)
        ['a', 'a', '(3 other)', '(3 other)', '(3 other)']
    """
    numbers = _numbers(values)
    if numbers is not None:
        known_N = np.isfinite(numbers)
        labels = np.full(len(values), WITHOUT, object)
        labels[known_N] = decile_labels(numbers[known_N])
        values = labels.tolist()
    named = [value or WITHOUT for value in values]
    counts = Counter(named)
    small = [name for name, count in counts.items() if count < min_group]
    if not small:
        return named
    other = small[0] if len(small) == 1 else f"({len(small)} other)"
    return [other if counts[name] < min_group else name for name in named]


def _numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns the values as numbers; None unless there are many different ones and only numbers."""
    if len(set(values)) <= _MAX_VALUES:
        return None
    try:
        return np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return None


def decile_labels(values_N: ArrayLike) -> list[str]:
    """Returns the range of the decile that each value is in; equal values are in the same one.

    Example:
        >>> decile_labels([1, 1, 1, 5])
        ['1 to 1', '1 to 1', '1 to 1', '5 to 5']
    """
    values_N = np.asarray(values_N, np.float64)
    edges = np.quantile(values_N, np.arange(1, _BINS) / _BINS, method="higher")
    bins_N = np.searchsorted(np.unique(edges), values_N, side="right")
    labels = {}
    for index in np.unique(bins_N):
        inside = values_N[bins_N == index]
        labels[index] = f"{inside.min():,.10g} to {inside.max():,.10g}"
    return [labels[index] for index in bins_N]


def kept_at(
    scores_N: NDArray[np.float64],
    sizes_N: NDArray[np.int64],
    hashes_N: NDArray[np.uint64],
    keep: float,
) -> NDArray[np.bool_]:
    """Returns which documents are kept; a seeded hash orders equal scores."""
    return keep_best(scores_N, sizes_N, keep, seeded_hash(hashes_N, 0))


def source_shares(
    scores_N: NDArray[np.float64],
    sizes_N: NDArray[np.int64],
    hashes_N: NDArray[np.uint64],
    groups: Sequence[str],
) -> dict[str, list[float]]:
    """Returns the share of each group in what is kept at each of `DISCARDS`.

    Args:
        scores_N: Scores.
        sizes_N: Sizes in the unit of the kept share.
        hashes_N: Hashes of the texts.
        groups: Group of each document.
    """
    names, owners_N = np.unique(np.asarray(groups), return_inverse=True)
    columns = []
    for discard in DISCARDS:
        kept_N = kept_at(scores_N, sizes_N, hashes_N, 1 - discard)
        sizes_G = np.bincount(owners_N[kept_N], sizes_N[kept_N], minlength=len(names))
        columns.append(sizes_G / sizes_G.sum())
    shares_GxD = np.stack(columns, axis=1)
    return {str(name): row.tolist() for name, row in zip(names, shares_GxD, strict=True)}


def distributions(scores_N: NDArray[np.float64], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Returns how the scores of each group are distributed, the lowest median first.

    Scores are in standard deviations from the mean of all documents, because a rater's scores have
    neither a zero nor a unit. The left tail is how far the 1% quantile is below the median, as a
    multiple of how far the 99% quantile is above it: 1 in a symmetric distribution.
    """
    deviation = scores_N.std() or 1.0
    z_N = (scores_N - scores_N.mean()) / deviation
    owners = np.asarray(groups)
    rows = []
    for name in [None, *sorted(set(groups))]:
        inside = z_N if name is None else z_N[owners == name]
        quantiles = np.quantile(inside, QUANTILES)
        low, middle, high = quantiles[0], np.median(inside), quantiles[-1]
        rows.append(
            {
                "group": name,
                "documents": len(inside),
                "mean": float(inside.mean()),
                "deviation": float(inside.std()),
                "quantiles": quantiles.tolist(),
                "left_tail": float((middle - low) / (high - middle)) if high > middle else None,
            }
        )
    return [rows[0], *sorted(rows[1:], key=lambda row: row["quantiles"][4])]


def rank_correlation(first_N: ArrayLike, second_N: ArrayLike) -> float | None:
    """Returns Spearman's correlation; None if there are fewer than two values or all are equal."""
    from scipy.stats import rankdata

    ranks_2xN = np.stack([rankdata(first_N), rankdata(second_N)])
    if ranks_2xN.shape[1] < 2 or (np.ptp(ranks_2xN, axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks_2xN)[0, 1])


def rank_correlation_within(
    first_N: NDArray[np.float64],
    second_N: NDArray[np.float64],
    groups: Sequence[str],
    min_group: int,
) -> float | None:
    """Returns the mean of Spearman's correlation within groups, weighted by their documents.

    Groups with fewer than `min_group` documents are left out; None if that leaves none.
    """
    owners = np.asarray(groups)
    values, weights = [], []
    for name in sorted(set(groups)):
        inside = owners == name
        value = rank_correlation(first_N[inside], second_N[inside])
        if value is not None and inside.sum() >= min_group:
            values.append(value)
            weights.append(int(inside.sum()))
    return float(np.average(values, weights=weights)) if values else None
