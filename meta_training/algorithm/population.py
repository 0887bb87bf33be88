"""The population of inner models, which persist between meta-steps, and their staggered resets.

Algorithm 1 (arXiv 2505.17895) trains the rater on P inner models. Each continues from meta-step to
meta-step for a lifetime of R meta-steps and then starts over. Inner model i is reset before
meta-step n when

    (n + floor(i R / P)) mod R = 0,        n > 0

so that at any time the population contains models of every age (the paper's "stratified
lifetimes").

Dimension letters as in `datarater.meta_training.algorithm`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datarater.meta_training.algorithm.language_model import Params
from datarater.meta_training.algorithm.mesh import ONE_DEVICE, Placement
from datarater.meta_training.algorithm.meta_gradient import InnerState

Initialise = Callable[[jax.Array], Params]  # random key -> fresh parameters


@dataclasses.dataclass(frozen=True)
class PopulationConfig:
    """Size of the population, lifetimes and warm-up.

    Attributes:
        size: P, the number of inner models.
        lifetime: R, the meta-steps after which an inner model is reset; 0 for never. The resets are
            staggered evenly over a lifetime.
        warmup_steps: Plain training steps of the longest-trained entry of the warm-up pool; 0 for
            no pool: models then start from, and are reset to, fresh parameters, as in the paper.
        warmup_batch: Windows per warm-up step; 0 for `inner_batch`.
        warmup_trajectories: Number of models trained for the pool, each from its own
            initialization.
        warmup_entries: Pool entries taken from each of these models.
        warmup_first_share: Share of `warmup_steps` at which the first entry is taken.
    """

    size: int = 4
    lifetime: int = 40
    warmup_steps: int = 300
    warmup_batch: int = 0
    warmup_trajectories: int = 2
    warmup_entries: int = 4
    warmup_first_share: float = 0.4


def initial_population(
    size: int, newcomer: Callable[[int], InnerState], placement: Placement = ONE_DEVICE
) -> InnerState:
    """Returns the inner models, stacked along a leading axis P and placed on their devices.

    They are made one after the other, so that a device never has more than one complete model in
    memory beside its own part of the population.

    Args:
        size: P, the number of inner models.
        newcomer: Makes the inner model with an index in [0, P), the same in every process.
        placement: Devices of the inner models.
    """
    first = newcomer(0)

    def nothing() -> InnerState:
        return jax.tree.map(lambda x: jnp.zeros((size, *np.shape(x)), x.dtype), first)

    specs = placement.member_specs(jax.eval_shape(nothing), stacked=True)
    inner = jax.jit(nothing, out_shardings=placement.shardings(specs))()

    for member in range(size):
        inner = replace_member(inner, member, newcomer(member) if member else first, placement)
    return inner


def make_newcomer(
    size: int,
    pool: Sequence[InnerState],
    fresh: Callable[[jax.Array], InnerState],
    fresh_key: jax.Array,
    choice_key: jax.Array,
) -> Callable[[int, int], InnerState]:
    """Returns the function (step, member) -> the state from which the member starts after the step.

    Args:
        size: P, the number of inner models.
        pool: Warm-up pool; if it is empty, members start without an update.
        fresh: Makes an inner model without an update from a random key.
        fresh_key: Random key of fresh inner models.
        choice_key: Random key of the choice from the pool.
    """
    # The choice is made on the host's own device: that of training may be busy with a step that was
    # dispatched before, and the loop does not wait for it.
    host = _host_device()
    choice_key = jax.device_put(choice_key, host)

    def newcomer(step: int, member: int) -> InnerState:
        number = step * size + member
        if not pool:
            return fresh(jax.random.fold_in(fresh_key, number))

        # Each round has a fresh shuffle of the pool, so the first members all start from different
        # entries.
        round_key = jax.random.fold_in(choice_key, number // len(pool))
        order = jax.random.permutation(round_key, len(pool))
        return pool[int(order[number % len(pool)])]

    return newcomer


def _host_device() -> jax.Device | None:
    """Returns this process's CPU as a device; None, the default, where JAX may not use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def fresh_inner_state(
    initialise: Initialise, optimiser: optax.GradientTransformation, key: jax.Array
) -> InnerState:
    """Returns an inner model that has had no update.

    Args:
        initialise: Makes parameters from a random key.
        optimiser: The inner optimizer.
        key: Random key.
    """
    params = initialise(key)
    return InnerState(params, optimiser.init(params), jnp.int32(0))


def members_to_reset(step: int, config: PopulationConfig) -> list[int]:
    """Returns the indices of the inner models that are reset before a meta-step.

    Args:
        step: The meta-step, counted from 0.
        config: Size and lifetime of the population.

    Example:
        >>> [members_to_reset(step, PopulationConfig(size=2, lifetime=4)) for step in range(6)]
        [[], [], [1], [], [0], []]
    """
    if not config.lifetime or step == 0:
        return []
    return [
        i
        for i in range(config.size)
        if (step + i * config.lifetime // config.size) % config.lifetime == 0
    ]


def replace_member(
    inner: InnerState, member: int, replacement: InnerState, placement: Placement = ONE_DEVICE
) -> InnerState:
    """Returns the population with one inner model replaced: parameters, optimizer state and age.

    Args:
        inner: The stacked population. It is donated: use the one returned.
        member: Index of the inner model to replace, in [0, P).
        replacement: The new inner model, the same in every process.
        placement: Devices of the inner models.
    """
    replacement = placement.place(replacement, placement.member_specs(replacement, stacked=False))
    specs = placement.member_specs(inner, stacked=True)
    return placement.place(_replace_member(inner, np.int32(member), replacement), specs)


@functools.partial(jax.jit, donate_argnums=0)
def _replace_member(inner: InnerState, member: jax.Array, replacement: InnerState) -> InnerState:
    def replace(stacked: jax.Array, new: jax.Array) -> jax.Array:
        # A choice instead of a write at an index, so that each group of devices decides locally.
        chosen = (jnp.arange(stacked.shape[0]) == member).reshape(-1, *[1] * new.ndim)
        return jnp.where(chosen, new[None], stacked)

    return jax.tree.map(replace, inner, replacement)


def stack(trees: list[Any]) -> Any:
    """Stacks trees of the same structure along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
