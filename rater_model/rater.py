"""Defines the rater, a small non-causal transformer that gives a token sequence one score.

The paper's rater is a 50M non-causal transformer with one scalar per sequence (arXiv 2505.17895,
section 4). The paper does not state how it pools: ours takes the mean over valid tokens, or an
average with learned weights. The hashed n-gram embeddings in addition to the token embeddings are
ours too: on bytes, a mean-pooled transformer alone learns slowly.

Dimension letters are those of `datarater.rater_model.transformer`, and N, the rows of one n-gram
table.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from datarater.rater_model.transformer import Embedding, Transformer, TransformerConfig

POOLINGS = ("mean", "attention")
Params = Any  # a nested dict of arrays, as Flax makes it


@dataclasses.dataclass(frozen=True)
class RaterConfig:
    """The shape of a rater.

    Together with the parameters and the tokenizer it is everything that scoring needs.

    Attributes:
        vocabulary_size: V, the vocabulary of the tokenizer.
        window: Tokens in a training window; longer texts are scored in windows of this length.
        transformer: Shape of the encoder.
        ngram_orders: Orders n of the n-grams with a table of hashed embeddings; empty for none.
        ngram_rows: N, the rows of each table.
        pooling: How hidden states become one vector per sequence: "mean" over valid tokens, or
            "attention" with a learned query per head; see `Rater`.
    """

    vocabulary_size: int = 258
    window: int = 256
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    ngram_orders: tuple[int, ...] = (2,)
    ngram_rows: int = 8192
    pooling: str = "mean"

    def __post_init__(self) -> None:
        orders = self.ngram_orders
        at_least_2 = all(isinstance(order, int) and order >= 2 for order in orders)
        if not at_least_2 or len(set(orders)) < len(orders):
            raise ValueError(
                f"ngram_orders must be distinct whole numbers of at least 2, not {orders}"
            )
        if self.ngram_orders and self.ngram_rows < 1:
            raise ValueError(f"ngram_rows must be at least 1, not {self.ngram_rows}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, not {self.pooling!r}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, not {self.window}")

    def to_json(self) -> dict[str, Any]:
        """Returns the config as a JSON-able dict, which `from_json` reads.

        The pooling "mean" is left out, so that versions without the field read such a rater.
        """
        values = {**dataclasses.asdict(self), "ngram_orders": list(self.ngram_orders)}
        if self.pooling == "mean":
            del values["pooling"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RaterConfig:
        """Returns the config that `to_json` described.

        Raises:
            TypeError: if a key is unknown or missing.
            ValueError: if a value is out of range.
        """
        return cls(
            **{
                **values,
                "transformer": TransformerConfig(**values["transformer"]),
                "ngram_orders": tuple(values["ngram_orders"]),
            }
        )


def hash_ngrams(tokens_BxL: jax.Array, order: int, rows: int) -> jax.Array:
    """Hashes the n-gram that ends at each position into a table's row.

    The ids are folded into 32 bits by h <- (h xor id) x 0x01000193 (FNV-1a over ids), then mixed by
    murmur3's finalizer. The sequence's first token is preceded by the id 0xFFFF_FFFF.

    Args:
        tokens_BxL: Token ids.
        order: Order n of the n-grams, at least 2.
        rows: Rows N of the table.

    Returns:
        Rows in [0, N), int32, shape [B, L].
    """
    tokens = tokens_BxL.astype(jnp.uint32)
    length = tokens.shape[1]
    padded = jnp.pad(tokens, ((0, 0), (order - 1, 0)), constant_values=jnp.uint32(0xFFFF_FFFF))

    h = jnp.full_like(tokens, 0x811C9DC5 + order)
    for offset in range(order):
        h = (h ^ padded[:, offset : offset + length]) * jnp.uint32(0x01000193)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h = h ^ (h >> 16)
    return (h % jnp.uint32(rows)).astype(jnp.int32)


class Rater(nn.Module):
    """Maps token ids to one score per sequence: the paper's phi_eta.

    score = head . pool over valid positions of Transformer(token embedding + sum over n of n-gram
    embedding).

    The pool is the mean, or attention with a learned query q_h of D numbers for each head h: with
    x_l the hidden state of position l, and x_l^h the K of its numbers that are the head's,

        a_lh = softmax over valid l of (q_h . x_l / sqrt(D))
        pool = concatenation over h of  sum over l of a_lh x_l^h

    The queries start at zero, where all weights are equal and the pool is the mean.

    The head has no bias: a constant added to all scores does not change the softmax over a batch,
    so the meta-gradient of a bias would be rounding noise.
    """

    config: RaterConfig

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Returns scores, shape [B], in float32 at least.

        Args:
            tokens_BxL: Token ids; masked ones do not matter.
            mask_BxL: Mask, True at valid positions, which must precede all padding.
        """
        config = self.config
        shape = config.transformer

        # Token embeddings plus the embeddings of the n-grams that end at each position.
        x_BxLxD = Embedding(config.vocabulary_size, shape, 0.5, name="token_embedding")(tokens_BxL)
        for order in config.ngram_orders:
            rows_BxL = hash_ngrams(tokens_BxL, order, config.ngram_rows)
            x_BxLxD = x_BxLxD + Embedding(
                config.ngram_rows, shape, 0.5, name=f"ngram_{order}_embedding"
            )(rows_BxL)

        x_BxLxD = Transformer(shape, name="transformer")(x_BxLxD, mask_BxL[:, None, :])

        # One vector of each sequence, in float32 at least.
        x_BxLxD = x_BxLxD.astype(jnp.promote_types(x_BxLxD.dtype, jnp.float32))
        if config.pooling == "attention":
            query_DxH = self.param(
                "pooling_query",
                nn.initializers.zeros,
                (shape.width, shape.heads),
                jnp.dtype(shape.param_dtype),
            )
            pooled_BxD = attention_pool(x_BxLxD, query_DxH.astype(x_BxLxD.dtype), mask_BxL)
        else:
            pooled_BxD = mean_pool(x_BxLxD, mask_BxL)

        head = self.param(
            "head",
            nn.initializers.normal(stddev=shape.width**-0.5),
            (shape.width,),
            jnp.dtype(shape.param_dtype),
        )
        return pooled_BxD @ head.astype(pooled_BxD.dtype)


