"""The rater: a small non-causal transformer that gives a token sequence one score.

The paper's rater is a 50M non-causal transformer with one scalar a sequence (arXiv 2505.17895,
section 4); how it pools is not stated there: ours takes the mean over valid tokens. Hashed n-gram
embeddings beside the token embeddings are ours too: on bytes, a mean-pooled transformer alone
learns slowly.

Dimension letters as in `datarater.rater_model.transformer`, and N, the rows of one n-gram table.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from datarater.rater_model.transformer import Embedding, Transformer, TransformerConfig

Params = Any  # a nested dict of arrays, as Flax makes it


@dataclasses.dataclass(frozen=True)
class RaterConfig:
    """The shape of a rater; with its parameters and tokenizer it is all that scoring needs.

    Attributes:
        vocabulary_size: V, of the tokenizer.
        window: tokens that the rater was trained on at once; longer texts are scored in windows of
            it.
        transformer: the encoder's shape.
        ngram_orders: which n-grams get a table of hashed embeddings; empty for none.
        ngram_rows: N, rows of each table.
    """

    vocabulary_size: int = 258
    window: int = 256
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    ngram_orders: tuple[int, ...] = (2,)
    ngram_rows: int = 8192

    def __post_init__(self) -> None:
        if any(order < 2 for order in self.ngram_orders) or len(set(self.ngram_orders)) != len(
            self.ngram_orders
        ):
            raise ValueError(
                f"ngram_orders must be distinct and at least 2, not {self.ngram_orders}"
            )
        if self.ngram_orders and self.ngram_rows < 1:
            raise ValueError(f"ngram_rows must be at least 1, not {self.ngram_rows}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, not {self.window}")

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-able dict from which `from_json` makes the same config."""
        return {**dataclasses.asdict(self), "ngram_orders": list(self.ngram_orders)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RaterConfig:
        """Makes a config of what `to_json` returned.

        Raises:
            TypeError: a key is unknown or missing.
            ValueError: a value is out of its range.
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
    murmur3's finaliser. Before the sequence's first token stands the id 0xFFFF_FFFF.

    Args:
        tokens_BxL: token ids.
        order: n, at least 2.
        rows: N.

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
    """phi_eta: token ids in, one score a sequence out.

    score = head . mean over valid positions of Transformer(token embedding + sum over n of n-gram
    embedding).

    The head has no bias: the softmax over a batch is the same whatever constant is added to all
    scores, so the meta-gradient of a bias would be rounding noise.
    """

    config: RaterConfig

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        """Returns scores, shape [B], in float32 at least.

        Args:
            tokens_BxL: token ids; those that are masked do not matter.
            mask_BxL: True at valid positions, which must stand before all padding.
        """
        config = self.config
        shape = config.transformer
        x_BxLxD = Embedding(config.vocabulary_size, shape, 0.5, name="token_embedding")(tokens_BxL)
        for order in config.ngram_orders:
            rows_BxL = hash_ngrams(tokens_BxL, order, config.ngram_rows)
            x_BxLxD = x_BxLxD + Embedding(
                config.ngram_rows, shape, 0.5, name=f"ngram_{order}_embedding"
            )(rows_BxL)
        x_BxLxD = Transformer(shape, name="transformer")(x_BxLxD, mask_BxL[:, None, :])
        x_BxLxD = x_BxLxD.astype(jnp.promote_types(x_BxLxD.dtype, jnp.float32))
        valid_BxLx1 = mask_BxL[:, :, None].astype(x_BxLxD.dtype)
        pooled_BxD = jnp.sum(x_BxLxD * valid_BxLx1, axis=1) / jnp.maximum(
            jnp.sum(valid_BxLx1, axis=1), 1
        )
        head = self.param(
            "head",
            nn.initializers.normal(stddev=shape.width**-0.5),
            (shape.width,),
            jnp.dtype(shape.param_dtype),
        )
        return pooled_BxD @ head.astype(pooled_BxD.dtype)


def initialise_rater(config: RaterConfig, key: jax.Array) -> Params:
    """Returns fresh parameters of a rater.

    Args:
        config: the rater's shape.
        key: a random key.
    """
    tokens = jnp.zeros((1, min(config.window, 8)), jnp.int32)
    return Rater(config).init(key, tokens, jnp.ones_like(tokens, bool))["params"]


def initialise_rater_shapes(config: RaterConfig) -> Params:
    """Returns the shapes and dtypes of a rater's parameters, without making any array."""
    return jax.eval_shape(
        lambda key: initialise_rater(config, key), jax.ShapeDtypeStruct((2,), jnp.uint32)
    )


def score_tokens(
    config: RaterConfig, params: Params, tokens_BxL: jax.Array, length_B: jax.Array
) -> jax.Array:
    """Returns scores_B, uncentred, of padded windows.

    Args:
        config: the rater's shape.
        params: its parameters.
        tokens_BxL: token ids, padded behind each window's end.
        length_B: valid tokens of each window.
    """
    mask_BxL = jnp.arange(tokens_BxL.shape[1]) < length_B[:, None]
    return cast(jax.Array, Rater(config).apply({"params": params}, tokens_BxL, mask_BxL))


def count_parameters(params: Params) -> int:
    """Returns how many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
