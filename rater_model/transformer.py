"""One transformer block for the causal inner language models and for the non-causal rater.

Pre-norm blocks with RMSNorm, rotary positions and a gated MLP: the Chinchilla-like shape that the paper's raters
and inner models share (arXiv 2505.17895, section 4). Everything is plain `jax.numpy`, so that it can be
differentiated forward over reverse, which the meta-gradient needs.

Dimension letters, used as suffixes of array names everywhere:

    B  batch (sequences)
    L  length of a sequence, in tokens
    D  width of the model
    H  attention heads
    K  width of one head, D = H x K
    F  width of the MLP
    V  vocabulary
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a stack of blocks.

    Attributes:
        width: D.
        heads: H; must divide the width into an even head width.
        mlp_width: F.
        layers: number of blocks.
        rematerialise_blocks: recompute each block in the backward pass in place of keeping its activations.
        dtype: of the computation ("float32", "bfloat16" or "float64"); parameters stay in `param_dtype`.
        param_dtype: of the parameters.
    """

    width: int = 64
    heads: int = 2
    mlp_width: int = 128
    layers: int = 2
    rematerialise_blocks: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of 2 x heads ({self.heads}): rotary positions turn pairs"
            )
        if min(self.layers, self.mlp_width) < 1:
            raise ValueError(f"layers ({self.layers}) and mlp_width ({self.mlp_width}) must be at least 1")


def rotate(x_BxLxHxK: jax.Array) -> jax.Array:
    """Applies rotary position embeddings (Su et al., arXiv 2104.09864, equation 34).

    Pair k of a head at position l is turned by the angle l x 10000^(-2k/K), so that the product of a query and a
    key depends on the distance of their positions alone. Angles are taken in float32 at least.

    Args:
        x_BxLxHxK: queries or keys.

    Returns:
        The turned array, of the same shape and dtype.
    """
    length, head_width = x_BxLxHxK.shape[1], x_BxLxHxK.shape[3]
    angle_dtype = jnp.promote_types(x_BxLxHxK.dtype, jnp.float32)
    frequencies = 10_000.0 ** (-jnp.arange(0, head_width, 2, dtype=angle_dtype) / head_width)
    angles_Lx1xk = (jnp.arange(length, dtype=angle_dtype)[:, None] * frequencies)[:, None, :]
    cosine, sine = jnp.cos(angles_Lx1xk), jnp.sin(angles_Lx1xk)
    first, second = jnp.split(x_BxLxHxK.astype(angle_dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_BxLxHxK.dtype)


def attend(q_BxLxHxK: jax.Array, k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
    """Softmax attention; the softmax is taken in float32 at least.

    Args:
        q_BxLxHxK: queries, already scaled.
        k_BxLxHxK: keys.
        v_BxLxHxK: values.
        mask_BxLxL: True where the query (second axis) may look at the key (third axis); B or L may be 1.

    Returns:
        The mixed values, shape [B, L, H, K].
    """
    logits = jnp.einsum("bqhk,bshk->bhqs", q_BxLxHxK, k_BxLxHxK)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # A finite fill: a row that may look at nothing (all padding) gets a mean, not NaN.
    logits = jnp.where(mask_BxLxL[:, None], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BxLxHxK.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights, v_BxLxHxK)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale (Zhang and Sennrich, arXiv 1910.07467)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Returns x / rms(x) x scale; the root is taken in float32 at least."""
        scale_D = self.param("scale", nn.initializers.ones, (x_BxLxD.shape[-1],), jnp.dtype(self.config.param_dtype))
        x = x_BxLxD.astype(jnp.promote_types(x_BxLxD.dtype, jnp.float32))
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return (x * scale_D).astype(x_BxLxD.dtype)


class Attention(nn.Module):
    """Multi-head attention with rotary positions, no biases."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
        """Returns the attention's output, shape [B, L, D]."""
        config = self.config
        head_width = config.width // config.heads
        dtypes: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype, "use_bias": False}
        query, key, value = (
            nn.DenseGeneral((config.heads, head_width), name=name, **dtypes)(x_BxLxD)
            for name in ("query", "key", "value")
        )
        scale = jnp.asarray(head_width**-0.5, x_BxLxD.dtype)
        mixed = attend(rotate(query) * scale, rotate(key), value, mask_BxLxL)
        return nn.DenseGeneral(config.width, axis=(-2, -1), name="output", **dtypes)(mixed)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) x up(x)) (Shazeer, arXiv 2002.05202), no biases."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Returns the MLP's output, shape [B, L, D]."""
        config = self.config
        dtypes: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype, "use_bias": False}
        gate_BxLxF = nn.Dense(config.mlp_width, name="gate", **dtypes)(x_BxLxD)
        up_BxLxF = nn.Dense(config.mlp_width, name="up", **dtypes)(x_BxLxD)
        return nn.Dense(config.width, name="down", **dtypes)(jax.nn.silu(gate_BxLxF) * up_BxLxF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
        """Returns the block's output, shape [B, L, D]."""
        config = self.config
        x = x_BxLxD
        x = x + Attention(config, name="attention")(RMSNorm(config, name="attention_norm")(x), mask_BxLxL)
        return x + GatedMLP(config, name="mlp")(RMSNorm(config, name="mlp_norm")(x))


class Transformer(nn.Module):
    """A stack of blocks and a last norm, over embeddings that the caller has made."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
        """Returns the normalised last hidden states.

        Args:
            x_BxLxD: embedded tokens.
            mask_BxLxL: True where a position may look at another; see `attend`.
        """
        block = nn.remat(Block) if self.config.rematerialise_blocks else Block
        x = x_BxLxD
        for layer in range(self.config.layers):
            x = block(self.config, name=f"block_{layer}")(x, mask_BxLxL)
        return RMSNorm(self.config, name="norm")(x)
