"""Defines the transformer of the causal inner language models and the non-causal rater.

Pre-norm blocks with RMSNorm, rotary positions and a gated MLP: the Chinchilla-like shape that the
paper's raters and inner models share (arXiv 2505.17895, section 4). Everything is plain
`jax.numpy`, so that it can be differentiated forward over reverse, as the meta-gradient requires.

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
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from datarater.rater_model.fused_attention import attend_fused
from datarater.rater_model.scoring_attention import attend_to_score

_PRODUCT = "block_product"
_ATTENTIONS = ("plain", "blocks", "fused")
# Names of kernels that are refused with what to write instead.
FUSED_ATTENTION = ("flash", "cudnn", "splash", "pallas", "mosaic", "triton")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a stack of blocks.

    Attributes:
        width: Width D of the model.
        heads: Number H of heads; must divide the width into an even head width.
        mlp_width: Width F of the MLP.
        layers: Number of blocks.
        rematerialise_blocks: Whether to recompute each block in the backward pass instead of
            keeping its activations.
        save_products: Whether to keep the most expensive products when blocks are recomputed, 2 F +
            D numbers per token: the MLP's gate and up, and the attention's mixed values. The rest
            is recomputed: the projections to queries, keys and values, one product of queries and
            keys, the attention's output and elementwise arithmetic.
        scan_blocks: Whether to run the blocks in a `lax.scan` over their stacked parameters instead
            of one after the other. It compiles in a fraction of the time, and the compiler cannot
            start to recompute a block early; the stack costs one more copy of the parameters.
        dtype: Data type of the computation ("float32", "bfloat16" or "float64"); parameters stay in
            `param_dtype`.
        param_dtype: Data type of the parameters.
        attention: Kind of attention: "plain", or "blocks" for the same softmax over blocks of keys,
            so that no array of L x L numbers per head is created; see `attend_in_blocks`. "fused"
            is the device's fused kernel, which can be differentiated only once; see `attend_fused`.
        attention_block: Number of keys in a block of "blocks".
        head_width: Width K of a head; 0 for width / heads.
        key_value_heads: Number of heads with keys and values of their own, each shared by as many
            queries (grouped queries, arXiv 2305.13245); 0 for one per head.
        rotary_base: Base of the angles of rotary positions.
        rotary_scaling: The four numbers of "llama3", which slows the slow rotations down for longer
            texts: factor, low and high frequency factor, original length. Empty for none.
        norm_epsilon: Epsilon under the root of RMSNorm.
    """

    width: int = 64
    heads: int = 2
    mlp_width: int = 128
    layers: int = 2
    rematerialise_blocks: bool = False
    save_products: bool = False
    scan_blocks: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str = "plain"
    attention_block: int = 256
    head_width: int = 0
    key_value_heads: int = 0
    rotary_base: float = 10_000.0
    rotary_scaling: tuple[float, ...] = ()
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("width", "heads", "mlp_width", "layers", "attention_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        self._check_heads()
        if not self.rotary_base > 1:
            raise ValueError(f"rotary_base must be above 1, not {self.rotary_base}")
        if not self.norm_epsilon > 0:
            raise ValueError(f"norm_epsilon must be above 0, not {self.norm_epsilon}")

        # JSON has lists, and a config that is an argument of a compiled function must hash.
        object.__setattr__(self, "rotary_scaling", tuple(self.rotary_scaling))
        _check_scaling(self.rotary_scaling)

        if self.attention in FUSED_ATTENTION:
            raise ValueError(
                f"attention {self.attention!r} is a fused kernel, which the device chooses: use "
                "'fused' for a rater, and for an inner model 'blocks', which needs as little memory"
            )
        if self.attention not in _ATTENTIONS:
            raise ValueError(
                f"attention must be 'plain', 'blocks' or 'fused', not {self.attention!r}"
            )

    def _check_heads(self) -> None:
        """Refuses heads that do not divide the width, or queries that do not share keys evenly."""
        if self.head_width < 0 or self.head_width % 2:
            raise ValueError(
                f"head_width must be 0 or even, not {self.head_width}: rotary positions rotate "
                "pairs"
            )
        if not self.head_width and self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of 2 x heads ({self.heads}): rotary "
                "positions rotate pairs"
            )
        if self.key_value_heads < 0 or self.heads % (self.key_value_heads or 1):
            raise ValueError(
                f"key_value_heads ({self.key_value_heads}) must be 0 or divide heads ({self.heads})"
            )

    @property
    def width_of_head(self) -> int:
        """Width K of a head."""
        return self.head_width or self.width // self.heads

    @property
    def saved(self) -> Callable[..., bool]:
        """The policy of `jax.checkpoint` that says which arrays of a recomputed block are kept."""
        return jax.checkpoint_policies.save_only_these_names(*[_PRODUCT] * self.save_products)

    def for_scoring(self, dtype: str) -> ScoringTransformerConfig:
        """Returns the same stack for scoring only: with the same parameters, and faster.

        What training alone needs is switched off. The results differ by rounding.

        Args:
            dtype: Data type of the computation.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"dtype": dtype, "rematerialise_blocks": False, "scan_blocks": False}
        return ScoringTransformerConfig(**fields)


@dataclasses.dataclass(frozen=True)
class ScoringTransformerConfig(TransformerConfig):
    """The shape of a stack of blocks that only scores: nothing is differentiated.

    Its attention is `attend_to_score`, whatever `attention` says.
    """


def _check_scaling(scaling: tuple[float, ...]) -> None:
    """Refuses numbers that do not describe the scaling of "llama3"."""
    if not scaling:
        return
    if len(scaling) != 4:
        raise ValueError(
            "rotary_scaling must be empty or four numbers (factor, low and high frequency factor, "
            f"original length), not {scaling}"
        )
    factor, low, high, length = scaling
    if not (factor >= 1 and 0 < low < high and length >= 1):
        raise ValueError(
            "rotary_scaling needs a factor of at least 1, frequency factors 0 < low < high and an "
            f"original length of at least 1, not {scaling}"
        )


def rotary_frequencies(head_width: int, base: float, scaling: tuple[float, ...] = ()) -> np.ndarray:
    """Returns the angle per position of each pair, base^(-2k/K), shape [K / 2], float64.

    With scaling (s, a, b, N), that of Llama 3.1, a pair of frequency f turns N f / (2 pi) = r times
    over the original length N. Pairs with r < a get the frequency f / s, pairs with r > b keep f,
    and those between are interpolated by t = (r - a) / (b - a): (1 - t) f / s + t f.

    Args:
        head_width: Width K of a head.
        base: Base of the angles.
        scaling: Numbers (s, a, b, N); empty for none.
    """
    frequencies: np.ndarray = base ** (-np.arange(0, head_width, 2) / head_width)
    if not scaling:
        return frequencies
    factor, low, high, length = scaling
    turns = length * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


@functools.lru_cache(maxsize=64)
def _rotary_tables(
    length: int, head_width: int, dtype: str, base: float, scaling: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosines and sines of all positions and pairs, each of shape [L, 1, K / 2].

    They are constants of a compiled program: computed by the program itself, they would be computed
    again in every call and in every layer.
    """
    frequencies = rotary_frequencies(head_width, base, scaling)
    angles_Lx1xk = (np.arange(length)[:, None] * frequencies)[:, None, :]
    return np.cos(angles_Lx1xk).astype(dtype), np.sin(angles_Lx1xk).astype(dtype)


