"""Downstream tasks: a language model ranks the choices of a question by their likelihood.

Dimension letters in array names: C the choices of all questions, W windows, L the tokens of a
window.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Params,
    token_log_probabilities,
)
from datarater.meta_training.evaluate.questions import Question, QuestionFile
from datarater.meta_training.evaluate.training import evaluation_part
from datarater.rater_model.tokenizer import Tokenizer

_WINDOWS = 512


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """How well a model answers the questions of a task.

    Attributes:
        questions: Number of questions.
        chance: Expected accuracy of a random choice.
        accuracy: Share of the questions whose right choice has the highest log-probability.
        accuracy_per_byte: The same with log-probabilities divided by the choices' UTF-8 bytes.
        margin: Mean over the questions of the right choice's log-probability per byte minus the
            mean of the wrong ones', in nats. It moves before accuracy does.
    """

    questions: int
    chance: float
    accuracy: float
    accuracy_per_byte: float
    margin: float


def answer(
    params: Params,
    files: Sequence[QuestionFile],
    config: LanguageModelConfig,
    tokenizer: Tokenizer,
    length: int,
) -> dict[str, TaskResult]:
    """Lets a model answer the questions of all tasks.

    A choice follows its context after white space, and the context follows a separator, as a
    document does in training. Every token of a choice is predicted from at least half a window, or
    from all there is.

    Args:
        params: Parameters of the model.
        files: The tasks.
        config: Shape of the model.
        tokenizer: The tokenizer.
        length: L, tokens of a window, as in training.
    """
    results = {}
    for file in files:
        scores_C = choice_log_probabilities(params, file.questions, config, tokenizer, length)
        results[file.name] = task_result(file, scores_C)
    return results


def task_result(file: QuestionFile, scores_C: NDArray[np.float64]) -> TaskResult:
    """Sums up the log-probabilities of the choices of all questions, in their order."""
    right, right_per_byte, margins, first = 0, 0, [], 0
    for question in file.questions:
        scores = scores_C[first : first + len(question.choices)]
        per_byte = scores / [len(choice.encode()) for choice in question.choices]
        first += len(question.choices)
        right += int(scores.argmax()) == question.label
        right_per_byte += int(per_byte.argmax()) == question.label
        wrong = np.delete(per_byte, question.label)
        margins.append(per_byte[question.label] - wrong.mean())
    count = len(file.questions)
    return TaskResult(
        count, file.chance, right / count, right_per_byte / count, float(np.mean(margins))
    )


def choice_log_probabilities(
    params: Params,
    questions: Sequence[Question],
    config: LanguageModelConfig,
    tokenizer: Tokenizer,
    length: int,
) -> NDArray[np.float64]:
    """Returns the log-probability of each choice after its context, in nats, of shape C.

    Args:
        params: Parameters of the model.
        questions: The questions.
        config: Shape of the model.
        tokenizer: The tokenizer.
        length: L, tokens of a window; at least 2.
    """
    pieces = [
        (choice, *piece)
        for choice, (ids, start) in enumerate(encoded_choices(questions, tokenizer))
        for piece in _windows(ids, start, length)
    ]
    score = _make_scores(config, length)
    sums_C = np.zeros(sum(len(question.choices) for question in questions))
    for first in range(0, len(pieces), _WINDOWS):
        part = pieces[first : first + _WINDOWS]
        tokens_WxL = np.full((_WINDOWS, length), tokenizer.pad_id, np.int32)
        counted_WxL = np.zeros((_WINDOWS, length), bool)
        for row, (_, ids, start) in enumerate(part):
            tokens_WxL[row, : len(ids)] = ids
            counted_WxL[row, start : len(ids)] = True
        scores_W = score(params, tokens_WxL, counted_WxL)
        np.add.at(sums_C, [choice for choice, _, _ in part], scores_W[: len(part)])
    return sums_C


def encoded_choices(
    questions: Sequence[Question], tokenizer: Tokenizer
) -> list[tuple[NDArray[np.int64], int]]:
    """Returns the tokens of each choice of all questions, after those of its context.

    Args:
        questions: The questions.
        tokenizer: The tokenizer.

    Returns:
        Pairs of (separator, context and choice as token ids, index of the choice's first token).
    """
    encoded = []
    for question in questions:
        # White space belongs to what follows it: a BPE has tokens for words with their space.
        context = question.context.rstrip()
        gap = question.context[len(context) :]
        before = np.concatenate([[tokenizer.separator_id], tokenizer.encode(context)])
        for choice in question.choices:
            space = gap or (" " if context and not choice[0].isspace() else "")
            after = tokenizer.encode(space + choice)
            encoded.append((np.concatenate([before, after]).astype(np.int64), len(before)))
    return encoded


def _windows(
    ids: NDArray[np.int64], start: int, length: int
) -> list[tuple[NDArray[np.int64], int]]:
    """Returns windows that predict the tokens from `start` on, each once.

    Returns:
        Each window's tokens, at most L, and the index in it of the first token that it predicts.
    """
    stride = max(1, length // 2)
    windows = []
    for first in range(start, len(ids), stride):
        end = min(first + stride, len(ids))
        begin = max(0, end - length)
        windows.append((ids[begin:end], first - begin))
    return windows


@functools.lru_cache(maxsize=4)
def _make_scores(
    config: LanguageModelConfig, length: int
) -> Callable[[Params, NDArray[np.int32], NDArray[np.bool_]], NDArray[np.float64]]:
    """Returns a function from windows to the sum of the log-probabilities of the counted tokens."""
    part = evaluation_part(_WINDOWS, length, config.vocabulary_size)
    while _WINDOWS % part:
        part -= 1

    @jax.jit
    def in_parts(params: Params, tokens_PxMxL: jax.Array, counted_PxMxL: jax.Array) -> jax.Array:
        def of_part(each: tuple[jax.Array, jax.Array]) -> jax.Array:
            tokens_MxL, counted_MxL = each
            log_probabilities_MxL = token_log_probabilities(config, params, tokens_MxL)
            return jnp.sum(log_probabilities_MxL * counted_MxL[:, 1:], axis=1)

        return jax.lax.map(of_part, (tokens_PxMxL, counted_PxMxL))

    def scores(
        params: Params, tokens_WxL: NDArray[np.int32], counted_WxL: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        shape = (-1, part, length)
        scored = in_parts(params, tokens_WxL.reshape(shape), counted_WxL.reshape(shape))
        return np.asarray(scored, np.float64).reshape(-1)

    return scores
