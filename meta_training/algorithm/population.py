"""The population: inner models that persist, their warm-up, their staggered resets, and the meta-step over all.

Dimension letters as in `meta_training.meta_gradient`, and P, the inner models of the population.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from meta_training.language_model import Params, Windows
from meta_training.meta_gradient import InnerState, MetaGradient, SequenceLosses, make_mean_loss
from meta_training.placement import DATA, POPULATION, DataAxis, Placement

Initialise = Callable[[jax.Array], Params]  # random key -> fresh parameters


@dataclasses.dataclass(frozen=True)
class PopulationConfig:
    """How inner models live.

    Attributes:
        size: P.
        lifetime: meta-steps after which an inner model is reset; 0 for never. The models' resets are staggered
            evenly over a lifetime.
        warmup_steps: plain training steps of the longest-trained entry of the warm-up pool; 0 for no pool: models
            then start, and are reset, from fresh parameters, as in the paper.
        warmup_trajectories: how many models are trained for the pool, each from its own initialisation.
        warmup_entries: pool entries taken of each of them.
        warmup_first_share: the share of `warmup_steps` at which the first entry is taken.
    """

    size: int = 4
    lifetime: int = 40
    warmup_steps: int = 300
    warmup_trajectories: int = 2
    warmup_entries: int = 4
    warmup_first_share: float = 0.4

    def __post_init__(self) -> None:
        if self.size < 1 or self.lifetime < 0 or self.warmup_steps < 0:
            raise ValueError("population.size must be at least 1, lifetime and warmup_steps at least 0")
        if self.warmup_steps and min(self.warmup_trajectories, self.warmup_entries) < 1:
            raise ValueError("population.warmup_trajectories and warmup_entries must be at least 1")
        if not 0 < self.warmup_first_share <= 1:
            raise ValueError(f"population.warmup_first_share must be in (0, 1], not {self.warmup_first_share}")


class MetaState(NamedTuple):
    """Everything that meta-training learns and keeps.

    Attributes:
        step: int32, meta-steps done.
        rater_params: eta.
        meta_optimiser_state: one state of the meta-optimiser for each inner model, stacked along a leading axis P.
        inner: the inner models, stacked likewise.
    """

    step: jax.Array
    rater_params: Params
    meta_optimiser_state: optax.OptState
    inner: InnerState


class MetaStepMetrics(NamedTuple):
    """What a meta-step tells about itself.

    Attributes:
        outer_loss_P: each inner model's outer loss after its updates, nats a token.
        inner_loss: mean inner loss, unweighted.
        age_P: each inner model's age after its updates.
        gradient_norm_P: norm of each inner model's meta-gradient before clipping.
        gradient_rms_P: root mean square of each meta-gradient's entries, to hold against the meta-Adam's epsilon.
        effective_sample_share: mean over batches of (1 / sum_i w_i^2) / B, 1 for uniform weights.
        weight_entropy_share: mean over batches of the weights' entropy over log B, 1 for uniform weights.
        score_spread: mean over batches of the scores' standard deviation.
        update_norm: norm of the rater's averaged update.
    """

    outer_loss_P: jax.Array
    inner_loss: jax.Array
    age_P: jax.Array
    gradient_norm_P: jax.Array
    gradient_rms_P: jax.Array
    effective_sample_share: jax.Array
    weight_entropy_share: jax.Array
    score_spread: jax.Array
    update_norm: jax.Array


TrainStep = Callable[[InnerState, Windows], tuple[InnerState, jax.Array]]


def stack(trees: list[Any]) -> Any:
    """Stacks trees of the same structure along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def fresh_inner_state(initialise: Initialise, optimiser: optax.GradientTransformation, key: jax.Array) -> InnerState:
    """Returns an inner model that has had no update.

    Args:
        initialise: makes parameters of a random key.
        optimiser: the inner optimiser.
        key: the random key.
    """
    params = initialise(key)
    return InnerState(params, optimiser.init(params), jnp.int32(0))


def initial_population(
    size: int, newcomer: Callable[[int], InnerState], placement: Placement | None = None
) -> InnerState:
    """Returns the inner models, stacked along a leading axis P and where they belong.

    One is made after the other: beside its own part of the population no device holds more than one model in whole.

    Args:
        size: P.
        newcomer: makes the inner model of a place in [0, P), the same in every process.
        placement: where things live; None for one device.
    """
    first = newcomer(0)

    def nothing() -> InnerState:
        return jax.tree.map(lambda x: jnp.zeros((size, *np.shape(x)), x.dtype), first)

    shardings = placement and placement.shardings(placement.member_specs(jax.eval_shape(nothing), stacked=True))
    inner = jax.jit(nothing, out_shardings=shardings)()
    for member in range(size):
        inner = replace_member(inner, member, newcomer(member) if member else first, placement)
    return inner


