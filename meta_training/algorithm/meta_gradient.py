"""The meta-gradient: how the outer loss after T weighted inner updates depends on the rater.

One inner model's share of Algorithm 1 (arXiv 2505.17895), with s the state of the inner optimizer:

    w_t                  = softmax((phi_eta(x_t1), ..., phi_eta(x_tB)) / temperature)
    g_t                  = sum over i of w_ti grad_theta l(x_ti; theta_t)
    theta_(t+1), s_(t+1) = optimizer(theta_t, s_t, g_t)                      t = 0..T-1
    g_eta                = grad_eta mean over j of l(y_j; theta_T(eta))

or, for several target sets, the gradient of their weighted mean losses (`outer_loss`).

The paper has no temperature, which is a temperature of 1.

Two ways to compute the same number:

- Reverse mode differentiates through everything and takes second derivatives by reverse over
  reverse. It is the oracle that mixed mode is tested against.
- Mixed mode (MixFlow-MG, arXiv 2505.00793) makes the inner gradient an explicit function with its
  own derivative rule. With u the cotangent of g_t, both second-order terms are one forward-mode
  pass over the reverse-mode gradient,

      d/dtheta <u, g_t> = d/de grad_theta [sum over i of w_i l_i] (theta + e u)
      d/dw_i   <u, g_t> = d/de l_i (theta + e u)                              at e = 0,

  by the symmetry of second derivatives. This is exact and takes far less memory. The rater needs no
  second-order pass: the inner updates depend on it only through the T x B scores, so the
  meta-gradient is taken with respect to the scores, and one ordinary vjp carries it on to eta.

Dimension letters as in `datarater.meta_training.algorithm`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from datarater.meta_training.algorithm.language_model import Params, Windows
from datarater.meta_training.algorithm.mesh import ONE_DEVICE_AXIS, DataAxis
from datarater.meta_training.algorithm.outer_loss import BatchLosses, OuterLoss
from datarater.meta_training.errors import ConfigError

SequenceLosses = Callable[[Params, Windows], jax.Array]  # (theta, windows) -> losses_B
ScoreWindows = Callable[[Params, Windows], jax.Array]  # (eta, windows) -> scores_B
_INNER_GRADIENT = "inner_gradient"


@dataclasses.dataclass(frozen=True)
class MetaGradientConfig:
    """How the meta-gradient is computed; no field changes its value.

    The defaults recompute nothing, which is fastest as long as everything fits in memory;
    `meta_training/configs/pile.py` shows what to set where it does not.

    Micro-batches limit how many activations are in memory at once: sums over a batch are
    accumulated over parts of it, in float32 or wider. The softmax over the whole batch's scores is
    taken before, so micro-batches are exact. Their sizes are in windows on one device, must divide
    the batch that they split, and are 0 for the whole batch at once.

    Attributes:
        mode: "mixed" or "reverse".
        rematerialise_updates: Recompute each inner update in the backward pass. The memory of
            reverse mode then no longer grows with T times the activations. Mixed mode pays for it
            with a second inner backward pass, unless inner gradients are saved: then only the
            optimizer's arithmetic is recomputed.
        save_inner_gradients: When updates are recomputed, keep the inner gradient of each, T x
            |theta| numbers, so that the inner backward pass is not recomputed.
        scan_updates: Run the T updates in a `lax.scan` instead of unrolling them; compiles faster
            for a large T.
        inner_micro_batch: Micro-batch of the inner gradient and of its derivative.
        outer_micro_batch: Micro-batch of the outer loss and its gradient, in windows or questions.
        rater_micro_batch: Micro-batch of the rater, over the T x B windows of a meta-step. Where it
            is set, the rater's activations are recomputed instead of kept through the inner
            updates.
    """

    mode: str = "mixed"
    rematerialise_updates: bool = False
    save_inner_gradients: bool = False
    scan_updates: bool = False
    inner_micro_batch: int = 0
    outer_micro_batch: int = 0
    rater_micro_batch: int = 0


class InnerState(NamedTuple):
    """One inner model, or a stack of them along a leading axis.

    Attributes:
        params: theta.
        optimiser_state: State of the inner optimizer, with both of Adam's moments.
        age: Updates since the model's initialization, warm-up included; int32.
    """

    params: Params
    optimiser_state: optax.OptState
    age: jax.Array


class MetaGradient(NamedTuple):
    """The result of one inner model's meta-step.

    Attributes:
        gradient: The meta-gradient, a tree like eta.
        outer_loss: Outer loss after the T updates, in nats per token; of several sets, the weighted
            sum of their mean losses.
        outer_losses_K: Mean loss of each outer set.
        inner_state: The inner model after the T updates.
        scores_TxB: The rater's scores of the inner batches.
        inner_losses_TxB: Loss of each sequence just before its update, in nats per token.
    """

    gradient: Params
    outer_loss: jax.Array
    outer_losses_K: jax.Array
    inner_state: InnerState
    scores_TxB: jax.Array
    inner_losses_TxB: jax.Array


def make_meta_gradient(
    score_windows: ScoreWindows,
    losses: SequenceLosses,
    optimiser: optax.GradientTransformation,
    config: MetaGradientConfig,
    axis: DataAxis = ONE_DEVICE_AXIS,
    outer_losses: Sequence[OuterLoss] = (),
    temperature: float = 1.0,
) -> Callable[[Params, InnerState, Windows, Any], MetaGradient]:
    """Returns the function that computes one inner model's meta-gradient.

    Args:
        score_windows: The rater: (eta, windows) -> scores_B.
        losses: Inner loss of each sequence: (theta, windows) -> losses_B; the outer one as well
            where there are no others.
        optimiser: The inner optimizer, any of optax whose update can be differentiated; an Adam
            needs an `eps_root` above 0. Where parameters are cut over devices, it must be
            elementwise, as Adam, AdamW and SGD are.
        config: How to compute the meta-gradient.
        axis: The devices that share one inner model's batches. If more than one, the function runs
            inside `jax.shard_map`, on this device's part of the windows. Mixed mode only.
        outer_losses: Losses of the outer sets.
        temperature: Temperature of the softmax over a batch's scores.

    Returns:
        A pure function of (eta, inner state, inner windows with a leading axis T, outer windows).
        With `outer_losses`, the last argument is a tuple with a batch of each set.

    Raises:
        ConfigError: If reverse mode would share a batch over devices.

    Example:
        >>> make = make_meta_gradient(score, losses, optax.sgd(0.1), config)  # doctest: +SKIP
        >>> make(eta, state, inner_windows_T, outer_windows).gradient  # doctest: +SKIP
    """
    inner_gradient = make_inner_gradient(losses, config.mode, config.inner_micro_batch, axis)
    weights = [each.weight for each in outer_losses] or [1.0]
    mean_losses = [
        make_mean_loss(each, config.outer_micro_batch, axis)
        for each in ([each.losses for each in outer_losses] or [losses])
    ]

    # Inner training: T weighted updates, then the outer loss.

    def update(
        state: InnerState, weights_B: jax.Array, windows: Windows
    ) -> tuple[InnerState, jax.Array]:
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
        scores_TxB: jax.Array, state: InnerState, inner: Windows, outer: Any
    ) -> tuple[jax.Array, tuple[InnerState, jax.Array, jax.Array]]:
        weights_TxB = batch_weights(scores_TxB, temperature)
        if config.scan_updates:
            state, losses_TxB = jax.lax.scan(
                lambda carry, step: update(carry, *step), state, (weights_TxB, inner)
            )
        else:
            steps = []
            for t in range(scores_TxB.shape[0]):
                state, losses_B = update(
                    state, weights_TxB[t], jax.tree.map(lambda x, t=t: x[t], inner)
                )
                steps.append(losses_B)
            losses_TxB = jnp.stack(steps)

        batches = outer if outer_losses else (outer,)
        losses_of_sets = [
            mean_loss(state.params, batch)
            for mean_loss, batch in zip(mean_losses, batches, strict=True)
        ]
        outer_loss = sum(w * x for w, x in zip(weights, losses_of_sets, strict=True))
        return jnp.asarray(outer_loss), (state, losses_TxB, jnp.stack(losses_of_sets))

    # The rater: scores of all T x B windows, and the gradient that flows back through them.

    def flatten(inner: Windows) -> Windows:
        return Windows(*(x.reshape(-1, *x.shape[2:]) for x in inner))

    def scores_of(rater_params: Params, inner: Windows) -> jax.Array:
        if not config.rater_micro_batch:
            return score_windows(rater_params, flatten(inner)).reshape(inner.length_B.shape)
        parts = split_batch(flatten(inner), config.rater_micro_batch)
        score_part = jax.checkpoint(lambda part: score_windows(rater_params, part))
        return jax.lax.map(score_part, parts).reshape(inner.length_B.shape)

    def score_gradient(rater_params: Params, inner: Windows, scores_bar_TxB: jax.Array) -> Params:
        def of_part(scores_bar_B: jax.Array, part: Windows) -> tuple[Params, None]:
            _, pull_back = jax.vjp(lambda eta: score_windows(eta, part), rater_params)
            return pull_back(scores_bar_B)[0], None

        parts = split_batch(
            (scores_bar_TxB.reshape(-1), flatten(inner)),
            config.rater_micro_batch,
        )
        return accumulate(of_part, parts, rater_params)[0]

    # The two modes.

    def mixed(rater_params: Params, state: InnerState, inner: Windows, outer: Any) -> MetaGradient:
        if config.rater_micro_batch:
            own_scores_TxB = scores_of(rater_params, inner)
        else:
            own_scores_TxB, pull_back = jax.vjp(lambda eta: scores_of(eta, inner), rater_params)
        scores_TxB = axis.whole_batch(own_scores_TxB)

        # The gradient goes to the scores first, then through the rater.
        (outer_loss, (state, losses_TxB, losses_K)), scores_bar_TxB = jax.value_and_grad(
            after_updates, has_aux=True
        )(scores_TxB, state, inner, outer)
        own_bar_TxB = axis.own_part(scores_bar_TxB)
        if config.rater_micro_batch:
            gradient = score_gradient(rater_params, inner, own_bar_TxB)
        else:
            (gradient,) = pull_back(own_bar_TxB)
        return MetaGradient(
            axis.sum_value(gradient), outer_loss, losses_K, state, scores_TxB, losses_TxB
        )

    def reverse(
        rater_params: Params, state: InnerState, inner: Windows, outer: Any
    ) -> MetaGradient:
        def outer_loss_of(eta: Params) -> tuple[jax.Array, Any]:
            scores_TxB = scores_of(eta, inner)
            outer_loss, (last, losses_TxB, losses_K) = after_updates(
                scores_TxB, state, inner, outer
            )
            return outer_loss, (losses_K, last, scores_TxB, losses_TxB)

        (outer_loss, (losses_K, last, scores_TxB, losses_TxB)), gradient = jax.value_and_grad(
            outer_loss_of, has_aux=True
        )(rater_params)
        return MetaGradient(gradient, outer_loss, losses_K, last, scores_TxB, losses_TxB)

    return mixed if config.mode == "mixed" else reverse


def batch_weights(scores: jax.Array, temperature: float) -> jax.Array:
    """Returns the weights of the windows of a batch, softmax(scores / temperature).

    Args:
        scores: Scores, shape [..., B].
        temperature: Below 1, the best windows get more of the weight; above 1, less.
    """
    return jax.nn.softmax(scores / temperature, axis=-1)


def make_inner_gradient(
    losses: SequenceLosses, mode: str, micro_batch: int = 0, axis: DataAxis = ONE_DEVICE_AXIS
) -> Callable[..., tuple[Params, jax.Array]]:
    """Returns the function (theta, weights_B, windows) -> (sum_i w_i grad_theta l_i, losses_B).

    The losses are for metrics only: in mixed mode no derivative flows through them.

    Args:
        losses: Inner loss of each sequence.
        mode: "reverse" leaves the function's derivative to JAX; "mixed" gives it the rule of the
            module's docstring.
        micro_batch: Windows at a time; 0 for the whole batch.
        axis: The devices that share the batch; the windows are this device's part, and theta, its
            gradient and the weights are as `MeshAxis` describes.

    Raises:
        ConfigError: If reverse mode would share a batch over devices.
    """

    def weighted_loss(
        params: Params, weights_B: jax.Array, windows: Windows
    ) -> tuple[jax.Array, jax.Array]:
        losses_B = losses(params, windows)
        return jnp.sum(weights_B * losses_B), losses_B

    def gradient(
        params: Params, weights_B: jax.Array, windows: Windows
    ) -> tuple[Params, jax.Array]:
        def of_part(part_weights_B: jax.Array, part: Windows) -> tuple[Params, jax.Array]:
            return jax.grad(weighted_loss, has_aux=True)(params, part_weights_B, part)

        if not micro_batch:
            return of_part(weights_B, windows)
        if mode == "reverse":
            of_part = jax.checkpoint(of_part)
        parts = split_batch((weights_B, windows), micro_batch)
        total, losses_MxB = accumulate(of_part, parts, params)
        return total, losses_MxB.reshape(-1)

    if mode == "reverse":
        if axis.size > 1:
            raise ConfigError(
                "meta_gradient.mode 'reverse' needs each inner model on one device: "
                "set placement.data to 1"
            )
        return gradient

    @jax.custom_vjp
    def mixed(params: Params, weights_B: jax.Array, windows: Windows) -> tuple[Params, jax.Array]:
        total, losses_B = gradient(axis.whole_params(params), axis.own_part(weights_B), windows)
        return axis.sum_params(total), axis.whole_batch(losses_B)

    def forward(params: Params, weights_B: jax.Array, windows: Windows) -> tuple[Any, Any]:
        return mixed(params, weights_B, windows), (params, weights_B, windows)

    def backward(
        inputs: Any, cotangents: tuple[Params, jax.Array]
    ) -> tuple[Params, jax.Array, None]:
        params, weights_B, windows = inputs
        direction, _ = cotangents
        # Both second-order terms from one forward-mode pass: the tangents of the gradient and of
        # the losses along the cotangent.
        _, (params_bar, weights_bar_B) = jax.jvp(
            lambda theta: gradient(theta, axis.own_part(weights_B), windows),
            (axis.whole_params(params),),
            (axis.whole_params(direction),),
        )
        return (
            axis.sum_params(params_bar),
            axis.whole_batch(weights_bar_B).astype(weights_B.dtype),
            None,
        )

    mixed.defvjp(forward, backward)
    return mixed


def make_mean_loss(
    losses: BatchLosses, micro_batch: int = 0, axis: DataAxis = ONE_DEVICE_AXIS
) -> Callable[[Params, Any], jax.Array]:
    """Returns the function (theta, batch) -> mean loss, for use as an outer loss.

    Its gradient is computed together with its value. It has a first derivative only, which is all
    that an outer loss needs.

    Args:
        losses: Loss of each element of a batch: of windows, or of questions.
        micro_batch: Elements at a time; 0 for the whole batch.
        axis: The devices that share the batch.
    """

    def size(batch: Any) -> int:
        return int(jax.tree.leaves(batch)[0].shape[0]) * axis.size

    def value_and_gradient(params: Params, batch: Any) -> tuple[jax.Array, Params]:
        whole = axis.whole_params(params)
        count = size(batch)

        def of_part(part: Any) -> tuple[tuple[jax.Array, Params], None]:
            return jax.value_and_grad(lambda theta: jnp.sum(losses(theta, part)) / count)(
                whole
            ), None

        if micro_batch:
            parts = split_batch(batch, micro_batch)
            shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))[0]
            (value, gradient), _ = accumulate(of_part, (parts,), shapes)
        else:
            (value, gradient), _ = of_part(batch)
        return axis.sum_value(value), axis.sum_params(gradient)

    @jax.custom_vjp
    def mean_loss(params: Params, batch: Any) -> jax.Array:
        return axis.sum_value(jnp.sum(losses(axis.whole_params(params), batch)) / size(batch))

    def backward(gradient: Params, cotangent: jax.Array) -> tuple[Params, None]:
        return jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradient), None

    mean_loss.defvjp(value_and_gradient, backward)
    return mean_loss


def split_batch(tree: Any, size: int) -> Any:
    """Returns the tree with the leading axis B of its arrays cut into [B / size, size].

    Args:
        tree: Arrays with a leading axis B.
        size: Windows of a micro-batch, a divisor of B.
    """
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // size, size, *x.shape[1:]), tree)


def accumulate(function: Callable[..., tuple[Any, Any]], parts: Any, like: Any) -> tuple[Any, Any]:
    """Sums a function's first result over micro-batches, and stacks its second.

    Args:
        function: Called with one micro-batch; returns (a tree to sum, a tree to stack).
        parts: Tree of arrays with a leading axis M of micro-batches.
        like: Tree with the shapes and dtypes of the sum, which is accumulated in float32 or wider.

    Returns:
        (the sum, the stacked results).
    """

    def step(total: Any, part: Any) -> tuple[Any, Any]:
        summand, result = function(*part)
        return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, summand), result

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like
    )
    total, results = jax.lax.scan(step, zeros, parts)
    return jax.tree.map(lambda t, x: t.astype(x.dtype), total, like), results
