"""Scores texts with a rater: windows, length buckets, a small fixed set of compiled shapes.

A text's score is the token-weighted mean of the scores of its windows,

    score(x) = sum over windows w of |w| phi(w) / sum over windows w of |w|  -  center,

with phi the rater and center the mean on the reference sample (see `ScoreStatistics`). It depends
only on the text, the rater and the options: the shape that a window runs in depends only on the
window's own length, and the rows of a batch do not interact. So neither the other texts nor their
order change a bit of a score.

On a CPU a scorer computes where it is called, because workers are scaled by processes. Where there
is a spare core (`reads_ahead`), a thread of the scorer calls the model while its caller reads and
tokenizes the next texts (`Scorer.submit`). On a GPU a thread tokenizes and pads, and the calls of
the model wait in the queue of the device, so that the device waits for Python as little as
possible. Windows that do not fill a call wait for those of the next texts. Several devices of a
process share the rows of each call.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.compiled_function import CompiledFunction
from datarater.rater_model.rater import RaterConfig, score_tokens
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.text_scorer import PendingScores, ScoredTexts, TextScorer, check_texts

_BUCKET_STEP = 64
_BUCKETS_PER_OCTAVE = 8
# Batches that wait for a device that is not a CPU. The windows that are left over from them fill a
# call of each length together, so many batches leave few rows empty.
_BATCHES_AHEAD = 16
# Compiled once per shape, for all scorers of the machine.
_score_tokens = CompiledFunction(score_tokens)


@functools.lru_cache(maxsize=8)
def _score_tokens_on(devices: int) -> tuple[Any, Mesh]:
    """Returns `score_tokens` for batches shared by some local devices, and their mesh."""
    mesh = Mesh(np.array(jax.local_devices()[:devices]), ("rows",))

    @functools.partial(jax.jit, static_argnums=0)
    def score(config: RaterConfig, params: Any, *windows: jax.Array) -> jax.Array:
        shares = jax.shard_map(
            functools.partial(score_tokens, config),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("rows"), PartitionSpec("rows")),
            out_specs=PartitionSpec("rows"),
            check_vma=False,
        )
        return shares(params, *windows)

    return score, mesh


def bucket_lengths(window: int) -> tuple[int, ...]:
    """Returns the padded lengths of scored windows: multiples of 64, then eight to the octave.

    Each is a shape to compile, so there are as few as keep padding below about a twentieth of the
    tokens of a web corpus.

    Args:
        window: Tokens in a full window, the last length.

    Example:
        >>> bucket_lengths(300)
        (64, 128, 192, 256, 300)
        >>> bucket_lengths(2048)[-4:]
        (1664, 1792, 1920, 2048)
    """
    lengths = []
    length = _BUCKET_STEP
    while length < window:
        lengths.append(length)
        octave = 1 << (length.bit_length() - 1)
        length += max(_BUCKET_STEP, octave // _BUCKETS_PER_OCTAVE)
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


@dataclasses.dataclass(eq=False)
class _Running:
    """A scoring that has begun.

    Attributes:
        tokens_N: Tokens of each whole text.
        owners: The text of each window.
        lengths: Tokens of each window.
        calls: The windows in each call, their rows there, and the scores of all rows on the device.
        error: What ended a call with some of the windows.
    """

    tokens_N: np.ndarray
    owners: list[int] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    calls: list[tuple[list[int], list[int], jax.Array]] = dataclasses.field(default_factory=list)
    error: Exception | None = None

    def wait(self, center: float) -> ScoredTexts:
        """Waits for the device and returns the scores, the reference's mean subtracted.

        Raises:
            Exception: What ended a call of the model.
        """
        if self.error is not None:
            raise self.error

        # All calls at once: their transfers from the device overlap.
        window_scores_W = np.zeros(len(self.owners), np.float64)
        results = jax.device_get([scores_B for _, _, scores_B in self.calls])
        for (windows, rows, _), scores_B in zip(self.calls, results, strict=True):
            window_scores_W[windows] = scores_B[rows]

        # Average over each text's windows; a text without tokens gets 0 / 0.
        texts = len(self.tokens_N)
        weights_W = np.asarray(self.lengths, np.float64)
        owners_W = np.asarray(self.owners, np.int64)
        totals_N = np.bincount(owners_W, weights_W, minlength=texts)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            sums_N = np.bincount(owners_W, weights_W * window_scores_W, minlength=texts)
            scores_N = (sums_N / totals_N - center).astype(np.float32)
        return ScoredTexts(scores_N=scores_N, tokens_N=self.tokens_N)


@dataclasses.dataclass
class _Window:
    """A window that waits for a call of the model: its scoring, its number there, its token ids."""

    running: _Running
    number: int
    ids: np.ndarray


class Scorer(TextScorer):
    """Scores texts with a rater; safe to share between threads.

    A scorer pickles, without its compiled functions: the copy returns bit-identical scores
    on the same kind of device.

    Args:
        checkpoint: Rater to score with.
        options: Options that change a score; the defaults if None.
        reads_ahead: Whether `submit` lets a batch wait on a CPU too, for a thread that computes
            while the caller reads on. It changes no score.
        batches_ahead: Number of batches that `submit` lets wait for the queue of a device; by
            default 0 on a CPU, where calls are not queued, and 16 on any other device. It changes
            no score.
        devices: Number of devices of this process that share each call; by default 1 on a CPU, and
            otherwise all.

    Attributes:
        options: Options that change a score.
        digest: Digest of the rater.
        batches_ahead: Number of batches to submit before waiting for the first one's scores.

    Raises:
        TypeError: if the rater is not a transformer.
        ValueError: if the process does not have as many devices.

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
        reads_ahead: bool = False,
        batches_ahead: int | None = None,
        devices: int | None = None,
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
        self._reads_ahead = reads_ahead
        self._given_ahead = batches_ahead
        self._given_devices = devices

        transformer = config.transformer.for_scoring(self.options.dtype)
        self._config = dataclasses.replace(config, transformer=transformer)
        self._start(checkpoint.params)

    def _start(self, params: Any) -> None:
        """Sets all that belongs to this process: the parameters on the device, and the threads."""
        on_cpu = jax.default_backend() == "cpu"
        given = self._given_ahead
        queued = (0 if on_cpu else _BATCHES_AHEAD) if given is None else given
        self._queues_calls = queued > 0
        self.batches_ahead = queued or int(self._reads_ahead)
        available = jax.local_device_count()
        default = 1 if on_cpu else available
        self._devices = default if self._given_devices is None else self._given_devices
        if not 1 <= self._devices <= available:
            raise ValueError(
                f"devices must be from 1 to the {available} of this process, not {self._devices}"
            )
        if self._devices == 1:
            self._score, self._params = _score_tokens, jax.device_put(params)
        else:
            self._score, mesh = _score_tokens_on(self._devices)
            self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

        self._lock = threading.Lock()
        # One thread, so that batches reach the device in the order in which they were submitted.
        self._feeder = ThreadPoolExecutor(1, "scorer") if self.batches_ahead else None
        # Windows of submitted texts that do not fill a call yet, for the feeder's thread alone.
        self._left_over = self._no_windows()

    def _no_windows(self) -> dict[int, list[_Window]]:
        return {length: [] for length in self._buckets}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        of_process = ("_lock", "_feeder", "_left_over", "_score", "_devices", "_queues_calls")
        for name in (*of_process, "batches_ahead"):
            del state[name]
        state["_params"] = jax.tree.map(np.asarray, self._params)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start(state["_params"])

    def batch_size(self, length: int) -> int:
        """Returns the number of windows of a padded length in one model call, on all devices."""
        return max(1, self.options.tokens_per_batch // length) * self._devices

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Scores any number of texts; a score does not depend on the other texts or their order.

        Args:
            texts: N texts.

        Returns:
            Their scores and token counts, in the same order.

        Raises:
            TypeError: if `texts` is a single string, or one of the texts is not a string.
        """
        waiting = self._no_windows()
        running = self._cut(texts, waiting)
        self._call_all(waiting)
        return running.wait(self._center)

    def submit(self, texts: Sequence[str]) -> PendingScores:
        """Begins to score texts, so that the caller can read the next ones meanwhile.

        Memory is bounded only if the caller waits: it should have at most `batches_ahead` batches
        pending. Where that is 0, the texts are scored before this returns.

        Args:
            texts: N texts, which must not change until their scores are there.

        Returns:
            The scores to wait for, equal to those of `score`.

        Raises:
            TypeError: as `score` does, here or from the result.
        """
        if self._feeder is None:
            return super().submit(texts)
        feeder = self._feeder
        if not self._queues_calls:
            waiting = self._no_windows()
            cut = self._cut(texts, waiting)
            called = feeder.submit(self._call_all, waiting)

            def result_of_calls() -> ScoredTexts:
                called.result()
                return cut.wait(self._center)

            return PendingScores(result_of_calls)

        begun = feeder.submit(self._begin, texts)

        def result() -> ScoredTexts:
            running = begun.result()
            feeder.submit(self._finish, running).result()
            return running.wait(self._center)

        return PendingScores(result)

    def _begin(self, texts: Sequence[str]) -> _Running:
        """Begins the calls that are full with the windows of some texts; the rest is left over."""
        running = self._cut(texts, self._left_over)
        for length, windows in self._left_over.items():
            size = self.batch_size(length)
            full = len(windows) - len(windows) % size
            self._call_in_batches(windows[:full], length)
            del windows[:full]
        return running

    def _finish(self, running: _Running) -> None:
        """Begins the calls with windows of a scoring that are left over, with all that wait too."""
        lengths = [
            length
            for length, windows in self._left_over.items()
            if any(window.running is running for window in windows)
        ]
        self._call_all({length: self._left_over[length] for length in lengths})
        for length in lengths:
            self._left_over[length] = []

    def _cut(self, texts: Sequence[str], waiting: dict[int, list[_Window]]) -> _Running:
        """Cuts texts into windows and adds them to those that wait, by their padded length."""
        check_texts(texts)
        encoded = self._tokenizer.encode_batch(texts)
        running = _Running(np.array([len(ids) for ids in encoded], np.int64))
        for owner, ids in enumerate(encoded):
            for start in window_starts(len(ids), self._window, self.options.max_windows):
                window_ids = ids[start : start + self._window]
                length = self._buckets[bisect.bisect_left(self._buckets, len(window_ids))]
                waiting[length].append(_Window(running, len(running.owners), window_ids))
                running.owners.append(owner)
                running.lengths.append(len(window_ids))
        return running

    def _call_all(self, waiting: dict[int, list[_Window]]) -> None:
        for length, windows in waiting.items():
            self._call_in_batches(windows, length)

    def _call_in_batches(self, windows: list[_Window], length: int) -> None:
        """Begins to score windows of one padded length, in batches of one shape."""
        size = self.batch_size(length)
        for first in range(0, len(windows), size):
            batch = windows[first : first + size]
            members: dict[_Running, list[int]] = {}
            for row, window in enumerate(batch):
                members.setdefault(window.running, []).append(row)

            # Windows of several scorings may be in a call: each of them has to learn of an error.
            try:
                scores_B = self._score_windows([window.ids for window in batch], length, size)
            except Exception as error:
                for running in members:
                    running.error = error
                continue
            for running, rows in members.items():
                running.calls.append(([batch[row].number for row in rows], rows, scores_B))

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
            return scores_B if self._queues_calls else scores_B.block_until_ready()

    def _call(self, tokens_BxL: np.ndarray, length_B: np.ndarray) -> jax.Array:
        """Calls the model, which returns before the device has computed."""
        return cast(jax.Array, self._score(self._config, self._params, tokens_BxL, length_B))
