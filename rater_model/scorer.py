"""Scores texts with a rater: windows, length buckets, a small fixed set of compiled shapes.

A text's score is the token-weighted mean of the scores of its windows,

    score(x) = sum over windows w of |w| phi(w) / sum over windows w of |w|  -  center,

with phi the rater and center the mean on the reference sample (see `ScoreStatistics`). It depends
only on the text, the rater and the options: the shape that a window runs in depends only on the
window's own length, and the rows of a batch do not interact. So neither the other texts nor their
order change a bit of a score.

On a CPU a scorer computes where it is called, because workers are scaled by processes. On a GPU it
works while its caller reads on (`Scorer.submit`): a thread tokenizes and pads, and the calls of the
model wait in the queue of the device, so that the device waits for Python as little as possible.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.rater import RaterConfig, score_tokens
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.text_scorer import PendingScores, ScoredTexts, TextScorer, check_texts

_MIN_BUCKET = 64
# Batches that wait for a device that is not a CPU: one to compute, one to tokenize meanwhile.
_BATCHES_AHEAD = 2
# Compiled once per shape, for all scorers of the process.
_score_tokens = jax.jit(score_tokens, static_argnums=0)


def bucket_lengths(window: int) -> tuple[int, ...]:
    """Returns the padded lengths of scored windows: powers of two from 64, then the window.

    Args:
        window: Tokens in a full window.

    Example:
        >>> bucket_lengths(300)
        (64, 128, 256, 300)
    """
    lengths = []
    length = _MIN_BUCKET
    while length < window:
        lengths.append(length)
        length *= 2
    return (*lengths, window)


def window_starts(tokens: int, window: int, max_windows: int) -> list[int]:
    """Returns the first token of each window of a text.

    Windows do not overlap, and the last one may be short. If there are more than `max_windows`,
    that many are taken, spread evenly from the first to the last.

    Args:
        tokens: Tokens of the text.
        window: Tokens in a full window.
        max_windows: Maximum number of windows.

    Example:
        >>> window_starts(10, 4, max_windows=8)
        [0, 4, 8]
        >>> window_starts(100, 4, max_windows=3)
        [0, 48, 96]
    """
    count = -(-tokens // window)
    if count <= max_windows:
        return list(range(0, tokens, window))
    if max_windows == 1:
        return [0]
    return [(i * (count - 1) // (max_windows - 1)) * window for i in range(max_windows)]


@dataclasses.dataclass
class _Running:
    """A scoring whose calls of the model have all begun.

    Attributes:
        tokens_N: Tokens of each whole text.
        owners: The text of each window.
        lengths: Tokens of each window.
        calls: The windows of each call, and its scores on the device, at least one a window.
    """

    tokens_N: np.ndarray
    owners: list[int]
    lengths: list[int]
    calls: list[tuple[list[int], jax.Array]]

    def wait(self, center: float) -> ScoredTexts:
        """Waits for the device and returns the scores, the reference's mean subtracted."""
        window_scores_W = np.zeros(len(self.owners), np.float64)
        for windows, scores_B in self.calls:
            window_scores_W[windows] = np.asarray(scores_B)[: len(windows)]

        # Average over each text's windows; a text without tokens gets 0 / 0.
        texts = len(self.tokens_N)
        weights_W = np.asarray(self.lengths, np.float64)
        owners_W = np.asarray(self.owners, np.int64)
        totals_N = np.bincount(owners_W, weights_W, minlength=texts)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            sums_N = np.bincount(owners_W, weights_W * window_scores_W, minlength=texts)
            scores_N = (sums_N / totals_N - center).astype(np.float32)
        return ScoredTexts(scores_N=scores_N, tokens_N=self.tokens_N)


