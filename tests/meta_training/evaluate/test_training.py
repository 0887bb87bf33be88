from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarater.meta_training.algorithm.language_model import (
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.evaluate import training
from datarater.meta_training.evaluate.model_scores import (
    POOL,
    TARGET,
    LanguageModelTask,
    RaterTask,
)
from datarater.meta_training.evaluate.pool import Data, DataOptions, prepare_data
from datarater.meta_training.evaluate.protocol import Model, Protocol
from datarater.meta_training.evaluate.target import TargetDocument
from datarater.meta_training.evaluate.walk import BatchTopK, KeptDocuments, TooLittleTextError
from datarater.rater_model.checkpoint import RaterCheckpoint, ScoreStatistics, save_rater
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import ByteTokenizer

TINY = Model(width=16, heads=2, mlp_width=32, layers=1)
SHORT = Protocol(
    steps=12, batch=16, length=64, warmup_steps=2, evaluations=3, validation_windows=20
)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    def write(name: str, texts: list[str]) -> tuple[str]:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts))
        )
        return (str(path),)

    pool = [("abab" if i % 2 else "zqzq") * (20 + i) + f"{i}" for i in range(40)]
    target = [f"{'abab' * (20 + i)} {i}" for i in range(10)]
    return prepare_data(
        DataOptions(pool=write("pool.jsonl", pool), target=write("target.jsonl", target)),
        tmp_path / "out",
    )


def everything(data: Data) -> KeptDocuments:
    return KeptDocuments(np.ones(len(data.hashes_N), bool))


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    config = training.language_model_config(TINY, 258)
    tokens_BxL = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 32)), jnp.int32)
    params = jax.jit(lambda key: initialise_language_model(config, key))(jax.random.key(0))

    def mean_loss(params: Any) -> jax.Array:
        windows = Windows(tokens_BxL, jnp.full(16, 32, jnp.int32))
        return sequence_losses(config, params, windows).mean()

    expected = jax.jit(jax.grad(mean_loss))(params)
    for part in (4, 16):
        gradient = jax.jit(training.make_gradient(config, part))(params, tokens_BxL)
        jax.tree.map(
            lambda ours, plain: np.testing.assert_allclose(ours, plain, atol=1e-6),
            gradient,
            expected,
        )


@pytest.mark.parametrize(
    ("batch", "length", "part"), [(32, 128, 4), (16, 64, 8), (6, 128, 2), (8, 2048, 1), (7, 64, 1)]
)
def test_a_micro_batch_divides_the_batch_and_fits_the_cache(
    batch: int, length: int, part: int
) -> None:
    assert training.micro_batch(batch, length) == part


def test_a_run_repeats_itself_and_depends_on_its_seed_and_its_documents(data: Data) -> None:
    kept = everything(data)
    run = training.train(training.Job(data, kept, 0), TINY, SHORT)
    again = training.train(training.Job(data, kept, 0), TINY, SHORT)
    assert run.curve == again.curve
    assert [step for step, _ in run.curve] == [0, 4, 8, 12]
    assert run.curve[-1][1] < run.curve[0][1]
    other_seed = training.train(training.Job(data, kept, 1), TINY, SHORT)
    assert other_seed.curve[0] != run.curve[0]
    even = KeptDocuments(np.arange(len(data.hashes_N)) % 2 == 0)
    half = training.train(training.Job(data, even, 0), TINY, SHORT)
    # Common random numbers: arms of a seed begin with the same model.
    assert half.curve[0] == run.curve[0]
    assert half.curve[-1] != run.curve[-1]
    assert half.passes > run.passes
    best = BatchTopK(np.arange(len(data.hashes_N)), best=16, drawn=32)
    top_half = training.train(training.Job(data, best, 0), TINY, SHORT)
    assert top_half.curve[0] == run.curve[0]
    assert top_half.curve[-1] not in (run.curve[-1], half.curve[-1])
    assert top_half.passes > run.passes


def test_models_that_are_trained_together_become_what_each_becomes_alone(data: Data) -> None:
    even = KeptDocuments(np.arange(len(data.hashes_N)) % 2 == 0)
    jobs = [
        training.Job(data, everything(data), 0),
        training.Job(data.at(1), even, 1),
        training.Job(data.at(2), even, 0),
    ]
    together = training.train_together(jobs, TINY, SHORT)
    for job, run in zip(jobs, together, strict=True):
        alone = training.train(job, TINY, SHORT)
        np.testing.assert_allclose(
            [loss for _, loss in run.curve], [loss for _, loss in alone.curve], rtol=1e-4
        )
        assert run.choice_loss == pytest.approx(alone.choice_loss, rel=1e-4)
        assert run.by_source == pytest.approx(alone.by_source, rel=1e-4)
        assert run.passes == alone.passes
    # Each was measured on the test documents of its own rotation.
    assert len({run.curve[0] for run in together}) == 3