def make_averaged_update(
    meta_optimiser: optax.GradientTransformation,
) -> Callable[[Params, optax.OptState, Params], tuple[Params, optax.OptState]]:
    """Returns the function (gradients_P, states_P, eta) -> (mean over P of the updates, new states_P).

    Every inner model has a meta-optimiser of its own and the UPDATES are averaged, not the gradients (Algorithm 1,
    arXiv 2505.17895):  u_i = Adam_i(g_i),  eta <- eta + 1/P sum_i u_i.  An Adam over averaged gradients would let
    the inner model with the largest gradients drown the others.

    Args:
        meta_optimiser: clipping, Adam, weight decay and learning rate, for one inner model.
    """

    def averaged_update(gradients: Params, states: optax.OptState, params: Params) -> tuple[Params, optax.OptState]:
        updates, states = jax.vmap(meta_optimiser.update, in_axes=(0, 0, None))(gradients, states, params)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), updates), states

    return averaged_update


def initial_meta_state(
    rater_params: Params, inner: InnerState, meta_optimiser: optax.GradientTransformation
) -> MetaState:
    """Returns the state before the first meta-step.

    Args:
        rater_params: eta, freshly initialised.
        inner: the inner models, stacked along a leading axis P.
        meta_optimiser: the meta-optimiser of one inner model.
    """
    size = inner.age.shape[0]
    state = meta_optimiser.init(rater_params)
    return MetaState(jnp.int32(0), rater_params, stack([state] * size), inner)


def meta_state_specs(state: MetaState, placement: Placement) -> Any:
    """Returns where each array of a meta-state lives: the rater everywhere, what is one member's in its group."""
    everywhere = PartitionSpec()
    return MetaState(
        step=everywhere,  # type: ignore[arg-type] # a state of specs
        rater_params=jax.tree.map(lambda _: everywhere, state.rater_params),
        meta_optimiser_state=jax.tree.map(lambda _: PartitionSpec(POPULATION), state.meta_optimiser_state),
        inner=placement.member_specs(state.inner, stacked=True),
    )


def place_meta_state(state: MetaState, placement: Placement | None) -> MetaState:
    """Puts a meta-state, the same in every process, where it belongs."""
    return state if placement is None else placement.place(state, meta_state_specs(state, placement))


def place_windows(windows: Windows, placement: Placement | None) -> Windows:
    """Puts windows [P, T, B, L] or [P, B, L], the same in every process, where they are used."""
    if placement is None:
        return windows
    return placement.place(windows, windows_spec(windows))


def windows_spec(windows: Windows) -> PartitionSpec:
    """Returns where windows [P, T, B, L] or [P, B, L] live: members in their groups, batches over a group."""
    return PartitionSpec(POPULATION, *[None] * (windows.length_B.ndim - 2), DATA)


