"""Whether raters agree: between seeds, and between the exports of one training run.

N counts documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.analysis.groups import (
    kept_at,
    rank_correlation,
    rank_correlation_within,
)

HALF = 0.5


def agreement(
    scores: Mapping[str, NDArray[np.float64]],
    sizes_N: NDArray[np.int64],
    hashes_N: NDArray[np.uint64],
    sources: Sequence[str],
    keep: float,
    min_group: int,
) -> list[dict[str, Any]]:
    """Returns how much each pair of raters agrees.

    The overlap is the size of what both keep, as a share of what the first keeps. Two random
    choices of a half overlap in 0.5, and in general in the kept share.

    Args:
        scores: Scores of each rater.
        sizes_N: Sizes in the unit of the kept share.
        hashes_N: Hashes of the texts.
        sources: Source of each document.
        keep: Kept share, besides a half.
        min_group: Documents of a source below which it is left out within sources.
    """
    pairs = []
    for (first, first_N), (second, second_N) in itertools.combinations(scores.items(), 2):
        overlaps = {}
        for share in dict.fromkeys((HALF, keep)):
            one_N = kept_at(first_N, sizes_N, hashes_N, share)
            other_N = kept_at(second_N, sizes_N, hashes_N, share)
            overlaps[f"{share:g}"] = float(sizes_N[one_N & other_N].sum() / sizes_N[one_N].sum())
        pairs.append(
            {
                "first": first,
                "second": second,
                "spearman": rank_correlation(first_N, second_N),
                "spearman_within_sources": rank_correlation_within(
                    first_N, second_N, sources, min_group
                ),
                "overlap": overlaps,
            }
        )
    return pairs


def autocorrelation(scores: Mapping[int, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Returns how the scores of a training run's exports change from one to the next.

    Args:
        scores: Scores of the same documents by each export's meta-step.
    """
    # It imports JAX.
    from datarater.meta_training.run.summary import score_correlation

    steps = sorted(scores)
    rows = []
    for index, step in enumerate(steps):
        before = scores[steps[index - 1]] if index else None
        rows.append(
            {
                "step": step,
                "with_previous": (
                    None if before is None else score_correlation(before, scores[step])
                ),
                "with_last": score_correlation(scores[step], scores[steps[-1]]),
                "spearman_with_last": rank_correlation(scores[step], scores[steps[-1]]),
                "deviation": float(scores[step].std()),
            }
        )
    return rows