def rotate(
    x_BxLxHxK: jax.Array, base: float = 10_000.0, scaling: tuple[float, ...] = ()
) -> jax.Array:
    """Applies rotary position embeddings (Su et al., arXiv 2104.09864, equation 34).

    Pair k of a head at position l is rotated by the angle l x base^(-2k/K), so that the product of
    a query and a key depends only on the distance between their positions. Angles are computed in
    float64, and the rotation in float32 at least.

    Args:
        x_BxLxHxK: Queries or keys.
        base: Base of the angles.
        scaling: Scaling of the angles; see `rotary_frequencies`.

    Returns:
        The rotated array, with the same shape and dtype.
    """
    length, head_width = x_BxLxHxK.shape[1], x_BxLxHxK.shape[3]
    dtype = jnp.promote_types(x_BxLxHxK.dtype, jnp.float32)
    cosine, sine = _rotary_tables(length, head_width, dtype.name, base, scaling)

    first, second = jnp.split(x_BxLxHxK.astype(dtype), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
    return rotated.astype(x_BxLxHxK.dtype)


def attend(
    q_BxLxHxK: jax.Array, k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, mask_BxLxL: jax.Array
) -> jax.Array:
    """Applies softmax attention; the softmax is computed in float32 at least.

    Args:
        q_BxLxHxK: Queries, already scaled.
        k_BxLxHxK: Keys.
        v_BxLxHxK: Values.
        mask_BxLxL: Mask, True where the query (second axis) may attend to the key (third axis); B
            or L may be 1.

    Returns:
        The mixed values, shape [B, L, H, K].
    """
    dtype = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    logits = jnp.einsum("bqhk,bshk->bhqs", q_BxLxHxK, k_BxLxHxK, preferred_element_type=dtype)
    # A finite fill: a row that may attend to nothing (all padding) gets a mean, not NaN.
    logits = jnp.where(mask_BxLxL[:, None], logits, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BxLxHxK.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights, v_BxLxHxK)


class _Blocks(NamedTuple):
    """Keys and values in blocks, with a leading axis of blocks."""

    k: jax.Array  # [blocks, B, S, H, K]
    v: jax.Array
    mask: jax.Array  # [blocks, B or 1, 1, L or 1, S]
    position: jax.Array  # [blocks, S], of a key; L and above for the padding of the last block


def _cut(k_BxLxHxK: jax.Array, v_BxLxHxK: jax.Array, mask_BxLxL: jax.Array, block: int) -> _Blocks:
    """Cuts keys, values and mask into blocks of keys, padding the last one."""
    length = k_BxLxHxK.shape[1]
    count = -(-length // block)

    def cut(x: jax.Array, axis: int) -> jax.Array:
        padding = [(0, count * block - length if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, padding).reshape(*x.shape[:axis], count, block, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    return _Blocks(
        cut(k_BxLxHxK, 1),
        cut(v_BxLxHxK, 1),
        cut(mask_BxLxL[:, None], 3),
        jnp.arange(count * block, dtype=jnp.int32).reshape(count, block),
    )


def _visible(keys: _Blocks, length: int, causal: bool) -> jax.Array:
    """Returns which queries may attend to which keys of a block, [B or 1, 1, L or 1, S]."""
    if not causal:
        return keys.mask
    # Computed from positions for each block: the compiler would try to fold a whole mask into a
    # constant.
    return keys.mask & (keys.position <= jnp.arange(length, dtype=jnp.int32)[:, None])


def _block_logits(q_BxLxHxK: jax.Array, keys: _Blocks, causal: bool) -> jax.Array:
    dtype = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)
    logits_BxHxLxS = jnp.einsum("bqhk,bshk->bhqs", q_BxLxHxK, keys.k, preferred_element_type=dtype)
    return jnp.where(
        _visible(keys, q_BxLxHxK.shape[1], causal), logits_BxHxLxS, jnp.finfo(dtype).min
    )


def _running_softmax(
    q_BxLxHxK: jax.Array,
    k_BxLxHxK: jax.Array,
    v_BxLxHxK: jax.Array,
    mask_BxLxL: jax.Array,
    block: int,
    causal: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the mixed values, and each query's maximum logit and sum of exponentials."""
    batch, length, heads, _ = q_BxLxHxK.shape
    dtype = jnp.promote_types(q_BxLxHxK.dtype, jnp.float32)

    def step(carry: tuple[jax.Array, ...], keys: _Blocks) -> tuple[tuple[jax.Array, ...], None]:
        maximum_BxHxL, sum_BxHxL, mixed_BxLxHxK = carry
        logits_BxHxLxS = _block_logits(q_BxLxHxK, keys, causal)

        # The maximum cancels out of the result, and so do its derivatives.
        higher_BxHxL = jax.lax.stop_gradient(
            jnp.maximum(maximum_BxHxL, jnp.max(logits_BxHxLxS, axis=-1))
        )
        shrink_BxHxL = jnp.exp(maximum_BxHxL - higher_BxHxL)
        weights_BxHxLxS = jnp.where(
            keys.position < length, jnp.exp(logits_BxHxLxS - higher_BxHxL[..., None]), 0
        )
        new_BxLxHxK = jnp.einsum(
            "bhqs,bshk->bqhk",
            weights_BxHxLxS.astype(keys.v.dtype),
            keys.v,
            preferred_element_type=dtype,
        )
        mixed_BxLxHxK = mixed_BxLxHxK * jnp.swapaxes(shrink_BxHxL, 1, 2)[..., None] + new_BxLxHxK

        return (
            higher_BxHxL,
            sum_BxHxL * shrink_BxHxL + jnp.sum(weights_BxHxLxS, axis=-1),
            mixed_BxLxHxK,
        ), None

    start = (
        jnp.full((batch, heads, length), jnp.finfo(dtype).min, dtype),
        jnp.zeros((batch, heads, length), dtype),
        jnp.zeros(q_BxLxHxK.shape, dtype),
    )
    (maximum_BxHxL, sum_BxHxL, mixed_BxLxHxK), _ = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False),
        start,
        _cut(k_BxLxHxK, v_BxLxHxK, mask_BxLxL, block),
    )
    mixed_BxLxHxK = mixed_BxLxHxK / jnp.swapaxes(sum_BxHxL, 1, 2)[..., None]
    return mixed_BxLxHxK.astype(v_BxLxHxK.dtype), maximum_BxHxL, sum_BxHxL


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend_in_blocks(
    q_BxLxHxK: jax.Array,
    k_BxLxHxK: jax.Array,
    v_BxLxHxK: jax.Array,
    mask_BxLxL: jax.Array,
    block: int,
    causal: bool = False,
) -> jax.Array:
    """Computes `attend` over one block of keys after another; memory grows with L, not L^2.

    A running maximum m and a running sum make the softmax exact (Milakov and Gimelshein, arXiv
    1805.02867). The backward pass recomputes each block's weights p from the logits s (Dao et al.,
    arXiv 2205.14135):

        p = exp(s - m) / sum exp(s - m)
        dv = p^T do
        ds = p (do v^T - rowsum(do o))
        dq = ds k
        dk = ds^T q

    Both passes are plain JAX, so the gradient can be differentiated again, forward or in reverse.
    (The function itself, before its gradient is taken, has no forward derivative, and none is
    needed here.)

    Args:
        q_BxLxHxK: Queries, already scaled.
        k_BxLxHxK: Keys.
        v_BxLxHxK: Values.
        mask_BxLxL: Mask, as in `attend`.
        block: Number of keys in a block.
        causal: Whether a query may attend to no later key, whatever the mask says.

    Returns:
        The mixed values, shape [B, L, H, K].
    """
    return _running_softmax(q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, mask_BxLxL, block, causal)[0]


def _attend_in_blocks_forward(
    q_BxLxHxK: jax.Array,
    k_BxLxHxK: jax.Array,
    v_BxLxHxK: jax.Array,
    mask_BxLxL: jax.Array,
    block: int,
    causal: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mixed, maximum, total = _running_softmax(
        q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, mask_BxLxL, block, causal
    )
    return mixed, (q_BxLxHxK, k_BxLxHxK, v_BxLxHxK, mask_BxLxL, mixed, maximum, total)


def _attend_in_blocks_backward(
    block: int, causal: bool, saved: tuple[jax.Array, ...], mixed_bar_BxLxHxK: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, mask, mixed, maximum_BxHxL, sum_BxHxL = saved
    dtype, length = maximum_BxHxL.dtype, q.shape[1]
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    # The term rowsum(do o) of ds.
    inner_BxHxL = product("bqhk,bqhk->bhq", mixed_bar_BxLxHxK, mixed)

    def step(
        q_bar_BxLxHxK: jax.Array, keys: _Blocks
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        weights = (
            jnp.exp(_block_logits(q, keys, causal) - maximum_BxHxL[..., None])
            / sum_BxHxL[..., None]
        )
        weights = jnp.where(keys.position < length, weights, 0)

        v_bar = product("bhqs,bqhk->bshk", weights.astype(v.dtype), mixed_bar_BxLxHxK)
        weights_bar = product("bqhk,bshk->bhqs", mixed_bar_BxLxHxK, keys.v)
        logits_bar = jnp.where(
            _visible(keys, length, causal), weights * (weights_bar - inner_BxHxL[..., None]), 0
        ).astype(q.dtype)

        k_bar = product("bhqs,bqhk->bshk", logits_bar, q)
        return q_bar_BxLxHxK + product("bhqs,bshk->bqhk", logits_bar, keys.k), (k_bar, v_bar)

    q_bar, (k_bar, v_bar) = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False), jnp.zeros(q.shape, dtype), _cut(k, v, mask, block)
    )

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : k.shape[1]]

    return q_bar.astype(q.dtype), joined(k_bar).astype(k.dtype), joined(v_bar).astype(v.dtype), None


attend_in_blocks.defvjp(_attend_in_blocks_forward, _attend_in_blocks_backward)


class Embedding(nn.Module):
    """Maps ids to the rows of a table of learned vectors, in the compute dtype.

    Rows are looked up first and cast afterward. In the opposite order, that of `nn.Embed`, the
    derivative of a row is summed in the compute dtype, and a bfloat16 sum over the hundreds of
    places of a frequent token stops growing.

    Attributes:
        rows: Number of rows: N, or V for a vocabulary.
        config: Shape of the stack that reads the rows.
        deviation: Standard deviation of the initial values.
    """

    rows: int
    config: TransformerConfig
    deviation: float

    @nn.compact
    def __call__(self, ids_BxL: jax.Array) -> jax.Array:
        """Returns the rows, shape [B, L, D]."""
        table_NxD = self.param(
            "embedding",
            nn.initializers.normal(stddev=self.deviation),
            (self.rows, self.config.width),
            jnp.dtype(self.config.param_dtype),
        )
        return jnp.take(table_NxD, ids_BxL, axis=0).astype(self.config.dtype)


class RMSNorm(nn.Module):
    """Normalizes by the root mean square, with a learned scale (arXiv 1910.07467)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Returns x / rms(x) x scale; the root is computed in float32 at least."""
        scale_D = self.param(
            "scale", nn.initializers.ones, (x_BxLxD.shape[-1],), jnp.dtype(self.config.param_dtype)
        )
        epsilon = self.config.norm_epsilon
        x = x_BxLxD.astype(jnp.promote_types(x_BxLxD.dtype, jnp.float32))
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
        return (x * scale_D).astype(x_BxLxD.dtype)


class Attention(nn.Module):
    """Applies multi-head attention with rotary positions, without biases."""

    config: TransformerConfig
    causal: bool = False

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
        """Returns the attention's output, shape [B, L, D]."""
        config = self.config
        head_width = config.width_of_head
        key_value_heads = config.key_value_heads or config.heads
        dtypes: dict[str, Any] = {
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "use_bias": False,
        }

        query, key, value = (
            nn.DenseGeneral((heads, head_width), name=name, **dtypes)(x_BxLxD)
            for name, heads in (
                ("query", config.heads),
                ("key", key_value_heads),
                ("value", key_value_heads),
            )
        )
        scale = jnp.asarray(head_width**-0.5, x_BxLxD.dtype)
        positions = (config.rotary_base, config.rotary_scaling)
        query, key = rotate(query, *positions) * scale, rotate(key, *positions)
        if key_value_heads < config.heads:
            key, value = (
                jnp.repeat(x, config.heads // key_value_heads, axis=2) for x in (key, value)
            )

        if isinstance(config, ScoringTransformerConfig) and not self.causal:
            mixed = attend_to_score(query, key, value, mask_BxLxL)
        elif config.attention == "fused" and not self.causal:
            mixed = attend_fused(query, key, value, mask_BxLxL)
        elif config.attention == "blocks":
            mixed = attend_in_blocks(
                query, key, value, mask_BxLxL, config.attention_block, self.causal
            )
        else:
            if self.causal:
                mask_BxLxL = mask_BxLxL & jnp.tril(jnp.ones((x_BxLxD.shape[1],) * 2, bool))
            mixed = attend(query, key, value, mask_BxLxL)
        mixed = checkpoint_name(mixed, _PRODUCT)
        return nn.DenseGeneral(config.width, axis=(-2, -1), name="output", **dtypes)(mixed)


class GatedMLP(nn.Module):
    """Computes down(silu(gate(x)) x up(x)) (Shazeer, arXiv 2002.05202), without biases."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Returns the MLP's output, shape [B, L, D]."""
        config = self.config
        dtypes: dict[str, Any] = {
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "use_bias": False,
        }
        gate_BxLxF, up_BxLxF = (
            checkpoint_name(nn.Dense(config.mlp_width, name=name, **dtypes)(x_BxLxD), _PRODUCT)
            for name in ("gate", "up")
        )
        return nn.Dense(config.width, name="down", **dtypes)(jax.nn.silu(gate_BxLxF) * up_BxLxF)


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + mlp(norm(x))."""

    config: TransformerConfig
    causal: bool = False

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
        """Returns the block's output, shape [B, L, D]."""
        config = self.config
        x = x_BxLxD
        x = x + Attention(config, self.causal, name="attention")(
            RMSNorm(config, name="attention_norm")(x), mask_BxLxL
        )
        return x + GatedMLP(config, name="mlp")(RMSNorm(config, name="mlp_norm")(x))


class Transformer(nn.Module):
    """Applies a stack of blocks and a final norm to embeddings.

    Attributes:
        config: Shape of the stack.
        causal: Whether a position may attend to no later one, whatever the mask says.
    """

    config: TransformerConfig
    causal: bool = False

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
        """Returns the normalized last hidden states, shape [B, L, D].

        Args:
            x_BxLxD: Embedded tokens.
            mask_BxLxL: Mask, True where a position may attend to another; see `attend`.
        """
        x = x_BxLxD
        if self.config.scan_blocks and not self.is_initializing():
            return RMSNorm(self.config, name="norm")(self._scan(x, mask_BxLxL))
        block = (
            nn.remat(Block, policy=self.config.saved) if self.config.rematerialise_blocks else Block
        )
        for layer in range(self.config.layers):
            x = block(self.config, self.causal, name=f"block_{layer}")(x, mask_BxLxL)
        return RMSNorm(self.config, name="norm")(x)

    def _scan(self, x_BxLxD: jax.Array, mask_BxLxL: jax.Array) -> jax.Array:
        """Returns the last block's output; parameters keep the names of single blocks."""
        block = Block(self.config, self.causal, parent=None)
        blocks = [self.variables["params"][f"block_{layer}"] for layer in range(self.config.layers)]

        def step(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
            return cast(jax.Array, block.apply({"params": params}, x, mask_BxLxL)), None

        if self.config.rematerialise_blocks:
            step = jax.checkpoint(step, prevent_cse=False, policy=self.config.saved)
        x_BxLxD, _ = jax.lax.scan(
            step, x_BxLxD, jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        )
        return x_BxLxD
