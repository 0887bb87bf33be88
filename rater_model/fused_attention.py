"""Attention by fused kernels, for what is differentiated at most once.

A fused kernel computes attention without writing the logits of all pairs of tokens to memory. It
has a gradient but no derivative of the gradient. The meta-gradient differentiates an inner model's
gradient once more, so an inner model cannot use such a kernel. It differentiates the rater only
once, through the scores, so the rater can.

Dimension letters are those of `datarater.rater_model.transformer`.
"""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp

_logger = logging.getLogger(__name__)


def cudnn_applies(dtype: jnp.dtype) -> bool:
    """Returns whether cuDNN's kernel computes attention in a dtype on the default device."""
    return jax.default_backend() == "gpu" and dtype == jnp.bfloat16


def attend_fused(
    q_BxLxHxK: jax.Array, k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, mask_BxLxL: jax.Array
) -> jax.Array:
    """Computes `attend` by `jax.nn.dot_product_attention`.

    On a GPU in bfloat16 this is cuDNN's kernel. Elsewhere it is XLA's own arrangement, which writes
    the logits.

    Args:
        q_BxLxHxK: Queries, already scaled.
        k_BxLxHxK: Keys.
        v_BxLxHxK: Values.
        mask_BxLxL: Mask, True where a query may attend to a key; the same for all queries, so of
            shape [B, 1, L]. True must precede False: cuDNN uses only the number of True.

    Returns:
        The mixed values, shape [B, L, H, K].
    """
    if cudnn_applies(q_BxLxHxK.dtype):
        mixed = attend_by_cudnn(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, mask_BxLxL)
        if mixed is not None:
            return mixed
    return jax.nn.dot_product_attention(
        q_BxLxHxK,
        k_BxLxHxK,
        v_BxLxHxK,
        mask=mask_BxLxL[:, None],
        scale=1.0,
        implementation="xla",
    )


def attend_by_cudnn(
    q_BxLxHxK: jax.Array, k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, mask_BxLxL: jax.Array
) -> jax.Array | None:
    """Computes attention by cuDNN's kernel, with the arguments of `attend_fused`.

    Returns:
        The mixed values; None, after a warning, if there is no suitable cuDNN or the kernel does
        not support the shape or the device.
    """
    lengths_B = jnp.sum(mask_BxLxL[:, 0], axis=-1, dtype=jnp.int32)
    try:
        return jax.nn.dot_product_attention(
            q_BxLxHxK,
            k_BxLxHxK,
            v_BxLxHxK,
            scale=1.0,
            key_value_seq_lengths=lengths_B,
            implementation="cudnn",
        )
    except (NotImplementedError, RuntimeError) as error:
        _logger.warning("cuDNN's attention is not used, which costs time: %s", error)
        return None
