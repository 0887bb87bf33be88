"""Validation: what a rater is worth on text that the meta-gradient has not used.

M inner models, fixed for the whole run, are each trained for S updates twice: on batches weighted
by the rater, and on the same batches with uniform weights. With theta_S the model after them and
v_1..v_V the validation windows,

    w_t   = softmax((phi_eta(x_t1), ..., phi_eta(x_tB)) / temperature), or 1/B in the uniform arm
    L_m   = 1/V sum over j of l(v_j; theta_S)
    gain  = 1/M sum over m of (L_m^uniform - L_m^rater)       in nats per token
    error = standard deviation over m of (L_m^uniform - L_m^rater) / sqrt(M)

Both arms, and all validations of a run, have the same models, batches and windows, so gains differ
by the rater alone (common random numbers). The error is how much the gain depends on the model and
its batches; it does not cover the choice of the validation windows, which all models share.

Dimension letters as in `datarater.meta_training.algorithm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from datarater.meta_training.algorithm.language_model import Params, Windows
from datarater.meta_training.algorithm.meta_gradient import (
    InnerState,
    MetaGradientConfig,
    ScoreWindows,
    SequenceLosses,
    batch_weights,
    make_inner_gradient,
    split_batch,
)


def make_validation_losses(
    score_windows: ScoreWindows,
    losses: SequenceLosses,
    optimiser: optax.GradientTransformation,
    config: MetaGradientConfig,
    temperature: float = 1.0,
) -> Callable[[Params | None, InnerState, Windows, Windows], jax.Array]:
    """Returns the function that trains models and measures their losses, compiled.

    Args:
        score_windows: The rater: (eta, windows) -> scores_B.
        losses: Loss of each sequence: (theta, windows) -> losses_B.
        optimiser: The inner optimizer.
        config: Sizes of micro-batches, as in meta-steps.
        temperature: Temperature of the softmax over a batch's scores.

    Returns:
        A function (eta, models [M, ...], inner windows [M, S, B, L], validation windows [V, L]) ->
        losses_M, in nats per token. Without eta (None), the weights are uniform. The models take
        turns, so that memory does not grow with M.
    """
    inner_gradient = make_inner_gradient(losses, "reverse", config.inner_micro_batch)

    def weights_of(rater_params: Params | None, windows: Windows) -> jax.Array:
        batch = windows.length_B.shape[0]
        if rater_params is None:
            return jnp.full(batch, 1 / batch)
        parts = split_batch(windows, math.gcd(config.rater_micro_batch, batch))
        scores_B = jax.lax.map(lambda part: score_windows(rater_params, part), parts).reshape(-1)
        return batch_weights(scores_B, temperature)

    def of_model(
        rater_params: Params | None, state: InnerState, inner: Windows, held_out: Windows
    ) -> jax.Array:
        def update(state: InnerState, windows: Windows) -> tuple[InnerState, None]:
            weights_B = weights_of(rater_params, windows)
            gradient, _ = inner_gradient(state.params, weights_B, windows)
            updates, moments = optimiser.update(gradient, state.optimiser_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return InnerState(params, moments, state.age + 1), None

        trained, _ = jax.lax.scan(update, state, inner)
        size = math.gcd(config.outer_micro_batch or 16, held_out.length_B.shape[0])
        parts = split_batch(held_out, size)
        return jnp.mean(jax.lax.map(lambda part: losses(trained.params, part), parts))

    def of_models(
        rater_params: Params | None, models: InnerState, inner: Windows, held_out: Windows
    ) -> jax.Array:
        def of_one(each: tuple[Any, Windows]) -> jax.Array:
            return of_model(rater_params, *each, held_out)

        return jax.lax.map(of_one, (models, inner))

    return jax.jit(of_models)
