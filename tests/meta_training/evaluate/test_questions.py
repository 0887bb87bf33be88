from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.questions import (
    Question,
    load_questions,
    read_questions,
    store_questions,
)

PLAIN = {"context": "The sea was", "choices": ["calm.", "made of tin."], "label": 0}
HELLASWAG = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["starts pulling up roofing.", "[step] rips tiles.", "naps.", "sings."],
    "label": "0",
}
PIQA = {"goal": "How to boil an egg?", "sol1": "Use hot water.", "sol2": "Use ice.", "label": 1}
ARC = {
    "id": "Mercury_7175875",
    "question": "Which is warm?",
    "choices": {"text": ["Ice.", "Fire.", "Snow."], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
ARC_AS_PUBLISHED = {
    "id": "1",
    "question": {
        "stem": "Which is warm?",
        "choices": [{"text": "Ice.", "label": "1"}, {"text": "Fire.", "label": "2"}],
    },
    "answerKey": "2",
}


def write(folder: Path, *records: object) -> list[str]:
    path = folder / "task.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(path)]


@pytest.mark.parametrize(
    ("record", "question"),
    [
        (PLAIN, Question("The sea was", ("calm.", "made of tin."), 0)),
        (
            HELLASWAG,
            Question(
                "Roof shingle removal: A man is sitting on a roof. he",
                ("starts pulling up roofing.", " rips tiles.", "naps.", "sings."),
                0,
            ),
        ),
        (
            PIQA,
            Question("Question: How to boil an egg?\nAnswer:", ("Use hot water.", "Use ice."), 1),
        ),
        (ARC, Question("Question: Which is warm?\nAnswer:", ("Ice.", "Fire.", "Snow."), 1)),
        (ARC_AS_PUBLISHED, Question("Question: Which is warm?\nAnswer:", ("Ice.", "Fire."), 1)),
    ],
    ids=["plain", "hellaswag", "piqa", "arc", "arc_as_published"],
)
def test_each_form_is_known_by_its_fields(
    record: dict[str, Any], question: Question, tmp_path: Path
) -> None:
    assert read_questions("mine", write(tmp_path, record)).questions == (question,)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "the fields text are of no known form; the forms are ctx, endings; goal"),
        ([1], "is not a JSON object"),
        ({**PLAIN, "context": 3}, "field context is not a text"),
        ({**PLAIN, "choices": "ab"}, "field choices is not a list of texts"),
        ({**PLAIN, "choices": ["a"]}, "needs at least two choices"),
        ({**PLAIN, "choices": ["a", " "]}, "a choice is blank"),
        ({**PLAIN, "label": 2}, "field label: 2 is none of the 2 choices, which count from 0"),
        ({**PLAIN, "context": "\ud800"}, "a text has half of a surrogate pair"),
        ({**HELLASWAG, "label": ""}, "field label is not the number of a choice; a test set"),
        ({**PIQA, "label": True}, "field label is not the number of a choice"),
        ({**PIQA, "sol2": None}, "field sol2 is not a text"),
        ({**ARC, "answerKey": "D"}, "field answerKey: 'D' is none of the labels A, B, C"),
        ({**ARC, "choices": ["a"]}, "field choices has neither texts and labels nor a list"),
    ],
)
def test_a_line_that_is_no_question_is_named_with_its_field(
    record: object, message: str, tmp_path: Path
) -> None:
    (path,) = write(tmp_path, PLAIN, record)
    with pytest.raises(FlagError) as error:
        read_questions("mine", [path])
    assert str(error.value).startswith(f"--tasks mine: {path}, line 2")
    assert message in str(error.value)


def test_files_that_are_not_json_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text("context,choices\n")
    with pytest.raises(FlagError, match="line 1 is not JSON"):
        read_questions("mine", [str(path)])
    path.write_text("\n\n")
    with pytest.raises(FlagError, match="has no question"):
        read_questions("mine", [str(path)])
    packed = tmp_path / "task.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(PLAIN).encode() * 9)[:-8])
    with pytest.raises(FlagError, match=r"--tasks mine: .*task\.jsonl\.gz: "):
        read_questions("mine", [str(packed)])


def test_of_a_long_file_questions_are_taken_evenly(tmp_path: Path) -> None:
    records = [{**PLAIN, "context": str(i)} for i in range(100)]
    packed = tmp_path / "task.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    file = read_questions("mine", [str(packed)], limit=4)
    assert [each.context for each in file.questions] == ["0", "25", "50", "75"]
    assert file.chance == 0.5
    assert len(read_questions("mine", [str(packed)], limit=100).questions) == 100


def test_stored_questions_are_loaded_as_they_were(tmp_path: Path) -> None:
    file = read_questions("mine", write(tmp_path, PLAIN, ARC))
    path = store_questions([file], tmp_path / "tasks")
    assert load_questions(str(path)) == (file,)
    assert store_questions([file], tmp_path / "tasks") == path
    assert store_questions([file, file], tmp_path / "tasks") != path
