"""Exports a rater checkpoint from a training run, its scores centered on a reference sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from datarater.meta_training.run.length_effect import length_effect
from datarater.rater_model.checkpoint import (
    RaterCheckpoint,
    ScoreStatistics,
    percentiles,
    save_rater,
)
from datarater.rater_model.rater import Params, RaterConfig
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import Tokenizer


class NonFiniteScoresError(ArithmeticError):
    """The rater's scores on its reference sample are not finite, so it must not be exported."""


def export_rater(
    path: str,
    config: RaterConfig,
    params: Params,
    tokenizer: Tokenizer,
    reference: Sequence[str],
    max_windows: int,
    provenance: dict[str, Any],
    write: bool = True,
) -> tuple[RaterCheckpoint, np.ndarray]:
    """Centers a rater's scores on the reference sample and writes its checkpoint.

    A softmax over a batch does not change when a constant is added to all scores, so meta-training
    determines scores up to a constant only. The sample's mean becomes 0; its standard deviation and
    quantiles are recorded. The sample consists of whole documents, scored in windows under the cap
    that selection will use, since means over windows spread less than windows do.

    Args:
        path: Folder to write; see `save_rater`.
        config: Shape of the rater.
        params: Parameters of the rater.
        tokenizer: Tokenizer of the rater.
        reference: Documents of the inner set.
        max_windows: Largest number of windows scored per document.
        provenance: What the checkpoint records about the run, to which the effect of length is
            added as `scores_by_length`.
        write: Whether to write the checkpoint; of several processes that train together, one does.

    Returns:
        The checkpoint, with its digest if it was written, and the centered scores of the reference
        documents, float32.

    Raises:
        NonFiniteScoresError: The score of a reference document is not finite.
    """
    uncentered = RaterCheckpoint(config, jax.device_get(params), tokenizer, provenance=provenance)
    scorer = Scorer(uncentered, ScoringOptions(max_windows=max_windows))
    scored = scorer.score(reference)
    scores_N = scored.scores_N.astype(np.float64)
    if not np.isfinite(scores_N).all():
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(uncentered.params))
        cause = "finite, but too large" if finite else "not finite"
        raise NonFiniteScoresError(
            f"the rater's scores of {int((~np.isfinite(scores_N)).sum())} of {len(scores_N)} "
            f"reference documents are not finite: its parameters are {cause}; "
            f"{path} was not written"
        )

    center = float(scores_N.mean())
    statistics = ScoreStatistics(
        center=center,
        standard_deviation=float(scores_N.std()),
        quantiles=percentiles(scores_N - center),
        sample_size=len(scores_N),
        max_windows=max_windows,
    )
    effect = length_effect(scored.tokens_N, scores_N - center)
    checkpoint = dataclasses.replace(
        uncentered, statistics=statistics, provenance={**provenance, "scores_by_length": effect}
    )
    if write:
        checkpoint = save_rater(path, checkpoint)
    return checkpoint, (scores_N - center).astype(np.float32)
