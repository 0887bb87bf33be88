"""The inner model is causal, and its loss is the mean over the valid part of a window."""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarater.meta_training.algorithm.language_model import (
    LanguageModel,
    LanguageModelConfig,
    Windows,
    initialise_language_model,
    read_out_logits,
    sequence_losses,
)
from datarater.rater_model.transformer import TransformerConfig

LENGTH = 6
CONFIG = LanguageModelConfig(LENGTH, TransformerConfig(8, 2, 12, 2))


def test_no_position_sees_the_future() -> None:
    params = initialise_language_model(CONFIG, jax.random.key(0))
    tokens = jnp.arange(LENGTH)[None]  # every position has an embedding row of its own

    def logits(table: jax.Array) -> jax.Array:
        with_table = {**params, "token_embedding": {"embedding": table}}
        return LanguageModel(CONFIG).apply({"params": with_table}, tokens)[0]

    jacobian = jax.jacobian(logits)(params["token_embedding"]["embedding"])  # [L, V, L, D]
    # Of an input position on an output position.
    influence = np.linalg.norm(np.asarray(jacobian), axis=(1, 3))
    assert (influence[np.triu_indices(LENGTH, 1)] == 0).all(), "a position sees what comes after it"
    assert (influence[np.tril_indices(LENGTH)] > 1e-7).all(), (
        "a position does not see everything before it"
    )


def test_the_loss_is_the_mean_cross_entropy_of_valid_targets() -> None:
    params = initialise_language_model(CONFIG, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, LENGTH)
    losses = sequence_losses(CONFIG, params, Windows(tokens, jnp.asarray([LENGTH, 3])))
    logits = cast(jax.Array, LanguageModel(CONFIG).apply({"params": params}, tokens))
    log_probabilities = jax.nn.log_softmax(logits)
    for row, valid in ((0, LENGTH), (1, 3)):
        expected = -np.mean(
            [log_probabilities[row, i, tokens[row, i + 1]] for i in range(valid - 1)]
        )
        assert float(losses[row]) == pytest.approx(float(expected), rel=1e-5)


def test_padding_changes_no_loss() -> None:
    params = initialise_language_model(CONFIG, jax.random.key(0))
    tokens = jnp.asarray([[1, 2, 3, 0, 0, 0], [1, 2, 3, 5, 4, 5]])
    first, second = sequence_losses(CONFIG, params, Windows(tokens, jnp.asarray([3, 3])))
    assert float(first) == float(second)


def test_in_bfloat16_a_frequent_token_gets_its_whole_gradient() -> None:
    """In bfloat16, a sum of more than a thousand small numbers would stop growing."""
    length, vocabulary = 1024, 64
    keys = jax.random.split(jax.random.key(0), 3)
    others = jax.random.randint(keys[0], (2, length), 1, vocabulary)
    tokens = jnp.where(jax.random.uniform(keys[1], (2, length)) < 0.3, 0, others)
    windows = Windows(tokens, jnp.full(2, length, jnp.int32))
    shape = TransformerConfig(32, 2, 64, 1)
    params = initialise_language_model(LanguageModelConfig(vocabulary, shape), keys[2])

    def gradient(dtype: str) -> np.ndarray:
        config = LanguageModelConfig(vocabulary, dataclasses.replace(shape, dtype=dtype))
        gradient = jax.grad(lambda params: jnp.mean(sequence_losses(config, params, windows)))(
            params
        )
        return np.asarray(gradient["token_embedding"]["embedding"])

    rough, exact = gradient("bfloat16"), gradient("float32")
    assert np.linalg.norm(rough - exact) < 0.02 * np.linalg.norm(exact)


def test_logits_of_bfloat16_states_are_not_rounded_to_bfloat16() -> None:
    hidden, kernel = (
        jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)
        for seed, shape in ((0, (3, 64)), (1, (64, 5)))
    )
    expected = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(read_out_logits(hidden, kernel), expected, rtol=1e-5, atol=1e-5)

    chunked = dataclasses.replace(CONFIG, loss_chunk=2)
    bfloat16 = dataclasses.replace(CONFIG.transformer, dtype="bfloat16")
    for config in (CONFIG, chunked):
        text = str(
            jax.make_jaxpr(sequence_losses, static_argnums=0)(
                dataclasses.replace(config, transformer=bfloat16),
                initialise_language_model(CONFIG, jax.random.key(0)),
                Windows(jnp.ones((2, LENGTH), jnp.int32), jnp.full(2, LENGTH)),
            )
        )
        assert text.count("preferred_element_type=float32") > 0
        # No logit [..., V] is created in bfloat16.
        assert f"bf16[2,{LENGTH - 1},{LENGTH}]" not in text
        assert f"bf16[2,2,{LENGTH}]" not in text


def test_the_readout_can_be_differentiated_twice() -> None:
    hidden, kernel = (jax.random.normal(jax.random.key(i), (4, 4)) for i in range(2))

    def loss(arguments: tuple[jax.Array, jax.Array], plain: bool) -> jax.Array:
        product = jnp.matmul if plain else read_out_logits
        return jnp.sum(jnp.sin(product(*arguments)))

    def second(plain: bool) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        gradient = jax.grad(lambda arguments: loss(arguments, plain))
        arguments = (hidden, kernel)
        return jax.jvp(gradient, (arguments,), (arguments,))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        second(False),
        second(True),
    )
