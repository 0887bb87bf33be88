"""A score depends only on the text, the rater and the options, whatever the batch."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections import Counter
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.rater_model.checkpoint import RaterCheckpoint, ScoreStatistics
from datarater.rater_model.rater import RaterConfig, initialise_rater, score_tokens
from datarater.rater_model.scorer import Scorer, bucket_lengths, window_starts
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from datarater.rater_model.transformer import TransformerConfig
from tests.support.devices import OnDevice

CONFIG = RaterConfig(window=100, transformer=TransformerConfig(16, 2, 24, 1), ngram_rows=64)
CHECKPOINT = RaterCheckpoint(
    CONFIG,
    initialise_rater(CONFIG, jax.random.key(0)),
    ByteTokenizer(),
    ScoreStatistics(center=0.125),
)
OPTIONS = ScoringOptions(max_windows=5, tokens_per_batch=400)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(CHECKPOINT, OPTIONS)


def reference_score(text: str) -> float:
    """Scores a text window by window, unpadded and unbatched."""
    ids = ByteTokenizer().encode(text)
    windows = [
        ids[start : start + 100] for start in window_starts(len(ids), 100, OPTIONS.max_windows)
    ]
    scores = [
        float(
            score_tokens(CONFIG, CHECKPOINT.params, jnp.asarray([ids]), jnp.asarray([len(ids)]))[0]
        )
        for ids in windows
    ]
    return float(np.average(scores, weights=[len(ids) for ids in windows])) - 0.125


texts = st.text(min_size=1, max_size=40).flatmap(
    lambda text: st.integers(1, 30).map(lambda times: (text * times)[:700])
)


@settings(max_examples=40, deadline=None)
@given(mine=texts, others=st.lists(texts, max_size=12), place=st.integers(0, 12))
def test_a_score_does_not_depend_on_its_company(
    scorer: Scorer, mine: str, others: list[str], place: int
) -> None:
    alone = scorer.score([mine])
    together = scorer.score([*others[:place], mine, *others[place:]])
    index = min(place, len(others))
    # To the last bit.
    assert alone.scores_N[0].tobytes() == together.scores_N[index].tobytes()
    assert alone.tokens_N[0] == together.tokens_N[index] == len(mine.encode())


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 101, 250, 500, 501, 2000])
def test_a_score_is_the_token_weighted_mean_of_its_windows(scorer: Scorer, length: int) -> None:
    text = "".join(chr(97 + (i * i) % 26) for i in range(length))
    assert scorer.score([text]).scores_N[0] == pytest.approx(reference_score(text), abs=2e-6)


def test_few_shapes_are_compiled(caplog: pytest.LogCaptureFixture) -> None:
    # A window that no other test uses, so that nothing is compiled yet.
    config = dataclasses.replace(CONFIG, window=150)
    scorer = Scorer(dataclasses.replace(CHECKPOINT, config=config), OPTIONS)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        scorer.score(["x" * n for n in range(1, 400)])
    compiled = [line for line in caplog.messages if re.match("Compiling .*score_tokens", line)]
    assert len(compiled) == len(bucket_lengths(150)) == 3


def test_threads_share_a_scorer(scorer: Scorer) -> None:
    texts = [f"text number {i} " * (i % 7 + 1) for i in range(40)]
    expected = scorer.score(texts).scores_N
    results: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.__setitem__(i, scorer.score(texts).scores_N))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for scores in results.values():
        np.testing.assert_array_equal(scores, expected)


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 20))
def test_windows_cover_a_text_or_spread_over_it(tokens: int, window: int, cap: int) -> None:
    starts = window_starts(tokens, window, cap)
    count = -(-tokens // window)
    assert len(starts) == min(count, cap)
    assert all(start % window == 0 and start < tokens for start in starts)
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    if cap > 1:
        assert starts[-1] == (count - 1) * window


def test_no_texts_no_scores(scorer: Scorer) -> None:
    scored = scorer.score([])
    assert scored.scores_N.shape == scored.tokens_N.shape == (0,)


def test_a_text_without_tokens_gets_no_number(scorer: Scorer) -> None:
    scored = scorer.score(["", "something"])
    assert np.isnan(scored.scores_N[0])
    assert np.isfinite(scored.scores_N[1])


def test_bfloat16_is_near_float32(scorer: Scorer) -> None:
    texts = [f"some text {i} " * 10 for i in range(8)]
    rough = Scorer(CHECKPOINT, dataclasses.replace(OPTIONS, dtype="bfloat16")).score(texts).scores_N
    exact = scorer.score(texts).scores_N
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=0.05)
    assert (rough != exact).any()


def test_a_single_string_is_refused(scorer: Scorer) -> None:
    with pytest.raises(TypeError, match=r"a list of texts, not a single str; write score\(\[text"):
        scorer.score("hello")
    with pytest.raises(TypeError, match="a single bytes"):
        scorer.score(b"hello")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text 1 is of type NoneType, not str"):
        scorer.score(["hello", None])  # type: ignore[list-item]


BATCHES = [
    [f"text {number} of batch {batch} " * (number % 7 + 1) for number in range(9)]
    for batch in range(3)
]


def windows_by_length(texts: list[str]) -> Counter[int]:
    lengths = bucket_lengths(CONFIG.window)
    return Counter(
        min(length for length in lengths if length >= len(text.encode()[start : start + 100]))
        for text in texts
        for start in window_starts(len(text.encode()), 100, OPTIONS.max_windows)
    )


def test_full_calls_of_all_batches_wait_at_the_device_before_the_first_is_computed(
    scorer: Scorer,
) -> None:
    device = OnDevice(CHECKPOINT, OPTIONS, batches_ahead=2)
    pending = [device.submit(texts) for texts in BATCHES]
    windows = windows_by_length([text for texts in BATCHES for text in texts])
    full = sum(count // device.batch_size(length) for length, count in windows.items())
    # Everything is tokenized and queued although nothing is computed yet.
    assert full > len(BATCHES)
    for _ in range(full):
        assert device.arrived.acquire(timeout=60)
    assert device.computed == 0

    # What is left over of all batches shares one call for each length.
    device.may_compute.set()
    for texts, scores in zip(BATCHES, pending, strict=True):
        expected = scorer.score(texts)
        assert scores.result().scores_N.tobytes() == expected.scores_N.tobytes()
        np.testing.assert_array_equal(scores.result().tokens_N, expected.tokens_N)
    assert full < device.computed <= full + len(windows)


def test_a_call_that_fails_fails_every_batch_with_a_window_in_it() -> None:
    class Failing(Scorer):
        def _call(self, *_: object) -> jax.Array:
            raise MemoryError("no room")

    failing = Failing(CHECKPOINT, OPTIONS, batches_ahead=2)
    pending = [failing.submit(["one window"]), failing.submit(["another window"])]
    for scores in pending:
        with pytest.raises(MemoryError, match="no room"):
            scores.result()


@settings(max_examples=200)
@given(st.integers(1, 5000))
def test_no_window_is_padded_by_more_than_an_eighth_or_64_tokens(window: int) -> None:
    lengths = bucket_lengths(window)
    assert lengths[-1] == window
    steps = [after - before for before, after in itertools.pairwise((0, *lengths))]
    assert all(0 < step <= max(64, length / 8) for step, length in zip(steps, lengths, strict=True))


SHARED = """
import sys
import numpy as np
from datarater.rater_model.scorer import Scorer
from tests.rater_model.test_scorer import BATCHES, CHECKPOINT, OPTIONS

