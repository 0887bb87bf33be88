"""The inner model: a causal language model, and its loss on each sequence of a batch.

The inner and the outer loss are both next-token cross-entropy (arXiv 2505.17895, section 2).

Dimension letters as in `datarater.meta_training.algorithm`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from datarater.rater_model.transformer import Embedding, Transformer, TransformerConfig

Params = Any  # a nested dict of arrays, as Flax makes it


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Shape of a causal language model.

    Attributes:
        vocabulary_size: V, the tokenizer's vocabulary size.
        transformer: Shape of the transformer.
        loss_chunk: Positions whose logits are computed at a time in the loss; 0 for all. It changes
            no value, and avoids keeping all B x L x V logits in memory at once.
        tied_embeddings: Whether the logits are the products of the last hidden states with the
            token embeddings, instead of with a matrix of their own.
    """

    vocabulary_size: int = 258
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    loss_chunk: int = 0
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.transformer.attention == "fused":
            raise ValueError(
                "attention 'fused' has no derivative of its gradient, which the meta-gradient "
                "needs of an inner model (not of the rater): use 'blocks', which needs as little "
                "memory, or 'plain'"
            )


class Windows(NamedTuple):
    """A batch of token windows, each valid up to its length and padded after it.

    Attributes:
        tokens_BxL: Token ids, int32.
        length_B: Valid tokens of each window, int32; at least 2 (one to read, one to predict).
    """

    tokens_BxL: jax.Array
    length_B: jax.Array

    def mask_BxL(self) -> jax.Array:  # noqa: N802 - the name carries the shape
        """Returns True at valid positions."""
        return jnp.arange(self.tokens_BxL.shape[-1]) < self.length_B[..., None]


class LanguageModel(nn.Module):
    """Maps tokens to next-token logits; a position sees itself and the positions before it."""

    config: LanguageModelConfig

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, read_out: bool = True) -> jax.Array:
        """Computes logits or hidden states.

        Args:
            tokens_BxL: Token ids.
            read_out: Whether to compute logits.

        Returns:
            logits_BxLxV, in float32 or wider; without `read_out`, the last hidden states
            x_BxLxD.
        """
        config, shape = self.config, self.config.transformer
        # A tied table is read out too, where rows of deviation 1 would make fresh logits large.
        deviation = shape.width**-0.5 if config.tied_embeddings else 1.0
        x_BxLxD = Embedding(config.vocabulary_size, shape, deviation, name="token_embedding")(
            tokens_BxL
        )
        everything_1x1xL = jnp.ones((1, 1, tokens_BxL.shape[1]), bool)
        x_BxLxD = Transformer(shape, causal=True, name="transformer")(x_BxLxD, everything_1x1xL)
        if not read_out:
            return x_BxLxD

        if config.tied_embeddings:
            kernel_DxV = _readout_kernel(config, self.variables["params"], x_BxLxD)
            return read_out_logits(x_BxLxD, kernel_DxV)
        return nn.Dense(
            config.vocabulary_size,
            use_bias=False,
            dtype=shape.dtype,
            param_dtype=shape.param_dtype,
            name="readout",
            dot_general=lambda x, kernel, *_, **__: read_out_logits(x, kernel),
        )(x_BxLxD)


@jax.custom_vjp
def read_out_logits(hidden: jax.Array, kernel_DxV: jax.Array) -> jax.Array:
    """Returns hidden x kernel in float32 or wider, without a rounding to the inputs' dtype.

    A bfloat16 logit of 20 would be off by up to 1/16, which no later float32 softmax can undo. The
    derivatives are products in the inputs' dtype, as for any other layer: they are plain JAX, and
    can be differentiated again. (The function itself has no forward derivative; none is needed.)

    Args:
        hidden: Hidden states [..., D].
        kernel_DxV: The readout's kernel, of the same dtype.

    Returns:
        Logits [..., V].
    """
    return _logits(hidden, kernel_DxV)


