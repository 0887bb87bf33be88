"""Fits a rater to given scores of documents, so that meta-training starts where a filter ends.

With s_i the rater's score of window i, z_i the given score of its document, and c the desired
standard deviation, each step descends on the squared error up to a constant over a batch,

    mean over i of ((s_i - mean s) - c (z_i - mean z))^2

because scores are defined up to a constant. Least squares leaves scores that spread less than what
they are fitted to; the head is therefore scaled at the end, so that the scores of windows held out
spread by c. The softmax of meta-training acts on this scale.

Dimension letters: B windows of a batch, L tokens of a window, M all windows, N documents.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from numpy.typing import NDArray

from datarater.meta_training.data.cutting import cut_document, pad
from datarater.meta_training.errors import ConfigError, NonFiniteError
from datarater.meta_training.run.start_scores import ScoredTexts
from datarater.meta_training.run.summary import Progress
from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.counted import counted
from datarater.rater_model.rater import Params, RaterConfig, score_tokens
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import Tokenizer

_HELD_OUT_SHARE, _MAX_HELD_OUT = 0.1, 2000
_REPORT_EVERY = 50


class ScoredWindows(NamedTuple):
    """Windows with the scores that the rater is fitted to.

    Attributes:
        tokens_MxL: Token ids, uint16 or uint32.
        length_M: Valid tokens of each window, int32.
        score_M: Score of each window: its document's, or the mean of its tokens', float32.
    """

    tokens_MxL: NDArray[Any]
    length_M: NDArray[np.int32]
    score_M: NDArray[np.float32]


class Fit(NamedTuple):
    """A rater fitted to scores.

    Attributes:
        params: Its parameters.
        measures: How well it predicts the scores of documents held out: their number and that of
            the documents fitted to, and the rank correlation.
    """

    params: Params
    measures: dict[str, float]


def fit_to_scores(
    config: ConfigDict,
    shape: RaterConfig,
    params: Params,
    tokenizer: Tokenizer,
    scored: ScoredTexts,
) -> Fit:
    """Fits a rater to the scores of documents.

    Args:
        config: The whole config.
        shape: Shape of the rater.
        params: Parameters to begin with.
        tokenizer: Tokenizer of the rater.
        scored: The documents with their scores. The last ones are held out.

    Raises:
        ConfigError: The documents yield too few windows, or those held out have no order.
        NonFiniteError: The loss is not finite.
    """
    count = len(scored.texts)
    first = count - min(_MAX_HELD_OUT, max(1, round(_HELD_OUT_SHARE * count)))
    part, held_out = (
        ScoredTexts(scored.texts[rows], scored.scores_N[rows])
        for rows in (slice(first), slice(first, None))
    )
    windows, others = (scored_windows(each, tokenizer, config) for each in (part, held_out))
    if min(len(windows.length_M), len(others.length_M)) < 2:
        raise ConfigError(
            f"start.scores: {count} documents have too few windows of data.minimum_length "
            f"({config.data.minimum_length}) to length ({config.length}) tokens; raise "
            "start.documents"
        )
    if np.ptp(held_out.scores_N) == 0:
        raise ConfigError(
            f"start.scores: {counted(len(held_out.texts), 'document')} held out of {count} have "
            "one and the same score, so that no rank correlation is defined; raise "
            "start.documents, or name another filter"
        )

    params = _descend(config, shape, params, windows)
    params = _scaled(config, shape, params, others)
    return Fit(params, _measures(config, shape, params, tokenizer, first, held_out))


def scored_windows(scored: ScoredTexts, tokenizer: Tokenizer, config: ConfigDict) -> ScoredWindows:
    """Cuts documents into windows as meta-training does (`data.windows`), with their scores.

    A packed window may have several documents; its score is the mean over its tokens of their
    documents' scores.
    """
    length = config.length
    dtype = np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32
    if config.data.windows == "packed":
        ids = [np.append(tokenizer.encode(text), tokenizer.separator_id) for text in scored.texts]
        score_T = np.repeat(scored.scores_N, [len(each) for each in ids])
        full = len(score_T) // length
        tokens_T = np.concatenate(ids).astype(dtype)
        return ScoredWindows(
            tokens_T[: full * length].reshape(full, length),
            np.full(full, length, np.int32),
            score_T[: full * length].reshape(full, length).mean(axis=1).astype(np.float32),
        )

    rows: list[NDArray[Any]] = []
    lengths: list[int] = []
    scores: list[float] = []
    for text, score in zip(scored.texts, scored.scores_N.tolist(), strict=True):
        for ids_L in cut_document(text, tokenizer, length, config.data.minimum_length):
            rows.append(pad(ids_L, length, tokenizer).astype(dtype))
            lengths.append(len(ids_L))
            scores.append(score)
    return ScoredWindows(
        np.stack(rows) if rows else np.zeros((0, length), dtype),
        np.array(lengths, np.int32),
        np.array(scores, np.float32),
    )


def _descend(
    config: ConfigDict, shape: RaterConfig, params: Params, windows: ScoredWindows
) -> Params:
    """Returns the parameters after all steps of Adam."""
    start = config.start
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, start.learning_rate, max(1, start.steps // 20), max(2, start.steps)
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    step = functools.partial(_step, shape, optimiser, float(start.scale))
    compiled = jax.jit(step, donate_argnums=(0, 1))

    params = jax.tree.map(jnp.array, params)
    state, progress = optimiser.init(params), Progress("start", start.steps)
    batches = _batches(windows, start.batch, config.seed)
    for number in range(1, start.steps + 1):
        params, state, loss = compiled(params, state, *next(batches))
        if number % _REPORT_EVERY == 0 or number == start.steps:
            value = float(loss)
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the loss of the start is {value} at step {number}; lower start.learning_rate"
                )
            progress.report(number, f"squared error {value / start.scale**2:.3f}")
    return params


def _step(
    shape: RaterConfig,
    optimiser: optax.GradientTransformation,
    scale: float,
    params: Params,
    state: optax.OptState,
    tokens_BxL: jax.Array,
    length_B: jax.Array,
    score_B: jax.Array,
) -> tuple[Params, optax.OptState, jax.Array]:
    def loss(params: Params) -> jax.Array:
        error_B = score_tokens(shape, params, tokens_BxL, length_B) - scale * score_B
        return jnp.var(error_B)

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def _batches(windows: ScoredWindows, batch: int, seed: int) -> Iterator[tuple[Any, ...]]:
    """Yields batches of windows without end, each pass in a new order."""
    rng = np.random.default_rng(seed)
    count = len(windows.length_M)
    waiting_M = np.zeros(0, np.int64)
    while True:
        while len(waiting_M) < batch:
            waiting_M = np.append(waiting_M, rng.permutation(count))
        chosen_B, waiting_M = waiting_M[:batch], waiting_M[batch:]
        yield (
            windows.tokens_MxL[chosen_B].astype(np.int32),
            windows.length_M[chosen_B],
            windows.score_M[chosen_B],
        )


def _scaled(
    config: ConfigDict, shape: RaterConfig, params: Params, windows: ScoredWindows
) -> Params:
    """Returns the parameters with a head by which the windows' scores spread by `start.scale`."""
    score = jax.jit(functools.partial(score_tokens, shape))
    batch = config.start.batch
    scores: list[NDArray[Any]] = []
    for begin in range(0, len(windows.length_M), batch):
        # The last batch is filled up with its first window, so that all have one shape.
        rows_B = np.arange(begin, begin + batch)
        rows_B[rows_B >= len(windows.length_M)] = begin
        tokens_BxL = windows.tokens_MxL[rows_B].astype(np.int32)
        scores_B = np.asarray(score(params, tokens_BxL, windows.length_M[rows_B]))
        scores.append(scores_B[: len(windows.length_M) - begin])

    spread = float(np.concatenate(scores).astype(np.float64).std())
    if not 0 < spread < math.inf:
        raise NonFiniteError(
            f"the scores of the start have the standard deviation {spread}; lower "
            "start.learning_rate"
        )
    return {**params, "head": params["head"] * (config.start.scale / spread)}


def _measures(
    config: ConfigDict,
    shape: RaterConfig,
    params: Params,
    tokenizer: Tokenizer,
    fitted: int,
    held_out: ScoredTexts,
) -> dict[str, float]:
    """Returns how well the rater orders the documents held out, scored as in use."""
    from scipy.stats import spearmanr

    checkpoint = RaterCheckpoint(shape, jax.device_get(params), tokenizer)
    options = ScoringOptions(max_windows=config.export.max_windows)
    scores_N = Scorer(checkpoint, options).score(held_out.texts).scores_N
    correlation = float(spearmanr(scores_N, held_out.scores_N)[0])
    return {
        "documents": fitted,
        "held_out": len(held_out.texts),
        "rank_correlation": round(correlation, 6),
    }
