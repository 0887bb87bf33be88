"""An inner model and a rater of a few lines each, which compile in a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.meta_gradient import InnerState
from datarater.rater_model.rater import RaterConfig, initialise_rater, score_tokens
from datarater.rater_model.transformer import TransformerConfig

VOCABULARY, LENGTH, WIDTH = 12, 6, 8
Tree = Any


class Problem(NamedTuple):
    """The functions of an inner model and a rater that meta-training needs."""

    score: Callable[[Tree, Windows], jax.Array]
    losses: Callable[[Tree, Windows], jax.Array]
    initialise_rater: Callable[[jax.Array], Tree]
    initialise_model: Callable[[jax.Array], Tree]


def small_problem(dtype: str) -> Problem:
    """Returns an inner model with one hidden layer, and a rater that averages embeddings."""

    def losses(theta: Tree, windows: Windows) -> jax.Array:
        hidden = jnp.tanh(
            theta["embedding"][windows.tokens_BxL[:, :-1]] @ theta["hidden"] + theta["bias"]
        )
        log_probabilities = jax.nn.log_softmax(hidden @ theta["readout"])
        targets = jnp.take_along_axis(log_probabilities, windows.tokens_BxL[:, 1:, None], axis=-1)[
            ..., 0
        ]
        valid = windows.mask_BxL()[:, 1:].astype(targets.dtype)
        return -jnp.sum(targets * valid, axis=1) / jnp.sum(valid, axis=1)

    def score(eta: Tree, windows: Windows) -> jax.Array:
        return jnp.mean(jnp.tanh(eta["table"][windows.tokens_BxL]), axis=1) @ eta["head"]

    def normal(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape, dtype)

    def initialise_small_rater(key: jax.Array) -> Tree:
        return {
            "table": normal(key, VOCABULARY, WIDTH),
            "head": normal(jax.random.fold_in(key, 1), WIDTH),
        }

    def initialise_model(key: jax.Array) -> Tree:
        keys = jax.random.split(key, 4)
        return {
            "embedding": normal(keys[0], VOCABULARY, WIDTH),
            "hidden": normal(keys[1], WIDTH, 7) / 2,
            "bias": normal(keys[2], 7),  # cannot be cut over an even number of devices
            "readout": normal(keys[3], 7, VOCABULARY),
        }

    return Problem(score, losses, initialise_small_rater, initialise_model)


def transformer_problem(dtype: str, loss_chunk: int = 0, **changes: Any) -> Problem:
    """Returns very small models of the project's own kinds."""
    shape = TransformerConfig(8, 2, 12, 1, **{"dtype": dtype, "param_dtype": dtype, **changes})
    model, rater = (
        LanguageModelConfig(VOCABULARY, shape, loss_chunk),
        RaterConfig(VOCABULARY, LENGTH, shape, ngram_rows=16),
    )
    return Problem(
        lambda eta, windows: score_tokens(rater, eta, *windows),
        lambda theta, windows: sequence_losses(model, theta, windows),
        lambda key: initialise_rater(rater, key),
        lambda key: initialise_language_model(model, key),
    )


def random_windows(key: jax.Array, *shape: int) -> Windows:
    """Returns windows of random tokens and lengths, with the given leading axes."""
    keys = jax.random.split(key)
    return Windows(
        jax.random.randint(keys[0], (*shape, LENGTH), 0, VOCABULARY, jnp.int32),
        jax.random.randint(keys[1], shape, 3, LENGTH + 1, jnp.int32),
    )


def inner_state(theta: Tree, optimiser: optax.GradientTransformation) -> InnerState:
    """Returns an inner model whose optimizer has non-zero moments.

    The first update of a fresh Adam is nearly the gradient's sign.
    """
    state = jax.tree.map(lambda x: jnp.full_like(x, 0.01) if x.ndim else x, optimiser.init(theta))
    return InnerState(theta, state, jnp.int32(0))