texts = [text for texts in BATCHES for text in texts]
one, three = Scorer(CHECKPOINT, OPTIONS), Scorer(CHECKPOINT, OPTIONS, devices=3)
assert three.batch_size(64) == 3 * one.batch_size(64)
calls = []
three._call = lambda *windows: calls.append(Scorer._call(three, *windows)) or calls[-1]
np.testing.assert_array_equal(three.score(texts).scores_N, one.score(texts).scores_N)
assert all(len(scores.sharding.device_set) == 3 for scores in calls), calls
"""


@pytest.mark.slow  # starts a process: the number of devices of this one is fixed
def test_several_devices_share_a_call_and_give_the_same_scores() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    subprocess.run(
        [sys.executable, "-c", SHARED], env={**os.environ, "XLA_FLAGS": flags}, check=True
    )


def test_more_devices_than_the_process_has_are_refused() -> None:
    with pytest.raises(ValueError, match="devices must be from 1 to the"):
        Scorer(CHECKPOINT, OPTIONS, devices=1 + jax.local_device_count())


class SlowModel(Scorer):
    """A scorer on a CPU whose model runs once it may, and notes in which thread."""

    may_run = threading.Event()
    threads: ClassVar[set[int]] = set()

    def _call(self, tokens_BxL: np.ndarray, length_B: np.ndarray) -> jax.Array:
        assert self.may_run.wait(timeout=60)
        self.threads.add(threading.get_ident())
        return super()._call(tokens_BxL, length_B)


def test_with_a_spare_core_the_next_texts_are_read_and_tokenized_while_one_thread_runs_the_model(
    scorer: Scorer,
) -> None:
    slow = SlowModel(CHECKPOINT, OPTIONS, reads_ahead=True)
    assert slow.batches_ahead == 1
    pending = [slow.submit(texts) for texts in BATCHES]
    # All of them are tokenized where they were submitted: bad texts are found at once.
    with pytest.raises(TypeError, match="text 1 is of type NoneType"):
        slow.submit(["a text", None])  # type: ignore[list-item]
    assert not slow.threads
    slow.may_run.set()
    for texts, scores in zip(BATCHES, pending, strict=True):
        expected = scorer.score(texts)
        assert scores.result().scores_N.tobytes() == expected.scores_N.tobytes()
        np.testing.assert_array_equal(scores.result().tokens_N, expected.tokens_N)
    assert len(slow.threads) == 1
    assert threading.get_ident() not in slow.threads


def test_on_a_cpu_texts_are_scored_where_they_are_submitted(scorer: Scorer) -> None:
    assert jax.default_backend() == "cpu", "the tests run on a CPU"
    assert scorer.batches_ahead == 0
    before = set(threading.enumerate())
    pending = scorer.submit(BATCHES[0])
    assert not set(threading.enumerate()) - before  # One of before may have ended meanwhile.
    assert pending.result().scores_N.tobytes() == scorer.score(BATCHES[0]).scores_N.tobytes()


def test_an_error_while_reading_ahead_reaches_whoever_waits_for_that_batch(scorer: Scorer) -> None:
    device = OnDevice(CHECKPOINT, OPTIONS, batches_ahead=2)
    device.may_compute.set()
    first, second = device.submit(BATCHES[0]), device.submit(["a text", None])  # type: ignore[list-item]
    third = device.submit(BATCHES[2])
    assert first.result().scores_N.tobytes() == scorer.score(BATCHES[0]).scores_N.tobytes()
    with pytest.raises(TypeError, match="text 1 is of type NoneType"):
        second.result()
    assert third.result().scores_N.tobytes() == scorer.score(BATCHES[2]).scores_N.tobytes()


def test_a_scorer_that_reads_ahead_pickles() -> None:
    copy = pickle.loads(pickle.dumps(Scorer(CHECKPOINT, OPTIONS, batches_ahead=2)))
    assert copy.batches_ahead == 2
    assert pickle.loads(pickle.dumps(Scorer(CHECKPOINT, OPTIONS))).batches_ahead == 0
    expected = Scorer(CHECKPOINT, OPTIONS).score(BATCHES[0]).scores_N
    assert copy.submit(BATCHES[0]).result().scores_N.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_an_unpickled_scorer_scores_bit_identically(kind: str) -> None:
    tokenizer: Tokenizer = ByteTokenizer()
    checkpoint = CHECKPOINT
    if kind == "bpe":
        tokenizer = train_bpe(["a corpus of a few words", "and a few more words"] * 9, 300)
        config = dataclasses.replace(CONFIG, vocabulary_size=300)
        checkpoint = dataclasses.replace(
            CHECKPOINT,
            config=config,
            params=initialise_rater(config, jax.random.key(1)),
            tokenizer=tokenizer,
        )
    scorer = Scorer(dataclasses.replace(checkpoint, digest="abc"), OPTIONS)
    copy = pickle.loads(pickle.dumps(scorer))
    texts = [f"text {i} <separator> <pad> " * (i % 9 + 1) for i in range(20)]
    assert copy.score(texts).scores_N.tobytes() == scorer.score(texts).scores_N.tobytes()
    np.testing.assert_array_equal(copy.score(texts).tokens_N, scorer.score(texts).tokens_N)
    assert (copy.digest, copy.options) == (scorer.digest, scorer.options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_windows": 0}, "max_windows"),
        ({"tokens_per_batch": 0}, "tokens_per_batch"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIONS, **change)  # type: ignore[arg-type]
