"""The target of a run: one or several outer sets with weights, drawn together batch by batch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from datarater.meta_training.algorithm.language_model import Windows
from datarater.meta_training.algorithm.outer_loss import BatchLosses, Choices, OuterLoss
from datarater.meta_training.data.batch_order import MIXED, SingleSource
from datarater.meta_training.data.texts import DataError
from datarater.meta_training.data.windows import (
    Drawable,
    in_shape,
    iterator_state,
    restore_iterator,
)
from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.multiple_choice import encoded_choices
from datarater.meta_training.evaluate.questions import Question, read_questions
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import split_on_commas
from datarater.rater_model.tokenizer import Tokenizer

_LOG = logging.getLogger("datarater")


@dataclasses.dataclass(frozen=True)
class OuterSet:
    """One set of the target.

    Attributes:
        name: Name in messages and metrics.
        weight: Share of its loss in the outer loss; the weights of all sets sum to 1.
        elements: The windows or questions.
        losses: (theta, batch) -> losses_B of an inner model.
        tokens: Token positions of one element, padding included.
        kind: Tuple of arrays that a batch is: `Windows` or `Choices`.
    """

    name: str
    weight: float
    elements: Drawable
    losses: BatchLosses
    tokens: int
    kind: Any = Windows


@dataclasses.dataclass(frozen=True)
class OuterSets:
    """All sets of the target; see `outer_loss` for the mathematics.

    Attributes:
        sets: At least one set.
    """

    sets: tuple[OuterSet, ...]

    @property
    def names(self) -> list[str]:
        """Names of the sets."""
        return [each.name for each in self.sets]

    @property
    def tokens(self) -> int:
        """Token positions of one element of every set."""
        return sum(each.tokens for each in self.sets)

    @property
    def losses(self) -> list[OuterLoss]:
        """Losses of the sets with their weights, for the meta-gradient."""
        return [OuterLoss(each.weight, each.losses) for each in self.sets]

    def draw(
        self,
        shape: tuple[int, ...],
        seed: int,
        *,
        own: np.ndarray | None = None,
        processes: int = 0,
    ) -> DrawnTogether:
        """Returns an endless iterator of tuples with a batch of each set.

        Args:
            shape: Leading axes of each batch, such as (P, B).
            seed: Seed for shuffling the first set; each other set has one of its own.
            own: Which elements of every batch this process needs, in that shape; None for all.
            processes: Number of processes that read the windows of each set; 0 for a thread.
        """
        own_B = None if own is None else own.reshape(-1)
        iterators = [
            in_shape(
                each.elements.batches(
                    math.prod(shape), (seed + 1_000_003 * k) % 2**32, MIXED, own_B
                ),
                shape,
                each.kind,
                # Questions are in memory, and their rows small.
                processes if each.kind is Windows else 0,
            )
            for k, each in enumerate(self.sets)
        ]
        return DrawnTogether(iterators)

    def describe(self) -> str:
        """Returns the sizes of the sets, and their weights if there are several, for the log."""
        if len(self.sets) == 1:
            return self.sets[0].elements.describe()
        return "; ".join(
            f"{each.name} (weight {each.weight:.3g}): {each.elements.describe()}"
            for each in self.sets
        )


class DrawnTogether(Iterator[tuple[Any, ...]]):
    """Iterators that advance together; `iterator_state` and `restore_iterator` work on it.

    The position of a single iterator is that iterator's own, as in runs of earlier versions.

    Args:
        iterators: Iterators of `in_shape`.
    """

    def __init__(self, iterators: Sequence[Any]) -> None:
        self._iterators = iterators

    def __next__(self) -> tuple[Any, ...]:
        return tuple(next(each) for each in self._iterators)

    def get_state(self) -> Any:
        """Returns the positions of all iterators."""
        states = [iterator_state(each) for each in self._iterators]
        return states if len(states) > 1 else states[0]

    def set_state(self, state: Any) -> None:
        """Moves all iterators to their positions."""
        states = state if len(self._iterators) > 1 else [state]
        for each, its_state in zip(self._iterators, states, strict=True):
            restore_iterator(each, its_state)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        with contextlib.ExitStack() as stack:
            for each in self._iterators:
                stack.callback(each.close)


@dataclasses.dataclass(frozen=True)
class QuestionRows:
    """Questions as rows of tokens, in memory. N questions have at most C choices each.

    Attributes:
        rows: The questions, with N in the place of Q.
        left_out: Number of questions with a choice that fills a window without its context.
        identity: Digest of the questions.
    """

    rows: Choices
    left_out: int
    identity: str

    def batches(
        self,
        count: int,
        seed: int,
        single: SingleSource = MIXED,  # questions have no sources
        own_B: np.ndarray | None = None,  # all are in memory
    ) -> grain.MapDataset:
        """Returns endless batches; each pass over all questions has an order of its own."""
        dataset = grain.MapDataset.source(_Rows(self.rows)).seed(seed).shuffle().repeat()
        return dataset.batch(count)

    @property
    def tokens(self) -> int:
        """Token positions of one question."""
        return int(np.prod(self.rows.tokens_QxCxL.shape[1:]))

    def describe(self) -> str:
        """Returns the numbers of questions and of those that do not fit, for the log."""
        text = counted(len(self.rows.label_Q), "question")
        return f"{text}, {self.left_out} left out as too long" if self.left_out else text


class _Rows:
    """Random access to questions, in the form that grain expects."""

    def __init__(self, rows: Choices) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows.label_Q)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(column[index] for column in self._rows)

    def __repr__(self) -> str:
        return f"_Rows({len(self)} questions)"


def open_questions(patterns: str, tokenizer: Tokenizer, length: int) -> QuestionRows:
    """Reads the questions of `data.questions`.

    Args:
        patterns: Paths or globs, separated by commas.
        tokenizer: The tokenizer.
        length: L, tokens of a window.

    Raises:
        DataError: A file is not JSONL, a line is not a question, or no question fits.
        NoInputError: A pattern matches no file.
        OSError: A file cannot be read.
    """
    try:
        file = read_questions("questions", split_on_commas(patterns), None, "data.questions")
    except FlagError as error:
        raise DataError(str(error)) from error
    return question_rows(file.questions, tokenizer, length)


def question_rows(questions: Sequence[Question], tokenizer: Tokenizer, length: int) -> QuestionRows:
    """Makes rows of tokens of questions.

    A row is a separator, the context and one choice, as the evaluation harness makes it. Where it
    is longer than a window, the beginning of the context is cut off. A question of which a choice
    alone fills a window is left out.

    Args:
        questions: At least one question.
        tokenizer: The tokenizer.
        length: L, tokens of a window. Rows are shorter if no question needs as many.

    Raises:
        DataError: No question fits.
    """
    encoded = iter(encoded_choices(questions, tokenizer))
    each_question = [(each, [next(encoded) for _ in each.choices]) for each in questions]
    fitting = [
        (question, rows)
        for question, rows in each_question
        if all(len(ids) - start < length for ids, start in rows)
    ]
    left_out = len(questions) - len(fitting)
    if not fitting:
        raise DataError(
            f"data.questions: in each of the {counted(len(questions), 'question')}, a choice has "
            f"{length} tokens or more, so it fills a window; raise length"
        )
    if left_out:
        _LOG.warning(
            "data.questions: %s of %s left out, since a choice fills a window of %d tokens",
            f"{left_out:,}",
            counted(len(questions), "question"),
            length,
        )

    width = min(length, max(len(ids) for _, rows in fitting for ids, _ in rows))
    shape = (len(fitting), max(len(rows) for _, rows in fitting))
    tokens_NxCxL = np.full((*shape, width), tokenizer.pad_id, np.int32)
    counted_NxCxL, bytes_NxC = np.zeros((*shape, width), bool), np.zeros(shape, np.int32)
    for n, (question, rows) in enumerate(fitting):
        for c, ((ids, start), choice) in enumerate(zip(rows, question.choices, strict=True)):
            cut = max(0, len(ids) - width)
            tokens_NxCxL[n, c, : len(ids) - cut] = ids[cut:]
            counted_NxCxL[n, c, start - cut : len(ids) - cut] = True
            bytes_NxC[n, c] = len(choice.encode())
    label_N = np.asarray([question.label for question, _ in fitting], np.int32)

    columns: list[Any] = [tokens_NxCxL, counted_NxCxL, bytes_NxC, label_N]  # on the host for now
    content = json.dumps([dataclasses.asdict(question) for question in questions])
    return QuestionRows(Choices(*columns), left_out, hashlib.sha256(content.encode()).hexdigest())
