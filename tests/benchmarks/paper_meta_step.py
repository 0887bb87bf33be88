"""The meta-step at the paper's sizes, from shapes alone, and the FLOPs of its products.

Importing this module starts no JAX backend, so a benchmark can choose its platform first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.language_model import (
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.mesh import Placement
from datarater.meta_training.algorithm.meta_gradient import make_meta_gradient
from datarater.meta_training.algorithm.meta_step import (
    MetaState,
    initial_meta_state,
    make_meta_step,
    meta_state_specs,
    windows_spec,
)
from datarater.meta_training.algorithm.population import fresh_inner_state, stack
from datarater.meta_training.config import build
from datarater.meta_training.configs import pile
from datarater.rater_model.rater import initialise_rater, score_tokens
from datarater.rater_model.tokenizer import ByteTokenizer

# (width, heads, width of the MLP, layers); 400M is the config's size.
SIZES = {"44M": (384, 6, 1024, 11), "150M": (768, 12, 2048, 14), "400M": (1280, 10, 3456, 16)}


class MetaStep(NamedTuple):
    """A meta-step and its arguments.

    Attributes:
        step: The compiled function.
        state: Shapes of the state.
        inner: Shapes of the inner windows.
        outer: Shapes of the outer windows.
        initial_state: Makes a state on one device.
    """

    step: jax.stages.Wrapped
    state: MetaState
    inner: Windows
    outer: Windows
    initial_state: Callable[[], MetaState]


def config_of(size: str, updates: int, micro_batch: int, mode: str) -> ConfigDict:
    """Returns the paper's config with a given inner model, T, micro-batch and mode."""
    config = pile.get_config()
    model = config.inner_model
    model.width, model.heads, model.mlp_width, model.layers = SIZES[size]
    config.inner_updates = updates
    config.meta_gradient.mode = mode
    config.meta_gradient.inner_micro_batch = config.meta_gradient.outer_micro_batch = micro_batch
    config.meta_gradient.rater_micro_batch = micro_batch
    return config


class SizedTokenizer(ByteTokenizer):
    """A tokenizer that has only a vocabulary size."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size


def meta_step_of(config: ConfigDict, placement: Placement) -> MetaStep:
    """Returns the meta-step of a config and the shapes of its arguments.

    Args:
        config: The whole config.
        placement: Devices of the inner models and their batches.
    """
    tokenizer = SizedTokenizer(config.tokenizer.vocabulary_size)
    rater, model = (
        build.rater_config(config, tokenizer),
        build.language_model_config(config, tokenizer),
    )
    optimiser, meta_optimiser = build.inner_optimiser(config), build.meta_optimiser(config)

    def initial_state() -> MetaState:
        key = jax.random.key(0)
        member = fresh_inner_state(lambda k: initialise_language_model(model, k), optimiser, key)
        return initial_meta_state(
            initialise_rater(rater, key), stack([member] * config.population.size), meta_optimiser
        )

    state = jax.eval_shape(initial_state)
    theta = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.inner.params)

    def windows(*shape: int) -> Windows:
        of_tokens: Any = jax.ShapeDtypeStruct((*shape, config.length), jnp.int32)
        of_lengths: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
        return Windows(of_tokens, of_lengths)

    inner = windows(config.population.size, config.inner_updates, config.inner_batch)
    outer = windows(config.population.size, config.outer_batch)

    if placement.size > 1:

        def placed(tree: Any, specs: Any) -> Any:
            return jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                tree,
                placement.shardings(specs),
            )

        state = placed(state, meta_state_specs(state, placement))
        inner, outer = (
            placed(w, jax.tree.map(lambda _, w=w: windows_spec(w), w)) for w in (inner, outer)
        )

    meta_gradient = make_meta_gradient(
        lambda params, batch: score_tokens(rater, params, *batch),
        lambda params, batch: sequence_losses(model, params, batch),
        optimiser,
        build.meta_gradient_config(config),
        placement.data_axis(theta),
    )
    step = make_meta_step(meta_gradient, meta_optimiser, placement)
    return MetaStep(step, state, inner, outer, initial_state)


def refusal(error: jax.errors.JaxRuntimeError) -> dict[str, str]:
    """Returns the figure of a program that does not fit into a device's memory.

    Raises:
        JaxRuntimeError: The error is about something else.
    """
    if "memory" not in str(error):
        raise error
    return {"refused": str(error).split("\n")[0][:300]}


def count_flops(jaxpr: Any) -> float:
    """Returns the FLOPs of a traced program's matrix products, with scans multiplied out.

    For a program on a mesh, they are those of one device.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        repeats = 1
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += (
                2.0
                * np.prod(equation.outvars[0].aval.shape)
                * np.prod([shape[axis] for axis in contracted])
            )
        elif equation.primitive.name == "scan":
            repeats = equation.params["length"]

        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += repeats * count_flops(inner)
    return total