def test_the_number_of_models_together_is_bounded_by_memory() -> None:
    # On a CPU there is nothing to gain.
    assert training.models_together(TINY, SHORT, 258) == 1


def test_a_run_on_documents_without_a_window_is_refused(data: Data) -> None:
    with pytest.raises(TooLittleTextError):
        training.train(
            training.Job(data, KeptDocuments(np.zeros(len(data.hashes_N), bool)), 0), TINY, SHORT
        )


def test_a_loss_that_is_not_finite_names_the_flag(data: Data) -> None:
    wild = dataclasses.replace(SHORT, learning_rate=1e20)
    with pytest.raises(training.NonFiniteLossError, match="--learning_rate"):
        training.train(training.Job(data, everything(data), 0), TINY, wild)


def test_validation_counts_every_token_alike_in_all_and_by_source() -> None:
    documents = [TargetDocument("a" * 150, "x"), TargetDocument("bc" * 20, "y")]
    config = training.language_model_config(TINY, 258)
    validation = training.evaluation_set(documents, SHORT, ByteTokenizer())
    params = initialise_language_model(config, jax.random.key(0))
    # Padding to more windows changes nothing.
    ((loss, by_source),) = training.make_evaluation(config, SHORT, [validation], 7)(params)

    pieces = [("x", "a" * 64), ("x", "a" * 64), ("x", "a" * 22), ("y", "bc" * 20)]
    sums = {"x": 0.0, "y": 0.0}
    for source, text in pieces:
        tokens = jnp.asarray(ByteTokenizer().encode(text))[None].astype(jnp.int32)
        windows = Windows(tokens, jnp.array([len(text)]))
        sums[source] += float(sequence_losses(config, params, windows)[0]) * (len(text) - 1)
    assert by_source == pytest.approx({"x": sums["x"] / 147, "y": sums["y"] / 39}, rel=1e-5)
    assert loss == pytest.approx(sum(sums.values()) / 186, rel=1e-5)


def test_validation_windows_are_spread_over_the_documents() -> None:
    encoded = [np.arange(100) for _ in range(10)] + [np.arange(1)]
    tokens_WxL, lengths_W, owners_W = training.evaluation_windows(encoded, 10, 20, 256)
    assert tokens_WxL.shape == (20, 10)
    assert lengths_W.tolist() == [10] * 20
    assert owners_W.tolist() == [index for index in range(10) for _ in range(2)]
    with pytest.raises(TooLittleTextError):
        training.evaluation_windows([np.arange(1)], 10, 20, 256)


@pytest.mark.slow
def test_a_rater_scores_documents_as_the_scorer_does(data: Data, tmp_path: Path) -> None:
    config = RaterConfig(window=32)
    checkpoint = save_rater(
        tmp_path / "rater",
        RaterCheckpoint(
            config,
            jax.device_get(initialise_rater(config, jax.random.key(0))),
            ByteTokenizer(),
            ScoreStatistics(max_windows=2),
        ),
    )
    task = RaterTask(str(data.folder), str(tmp_path / "rater"), 5, 20)
    scores_N = task(lambda share: None)
    expected = Scorer(checkpoint, ScoringOptions(max_windows=2)).score(list(data.texts(5, 20)))
    np.testing.assert_array_equal(scores_N, expected.scores_N)


@pytest.mark.slow
def test_a_small_model_of_the_target_prefers_documents_like_it(data: Data) -> None:
    protocol = dataclasses.replace(SHORT, steps=60, learning_rate=1e-2)
    like_target = np.arange(len(data.hashes_N)) % 2 == 1
    by_target = LanguageModelTask(str(data.folder), 0, TARGET, TINY, protocol, 0)(
        lambda share: None
    )
    assert by_target[like_target].min() > by_target[~like_target].max()
    by_pool = LanguageModelTask(str(data.folder), 0, POOL, TINY, protocol, 0)(lambda share: None)
    # The pool has as many of either kind.
    assert by_pool[~like_target].mean() > by_target[~like_target].mean()
    assert (by_target < 0).all()