class Scorer(TextScorer):
    """Scores texts with a rater; safe to share between threads.

    A scorer pickles, without its compiled functions: the copy returns bit-identical scores
    on the same kind of device.

    Args:
        checkpoint: Rater to score with.
        options: Options that change a score; the defaults if None.
        batches_ahead: Number of batches that `submit` lets wait; by default 0 on a CPU, where it
            computes at once, and 2 on any other device. It changes no score.

    Attributes:
        options: Options that change a score.
        digest: Digest of the rater.
        batches_ahead: Number of batches to submit before waiting for the first one's scores.

    Raises:
        TypeError: if the rater is not a transformer.

    Example:
        >>> scorer = Scorer(load_rater("demo_output/rater"))  # doctest: +SKIP
        >>> scorer.score(["A sentence with something to say."]).scores_N  # doctest: +SKIP
        array([0.41], dtype=float32)
    """

    def __init__(
        self,
        checkpoint: RaterCheckpoint,
        options: ScoringOptions | None = None,
        *,
        batches_ahead: int | None = None,
    ) -> None:
        config = checkpoint.config
        if not isinstance(config, RaterConfig):
            raise TypeError("the rater is not a transformer; use make_scorer")
        self.options = options or ScoringOptions()
        self.digest = checkpoint.digest
        self._tokenizer = checkpoint.tokenizer
        self._window = config.window
        self._center = checkpoint.statistics.center
        self._buckets = bucket_lengths(self._window)
        self._given_ahead = batches_ahead

        transformer = config.transformer.for_scoring(self.options.dtype)
        self._config = dataclasses.replace(config, transformer=transformer)
        self._start(checkpoint.params)

    def _start(self, params: Any) -> None:
        """Sets all that belongs to this process: the parameters on the device, and the threads."""
        on_cpu = jax.default_backend() == "cpu"
        given = self._given_ahead
        self.batches_ahead = (0 if on_cpu else _BATCHES_AHEAD) if given is None else given
        self._params = jax.device_put(params)
        self._lock = threading.Lock()
        # One thread, so that batches reach the device in the order in which they were submitted.
        self._feeder = ThreadPoolExecutor(1, "scorer") if self.batches_ahead else None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_feeder", "batches_ahead"):
            del state[name]
        state["_params"] = jax.tree.map(np.asarray, self._params)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start(state["_params"])

    def batch_size(self, length: int) -> int:
        """Returns the number of windows of a padded length in one model call."""
        return max(1, self.options.tokens_per_batch // length)

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Scores any number of texts; a score does not depend on the other texts or their order.

        Args:
            texts: N texts.

        Returns:
            Their scores and token counts, in the same order.

        Raises:
            TypeError: if `texts` is a single string, or one of the texts is not a string.
        """
        return self._run(texts).wait(self._center)

    def submit(self, texts: Sequence[str]) -> PendingScores:
        """Begins to score texts, so that the caller can read the next ones meanwhile.

        Memory is bounded only if the caller waits: it should have at most `batches_ahead` batches
        pending. On a CPU, where that is 0, the texts are scored before this returns.

        Args:
            texts: N texts, which must not change until their scores are there.

        Returns:
            The scores to wait for, equal to those of `score`.

        Raises:
            TypeError: as `score` does, here or from the result.
        """
        if self._feeder is None:
            return super().submit(texts)
        running = self._feeder.submit(self._run, texts)
        return PendingScores(lambda: running.result().wait(self._center))

    def _run(self, texts: Sequence[str]) -> _Running:
        """Cuts texts into windows and begins all calls of the model."""
        check_texts(texts)
        tokens_N = np.zeros(len(texts), np.int64)
        owners: list[int] = []
        lengths: list[int] = []

        # Cut the texts into windows, grouped by bucket as (index of the window, its token ids). On
        # a CPU the other cores have their own processes, so texts are encoded one by one.
        encoded = (
            self._tokenizer.encode_batch(texts)
            if self.batches_ahead
            else map(self._tokenizer.encode, texts)
        )
        waiting: dict[int, list[tuple[int, np.ndarray]]] = {length: [] for length in self._buckets}
        for owner, ids in enumerate(encoded):
            tokens_N[owner] = len(ids)
            for start in window_starts(len(ids), self._window, self.options.max_windows):
                window_ids = ids[start : start + self._window]
                bucket = next(length for length in self._buckets if length >= len(window_ids))
                waiting[bucket].append((len(owners), window_ids))
                owners.append(owner)
                lengths.append(len(window_ids))

        # Score the windows in batches of one shape per bucket.
        calls = []
        for length, windows in waiting.items():
            size = self.batch_size(length)
            for first in range(0, len(windows), size):
                batch = windows[first : first + size]
                scores_B = self._score_windows([ids for _, ids in batch], length, size)
                calls.append(([index for index, _ in batch], scores_B))
        return _Running(tokens_N, owners, lengths, calls)

    def _score_windows(self, windows: list[np.ndarray], length: int, size: int) -> jax.Array:
        """Begins to score windows, padded to one shape.

        Args:
            windows: Token ids of at most `size` windows.
            length: Padded length.
            size: Rows of the batch.

        Returns:
            The scores of all rows on the device.
        """
        tokens_BxL = np.full((size, length), self._tokenizer.pad_id, np.int32)
        # A row without a text is still a row of one token, so that nothing is divided by zero.
        length_B = np.ones(size, np.int32)
        for row, ids in enumerate(windows):
            tokens_BxL[row, : len(ids)] = ids
            length_B[row] = len(ids)

        with self._lock:
            scores_B = self._call(tokens_BxL, length_B)
            # On a CPU one call runs at a time; elsewhere the next ones wait at the device.
            return scores_B if self.batches_ahead else scores_B.block_until_ready()

    def _call(self, tokens_BxL: np.ndarray, length_B: np.ndarray) -> jax.Array:
        """Calls the model, which returns before the device has computed."""
        return _score_tokens(self._config, self._params, tokens_BxL, length_B)
