"""The default config with some fields changed, and what the steps of a config cost."""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.language_model import initialise_language_model
from datarater.meta_training.config import build
from datarater.meta_training.configs import default
from datarater.meta_training.run.cost import Spending, spending_of_shapes
from datarater.rater_model.rater import initialise_rater_shapes
from datarater.rater_model.tokenizer import ByteTokenizer


def default_with(**changed: Any) -> ConfigDict:
    """Returns the default config with fields changed; `__` in a name stands for a dot."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changed.items()}
    )
    return config


def spending_of_config(config: ConfigDict) -> Spending:
    """Returns the cost of a config before there is a tokenizer or any data."""

    class Tokenizer(ByteTokenizer):
        vocabulary_size = (
            config.tokenizer.vocabulary_size
            if config.tokenizer.kind == "bpe"
            else ByteTokenizer.vocabulary_size
        )

    rater = build.rater_config(config, Tokenizer())
    model = build.language_model_config(config, Tokenizer())
    theta = jax.eval_shape(lambda: initialise_language_model(model, jax.random.key(0)))
    shapes = rater.transformer, model.transformer
    params = initialise_rater_shapes(rater), theta
    return spending_of_shapes(config, shapes, params, config.length)
