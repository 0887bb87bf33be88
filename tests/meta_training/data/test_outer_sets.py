"""Outer sets are drawn together, resume where they were, and questions become rows of tokens."""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from datarater.meta_training.algorithm.outer_loss import Choices
from datarater.meta_training.data.outer_sets import (
    OuterSet,
    OuterSets,
    open_questions,
    question_rows,
)
from datarater.meta_training.data.texts import DataError
from datarater.meta_training.data.windows import (
    draw_batches,
    iterator_state,
    restore_iterator,
)
from datarater.meta_training.evaluate.questions import Question
from datarater.rater_model.documents.files import NoInputError
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.support import prepared

TOKENIZER = ByteTokenizer()
FOLDER = tempfile.TemporaryDirectory()  # deleted with the module
QUESTIONS = [
    Question("Is it", ("so", "otherwise"), 1),
    Question("", ("a", "b", "c"), 2),
    Question("Long " * 20, ("yes", "no"), 0),
]


def windows_of(text: str) -> Any:
    return prepared.windows_of(Path(FOLDER.name) / text, [text * 50], 8, "packed")


def losses(theta: Any, batch: Any) -> Any:
    raise AssertionError("drawing computes no loss")


def sets_of(questions: bool = True) -> OuterSets:
    rows = question_rows(QUESTIONS, TOKENIZER, 16)
    return OuterSets(
        (
            OuterSet("web", 0.5, windows_of("abc"), losses, 8),
            OuterSet("books", 0.25, windows_of("xyz"), losses, 8),
            *(
                [OuterSet("questions", 0.25, rows, losses, rows.tokens, Choices)]
                if questions
                else []
            ),
        )
    )


def test_every_set_has_a_batch_of_its_own_and_a_restored_iterator_continues() -> None:
    sets = sets_of()
    with closing(sets.draw((2, 3), 7)) as batches, closing(sets.draw((2, 3), 7)) as other:
        first = next(batches)
        assert [jax.tree.leaves(batch)[0].shape for batch in first] == [
            (2, 3, 8),
            (2, 3, 8),
            (2, 3, 3, 16),
        ]
        assert set(np.unique(first[0].tokens_BxL)) <= set(TOKENIZER.encode("abc"))
        assert set(np.unique(first[1].tokens_BxL)) <= set(TOKENIZER.encode("xyz"))

        position = json.loads(json.dumps(iterator_state(batches)))
        expected = [next(batches) for _ in range(3)]
        restore_iterator(other, position)
        for want in expected:
            jax.tree.map(np.testing.assert_array_equal, next(other), want)


def test_a_set_alone_is_drawn_and_positioned_as_it_always_was() -> None:
    windows = windows_of("abcdefg")
    alone = OuterSets((OuterSet("outer", 1.0, windows, losses, 8),))
    with closing(alone.draw((4,), 3)) as batches, closing(draw_batches(windows, (4,), 3)) as before:
        for _ in range(2):
            jax.tree.map(np.testing.assert_array_equal, next(batches)[0], next(before))
        assert iterator_state(batches) == iterator_state(before)


def test_a_row_is_the_end_of_the_context_and_the_choice() -> None:
    made = question_rows(QUESTIONS, TOKENIZER, 16)
    rows = made.rows
    assert rows.tokens_QxCxL.shape == (3, 3, 16)
    assert made.left_out == 0
    for n, question in enumerate(QUESTIONS):
        for c, choice in enumerate(question.choices):
            counted = np.asarray(rows.counted_QxCxL[n, c])
            space = " " if question.context else ""
            np.testing.assert_array_equal(
                rows.tokens_QxCxL[n, c][counted], TOKENIZER.encode(space + choice)
            )
            assert rows.bytes_QxC[n, c] == len(choice)
        assert not rows.counted_QxCxL[n, len(question.choices) :].any()
    np.testing.assert_array_equal(
        rows.tokens_QxCxL[2, 0], TOKENIZER.encode(("Long " * 20 + "yes")[-16:])
    )
    assert list(rows.label_Q) == [1, 2, 0]


def test_questions_that_do_not_fit_are_counted_and_none_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = Question("Is it", ("so", "o" * 16), 0)
    with caplog.at_level(logging.WARNING, logger="datarater"):
        made = question_rows([*QUESTIONS, long], TOKENIZER, 16)
    assert made.left_out == 1
    assert made.describe() == "3 questions, 1 left out as too long"
    assert "1 of 4 questions left out" in caplog.text
    with pytest.raises(DataError, match=r"data\.questions: in each of the 1 question, a choice"):
        question_rows([long], TOKENIZER, 16)


def test_bad_question_files_are_refused_by_field_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    good = {"context": "a", "choices": ["b", "c"], "label": 0}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"label": 2}) + "\n")
    with pytest.raises(DataError, match=r"^data\.questions: .*q\.jsonl, line 2: field label: 2"):
        open_questions(str(path), TOKENIZER, 16)
    with pytest.raises(NoInputError):
        open_questions(str(tmp_path / "missing.jsonl"), TOKENIZER, 16)


def test_the_order_of_questions_is_their_seed_alone() -> None:
    rows = question_rows(QUESTIONS, TOKENIZER, 16)
    first, again, other = (
        np.asarray(next(iter(rows.batches(3, seed)))[3]).tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert sorted(first) == sorted(other) == [0, 1, 2]
