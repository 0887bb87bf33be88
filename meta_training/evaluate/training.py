"""Trains language models on what arms select and evaluates them along the way.

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
from datarater.meta_training.evaluate.pool import Data
from datarater.meta_training.evaluate.protocol import Model, Protocol
from datarater.meta_training.evaluate.target import TargetDocument
from datarater.rater_model.counted import counted
from datarater.rater_model.tokenizer import Tokenizer

_CACHED_TOKENS = 512
_MODELS = 64
_ACTIVATION_BYTES = 16 * 2**30
# 1 GiB of logits in float32.
_LOGITS = 2**28


class NonFiniteLossError(ArithmeticError):
    """The loss of a run is not finite."""


class State(NamedTuple):
    """A language model in training."""

    params: Params
    optimiser: Any


class Job(NamedTuple):
    """A model to train.

    Attributes:
        data: The data, in the rotation whose choice and test documents measure the model.
        selection: What the model is trained on.
        seed: Seed of the initialization and of the walk.
    """

    data: Data
    selection: walk.Selection
    seed: int


@dataclasses.dataclass(frozen=True)
class Run:
    """The result of training a model.

    Attributes:
        curve: (step, test loss in nats per token) pairs.
        choice_loss: Final loss on the documents that choices are made on.
        by_source: Final test loss of each source.
        passes: Number of passes over the arm's data, the last one begun.
        seconds: Wall time, shared out evenly among models that are trained together.
        params: Parameters at the end.
    """

    curve: list[tuple[int, float]]
    choice_loss: float
    by_source: dict[str, float]
    passes: int
    seconds: float
    params: Params


def language_model_config(model: Model, vocabulary_size: int) -> LanguageModelConfig:
    """Returns the shape of the model for a vocabulary."""
    return LanguageModelConfig(vocabulary_size, model.transformer)


def train(
    job: Job,
    model: Model,
    protocol: Protocol,
    report: Callable[[float], None] = lambda share: None,
) -> Run:
    """Trains one fresh model; see `train_together`."""
    return train_together([job], model, protocol, report)[0]


def train_together(
    jobs: Sequence[Job],
    model: Model,
    protocol: Protocol,
    report: Callable[[float], None] = lambda share: None,
) -> list[Run]:
    """Trains fresh models of one shape side by side, each on what its job selects.

    An accelerator, which a small model cannot fill, trains them in little more than the time of
    one. On a CPU there is nothing to gain.

    Args:
        jobs: One for each model; they have the pool and the tokenizer in common.
        model: Shape of the models.
        protocol: How to train.
        report: Called with the share of the steps done.

    Returns:
        The result of each job, in their order.

    Raises:
        NonFiniteLossError: If a test loss is not finite.
        TooLittleTextError: If what a job selects does not fill a window.
    """
    data, count = jobs[0].data, len(jobs)
    config = language_model_config(model, data.tokenizer.vocabulary_size)
    started = time.monotonic()
    optimiser = make_optimiser(protocol)
    fresh = [initialise_language_model(config, jax.random.key(job.seed)) for job in jobs]
    states = stack([State(params, optimiser.init(params)) for params in fresh])
    step = make_step(config, protocol, count)

    tests, choices = (
        [evaluation_set(getattr(job.data.roles, role), protocol, data.tokenizer) for job in jobs]
        for role in ("test", "choice")
    )
    windows = max(len(each.lengths_W) for each in (*tests, *choices))
    test = make_evaluation(config, protocol, tests, windows)
    choose = make_evaluation(config, protocol, choices, windows)

    chunks = walk.cut_into_chunks(data.token_ends_N, protocol.length)
    separator = data.tokenizer.separator_id
    walks = [
        walk.batches(data.tokens_T, chunks, job.selection, separator, job.seed, protocol.batch)
        for job in jobs
    ]
    results = test(states.params)
    curves = [[(0, loss)] for loss, _ in results]
    passes = [0] * count
    evaluated = set(protocol.evaluated_steps())
    for done in range(1, protocol.steps + 1):
        drawn = [next(each) for each in walks]
        passes = [number for _, number in drawn]
        states = step(states, stack([tokens_BxL for tokens_BxL, _ in drawn]))
        if done in evaluated:
            results = test(states.params)
            for job, curve, (loss, _) in zip(jobs, curves, results, strict=True):
                if not math.isfinite(loss):
                    raise NonFiniteLossError(
                        f"the test loss of seed {job.seed} is {loss} after "
                        f"{counted(done, 'step')}; lower "
                        "--learning_rate"
                    )
                curve.append((done, loss))
            report(done / protocol.steps)

    chosen = choose(states.params)
    seconds = (time.monotonic() - started) / count
    return [
        Run(curves[m], chosen[m][0], results[m][1], passes[m] + 1, seconds, params)
        for m, params in enumerate(unstack(states.params, count))
    ]


def models_together(model: Model, protocol: Protocol, vocabulary: int) -> int:
    """Returns the number of models that are trained side by side: one on a CPU.

    On an accelerator it is bounded by the memory for activations, about 16 numbers per layer and
    hidden unit and 6 per logit for each token of a batch.
    """
    if jax.default_backend() == "cpu":
        return 1
    per_token = 16 * model.layers * (model.width + model.heads * protocol.length // 4)
    numbers = protocol.batch * protocol.length * (per_token + 6 * vocabulary)
    return max(1, min(_MODELS, _ACTIVATION_BYTES // (4 * numbers)))


def stack(trees: Sequence[Any]) -> Any:
    """Stacks M pytrees along a new first axis; a single one stays as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """Returns the M pytrees that `stack` made one of."""
    if count == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, m=m: leaf[m], tree) for m in range(count)]