def _logits(hidden: jax.Array, kernel_DxV: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum("...d,dv->...v", hidden, kernel_DxV, preferred_element_type=dtype)


def _read_out_logits_forward(
    hidden: jax.Array, kernel_DxV: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _logits(hidden, kernel_DxV), (hidden, kernel_DxV)


def _read_out_logits_backward(
    saved: tuple[jax.Array, jax.Array], logits_bar: jax.Array
) -> tuple[jax.Array, jax.Array]:
    hidden, kernel_DxV = saved
    logits_bar = logits_bar.astype(hidden.dtype)
    return (
        jnp.einsum("...v,dv->...d", logits_bar, kernel_DxV),
        jnp.einsum("...d,...v->dv", hidden, logits_bar),
    )


read_out_logits.defvjp(_read_out_logits_forward, _read_out_logits_backward)


def _readout_kernel(config: LanguageModelConfig, params: Params, x: jax.Array) -> jax.Array:
    """Returns the matrix of the logits, kernel_DxV, in the dtype of the hidden states."""
    if config.tied_embeddings:
        return cast(jax.Array, params["token_embedding"]["embedding"].astype(x.dtype).T)
    return cast(jax.Array, params["readout"]["kernel"].astype(x.dtype))


def initialise_language_model(config: LanguageModelConfig, key: jax.Array) -> Params:
    """Returns fresh parameters of a language model.

    Args:
        config: Shape of the model.
        key: Random key.
    """
    return LanguageModel(config).init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def sequence_losses(config: LanguageModelConfig, params: Params, windows: Windows) -> jax.Array:
    """Returns losses_B, the mean next-token cross-entropy of each window, in nats per token.

        l(x; theta) = - 1/(n-1) sum over t = 2..n of log p_theta(x_t | x_1..x_(t-1))

    where n is the window's valid length. Each window counts by its own mean, so a short one weighs
    as much as a full one.

    Args:
        config: Shape of the model.
        params: theta, the model's parameters.
        windows: B windows.
    """
    log_probabilities_BxL = token_log_probabilities(config, params, windows.tokens_BxL)
    valid_BxL = windows.mask_BxL()[:, 1:].astype(log_probabilities_BxL.dtype)
    return -jnp.sum(log_probabilities_BxL * valid_BxL, axis=1) / jnp.maximum(
        jnp.sum(valid_BxL, axis=1), 1
    )


def token_log_probabilities(
    config: LanguageModelConfig, params: Params, tokens_BxL: jax.Array
) -> jax.Array:
    """Returns the log-probability of each token but the first after those before it, in nats.

    Args:
        config: Shape of the model.
        params: The model's parameters.
        tokens_BxL: Token ids, int32.

    Returns:
        log_probabilities of shape B x (L - 1).
    """
    inputs_BxL, targets_BxL = tokens_BxL[:, :-1], tokens_BxL[:, 1:]
    if config.loss_chunk:
        return _log_probabilities_in_chunks(config, params, inputs_BxL, targets_BxL)
    logits_BxLxV = cast(jax.Array, LanguageModel(config).apply({"params": params}, inputs_BxL))
    return _target_log_probabilities(logits_BxLxV, targets_BxL)


def _target_log_probabilities(logits_BxLxV: jax.Array, targets_BxL: jax.Array) -> jax.Array:
    log_probabilities_BxLxV = jax.nn.log_softmax(logits_BxLxV, axis=-1)
    return jnp.take_along_axis(log_probabilities_BxLxV, targets_BxL[..., None], axis=-1)[..., 0]


def _log_probabilities_in_chunks(
    config: LanguageModelConfig, params: Params, inputs_BxL: jax.Array, targets_BxL: jax.Array
) -> jax.Array:
    """Returns the targets' log-probabilities; the backward pass recomputes each chunk's logits."""
    hidden_BxLxD = cast(
        jax.Array, LanguageModel(config).apply({"params": params}, inputs_BxL, read_out=False)
    )
    batch, length = targets_BxL.shape
    count = -(-length // config.loss_chunk)

    def cut(x: jax.Array) -> jax.Array:
        padding = [
            (0, count * config.loss_chunk - length if axis == 1 else 0) for axis in range(x.ndim)
        ]
        return jnp.moveaxis(
            jnp.pad(x, padding).reshape(batch, count, config.loss_chunk, *x.shape[2:]), 1, 0
        )

    @jax.checkpoint
    def of_chunk(hidden_BxCxD: jax.Array, targets_BxC: jax.Array) -> jax.Array:
        # The cast is inside the loop so that the kernel's gradient is summed in the parameters' own
        # precision.
        kernel_DxV = _readout_kernel(config, params, hidden_BxCxD)
        return _target_log_probabilities(read_out_logits(hidden_BxCxD, kernel_DxV), targets_BxC)

    chunks = jax.lax.map(lambda chunk: of_chunk(*chunk), (cut(hidden_BxLxD), cut(targets_BxL)))
    return jnp.moveaxis(chunks, 0, 1).reshape(batch, -1)[:, :length]
