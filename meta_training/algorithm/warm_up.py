"""Warm-up: plain training of inner models into a pool of checkpoints.

Inner models start from, and are reset to, entries of this pool. The pool is an addition to
Algorithm 1 (arXiv 2505.17895), which starts inner models from fresh parameters: in its first few
hundred updates an inner model carries almost no signal about what data is worth. An entry contains
parameters, optimizer state and age, since fresh Adam moments would make the first updates nearly
sign(g).

Dimension letters as in `datarater.meta_training.algorithm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import jax
import optax
from jax.sharding import PartitionSpec

from datarater.meta_training.algorithm.language_model import Windows
from datarater.meta_training.algorithm.mesh import ONE_DEVICE, Placement
from datarater.meta_training.algorithm.meta_gradient import (
    InnerState,
    SequenceLosses,
    make_mean_loss,
)
from datarater.meta_training.algorithm.population import PopulationConfig

TrainStep = Callable[[InnerState, Windows], tuple[InnerState, jax.Array]]


def warm_up(
    config: PopulationConfig,
    fresh: Callable[[jax.Array], InnerState],
    train_step: TrainStep,
    batches: Iterator[Windows],
    key: jax.Array,
    resume: tuple[int, InnerState] | None = None,
) -> Iterator[tuple[int, InnerState, jax.Array]]:
    """Trains the models from which the pool is taken, one after the other.

    Args:
        config: Number of trajectories and their steps.
        fresh: Makes an inner model without an update from a random key.
        train_step: Training step, as `make_train_step` returns it.
        batches: Windows to train on, one batch per step.
        key: Random key for the initializations.
        resume: State of an earlier warm-up to continue: (steps done, the model). `batches` must
            continue at the same step.

    Yields:
        After every step: (steps done over all trajectories, the model, its loss before the step).
        The next step takes the model over: copy what is to be kept. The models after `pool_steps`
        are the pool's entries.
    """
    keys = jax.random.split(key, config.warmup_trajectories)
    done, state = resume or (0, None)

    for step in range(done, config.warmup_steps * config.warmup_trajectories):
        if step % config.warmup_steps == 0:
            state = fresh(keys[step // config.warmup_steps])
        assert state is not None
        state, loss = train_step(state, next(batches))
        yield step + 1, state, loss


def pool_ages(config: PopulationConfig) -> list[int]:
    """Returns the ages at which entries are taken from each trajectory, in ascending order.

    They are spread evenly from `warmup_first_share` x `warmup_steps` to `warmup_steps`.

    Example:
        >>> pool_ages(PopulationConfig(warmup_steps=300, warmup_entries=4, warmup_first_share=0.4))
        [120, 180, 240, 300]
    """
    if not config.warmup_steps:
        return []
    first = max(1, round(config.warmup_first_share * config.warmup_steps))
    spacing = (config.warmup_steps - first) / max(1, config.warmup_entries - 1)
    return sorted({round(config.warmup_steps - spacing * i) for i in range(config.warmup_entries)})


def pool_steps(config: PopulationConfig) -> list[int]:
    """Returns the steps, counted over all trajectories, after which an entry is taken."""
    return [
        trajectory * config.warmup_steps + age
        for trajectory in range(config.warmup_trajectories)
        for age in pool_ages(config)
    ]


def make_train_step(
    losses: SequenceLosses,
    optimiser: optax.GradientTransformation,
    batch: int,
    micro_batch: int = 0,
    placement: Placement = ONE_DEVICE,
) -> TrainStep:
    """Returns one compiled step of plain training, whose batch is shared by `batch_axis`.

    Args:
        losses: Loss of each sequence; the step minimizes its mean.
        optimiser: The inner optimizer.
        batch: Windows of a batch.
        micro_batch: Windows on a device at a time; 0 for all.
        placement: Devices that share the batch.

    Returns:
        A function (inner model, windows) -> (inner model, its loss before the step). The inner
        model is donated: use the one returned.
    """
    axis = placement.batch_axis(batch)
    part = batch // axis.size
    micro_batch = math.gcd(micro_batch, part)
    mean_loss = make_mean_loss(losses, micro_batch if micro_batch < part else 0, axis)

    def train_step(state: InnerState, windows: Windows) -> tuple[InnerState, jax.Array]:
        loss, gradient = jax.value_and_grad(mean_loss)(state.params, windows)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, state.params)
        return InnerState(
            optax.apply_updates(state.params, updates), optimiser_state, state.age + 1
        ), loss

    everywhere, cut = PartitionSpec(), PartitionSpec(axis.name)
    shared = jax.jit(
        placement.on_each_device(train_step, (everywhere, cut), (everywhere, everywhere)),
        donate_argnums=0,
    )
    return lambda state, windows: shared(
        placement.place(state, everywhere), placement.place(windows, cut)
    )
