"""N-gram raters: their scores equal those by hand, and come back from a checkpoint."""

from __future__ import annotations

import doctest
import pickle
from collections import Counter
from pathlib import Path
from random import Random

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.rater_model import byte_ngrams, ngram_rater
from datarater.rater_model.byte_ngrams import grams, hashed, table_rows, utf8
from datarater.rater_model.checkpoint import (
    CheckpointError,
    RaterCheckpoint,
    load_rater,
    save_rater,
)
from datarater.rater_model.ngram_rater import NgramConfig, table_name
from datarater.rater_model.ngram_scorer import NgramScorer, make_scorer
from datarater.rater_model.rater import RaterConfig, initialise_rater_shapes
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.support.raters import random_student

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def test_the_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(byte_ngrams).failed == 0


@given(texts, st.integers(1, 7))
def test_ngrams_are_numbers_in_base_256(text: str, order: int) -> None:
    data = text.encode()
    expected = [
        int.from_bytes(data[start : start + order], "big") for start in range(len(data) - order + 1)
    ]
    assert grams(utf8(text), order).tolist() == expected


@given(texts, st.integers(1, 7), st.integers(8, 20))
def test_rows_lie_in_the_table_and_a_small_order_has_a_row_for_each_ngram(
    text: str, order: int, row_bits: int
) -> None:
    grams_M = grams(utf8(text), order)
    rows_M = hashed(grams_M, order, row_bits)
    assert ((rows_M >= 0) & (rows_M < table_rows(order, row_bits))).all()
    if 256**order <= 1 << row_bits:
        assert (rows_M == grams_M).all()


@given(texts)
def test_a_score_is_the_sum_over_orders_of_the_mean_weight(text: str) -> None:
    student = random_student()
    data = text.encode()
    expected = -student.statistics.center
    for order in student.config.orders:  # type: ignore[union-attr]
        table_G = student.params[table_name(order)]
        counts = Counter(data[start : start + order] for start in range(len(data) - order + 1))
        total = 0.0
        for gram, count in counts.items():
            number = np.asarray([int.from_bytes(gram, "big")], np.int64)
            total += count * float(table_G[hashed(number, order, student.config.row_bits)[0]])  # type: ignore[union-attr]
        expected += total / max(1, counts.total())
    scored = NgramScorer(student).score([text])
    assert scored.tokens_N.tolist() == [len(data)]
    if text:
        assert scored.scores_N[0] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert np.isnan(scored.scores_N[0])


@given(st.lists(texts, max_size=8), st.integers(0, 3), st.randoms())
def test_a_score_does_not_depend_on_the_other_texts(
    several: list[str], long: int, random: Random
) -> None:
    several += [f"{number} {'long text ' * 4000}" for number in range(long)]
    random.shuffle(several)
    scorer = NgramScorer(random_student())
    together_N = scorer.score(several).scores_N
    assert len(together_N) == len(several)
    for text, score in zip(several, together_N, strict=True):
        np.testing.assert_array_equal(scorer.score([text]).scores_N, [score])


def test_a_long_text_is_scored_in_pieces_without_a_seam() -> None:
    config = NgramConfig((1, 3), 12)
    text = "".join(chr(97 + number * number % 23) for number in range(3 * 2**15))
    pieces = [
        rows_M for order, rows_M in ngram_rater.rows_by_order(config, text.encode()) if order == 3
    ]
    assert len(pieces) > 1
    whole_M = hashed(grams(utf8(text), 3), 3, 12)
    assert (np.concatenate(pieces) == whole_M).all()


def test_a_student_is_loaded_as_it_was_saved_and_scores_alike(tmp_path: Path) -> None:
    student = save_rater(tmp_path / "student", random_student())
    loaded = load_rater(tmp_path / "student")
    assert (loaded.config, loaded.digest) == (student.config, student.digest)
    some = ["some text", "", "né" * 40]
    expected_N = NgramScorer(student).score(some).scores_N
    for scorer in (make_scorer(loaded), pickle.loads(pickle.dumps(make_scorer(loaded)))):
        np.testing.assert_array_equal(scorer.score(some).scores_N, expected_N)


def test_a_table_of_another_shape_is_refused(tmp_path: Path) -> None:
    student = random_student()
    params = {**student.params, table_name(1): np.zeros(255, np.float32)}
    save_rater(tmp_path / "student", random_student(params=params))
    with pytest.raises(CheckpointError, match="does not have the parameters"):
        load_rater(tmp_path / "student")


def test_each_kind_of_rater_has_its_scorer() -> None:
    config = RaterConfig(transformer=TransformerConfig(8, 1, 8, 1), ngram_rows=8)
    shapes = initialise_rater_shapes(config)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    transformer = RaterCheckpoint(config, params, ByteTokenizer())
    assert isinstance(make_scorer(transformer), Scorer)
    with pytest.raises(TypeError, match="not a transformer"):
        Scorer(random_student())
    with pytest.raises(TypeError, match="not an n-gram rater"):
        NgramScorer(transformer)
    with pytest.raises(TypeError, match="a list of texts"):
        make_scorer(random_student()).score("one text")


@pytest.mark.parametrize(
    "fields", [{"orders": ()}, {"orders": (0,)}, {"orders": (2, 2)}, {"row_bits": 40}]
)
def test_a_shape_out_of_range_is_refused(fields: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="must be"):
        NgramConfig(**fields)  # type: ignore[arg-type]
