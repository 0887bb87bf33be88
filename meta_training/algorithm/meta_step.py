"""The meta-step: inner updates, meta-gradients and the averaged update of the rater.

The population's part of Algorithm 1 (arXiv 2505.17895). With g_i the meta-gradient of inner model
i, one meta-step updates the rater by

    u_i, s_i = meta_optimizer(g_i, s_i, eta)           i = 1..P, each with a state of its own
    eta      = eta + 1/P sum over i of u_i

The updates are averaged, not the gradients: an Adam over averaged gradients would let the inner
model with the largest gradients drown the others.

Dimension letters as in `datarater.meta_training.algorithm`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from datarater.meta_training.algorithm.language_model import Params, Windows
from datarater.meta_training.algorithm.mesh import DATA, ONE_DEVICE, POPULATION, Placement
from datarater.meta_training.algorithm.meta_gradient import (
    InnerState,
    MetaGradient,
    batch_weights,
)
from datarater.meta_training.algorithm.population import stack


class MetaState(NamedTuple):
    """Everything that meta-training learns and keeps.

    Attributes:
        step: Meta-steps done; int32.
        rater_params: eta.
        meta_optimiser_state: One state of the meta-optimizer for each inner model, stacked along a
            leading axis P.
        inner: The inner models, stacked likewise.
        average: State of the rater's average over meta-steps; see `make_rater_average`.
    """

    step: jax.Array
    rater_params: Params
    meta_optimiser_state: optax.OptState
    inner: InnerState
    average: optax.OptState = optax.EmptyState()


class StateWithoutAverage(NamedTuple):
    """A `MetaState` without an average, as checkpoints have it; a `MetaState` has its fields."""

    step: jax.Array
    rater_params: Params
    meta_optimiser_state: optax.OptState
    inner: InnerState


class MetaStepMetrics(NamedTuple):
    """Metrics of one meta-step.

    Attributes:
        outer_loss_P: Outer loss of each inner model after its updates, in nats per token.
        outer_losses_PxK: Mean loss of each outer set, likewise.
        inner_loss: Mean inner loss, unweighted, in nats per token.
        age_P: Age of each inner model after its updates, in updates.
        gradient_norm_P: Norm of each inner model's meta-gradient, before clipping.
        gradient_rms_P: Root mean square of the entries of each meta-gradient, to compare with the
            meta-Adam's epsilon.
        effective_sample_share: Mean over batches of (1 / sum_i w_i^2) / B; 1 for uniform weights.
        weight_entropy_share: Mean over batches of the weights' entropy over log B; 1 for uniform
            weights.
        score_spread: Mean over batches of the scores' standard deviation.
        update_norm: Norm of the rater's averaged update.
    """

    outer_loss_P: jax.Array
    outer_losses_PxK: jax.Array
    inner_loss: jax.Array
    age_P: jax.Array
    gradient_norm_P: jax.Array
    gradient_rms_P: jax.Array
    effective_sample_share: jax.Array
    weight_entropy_share: jax.Array
    score_spread: jax.Array
    update_norm: jax.Array


def make_meta_step(
    meta_gradient: Callable[[Params, InnerState, Windows, Any], MetaGradient],
    meta_optimiser: optax.GradientTransformation,
    placement: Placement = ONE_DEVICE,
    average: optax.GradientTransformation | None = None,
    temperature: float = 1.0,
) -> jax.stages.Wrapped:
    """Returns one meta-step over the whole population, compiled.

    Args:
        meta_gradient: The meta-gradient of one inner model, as `make_meta_gradient` returns it for
            the placement's data axis.
        meta_optimiser: The meta-optimizer of one inner model.
        placement: Devices of the inner models and their batches.
        average: The rater's average over meta-steps; none if None.
        temperature: Temperature of the meta-gradient's softmax, for the metrics of the weights.

    Returns:
        A function (state, inner windows [P, T, B, L], outer windows [P, B, L]) -> (state, metrics),
        or with a tuple of batches [P, B, ...] of several outer sets. The state is donated: use the
        one returned. On several devices, place the arguments with `place_meta_state` and
        `place_windows`.
    """
    averaged_update = make_averaged_update(meta_optimiser)
    average = average or optax.identity()

    def members(
        rater_params: Params,
        meta_state: optax.OptState,
        state: InnerState,
        inner: Windows,
        outer: Any,
    ) -> tuple[Params, optax.OptState, jax.Array, MetaGradient]:
        # The inner models of a device take turns, so that memory does not grow with the population.
        results: MetaGradient = jax.lax.map(
            lambda member: meta_gradient(rater_params, *member), (state, inner, outer)
        )

        update, meta_state = averaged_update(results.gradient, meta_state, rater_params)
        update = placement.mean_over_population(update)

        squares = [
            jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in jax.tree.leaves(results.gradient)
        ]
        square_P = functools.reduce(jnp.add, squares)
        return update, meta_state, square_P, results._replace(gradient=())

    def meta_step(
        state: MetaState, inner: Windows, outer: Any
    ) -> tuple[MetaState, MetaStepMetrics]:
        specs = meta_state_specs(state, placement)
        each: Any = PartitionSpec(POPULATION)
        everywhere = PartitionSpec()
        all_members = placement.on_each_device(
            members,
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
                MetaGradient((), each, each, specs.inner, each, each),
            ),
        )
        update, meta_optimiser_state, square_P, results = all_members(
            state.rater_params, state.meta_optimiser_state, state.inner, inner, outer
        )

        weights_PxTxB = batch_weights(results.scores_TxB, temperature)
        metrics = _metrics(results, weights_PxTxB, square_P, update, state.rater_params)
        rater_params = optax.apply_updates(state.rater_params, update)
        _, averaged = average.update(rater_params, state.average)
        after = MetaState(
            state.step + 1, rater_params, meta_optimiser_state, results.inner_state, averaged
        )
        return placement.constrain(after, specs), placement.constrain(metrics, everywhere)

    return jax.jit(meta_step, donate_argnums=0)


def _metrics(
    results: MetaGradient,
    weights_PxTxB: jax.Array,
    square_P: jax.Array,
    update: Params,
    rater_params: Params,
) -> MetaStepMetrics:
    """Returns the metrics of a meta-step; their exchanges between devices are left to the compiler.

    Args:
        results: Results of all inner models, stacked along a leading axis P.
        weights_PxTxB: Weights of the windows.
        square_P: Squared norm of each inner model's meta-gradient.
        update: The rater's averaged update.
        rater_params: eta before the update.
    """
    batch = weights_PxTxB.shape[-1]
    size = sum(leaf.size for leaf in jax.tree.leaves(rater_params))
    entropy_PxT = -jnp.sum(weights_PxTxB * jnp.log(jnp.maximum(weights_PxTxB, 1e-30)), axis=-1)
    return MetaStepMetrics(
        outer_loss_P=results.outer_loss,
        outer_losses_PxK=results.outer_losses_K,
        inner_loss=jnp.mean(results.inner_losses_TxB),
        age_P=results.inner_state.age,
        gradient_norm_P=jnp.sqrt(square_P),
        gradient_rms_P=jnp.sqrt(square_P / size),
        effective_sample_share=jnp.mean(1 / jnp.sum(jnp.square(weights_PxTxB), axis=-1)) / batch,
        weight_entropy_share=jnp.mean(entropy_PxT) / jnp.log(max(batch, 2)),
        score_spread=jnp.mean(jnp.std(results.scores_TxB, axis=-1)),
        update_norm=optax.global_norm(update),
    )


def make_averaged_update(
    meta_optimiser: optax.GradientTransformation,
) -> Callable[[Params, optax.OptState, Params], tuple[Params, optax.OptState]]:
    """Returns the function (gradients_P, states_P, eta) -> (mean update, new states_P).

    Each inner model has a meta-optimizer state of its own, and the updates are averaged over P; see
    the module's docstring.

    Args:
        meta_optimiser: Clipping, Adam, weight decay and learning rate for one inner model.
    """

    def averaged_update(
        gradients: Params, states: optax.OptState, params: Params
    ) -> tuple[Params, optax.OptState]:
        updates, states = jax.vmap(meta_optimiser.update, in_axes=(0, 0, None))(
            gradients, states, params
        )
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), updates), states

    return averaged_update


def initial_meta_state(
    rater_params: Params,
    inner: InnerState,
    meta_optimiser: optax.GradientTransformation,
    average: optax.GradientTransformation | None = None,
) -> MetaState:
    """Returns the state before the first meta-step.

    Args:
        rater_params: eta, freshly initialized.
        inner: The inner models, stacked along a leading axis P.
        meta_optimiser: The meta-optimizer of one inner model.
        average: The rater's average over meta-steps; none if None.
    """
    size = inner.age.shape[0]
    state = meta_optimiser.init(rater_params)
    averaged = (average or optax.identity()).init(rater_params)
    return MetaState(jnp.int32(0), rater_params, stack([state] * size), inner, averaged)


def stored_state(state: MetaState) -> MetaState | StateWithoutAverage:
    """Returns the state as a checkpoint stores it, from which `MetaState(*stored)` makes it again.

    Without an average it has no place for one: checkpoints of versions without averages stay
    readable.
    """
    if jax.tree.leaves(state.average):
        return state
    return StateWithoutAverage(
        state.step, state.rater_params, state.meta_optimiser_state, state.inner
    )


def meta_state_specs(state: MetaState, placement: Placement) -> Any:
    """Returns the partition specs of a meta-state.

    The rater is on every device; what belongs to one inner model is in its group.
    """
    everywhere = PartitionSpec()
    return MetaState(
        step=everywhere,  # type: ignore[arg-type] # a state of specs
        rater_params=jax.tree.map(lambda _: everywhere, state.rater_params),
        meta_optimiser_state=jax.tree.map(
            lambda _: PartitionSpec(POPULATION), state.meta_optimiser_state
        ),
        inner=placement.member_specs(state.inner, stacked=True),
        average=jax.tree.map(lambda _: everywhere, state.average),
    )


def place_meta_state(state: MetaState, placement: Placement) -> MetaState:
    """Places a meta-state, which must be the same in every process, on its devices."""
    return placement.place(state, meta_state_specs(state, placement))


def place_windows(windows: Any, placement: Placement) -> Any:
    """Places windows on the devices that use them.

    They are the same in every process, which may leave out those that its devices do not use.

    Args:
        windows: Inner windows [P, T, B, L], outer windows [P, B, L] or a tuple of outer batches.
        placement: Devices of the inner models and their batches.
    """
    return placement.place(windows, windows_spec(windows))


def windows_spec(windows: Any) -> PartitionSpec:
    """Returns the partition spec of windows [P, T, B, L], [P, B, L] or of a tuple [P, B, ...].

    Inner models are spread over groups, and each batch over the devices of its group.
    """
    return batch_spec(windows.length_B.ndim if isinstance(windows, Windows) else 2)


def batch_spec(axes: int) -> PartitionSpec:
    """Returns the partition spec of batches with 2 leading axes (P, B), or 3 of them (P, T, B)."""
    return PartitionSpec(POPULATION, *[None] * (axes - 2), DATA)
