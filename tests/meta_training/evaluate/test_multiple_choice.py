from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.evaluate import multiple_choice
from datarater.meta_training.evaluate.questions import Question, QuestionFile
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig

LENGTH = 16


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 20))
def test_windows_predict_each_token_of_a_choice_once_from_half_a_window(
    before: int, after: int, length: int
) -> None:
    ids = np.arange(before + after)
    predicted: list[int] = []
    for window, first in multiple_choice._windows(ids, before, length):
        assert 2 <= len(window) <= length
        assert (np.diff(window) == 1).all()
        # Nothing before the window is left out while it has room.
        assert window[0] == 0 or len(window) == length
        assert first >= min(int(window[first]), length // 2)
        predicted += window[first:].tolist()
    assert predicted == list(range(before, before + after))


def test_the_log_probability_of_a_choice_is_that_of_its_tokens_after_the_context() -> None:
    config = LanguageModelConfig(258, TransformerConfig(width=16, heads=2, mlp_width=32, layers=1))
    params = jax.jit(lambda key: initialise_language_model(config, key))(jax.random.key(0))
    questions = [
        Question("ab", ("cd", "efg", "a long choice of 27 bytes"), 0),
        Question("", ("x", "y"), 1),
    ]
    tokenizer = ByteTokenizer()
    scores = multiple_choice.choice_log_probabilities(params, questions, config, tokenizer, LENGTH)

    losses = jax.jit(lambda windows: sequence_losses(config, params, windows))

    def log_probability(ids: list[int]) -> float:
        padded = np.full((1, LENGTH), tokenizer.pad_id, np.int32)
        padded[0, : len(ids)] = ids
        windows = Windows(jnp.asarray(padded), jnp.array([len(ids)]))
        # A single token predicts nothing.
        return -float(losses(windows)[0]) * (len(ids) - 1)

    separator = tokenizer.separator_id
    start = [separator, *b"ab"]
    for index, choice in enumerate((b" cd", b" efg")):
        expected = log_probability([*start, *choice]) - log_probability(start)
        assert scores[index] == pytest.approx(expected, abs=1e-4)
    # A long choice is predicted in windows of 16 tokens, 8 of them at a time.
    ids = [*start, *b" a long choice of 27 bytes"]
    expected = 0.0
    for first in range(3, len(ids), 8):
        end = min(first + 8, len(ids))
        begin = max(0, end - LENGTH)
        expected += log_probability(ids[begin:end]) - log_probability(ids[begin:first])
    assert scores[2] == pytest.approx(expected, abs=1e-4)
    for index, letter in ((3, b"x"), (4, b"y")):
        assert scores[index] == pytest.approx(log_probability([separator, *letter]), abs=1e-4)


@pytest.mark.parametrize(
    ("context", "choice", "text"),
    [
        ("a", "b", "a b"),
        ("a ", "b", "a b"),
        ("a\n", "b", "a\nb"),
        ("a", "\nb", "a\nb"),
        ("", "b", "b"),
    ],
)
def test_a_choice_follows_its_context_after_white_space(
    context: str, choice: str, text: str
) -> None:
    question = Question(context, (choice, "other"), 0)
    ids, start = multiple_choice.encoded_choices([question], ByteTokenizer())[0]
    assert ids[0] == ByteTokenizer.separator_id
    assert bytes(ids[1:].tolist()).decode() == text
    assert start == 1 + len(context.rstrip())


def test_accuracy_counts_raw_and_per_byte_and_the_margin_is_per_byte() -> None:
    questions = [
        Question("", ("ab", "abcd"), 0),
        Question("", ("ab", "abcd"), 1),
        Question("", ("é", "ab", "abcd"), 0),
    ]
    # Raw: right, wrong, right. Per byte: -1.0 and -0.75, the same, and -0.5, -1.0, -1.0.
    scores = np.array([-2.0, -3.0, -2.0, -3.0, -1.0, -2.0, -4.0])
    file = QuestionFile("mine", tuple(questions))
    result = multiple_choice.task_result(file, scores)
    assert dataclasses.asdict(result) == pytest.approx(
        {
            "questions": 3,
            "chance": 4 / 9,
            "accuracy": 2 / 3,
            "accuracy_per_byte": 2 / 3,
            "margin": (-0.25 + 0.25 + 0.5) / 3,
        }
    )
