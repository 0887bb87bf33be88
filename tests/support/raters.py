"""Tiny raters that have learned nothing: their scores are as good as any for the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from datarater.rater_model.byte_ngrams import table_rows
from datarater.rater_model.checkpoint import RaterCheckpoint, ScoreStatistics, save_rater
from datarater.rater_model.ngram_rater import NgramConfig, table_name
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


def random_student(**changes: Any) -> RaterCheckpoint:
    """Returns a student with random weights and held-out scores, not saved.

    Args:
        **changes: Other values of the checkpoint's fields.
    """
    config = NgramConfig((1, 2, 4), 10, held_out=400)
    random = np.random.default_rng(0)
    params: dict[str, Any] = {
        table_name(order): random.standard_normal(table_rows(order, config.row_bits)).astype(
            np.float32
        )
        for order in config.orders
    }
    rater_H = random.standard_normal(config.held_out).astype(np.float32)
    noise_H = 0.5 * random.standard_normal(config.held_out).astype(np.float32)
    params |= {
        "held_out/student": rater_H + noise_H,
        "held_out/rater": rater_H,
        "held_out/bytes": np.full(config.held_out, 100, np.float32),
    }
    fields = {
        "config": config,
        "params": params,
        "tokenizer": ByteTokenizer(),
        "statistics": ScoreStatistics(center=0.25),
    }
    return RaterCheckpoint(**{**fields, **changes})