def make_meta_step(
    meta_gradient: Callable[[Params, InnerState, Windows, Windows], MetaGradient],
    meta_optimiser: optax.GradientTransformation,
    placement: Placement | None = None,
) -> jax.stages.Wrapped:
    """Returns one meta-step over the whole population, compiled.

    Args:
        meta_gradient: of one inner model, as `make_meta_gradient` returns it (for the placement's data axis, where
            there is one).
        meta_optimiser: of one inner model.
        placement: where things live; None for one device.

    Returns:
        A function (state, inner windows [P, T, B, L], outer windows [P, B, L]) -> (state, metrics). The state is
        donated: use the one returned. With a placement, `place_meta_state` and `place_windows` put the arguments
        where they belong.
    """
    averaged_update = make_averaged_update(meta_optimiser)

    def members(
        rater_params: Params, meta_state: optax.OptState, state: InnerState, inner: Windows, outer: Windows
    ) -> tuple[Params, optax.OptState, jax.Array, MetaGradient]:
        # One inner model of a device after the other: the memory of one, whatever the population's size.
        results: MetaGradient = jax.lax.map(lambda member: meta_gradient(rater_params, *member), (state, inner, outer))
        update, meta_state = averaged_update(results.gradient, meta_state, rater_params)
        if placement is not None:
            update = placement.mean_over_population(update)
        squares = [jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in jax.tree.leaves(results.gradient)]
        square_P = functools.reduce(jnp.add, squares)
        return update, meta_state, square_P, results._replace(gradient=())

    def meta_step(state: MetaState, inner: Windows, outer: Windows) -> tuple[MetaState, MetaStepMetrics]:
        everyone = members
        if placement is not None:
            specs = meta_state_specs(state, placement)
            each: Any = PartitionSpec(POPULATION)
            everywhere = PartitionSpec()
            everyone = jax.shard_map(
                members,
                mesh=placement.mesh,
                in_specs=(
                    specs.rater_params,
                    specs.meta_optimiser_state,
                    specs.inner,
                    windows_spec(inner),
                    windows_spec(outer),
                ),
                out_specs=(
                    everywhere,
                    specs.meta_optimiser_state,
                    each,
                    MetaGradient((), each, specs.inner, each, each),
                ),
                check_vma=False,
            )
        update, meta_optimiser_state, square_P, results = everyone(
            state.rater_params, state.meta_optimiser_state, state.inner, inner, outer
        )
        weights_PxTxB = jax.nn.softmax(results.scores_TxB, axis=-1)
        batch = weights_PxTxB.shape[-1]
        size = sum(leaf.size for leaf in jax.tree.leaves(state.rater_params))
        entropy_PxT = -jnp.sum(weights_PxTxB * jnp.log(jnp.maximum(weights_PxTxB, 1e-30)), axis=-1)
        metrics = MetaStepMetrics(
            outer_loss_P=results.outer_loss,
            inner_loss=jnp.mean(results.inner_losses_TxB),
            age_P=results.inner_state.age,
            gradient_norm_P=jnp.sqrt(square_P),
            gradient_rms_P=jnp.sqrt(square_P / size),
            effective_sample_share=jnp.mean(1 / jnp.sum(jnp.square(weights_PxTxB), axis=-1)) / batch,
            weight_entropy_share=jnp.mean(entropy_PxT) / jnp.log(max(batch, 2)),
            score_spread=jnp.mean(jnp.std(results.scores_TxB, axis=-1)),
            update_norm=optax.global_norm(update),
        )
        rater_params = optax.apply_updates(state.rater_params, update)
        after = MetaState(state.step + 1, rater_params, meta_optimiser_state, results.inner_state)
        if placement is not None:
            shardings = placement.shardings(specs)
            after = jax.lax.with_sharding_constraint(after, shardings)
            metrics = jax.lax.with_sharding_constraint(metrics, NamedSharding(placement.mesh, PartitionSpec()))
        return after, metrics

    return jax.jit(meta_step, donate_argnums=0)


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

    Several devices share the batch: all of them where it can be cut evenly over all, else those of each group, and
    the groups then do the same.

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
        return InnerState(optax.apply_updates(state.params, updates), optimiser_state, state.age + 1), loss

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
    return lambda state, windows: shared(placement.place(state, everywhere), placement.place(windows, cut))


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

    An inner model in its first few hundred steps carries almost no signal about what data is worth. Entries are
    taken at ages spread evenly from `warmup_first_share` x `warmup_steps` to `warmup_steps`, and hold parameters,
    optimiser state and age, since fresh Adam moments would make the first updates nearly sign(g).

    Args:
        config: how many entries of how many trajectories, and their ages.
        initialise: makes parameters of a random key.
        train_step: as `make_train_step` returns it.
        optimiser: the inner optimiser.
        batches: windows to train on, one batch a step.
        key: random key of the initialisations.
        observe: called after every step with (steps done over all trajectories, the model, its loss before the
            step); what it raises ends the warm-up.
        pool: the entries taken before `resume`.
        resume: where an earlier warm-up stood: (steps done, the model). `batches` must stand there too.

    Returns:
        The entries, in the order of `pool_steps`, in the host's memory as NumPy arrays; empty where `warmup_steps` is
        0.
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


def members_to_reset(step: int, config: PopulationConfig) -> list[int]:
    """Returns which inner models are reset before meta-step `step` (counted from 0).

    Member i's resets lie i/P of a lifetime before member 0's, so that at any time the population holds models of
    every age ("stratified lifetimes", arXiv 2505.17895).

    Example:
        >>> [members_to_reset(step, PopulationConfig(size=2, lifetime=4)) for step in range(6)]
        [[], [], [1], [], [0], []]
    """
    if not config.lifetime or step == 0:
        return []
    return [i for i in range(config.size) if (step + i * config.lifetime // config.size) % config.lifetime == 0]


@functools.partial(jax.jit, donate_argnums=0)
def _replace_member(inner: InnerState, member: jax.Array, replacement: InnerState) -> InnerState:
    def replace(stacked: jax.Array, new: jax.Array) -> jax.Array:
        # A choice in place of a write at an index: every group of devices decides by itself.
        chosen = (jnp.arange(stacked.shape[0]) == member).reshape(-1, *[1] * new.ndim)
        return jnp.where(chosen, new[None], stacked)

    return jax.tree.map(replace, inner, replacement)


def replace_member(
    inner: InnerState, member: int, replacement: InnerState, placement: Placement | None = None
) -> InnerState:
    """Returns the population with one inner model replaced: parameters, optimiser state and age.

    Args:
        inner: the stacked population; donated: use the one returned.
        member: which one, in [0, P).
        replacement: the new one, the same in every process.
        placement: where things live; None for one device.
    """
    if placement is not None:
        replacement = placement.place(replacement, placement.member_specs(replacement, stacked=False))
        specs = placement.member_specs(inner, stacked=True)
        return placement.place(_replace_member(inner, np.int32(member), replacement), specs)
    return _replace_member(inner, np.int32(member), replacement)
