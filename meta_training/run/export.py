"""Export: a rater checkpoint out of a training run, with its scores centred on a reference sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from datarater.rater_model.checkpoint import RaterCheckpoint, ScoreStatistics, save_rater
from datarater.rater_model.rater import Params, RaterConfig
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import Tokenizer


class NonFiniteScoresError(ArithmeticError):
    """The rater gives scores that are not finite on its reference sample: it must not be exported."""


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
    """Centres a rater's scores on the reference sample and writes its checkpoint.

    A softmax over a batch is the same whatever is added to all scores, so meta-training fixes
    scores up to a constant only. The sample's mean becomes 0; its standard deviation and quantiles
    are recorded. The sample is of documents, scored in windows under the cap that selection will
    use, since means over windows spread less than windows do.

    Args:
        path: the folder to write; see `save_rater`.
        config: the rater's shape.
        params: its parameters.
        tokenizer: its tokenizer.
        reference: documents of the inner set.
        max_windows: the window cap.
        provenance: what to record of the run.
        write: whether to write it at all; of several processes that train together, one does.

    Returns:
        The checkpoint, with its digest where it was written, and the reference documents' centred
        scores, float32.

    Raises:
        NonFiniteScoresError: a reference document's score is not finite.
    """
    uncentred = RaterCheckpoint(config, jax.device_get(params), tokenizer, provenance=provenance)
    scores_N = (
        Scorer(uncentred, ScoringOptions(max_windows=max_windows))
        .score(reference)
        .scores_N.astype(np.float64)
    )
    if not np.isfinite(scores_N).all():
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(uncentred.params))
        cause = (
            "its parameters are finite, but too large"
            if finite
            else "its parameters are not finite"
        )
        raise NonFiniteScoresError(
            f"the rater's scores of {int((~np.isfinite(scores_N)).sum())} of {len(scores_N)} reference documents are "
            f"not finite: {cause}; {path} was not written"
        )
    center = float(scores_N.mean())
    statistics = ScoreStatistics(
        center=center,
        standard_deviation=float(scores_N.std()),
        quantiles=tuple(float(q) for q in np.quantile(scores_N - center, np.linspace(0, 1, 101))),
        sample_size=len(scores_N),
        max_windows=max_windows,
    )
    checkpoint = dataclasses.replace(uncentred, statistics=statistics)
    if write:
        checkpoint = save_rater(path, checkpoint)
    return checkpoint, (scores_N - center).astype(np.float32)
