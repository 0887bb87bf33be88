"""Tiny raters that have learned nothing: their scores are as good as any for the pipeline."""

from __future__ import annotations

from pathlib import Path

import jax

from datarater.rater_model.checkpoint import RaterCheckpoint, ScoreStatistics, save_rater
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig

_NO_STATISTICS = ScoreStatistics()


def save_tiny_rater(
    path: Path, seed: int = 0, statistics: ScoreStatistics = _NO_STATISTICS
) -> Path:
    """Saves a rater of one layer over bytes and returns its path.

    Args:
        path: Folder of the rater.
        seed: Seed of its parameters.
        statistics: Scores of a reference sample, if the rater has one.
    """
    config = RaterConfig(
        window=64,
        transformer=TransformerConfig(width=8, heads=1, mlp_width=16, layers=1),
        ngram_rows=64,
    )
    params = initialise_rater(config, jax.random.key(seed))
    save_rater(path, RaterCheckpoint(config, params, ByteTokenizer(), statistics))
    return path