def mean_pool(x_BxLxD: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """Returns the mean of the hidden states over valid positions, shape [B, D]."""
    valid_BxLx1 = mask_BxL[:, :, None].astype(x_BxLxD.dtype)
    return jnp.sum(x_BxLxD * valid_BxLx1, axis=1) / jnp.maximum(jnp.sum(valid_BxLx1, axis=1), 1)


def attention_pool(x_BxLxD: jax.Array, query_DxH: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """Returns the average of the hidden states with a head's own weights; see `Rater`.

    Args:
        x_BxLxD: Hidden states.
        query_DxH: A query for each head.
        mask_BxL: Mask, True at valid positions.

    Returns:
        The pooled states, shape [B, D].
    """
    batch, length, width = x_BxLxD.shape
    heads = query_DxH.shape[1]

    logits_BxLxH = x_BxLxD @ query_DxH * width**-0.5
    # A finite fill: a sequence without a valid position gets a mean, not NaN.
    logits_BxLxH = jnp.where(mask_BxL[:, :, None], logits_BxLxH, jnp.finfo(x_BxLxD.dtype).min)
    weights_BxLxH = jax.nn.softmax(logits_BxLxH, axis=1)

    x_BxLxHxK = x_BxLxD.reshape(batch, length, heads, width // heads)
    return jnp.einsum("blh,blhk->bhk", weights_BxLxH, x_BxLxHxK).reshape(batch, width)


@functools.partial(jax.jit, static_argnums=0)
def initialise_rater(config: RaterConfig, key: jax.Array) -> Params:
    """Returns freshly initialized parameters of a rater; compiles one program for all of them."""
    tokens = jnp.zeros((1, min(config.window, 8)), jnp.int32)
    return Rater(config).init(key, tokens, jnp.ones_like(tokens, bool))["params"]


@functools.lru_cache(maxsize=8)
def initialise_rater_shapes(config: RaterConfig) -> Params:
    """Returns the shapes and dtypes of a rater's parameters, without creating any array.

    The tree is shared by all who ask for it: do not change it.
    """
    return jax.eval_shape(
        lambda key: initialise_rater(config, key), jax.ShapeDtypeStruct((2,), jnp.uint32)
    )


def score_tokens(
    config: RaterConfig, params: Params, tokens_BxL: jax.Array, length_B: jax.Array
) -> jax.Array:
    """Returns the scores of padded windows, not centered, shape [B].

    Args:
        config: Shape of the rater.
        params: Parameters of the rater.
        tokens_BxL: Token ids, padded after each window's end.
        length_B: Number of valid tokens of each window.
    """
    mask_BxL = jnp.arange(tokens_BxL.shape[1]) < length_B[:, None]
    return cast(jax.Array, Rater(config).apply({"params": params}, tokens_BxL, mask_BxL))


def count_parameters(params: Params) -> int:
    """Returns how many numbers a tree of parameters has."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
