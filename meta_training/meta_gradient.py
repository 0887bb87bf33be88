"""The meta-gradient: how the outer loss after T weighted inner updates depends on the rater.

One inner model's share of Algorithm 1 (arXiv 2505.17895):

    w_t     = softmax(phi_eta(x_t1), ..., phi_eta(x_tB))
    g_t     = sum_i w_ti grad_theta l(x_ti; theta_t)
    theta_(t+1), s_(t+1) = optimiser(theta_t, s_t, g_t)                 t = 0..T-1
    g_eta   = grad_eta mean_j L(y_j; theta_T(eta))

Two ways to the same number:

- reverse mode differentiates through everything, second derivatives by reverse over reverse. It is the oracle
  that the other is tested against.
- mixed mode (MixFlow-MG, arXiv 2505.00793) makes the inner gradient an explicit function with its own derivative
  rule. With u the cotangent of g_t, both second-order terms are one forward-mode pass over the reverse-mode
  gradient,

      d/dtheta <u, g_t> = d/de grad_theta [sum_i w_i l_i] (theta + e u)
      d/dw_i   <u, g_t> = d/de l_i (theta + e u)                              at e = 0,

  by the symmetry of second derivatives. Exact, and with far less memory. The rater gets no second-order pass at
  all: the inner updates see nothing of it but the batch's scores, so the meta-gradient is taken to the T x B
  scores, and one ordinary vjp carries it on to eta.

Dimension letters as in `rater_model.transformer`, and T, the inner updates of a meta-step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from meta_training.language_model import Params, Windows

SequenceLosses = Callable[[Params, Windows], jax.Array]  # (theta, windows) -> losses_B
ScoreWindows = Callable[[Params, Windows], jax.Array]  # (eta, windows) -> scores_B
_INNER_GRADIENT = "inner_gradient"


class InnerState(NamedTuple):
    """One inner model, or a stack of them along a leading axis.

    Attributes:
        params: theta.
        optimiser_state: of the inner optimiser, both of Adam's moments among it.
        age: int32, updates that the model has had since its initialisation, warm-up included.
    """

    params: Params
    optimiser_state: optax.OptState
    age: jax.Array


@dataclasses.dataclass(frozen=True)
class MetaGradientConfig:
    """How the meta-gradient is computed; none of it changes its value.

    Attributes:
        mode: "mixed" or "reverse".
        rematerialise_updates: recompute each inner update in the backward pass; keeps reverse mode's memory from
            growing with T times the activations. Mixed mode gains nothing from it unless inner gradients are saved.
        save_inner_gradients: when updates are recomputed, keep each one's inner gradient, T x |theta| numbers, so
            that the backward pass need not recompute the inner backward pass.
        scan_updates: run the T updates in a `lax.scan` in place of unrolling them; compiles faster for a large T.
    """

    mode: str = "mixed"
    rematerialise_updates: bool = True
    save_inner_gradients: bool = True
    scan_updates: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("mixed", "reverse"):
            raise ValueError(f"meta_gradient.mode must be 'mixed' or 'reverse', not {self.mode!r}")


class MetaGradient(NamedTuple):
    """What one inner model's meta-step yields.

    Attributes:
        gradient: the meta-gradient, a tree like eta.
        outer_loss: mean outer loss after the T updates.
        inner_state: the inner model after the T updates.
        scores_TxB: the rater's scores of the inner batches.
        inner_losses_TxB: each sequence's loss just before its update.
    """

    gradient: Params
    outer_loss: jax.Array
    inner_state: InnerState
    scores_TxB: jax.Array
    inner_losses_TxB: jax.Array


def make_inner_gradient(losses: SequenceLosses, mode: str) -> Callable[..., tuple[Params, jax.Array]]:
    """Returns the function (theta, weights_B, windows) -> (sum_i w_i grad_theta l_i, losses_B).

    Args:
        losses: the inner loss of each sequence.
        mode: "reverse" leaves its derivative to JAX; "mixed" gives it the rule of the module's docstring. The
            losses that it returns are for watching: in mixed mode no derivative flows through them.
    """

    def weighted_loss(params: Params, weights_B: jax.Array, windows: Windows) -> tuple[jax.Array, jax.Array]:
        losses_B = losses(params, windows)
        return jnp.sum(weights_B * losses_B), losses_B

    def gradient(params: Params, weights_B: jax.Array, windows: Windows) -> tuple[Params, jax.Array]:
        return jax.grad(weighted_loss, has_aux=True)(params, weights_B, windows)

    if mode == "reverse":
        return gradient

    mixed = jax.custom_vjp(gradient)

    def forward(params: Params, weights_B: jax.Array, windows: Windows) -> tuple[Any, Any]:
        return gradient(params, weights_B, windows), (params, weights_B, windows)

    def backward(inputs: Any, cotangents: tuple[Params, jax.Array]) -> tuple[Params, jax.Array, None]:
        params, weights_B, windows = inputs
        direction, _ = cotangents
        _, (params_bar, weights_bar_B) = jax.jvp(
            lambda theta: gradient(theta, weights_B, windows), (params,), (direction,)
        )
        return params_bar, weights_bar_B.astype(weights_B.dtype), None

    mixed.defvjp(forward, backward)
    return mixed


def make_meta_gradient(
    score_windows: ScoreWindows,
    losses: SequenceLosses,
    optimiser: optax.GradientTransformation,
    config: MetaGradientConfig,
) -> Callable[[Params, InnerState, Windows, Windows], MetaGradient]:
    """Returns the function that computes one inner model's meta-gradient.

    Args:
        score_windows: the rater: (eta, windows) -> scores_B.
        losses: inner and outer loss of each sequence: (theta, windows) -> losses_B.
        optimiser: the inner optimiser; its update must be differentiable, so Adam needs an `eps_root` above 0.
        config: how to compute it.

    Returns:
        A pure function of (eta, inner state, inner windows with a leading axis T, outer windows).

    Example:
        >>> meta_gradient = make_meta_gradient(score, losses, optax.sgd(0.1), MetaGradientConfig())  # doctest: +SKIP
        >>> meta_gradient(eta, state, inner_windows_T, outer_windows).gradient  # doctest: +SKIP
    """
    inner_gradient = make_inner_gradient(losses, config.mode)

    def update(state: InnerState, weights_B: jax.Array, windows: Windows) -> tuple[InnerState, jax.Array]:
        gradient, losses_B = inner_gradient(state.params, weights_B, windows)
        gradient = checkpoint_name(gradient, _INNER_GRADIENT)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return InnerState(params, optimiser_state, state.age + 1), losses_B

    if config.rematerialise_updates:
        policy = (
            jax.checkpoint_policies.save_only_these_names(_INNER_GRADIENT)
            if config.save_inner_gradients
            else jax.checkpoint_policies.nothing_saveable
        )
        update = jax.checkpoint(update, policy=policy)

    def after_updates(
        scores_TxB: jax.Array, state: InnerState, inner: Windows, outer: Windows
    ) -> tuple[jax.Array, tuple[InnerState, jax.Array]]:
        weights_TxB = jax.nn.softmax(scores_TxB, axis=-1)
        if config.scan_updates:
            state, losses_TxB = jax.lax.scan(lambda carry, step: update(carry, *step), state, (weights_TxB, inner))
        else:
            steps = []
            for t in range(scores_TxB.shape[0]):
                state, losses_B = update(state, weights_TxB[t], jax.tree.map(lambda x, t=t: x[t], inner))
                steps.append(losses_B)
            losses_TxB = jnp.stack(steps)
        return jnp.mean(losses(state.params, outer)), (state, losses_TxB)

    def scores_of(rater_params: Params, inner: Windows) -> jax.Array:
        steps, batch = inner.length_B.shape
        flat = Windows(*(x.reshape(steps * batch, *x.shape[2:]) for x in inner))
        return score_windows(rater_params, flat).reshape(steps, batch)

    def mixed(rater_params: Params, state: InnerState, inner: Windows, outer: Windows) -> MetaGradient:
        scores_TxB, pull_back = jax.vjp(lambda eta: scores_of(eta, inner), rater_params)
        (outer_loss, (state, losses_TxB)), scores_bar_TxB = jax.value_and_grad(after_updates, has_aux=True)(
            scores_TxB, state, inner, outer
        )
        (gradient,) = pull_back(scores_bar_TxB)
        return MetaGradient(gradient, outer_loss, state, scores_TxB, losses_TxB)

    def reverse(rater_params: Params, state: InnerState, inner: Windows, outer: Windows) -> MetaGradient:
        def outer_loss_of(eta: Params) -> tuple[jax.Array, Any]:
            scores_TxB = scores_of(eta, inner)
            outer_loss, (last, losses_TxB) = after_updates(scores_TxB, state, inner, outer)
            return outer_loss, (last, scores_TxB, losses_TxB)

        (outer_loss, (last, scores_TxB, losses_TxB)), gradient = jax.value_and_grad(outer_loss_of, has_aux=True)(
            rater_params
        )
        return MetaGradient(gradient, outer_loss, last, scores_TxB, losses_TxB)

    return mixed if config.mode == "mixed" else reverse
