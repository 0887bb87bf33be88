"""Warm-up: plain training of inner models into a pool of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import optax
from jax.sharding import PartitionSpec

from datarater.meta_training.algorithm.language_model import Windows
from datarater.meta_training.algorithm.mesh import DATA, POPULATION, DataAxis, Placement
from datarater.meta_training.algorithm.meta_gradient import (
    InnerState,
    SequenceLosses,
    make_mean_loss,
)
from datarater.meta_training.algorithm.population import (
    Initialise,
    PopulationConfig,
    fresh_inner_state,
)

TrainStep = Callable[[InnerState, Windows], tuple[InnerState, jax.Array]]


def pool_ages(config: PopulationConfig) -> list[int]:
    """Returns the ages at which entries are taken of each warm-up trajectory, in order; the last is its end.

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
    """Returns the warm-up steps, counted over all trajectories, after which an entry is taken."""
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
    placement: Placement | None = None,
) -> TrainStep:
    """Returns one step of plain training, compiled: (inner model, windows) -> (inner model, its loss before the step).

    Several devices share the batch: all of them where it can be cut evenly over all, else those of
    each group, and the groups then do the same.

    Args:
        losses: the loss of each sequence; its mean is minimised.
        optimiser: the inner optimiser.
        batch: windows of a batch.
        micro_batch: windows on a device at one time; 0 for all.
        placement: where things live; None for one device.
    """
    data_axis, axes = None, tuple[str, ...]()
    if placement is not None:
        axes = (DATA,) if batch % placement.mesh.size else (POPULATION, DATA)
        data_axis = DataAxis(math.prod(placement.mesh.shape[axis] for axis in axes), name=axes)
    part = batch // (data_axis.size if data_axis else 1)
    micro_batch = math.gcd(micro_batch, part)
    mean_loss = make_mean_loss(losses, micro_batch if micro_batch < part else 0, data_axis)

    def train_step(state: InnerState, windows: Windows) -> tuple[InnerState, jax.Array]:
        loss, gradient = jax.value_and_grad(mean_loss)(state.params, windows)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, state.params)
        return InnerState(
            optax.apply_updates(state.params, updates), optimiser_state, state.age + 1
        ), loss

    if placement is None:
        return jax.jit(train_step)
    everywhere, cut = PartitionSpec(), PartitionSpec(axes)
    shared = jax.jit(
        jax.shard_map(
            train_step,
            mesh=placement.mesh,
            in_specs=(everywhere, cut),
            out_specs=(everywhere, everywhere),
            check_vma=False,
        )
    )
    return lambda state, windows: shared(
        placement.place(state, everywhere), placement.place(windows, cut)
    )


def warm_up(
    config: PopulationConfig,
    initialise: Initialise,
    train_step: TrainStep,
    optimiser: optax.GradientTransformation,
    batches: Iterator[Windows],
    key: jax.Array,
    observe: Callable[[int, InnerState, jax.Array], None] = lambda step, state, loss: None,
    pool: Sequence[InnerState] = (),
    resume: tuple[int, InnerState] | None = None,
) -> list[InnerState]:
    """Trains the pool that inner models start from and are reset to.

    An inner model in its first few hundred steps carries almost no signal about what data is worth.
    Entries are taken at ages spread evenly from `warmup_first_share` x `warmup_steps` to
    `warmup_steps`, and hold parameters, optimiser state and age, since fresh Adam moments would
    make the first updates nearly sign(g).

    Args:
        config: how many entries of how many trajectories, and their ages.
        initialise: makes parameters of a random key.
        train_step: as `make_train_step` returns it.
        optimiser: the inner optimiser.
        batches: windows to train on, one batch a step.
        key: random key of the initialisations.
        observe: called after every step with (steps done over all trajectories, the model, its loss
            before the step); what it raises ends the warm-up.
        pool: the entries taken before `resume`.
        resume: where an earlier warm-up stood: (steps done, the model). `batches` must stand there
            too.

    Returns:
        The entries, in the order of `pool_steps`, in the host's memory as NumPy arrays; empty where
        `warmup_steps` is 0.
    """
    if not config.warmup_steps:
        return []
    entries, taken_at = list(pool), set(pool_steps(config))
    keys = jax.random.split(key, config.warmup_trajectories)
    done, state = resume or (0, None)
    for step in range(done, config.warmup_steps * config.warmup_trajectories):
        if step % config.warmup_steps == 0:
            state = fresh_inner_state(initialise, optimiser, keys[step // config.warmup_steps])
        assert state is not None
        state, loss = train_step(state, next(batches))
        if step + 1 in taken_at:
            entries.append(jax.device_get(state))
        observe(step + 1, state, loss)
    return entries
