"""Attention for scoring: the softmax of `attend`, arranged for speed, without derivatives in mind.

On a CPU the logits of a few heads, or of some queries of one head, are computed at a time, so that
they are still in the core's cache when their softmax and their product with the values are taken.
On a GPU, in bfloat16, cuDNN's fused kernel computes the same without writing the logits at all.

Dimension letters are those of `datarater.rater_model.transformer`, and P, the pairs of a sequence
and a head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from datarater.rater_model.fused_attention import attend_by_cudnn, cudnn_applies

# Logits that are computed at a time on a CPU: 2 MB in float32, which a core's caches keep. Half and
# twice as many were slower or equal at lengths from 256 to 1024.
_LOGITS_AT_A_TIME = 2**19
_SMALLEST_BLOCK = 32
# Logits within this bound need no maximum subtracted: neither the exponential of one of them nor
# the sum of a billion of them leaves the range of float32, which bfloat16 shares.
_BOUND_WITHOUT_MAXIMUM = 60.0


def attend_to_score(
    q_BxLxHxK: jax.Array, k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, mask_BxLxL: jax.Array
) -> jax.Array:
    """Computes `attend` in the fastest way for the default device.

    Args:
        q_BxLxHxK: Queries, already scaled.
        k_BxLxHxK: Keys.
        v_BxLxHxK: Values.
        mask_BxLxL: Mask, True where a query may attend to a key; the same for all queries, so of
            shape [B, 1, L]. True must precede False: on a GPU, only the number of True is used.

    Returns:
        The mixed values, shape [B, L, H, K].
    """
    if cudnn_applies(q_BxLxHxK.dtype):
        fused_BxLxHxK = attend_by_cudnn(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, mask_BxLxL)
        if fused_BxLxHxK is not None:
            return fused_BxLxHxK

    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxHxK, k_BxLxHxK, v_BxLxHxK))
    if jax.default_backend() == "cpu":
        mixed_BxHxLxK = attend_piecewise(q, k, v, mask_BxLxL)
    else:
        mixed_BxHxLxK = _attend(q, k, v, mask_BxLxL[:, None])
    return jnp.swapaxes(mixed_BxHxLxK, 1, 2)


def attend_piecewise(
    q_BxHxLxK: jax.Array,
    k_BxHxLxK: jax.Array,
    v_BxHxLxK: jax.Array,
    mask_Bx1xL: jax.Array,
    logits_at_a_time: int = _LOGITS_AT_A_TIME,
) -> jax.Array:
    """Computes attention for a few pairs of a sequence and a head at a time, or for a part of one.

    Args:
        q_BxHxLxK: Queries, already scaled.
        k_BxHxLxK: Keys.
        v_BxHxLxK: Values.
        mask_Bx1xL: Mask, True where all queries may attend to a key.
        logits_at_a_time: Maximum number of logits in memory; a few rows of them may exceed it.

    Returns:
        The mixed values, shape [B, H, L, K].
    """
    batch, heads, length, head_width = q_BxHxLxK.shape
    pairs = batch * heads
    q, k, v = (x.reshape(pairs, length, head_width) for x in (q_BxHxLxK, k_BxHxLxK, v_BxHxLxK))
    mask = jnp.repeat(mask_Bx1xL, heads, axis=0)

    # As many whole pairs as fit, if several do.
    at_once = _largest_divisor(pairs, logits_at_a_time // length**2)
    if at_once > 1:
        pieces = [x.reshape(pairs // at_once, at_once, *x.shape[1:]) for x in (q, k, v, mask)]
        mixed = jax.lax.map(lambda piece: _attend(*piece), tuple(pieces))
        return mixed.reshape(q_BxHxLxK.shape)

    # Or as many queries of one pair as fit.
    block = _largest_divisor(length, logits_at_a_time // length)
    if block < _SMALLEST_BLOCK:
        block = length

    def attend_pair(pair: tuple[jax.Array, ...]) -> jax.Array:
        q_LxK, k_LxK, v_LxK, mask_1xL = pair
        blocks = q_LxK.reshape(length // block, block, head_width)

        def attend_blocks(bounded: bool) -> jax.Array:
            return jax.lax.map(lambda q: _attend(q, k_LxK, v_LxK, mask_1xL, bounded), blocks)

        # Decided for each pair by itself, so that a score does not depend on other sequences.
        return jax.lax.cond(
            jnp.any(mask_1xL) & (_largest_logit(q_LxK, k_LxK) < _BOUND_WITHOUT_MAXIMUM),
            functools.partial(attend_blocks, True),
            functools.partial(attend_blocks, False),
        )

    return jax.lax.map(attend_pair, (q, k, v, mask)).reshape(q_BxHxLxK.shape)


def _largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of a number up to a limit; 0 if the limit is below 1."""
    return next((n for n in range(min(number, limit), 0, -1) if number % n == 0), 0)


def _largest_logit(q_LxK: jax.Array, k_LxK: jax.Array) -> jax.Array:
    """Returns an upper bound of all logits and their negatives: |q . k| <= |q| |k|."""
    q, k = (jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)) for x in (q_LxK, k_LxK))
    return jnp.sqrt(q) * jnp.sqrt(k)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bounded: bool = False
) -> jax.Array:
    """Computes softmax attention over the last two axes, dividing after the product with values.

    Args:
        q: Queries, shape [..., Q, K].
        k: Keys, shape [..., L, K].
        v: Values, shape [..., L, K].
        mask: Mask that broadcasts to [..., Q, L].
        bounded: Whether the logits are known to be small, and one of each row to be valid: finding
            the rows' maxima is a seventh of the time, and they cancel out of the result.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("...qk,...sk->...qs", q, k, preferred_element_type=dtype)
    if bounded:
        weights = jnp.where(mask, jnp.exp(logits), 0)
    else:
        # A finite fill: if nothing is valid, the result is a mean, not NaN.
        logits = jnp.where(mask, logits, jnp.finfo(dtype).min)
        weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))

    mixed = jnp.einsum(
        "...qs,...sk->...qk", weights.astype(v.dtype), v, preferred_element_type=dtype
    )
    return (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)
