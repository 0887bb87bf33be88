"""Trains one language model on an arm's data and evaluates it along the way.

The paper's protocol (arXiv 2505.17895, section 4): Adam, linear warm-up and cosine decay, survivors
unweighted. Loss and shapes are those of the inner models.

On a CPU the gradient of a batch is the sum over micro-batches of about 512 tokens, whose
activations stay in the processor's cache. At 0.14M parameters a step then takes little more than
half of the time and touches no new memory pages.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Params,
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.evaluate import walk
from datarater.meta_training.evaluate.pool import Data, TargetDocument
from datarater.meta_training.evaluate.protocol import Model, Protocol
from datarater.rater_model.tokenizer import Tokenizer

_CACHED_TOKENS = 512


class NonFiniteLossError(ArithmeticError):
    """The loss of a run is not finite."""


class State(NamedTuple):
    """A language model in training."""

    params: Params
    optimiser: Any


@dataclasses.dataclass(frozen=True)
class Run:
    """The result of training a model.

    Attributes:
        curve: (step, validation loss in nats per token) pairs.
        by_source: Final validation loss of each source of the validation set.
        passes: Number of passes over the arm's data, the last one begun.
        seconds: Wall time.
        params: Parameters at the end.
    """

    curve: list[tuple[int, float]]
    by_source: dict[str, float]
    passes: int
    seconds: float
    params: Params


def language_model_config(model: Model, vocabulary_size: int) -> LanguageModelConfig:
    """Returns the shape of the model for a vocabulary."""
    return LanguageModelConfig(vocabulary_size, model.transformer)


def train(
    data: Data,
    selection: walk.Selection,
    model: Model,
    protocol: Protocol,
    seed: int,
    report: Callable[[float], None] = lambda share: None,
) -> Run:
    """Trains a fresh model on what is selected of the pool.

    Args:
        data: The data.
        selection: What it trains on.
        model: Shape of the model.
        protocol: How to train.
        seed: Seed of the initialization and of the walk.
        report: Called with the share of the steps done.

    Raises:
        NonFiniteLossError: If the validation loss is not finite.
        TooLittleTextError: If what is selected does not fill a window.
    """
    config = language_model_config(model, data.tokenizer.vocabulary_size)
    started = time.monotonic()
    optimiser = make_optimiser(protocol)
    params = initialise_language_model(config, jax.random.key(seed))
    state = State(params, optimiser.init(params))
    step = make_step(config, protocol)
    evaluate = make_evaluation(config, protocol, data.validation, data.tokenizer)

    chunks = walk.cut_into_chunks(data.token_ends_N, protocol.length)
    batches = walk.batches(
        data.tokens_T, chunks, selection, data.tokenizer.separator_id, seed, protocol.batch
    )
    loss, by_source = evaluate(state.params)
    curve, passes = [(0, loss)], 0
    evaluated = set(protocol.evaluated_steps())
    for done in range(1, protocol.steps + 1):
        tokens_BxL, passes = next(batches)
        state = step(state, tokens_BxL)
        if done in evaluated:
            loss, by_source = evaluate(state.params)
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"the validation loss is {loss} after {done} steps; lower --learning_rate"
                )
            curve.append((done, loss))
            report(done / protocol.steps)
    return Run(curve, by_source, passes + 1, time.monotonic() - started, state.params)


def make_optimiser(protocol: Protocol) -> optax.GradientTransformation:
    """Returns Adam with a clipped gradient, linear warm-up and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=protocol.learning_rate / max(1, protocol.warmup_steps),
        peak_value=protocol.learning_rate,
        warmup_steps=protocol.warmup_steps,
        decay_steps=protocol.steps,
        end_value=protocol.learning_rate * protocol.final_share,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))