def over_models(function: Callable[..., Any], models: int) -> Callable[..., Any]:
    """Returns a function of one model's arrays as a function of the stacked arrays of M models."""
    return function if models == 1 else jax.vmap(function)


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
    config: LanguageModelConfig, protocol: Protocol, models: int = 1
) -> Callable[[State, NDArray[np.int32]], State]:
    """Returns a training step of M models on batches of full windows, compiled once in a process.

    Args:
        config: Shape of the models.
        protocol: How they are trained.
        models: M; with more than one, every array has the models as its first axis.
    """
    optimiser = make_optimiser(protocol)
    gradient_of = make_gradient(config, micro_batch(protocol.batch, protocol.length))

    def step(state: State, tokens_BxL: jax.Array) -> State:
        gradient = gradient_of(state.params, tokens_BxL)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        return State(optax.apply_updates(state.params, updates), optimiser_state)

    return jax.jit(over_models(step, models), donate_argnums=0)


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


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The windows of some documents of the target, the same in every run.

    Attributes:
        tokens_WxL: Token ids, padded.
        lengths_W: Valid tokens of each window.
        sources_W: Source of each window's document.
    """

    tokens_WxL: NDArray[np.int32]
    lengths_W: NDArray[np.int32]
    sources_W: tuple[str, ...]

    def means(self, losses_W: NDArray[np.float32]) -> tuple[float, dict[str, float]]:
        """Returns the mean loss, in all and by source; a token counts as much as any other."""
        losses_W = losses_W.astype(np.float64)
        weights_W = self.lengths_W - 1
        sums: defaultdict[str, float] = defaultdict(float)
        weights: defaultdict[str, float] = defaultdict(float)
        for source, loss, weight in zip(self.sources_W, losses_W, weights_W, strict=True):
            sums[source] += loss * weight
            weights[source] += weight
        by_source = {source: sums[source] / weights[source] for source in sorted(sums)}
        return float(np.average(losses_W, weights=weights_W)), by_source


def evaluation_set(
    documents: Sequence[TargetDocument], protocol: Protocol, tokenizer: Tokenizer
) -> EvaluationSet:
    """Returns windows that are spread evenly over the documents."""
    tokens_WxL, lengths_W, owners_W = evaluation_windows(
        [tokenizer.encode(document.text) for document in documents],
        protocol.length,
        protocol.validation_windows,
        tokenizer.pad_id,
    )
    sources = tuple(documents[owner].source for owner in owners_W)
    return EvaluationSet(tokens_WxL, lengths_W, sources)


def make_evaluation(
    config: LanguageModelConfig, protocol: Protocol, sets_M: Sequence[EvaluationSet], windows: int
) -> Callable[[Params], list[tuple[float, dict[str, float]]]]:
    """Returns a function from the parameters of M models to each model's loss on its own set.

    Args:
        config: Shape of the models.
        protocol: How they are trained.
        sets_M: Set of each model.
        windows: W, to which every set is padded so that all evaluations share a compiled program.
    """
    models = len(sets_M)
    padding = [(0, windows - len(each.lengths_W)) for each in sets_M]
    tokens = stack(
        [np.pad(s.tokens_WxL, (pad, (0, 0))) for s, pad in zip(sets_M, padding, strict=True)]
    )
    lengths = stack(
        [
            np.pad(s.lengths_W, pad, constant_values=2)
            for s, pad in zip(sets_M, padding, strict=True)
        ]
    )
    score = make_window_losses(config, windows, protocol.length, models)

    def evaluate(params: Params) -> list[tuple[float, dict[str, float]]]:
        losses_MxW = score(params, tokens, lengths).reshape(models, windows)
        return [
            each.means(losses_W[: len(each.lengths_W)])
            for each, losses_W in zip(sets_M, losses_MxW, strict=True)
        ]

    return evaluate


@functools.lru_cache(maxsize=8)
def make_window_losses(
    config: LanguageModelConfig, windows: int, length: int, models: int = 1
) -> Callable[[Params, NDArray[np.int32], NDArray[np.int32]], NDArray[np.float32]]:
    """Returns a function from parameters and up to W padded windows to their mean losses.

    It is compiled once in a process.

    Args:
        config: Shape of the model.
        windows: W, the maximum number of windows of a call.
        length: L, the padded length.
        models: M; with more than one, every array has the models as its first axis.
    """
    part = evaluation_part(windows, length, config.vocabulary_size * models)
    count = -(-windows // part)

    def of_model(params: Params, tokens_PxMxL: jax.Array, lengths_PxM: jax.Array) -> jax.Array:
        return jax.lax.map(
            lambda each: sequence_losses(config, params, Windows(*each)),
            (tokens_PxMxL, lengths_PxM),
        )

    in_parts = jax.jit(over_models(of_model, models))

    def losses(
        params: Params, tokens_WxL: NDArray[np.int32], lengths_W: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        given, several = tokens_WxL.shape[-2], tokens_WxL.shape[:-2]
        outside = [(0, 0)] * len(several)
        missing = (0, count * part - given)
        tokens = np.pad(tokens_WxL, [*outside, missing, (0, 0)])
        lengths = np.pad(lengths_W, [*outside, missing], constant_values=2)
        scored = in_parts(
            params,
            tokens.reshape(*several, count, part, length),
            lengths.reshape(*several, count, part),
        )
        return np.asarray(scored).reshape(*several, -1)[..., :given]

    return losses


def evaluation_part(windows: int, length: int, logits: int) -> int:
    """Returns the number of windows that are evaluated at a time.

    Args:
        windows: W, the number of windows.
        length: L, tokens of a window.
        logits: Logits per position: the vocabulary, times the models that are evaluated together.
    """
    if jax.default_backend() == "cpu":
        return micro_batch(2 ** int(math.log2(windows)), length)
    return max(1, min(windows, _LOGITS // (length * logits)))


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
