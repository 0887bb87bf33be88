"""Texts in, scores out: windows, length buckets, a small fixed set of compiled shapes.

A text's score is the token-weighted mean of the scores of its windows,

    score(x) = sum over windows w of |w| phi(w) / sum over windows w of |w|  -  center,

with phi the rater and center the mean on the reference sample (see `ScoreStatistics`). It depends
on the text, the rater and the options alone: every window runs in a shape that its own length
picks, and rows of a batch do not touch each other, so neither neighbours nor the order of texts
change a bit of it.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence

import jax
import numpy as np

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.rater import score_tokens
from datarater.rater_model.scoring_options import ScoringOptions

SCORER_VERSION = 1  # raised whenever the same text, rater and options would get another score
_SMALLEST_BUCKET = 64
_score_tokens = jax.jit(
    score_tokens, static_argnums=0
)  # compiled once a shape, for all scorers of the process


def limit_cpu_threads() -> None:
    """Makes XLA's CPU backend compute on one thread in this process; call before JAX first computes.

    Workers are scaled by processes, one a core: threads inside each would fight for the same cores,
    and a sum split over another number of threads can differ in its last bit.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


@dataclasses.dataclass(frozen=True)
class ScoredTexts:
    """Scores of N texts.

    Attributes:
        scores_N: float32; not finite where the rater's arithmetic overflowed, NaN for a text
            without tokens.
        tokens_N: int64, the tokens of each whole text, whether or not the window cap left some
            unscored.
    """

    scores_N: np.ndarray
    tokens_N: np.ndarray


def bucket_lengths(window: int) -> tuple[int, ...]:
    """Returns the padded lengths that windows are scored at: powers of two from 64, then the window itself.

    Example:
        >>> bucket_lengths(300)
        (64, 128, 256, 300)
    """
    lengths = []
    length = _SMALLEST_BUCKET
    while length < window:
        lengths.append(length)
        length *= 2
    return (*lengths, window)


def window_starts(tokens: int, window: int, max_windows: int) -> list[int]:
    """Returns where the windows of a text start.

    Windows do not overlap and the last one may be short. With more than `max_windows` of them, that
    many are taken, spread evenly from the first to the last.

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


class Scorer:
    """Scores texts with a rater; safe to share between threads, one model call at a time.

    Args:
        checkpoint: the rater.
        options: what else changes a score.

    Example:
        >>> scorer = Scorer(load_rater("demo_output/rater"))  # doctest: +SKIP
        >>> scorer.score(["A sentence that says something."]).scores_N  # doctest: +SKIP
        array([0.41], dtype=float32)
    """

    def __init__(self, checkpoint: RaterCheckpoint, options: ScoringOptions | None = None) -> None:
        self.options = options or ScoringOptions()
        self.digest = checkpoint.digest
        self._tokenizer = checkpoint.tokenizer
        self._window = checkpoint.config.window
        self._center = checkpoint.statistics.center
        self._buckets = bucket_lengths(self._window)
        transformer = dataclasses.replace(
            checkpoint.config.transformer, dtype=self.options.dtype, rematerialise_blocks=False
        )
        self._config = dataclasses.replace(checkpoint.config, transformer=transformer)
        self._params = jax.device_put(checkpoint.params)
        self._lock = threading.Lock()

    def batch_size(self, length: int) -> int:
        """Returns how many windows of a padded length run in one model call."""
        return max(1, self.options.tokens_per_batch // length)

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Scores texts, in any number; their order and company change nothing.

        Args:
            texts: N texts.

        Returns:
            Their scores and token counts, in the same order.
        """
        tokens_N = np.zeros(len(texts), np.int64)
        owners: list[int] = []
        lengths: list[int] = []
        # Windows by bucket, as (index of the window, its token ids).
        waiting: dict[int, list[tuple[int, np.ndarray]]] = {length: [] for length in self._buckets}
        for owner, text in enumerate(texts):
            ids = self._tokenizer.encode(text)
            tokens_N[owner] = len(ids)
            for start in window_starts(len(ids), self._window, self.options.max_windows):
                window_ids = ids[start : start + self._window]
                bucket = next(length for length in self._buckets if length >= len(window_ids))
                waiting[bucket].append((len(owners), window_ids))
                owners.append(owner)
                lengths.append(len(window_ids))
        window_scores_W = np.zeros(len(owners), np.float64)
        for length, windows in waiting.items():
            size = self.batch_size(length)
            for first in range(0, len(windows), size):
                batch = windows[first : first + size]
                window_scores_W[[index for index, _ in batch]] = self._score_windows(
                    [ids for _, ids in batch], length, size
                )
        weights_W = np.asarray(lengths, np.float64)
        owners_W = np.asarray(owners, np.int64)
        totals_N = np.bincount(owners_W, weights_W, minlength=len(texts))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            sums_N = np.bincount(owners_W, weights_W * window_scores_W, minlength=len(texts))
            scores_N = (sums_N / totals_N - self._center).astype(np.float32)
        return ScoredTexts(scores_N=scores_N, tokens_N=tokens_N)

    def _score_windows(self, windows: list[np.ndarray], length: int, size: int) -> np.ndarray:
        tokens_BxL = np.full((size, length), self._tokenizer.pad_id, np.int32)
        # A row without a text is still a row of one token, so that nothing is divided by zero.
        length_B = np.ones(size, np.int32)
        for row, ids in enumerate(windows):
            tokens_BxL[row, : len(ids)] = ids
            length_B[row] = len(ids)
        with self._lock:
            scores_B = np.asarray(_score_tokens(self._config, self._params, tokens_BxL, length_B))
        return scores_B[: len(windows)]