def micro_batch(batch: int, length: int) -> int:
    """Returns the windows whose gradient is computed at a time: all on an accelerator."""
    if jax.default_backend() != "cpu":
        return batch
    return math.gcd(batch, max(1, 2 ** int(math.log2(max(1, _CACHED_TOKENS // length)))))


@functools.lru_cache(maxsize=4)
def make_step(
    config: LanguageModelConfig, protocol: Protocol
) -> Callable[[State, NDArray[np.int32]], State]:
    """Returns a training step on a batch of full windows, compiled once in a process."""
    optimiser = make_optimiser(protocol)
    gradient_of = make_gradient(config, micro_batch(protocol.batch, protocol.length))

    def step(state: State, tokens_BxL: jax.Array) -> State:
        gradient = gradient_of(state.params, tokens_BxL)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        return State(optax.apply_updates(state.params, updates), optimiser_state)

    return jax.jit(step, donate_argnums=0)


def make_gradient(config: LanguageModelConfig, part: int) -> Callable[[Params, jax.Array], Params]:
    """Returns the gradient of the mean loss of a batch of full windows.

    Args:
        config: Shape of the model.
        part: Windows whose activations exist at a time; divides the batch.
    """

    def mean_loss(params: Params, tokens_MxL: jax.Array) -> jax.Array:
        lengths_M = jnp.full(tokens_MxL.shape[0], tokens_MxL.shape[1], jnp.int32)
        return jnp.mean(sequence_losses(config, params, Windows(tokens_MxL, lengths_M)))

    def gradient_of(params: Params, tokens_BxL: jax.Array) -> Params:
        count = tokens_BxL.shape[0] // part
        if count == 1:
            return jax.grad(mean_loss)(params, tokens_BxL)

        def add(total: Params, tokens_MxL: jax.Array) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, jax.grad(mean_loss)(params, tokens_MxL)), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, _ = jax.lax.scan(add, zeros, tokens_BxL.reshape(count, part, -1))
        return jax.tree.map(lambda leaf: leaf / count, total)

    return gradient_of


def make_evaluation(
    config: LanguageModelConfig,
    protocol: Protocol,
    documents: Sequence[TargetDocument],
    tokenizer: Tokenizer,
) -> Callable[[Params], tuple[float, dict[str, float]]]:
    """Returns a function from parameters to the validation loss, in all and by source.

    The windows are spread evenly over the validation documents and are the same in every run. A
    token counts as much as any other.
    """
    tokens_WxL, lengths_W, owners_W = evaluation_windows(
        [tokenizer.encode(document.text) for document in documents],
        protocol.length,
        protocol.validation_windows,
        tokenizer.pad_id,
    )
    sources_W = [documents[owner].source for owner in owners_W]
    score = make_window_losses(config, len(tokens_WxL), protocol.length)

    def evaluate(params: Params) -> tuple[float, dict[str, float]]:
        losses_W = score(params, tokens_WxL, lengths_W).astype(np.float64)
        weights_W = lengths_W - 1
        sums: defaultdict[str, float] = defaultdict(float)
        weights: defaultdict[str, float] = defaultdict(float)
        for source, loss, weight in zip(sources_W, losses_W, weights_W, strict=True):
            sums[source] += loss * weight
            weights[source] += weight
        by_source = {source: sums[source] / weights[source] for source in sorted(sums)}
        return float(np.average(losses_W, weights=weights_W)), by_source

    return evaluate


@functools.lru_cache(maxsize=8)
def make_window_losses(
    config: LanguageModelConfig, windows: int, length: int
) -> Callable[[Params, NDArray[np.int32], NDArray[np.int32]], NDArray[np.float32]]:
    """Returns a function from parameters and W padded windows to their mean losses.

    It is compiled once in a process.

    Args:
        config: Shape of the model.
        windows: W, the number of windows of every call.
        length: L, the padded length.
    """
    part = micro_batch(2 ** int(math.log2(windows)), length)
    count = -(-windows // part)

    @jax.jit
    def in_parts(params: Params, tokens_PxMxL: jax.Array, lengths_PxM: jax.Array) -> jax.Array:
        return jax.lax.map(
            lambda each: sequence_losses(config, params, Windows(*each)),
            (tokens_PxMxL, lengths_PxM),
        )

    def losses(
        params: Params, tokens_WxL: NDArray[np.int32], lengths_W: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        padding = count * part - len(tokens_WxL)
        tokens = np.pad(tokens_WxL, ((0, padding), (0, 0)))
        lengths = np.pad(lengths_W, (0, padding), constant_values=2)
        scored = in_parts(params, tokens.reshape(count, part, length), lengths.reshape(count, part))
        return np.asarray(scored).reshape(-1)[: len(tokens_WxL)]

    return losses


def evaluation_windows(
    encoded: Sequence[NDArray[np.generic]], length: int, limit: int, pad_id: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Cuts documents into windows, at most `limit`, spread evenly over all of them.

    Args:
        encoded: Token ids of each document.
        length: L, tokens of a window.
        limit: Maximum number of windows.
        pad_id: Id after the end of a short window.

    Returns:
        tokens_WxL, lengths_W and the index of each window's document. A window has at least two
        tokens: one to read and one to predict.

    Raises:
        TooLittleTextError: If no document has two tokens.
    """
    pieces = [
        (owner, start)
        for owner, ids in enumerate(encoded)
        for start in range(0, len(ids), length)
        if len(ids) - start >= 2
    ]
    if not pieces:
        raise walk.TooLittleTextError("no document has two tokens, one of them to predict")
    if len(pieces) > limit:
        pieces = [pieces[index * len(pieces) // limit] for index in range(limit)]
    tokens_WxL = np.full((len(pieces), length), pad_id, np.int32)
    lengths_W = np.zeros(len(pieces), np.int32)
    for row, (owner, start) in enumerate(pieces):
        ids = encoded[owner][start : start + length]
        tokens_WxL[row, : len(ids)] = ids
        lengths_W[row] = len(ids)
    return tokens_WxL, lengths_W, np.array([owner for owner, _ in pieces], np.int64)


def parameter_count(model: Model, vocabulary_size: int) -> int:
    """Returns the number of parameters of a model, embeddings included."""
    config = language_model_config(model, vocabulary_size)
    shapes = jax.eval_shape(
        lambda key: initialise_language_model(config, key), jax.ShapeDtypeStruct((2,), jnp.uint32)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
