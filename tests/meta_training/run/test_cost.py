"""The FLOPs of models are those of the products that they compute."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from datarater.meta_training.algorithm.language_model import (
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.meta_gradient import (
    InnerState,
    MetaGradientConfig,
    make_meta_gradient,
)
from datarater.meta_training.config import build
from datarater.meta_training.run.cost import ModelCost
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.support.configs import default_with, spending_of_config


def test_logits_cost_the_same_with_tied_embeddings() -> None:
    tied, untied = (
        spending_of_config(default_with(inner_model__tied_embeddings=value))
        for value in (True, False)
    )
    assert tied.inner == untied.inner


@pytest.mark.parametrize(("head_width", "products"), [(0, 64), (16, 64), (32, 128)])
def test_attention_costs_by_the_width_of_its_heads(head_width: int, products: int) -> None:
    shape = TransformerConfig(width=64, heads=4, layers=2, head_width=head_width)
    assert ModelCost.of(shape, 0, length=8).flops == 4 * 2 * 8 * products


@pytest.mark.parametrize(("warmup_batch", "windows"), [(0, 128), (32, 32)])
def test_a_warm_up_costs_what_its_own_batches_do(warmup_batch: int, windows: int) -> None:
    spending = spending_of_config(
        default_with(length=8, inner_batch=128, population__warmup_batch=warmup_batch)
    )
    assert spending.warmup_tokens == 2 * 300 * windows * 8


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixed", "reverse"])
@pytest.mark.parametrize("updates", [1, 2])
def test_the_flops_of_a_meta_step_are_those_of_its_program(mode: str, updates: int) -> None:
    sizes = {"length": 128, "inner_batch": 32, "outer_batch": 16, "inner_updates": updates}
    config = default_with(**sizes, population__size=1, inner_model__layers=1)

    # XLA drops what the result does not need. The rater is a constant, whose cost is left out.
    model = build.language_model_config(config, ByteTokenizer())
    optimiser = optax.adam(1e-3, eps_root=1e-8)
    theta = initialise_language_model(model, jax.random.key(0))
    state = InnerState(theta, optimiser.init(theta), zeros())
    meta_gradient = make_meta_gradient(
        lambda eta, windows: eta * windows.length_B,
        functools.partial(sequence_losses, model),
        optimiser,
        MetaGradientConfig(mode=mode),
    )
    inner = Windows(zeros(updates, 32, 128), zeros(updates, 32))
    outer = Windows(zeros(16, 128), zeros(16))
    program = jax.jit(meta_gradient).lower(1.0, state, inner, outer).compile()
    flops = (program.cost_analysis() or {})["flops"]
    without_rater = dataclasses.replace(spending_of_config(config), rater=ModelCost(0)).step_flops
    assert without_rater == pytest.approx(flops, rel=0.15)


def zeros(*shape: int) -> jax.Array:
    """Returns an array of integers."""
    return jnp.zeros(shape, jnp.int32)
