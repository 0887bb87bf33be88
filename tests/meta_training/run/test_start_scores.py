"""Raters that imitate given scores before meta-training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from datarater.meta_training.config import build
from datarater.meta_training.config.checks import check
from datarater.meta_training.config.start_scores import names_and_files
from datarater.meta_training.errors import ConfigError
from datarater.meta_training.evaluate.text_filters import filter_scores
from datarater.meta_training.run import start, start_scores
from datarater.meta_training.run.start_regression import fit_to_scores, scored_windows
from datarater.meta_training.run.start_scores import ScoredTexts, normal_scores, scored_texts
from datarater.meta_training.run.workdir import Workdir
from datarater.rater_model.rater import initialise_rater, score_tokens
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.meta_training.run.test_start import tiny_config
from tests.support.prepared import experiment_of


def imitating(folder: Path, scores: str, **fields: object) -> ConfigDict:
    config = tiny_config(folder)
    config.start.scores, config.start.steps, config.start.batch = scores, 200, 16
    config.start.learning_rate, config.start.documents = 0.02, 100
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def texts_of_letters(count: int, seed: int) -> list[str]:
    """Returns texts with different shares of the letter e."""
    rng = random.Random(seed)
    shares = [rng.random() for _ in range(count)]
    return [
        "".join("e" if rng.random() < share else rng.choice("abcd ") for _ in range(96))
        for share in shares
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_rater_learns_a_score_that_is_linear_in_the_bytes(seed: int, tmp_path: Path) -> None:
    texts = texts_of_letters(400, seed)
    scored = ScoredTexts(texts, normal_scores([np.array([text.count("e") for text in texts])]))
    config = imitating(tmp_path, "bigram", **{"start.scale": 0.5, "seed": seed})
    tokenizer = ByteTokenizer()
    shape = build.rater_config(config, tokenizer)

    fit = fit_to_scores(
        config, shape, initialise_rater(shape, jax.random.key(seed)), tokenizer, scored
    )
    assert fit.measures["held_out"] == 40
    assert fit.measures["documents"] == 360
    assert fit.measures["rank_correlation"] > 0.95

    # The windows held out spread by the scale.
    windows = scored_windows(ScoredTexts(texts[360:], scored.scores_N[360:]), tokenizer, config)
    arrays = jnp.asarray(windows.tokens_MxL, jnp.int32), jnp.asarray(windows.length_M)
    scores_M = score_tokens(shape, fit.params, *arrays)
    assert float(np.std(scores_M)) == pytest.approx(0.5, rel=1e-3)


def test_packed_windows_have_the_mean_score_of_their_tokens(tmp_path: Path) -> None:
    config = imitating(tmp_path, "bigram", length=8)
    scored = ScoredTexts(["abc", "abcd", "abcdefgh"], np.array([0.0, 4.0, 8.0]))
    windows = scored_windows(scored, ByteTokenizer(), config)
    # Each document is followed by a separator: 4, 5 and 9 tokens.
    np.testing.assert_allclose(windows.score_M, [(4 * 0 + 4 * 4) / 8, (4 + 7 * 8) / 8])
    assert windows.length_M.tolist() == [8, 8]


def test_windows_of_one_document_each_have_its_score(tmp_path: Path) -> None:
    config = imitating(
        tmp_path, "bigram", length=8, **{"data.windows": "document", "data.minimum_length": 3}
    )
    scored = ScoredTexts(["abcdefghijkl", "ab", "abc"], np.array([1.0, 2.0, 3.0]))
    windows = scored_windows(scored, ByteTokenizer(), config)
    assert windows.length_M.tolist() == [8, 4, 3]  # two bytes are too few
    assert windows.score_M.tolist() == [1, 1, 3]


def test_a_start_by_a_filter_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = imitating(tmp_path, "bigram,gopher", **{"start.steps": 3})
    check(config)
    experiment = experiment_of(config)
    with Workdir(tmp_path / "work") as workdir:
        made = start.first_rater(experiment, workdir, jax.random.key(0))
        recorded = made.provenance["start"]
        assert recorded["scores"] == "bigram,gopher"
        assert recorded["documents"] + recorded["held_out"] == 100
        assert -1 <= recorded["rank_correlation"] <= 1

        def again(*_: object) -> None:
            raise AssertionError("fitted again")

        monkeypatch.setattr(start, "fit_to_scores", again)
        resumed = start.first_rater(experiment, workdir, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, made.params)
    assert resumed.provenance == made.provenance


def test_a_killed_start_is_made_again_the_same(tmp_path: Path) -> None:
    experiment = experiment_of(imitating(tmp_path, "unigram", **{"start.steps": 3}))
    starts = []
    for name in ("one", "other"):
        with Workdir(tmp_path / name) as workdir:
            starts.append(start.first_rater(experiment, workdir, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, starts[0].params, starts[1].params)


def write_scores(folder: Path, score: Callable[[int], float], ids: range) -> Path:
    path = folder / "scores.parquet"
    pq.write_table(pa.table({"id": list(ids), "score": [score(i) for i in ids]}), path)
    return path


def test_scores_of_files_are_matched_by_id_and_outer_documents_left_out(tmp_path: Path) -> None:
    config = imitating(tmp_path, "", **{"start.documents": 1000})
    config.start.scores = str(write_scores(tmp_path, lambda i: -i, range(120)))
    check(config)
    scored = scored_texts(config)

    records = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    by_text = {record["text"]: record["id"] for record in records}
    ids = [by_text[text] for text in scored.texts]
    assert max(ids) < 120
    # A quarter of the pool is the outer set.
    assert 70 <= len(ids) <= 110
    assert np.argsort(-scored.scores_N).tolist() == np.argsort(ids).tolist()


def test_a_filter_learns_from_outer_sets_in_proportion_to_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("web", "books"):
        lines = (json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(100))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    targets = []

    def learn(_: str, texts: Callable[[], list[str]], target: list[str]) -> np.ndarray:
        targets.append(target)
        return np.arange(len(texts()), dtype=np.float64)

    monkeypatch.setattr(start_scores, "filter_scores", learn)
    outer = f"web={tmp_path}/web.jsonl;books={tmp_path}/books.jsonl"
    for weights in ("web=3;books=1", "web=0;books=2", ""):
        config = imitating(tmp_path, "bigram", **{"start.documents": 40})
        config.data.outer, config.data.outer_weights = outer, weights
        scored_texts(config)
    counts = [[sum(text.startswith(n) for text in t) for n in ("web", "books")] for t in targets]
    assert counts == [[30, 10], [0, 40], [20, 20]]


def test_what_cannot_be_imitated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'clasifier' is neither a filter"):
        check(imitating(tmp_path, "clasifier"))
    with pytest.raises(ConfigError, match="twice"):
        check(imitating(tmp_path, "bigram,bigram"))
    with pytest.raises(ConfigError, match=r"start\.batch must be at least 2"):
        check(imitating(tmp_path, "bigram", **{"start.batch": 1}))

    path = write_scores(tmp_path, float, range(1000, 1100))
    with pytest.raises(ConfigError, match=r"start\.scores: no document of the pool has a score"):
        scored_texts(imitating(tmp_path, str(path)))
    few = write_scores(tmp_path, float, range(10))
    with pytest.raises(ConfigError, match="needs at least 20"):
        scored_texts(imitating(tmp_path, str(few), **{"start.documents": 1000}))

    of_dataset = imitating(tmp_path, str(few))
    of_dataset.data.inner = "tfds:tiny"
    with pytest.raises(ConfigError, match="no keys"):
        check(of_dataset)


def test_filters_and_files_are_told_apart() -> None:
    assert names_and_files("classifier, run/scores,s.parquet,trigram") == (
        ["classifier", "trigram"],
        ["run/scores", "s.parquet"],
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30, unique=True))
def test_normal_scores_keep_the_order_and_have_mean_0(values: list[float]) -> None:
    normal_N = normal_scores([np.array(values)])
    assert np.argsort(normal_N).tolist() == np.argsort(values).tolist()
    assert abs(normal_N.mean()) < 1e-9


def test_equal_scores_are_refused() -> None:
    with pytest.raises(ConfigError, match="same score"):
        normal_scores([np.ones(5)])


def test_documents_held_out_without_an_order_are_refused_before_the_fit(tmp_path: Path) -> None:
    config = imitating(tmp_path, "gopher")
    scored = ScoredTexts(texts_of_letters(20, 0), np.array([-1.0, 1.0] * 9 + [1.0, 1.0]))
    shape = build.rater_config(config, ByteTokenizer())
    with pytest.raises(ConfigError, match=r"2 documents held out of 20 have one and the same"):
        fit_to_scores(config, shape, {}, ByteTokenizer(), scored)


@pytest.mark.parametrize(
    "name", ["unigram", "bigram", "trigram", "word_bigram", "importance", "classifier"]
)
def test_every_filter_that_learns_prefers_texts_like_the_target(name: str) -> None:
    rng = random.Random(0)
    words = {True: ["the", "old", "harbor", "sea"], False: ["0xff", "{x}", "<td>", "null"]}
    pool = [" ".join(rng.choices(words[number % 2 == 0], k=40)) for number in range(40)]
    target = [" ".join(rng.choices(words[True], k=40)) for _ in range(8)]
    scores_N = filter_scores(name, lambda: pool, target)
    assert scores_N[::2].mean() > scores_N[1::2].mean()
