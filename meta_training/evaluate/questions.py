"""Multiple-choice questions from users' files: HellaSwag, PIQA, ARC, or a plain form.

Files are JSONL, compressed or not. The fields of a line tell its form:

    HellaSwag   ctx, endings, label, and if present activity_label
    PIQA        goal, sol1, sol2, label
    ARC         question, choices, answerKey, as its authors or Hugging Face publish it
    plain       context, choices, label

Labels count from 0. Contexts are put as the Language Model Evaluation Harness puts them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.protocol import QUESTIONS
from datarater.rater_model.atomic_files import replacing
from datarater.rater_model.documents.decompression import StreamError, decompressed_chunks
from datarater.rater_model.documents.files import list_files, open_file
from datarater.rater_model.documents.reading import sniff


@dataclasses.dataclass(frozen=True)
class Question:
    """A context and what may follow it.

    Attributes:
        context: Text before the choices; may be empty.
        choices: Choices, at least two, none of them blank.
        label: Index of the right choice.
    """

    context: str
    choices: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True)
class QuestionFile:
    """The questions of a downstream task.

    Attributes:
        name: Name that the user gave it.
        questions: At least one question.
    """

    name: str
    questions: tuple[Question, ...]

    @property
    def chance(self) -> float:
        """Expected accuracy of a random choice."""
        return sum(1 / len(each.choices) for each in self.questions) / len(self.questions)


def read_questions(
    name: str, patterns: Sequence[str], limit: int | None = QUESTIONS, given_as: str = ""
) -> QuestionFile:
    """Reads the questions of a task.

    Args:
        name: Name of the task.
        patterns: Files or globs.
        limit: Maximum number of questions; of more, as many are taken evenly. None for all.
        given_as: What names the files, for messages; `--tasks NAME` if empty.

    Raises:
        FlagError: If a file is not JSONL or a line is not a question; names the line and field.
        NoInputError: If a pattern matches no file.
        OSError: If a file cannot be read.
    """
    given_as = given_as or f"--tasks {name}"
    questions = []
    for info in list_files(patterns):
        where = f"{given_as}: {info.path}"
        for number, line in enumerate(_content(info.path, where).split(b"\n"), 1):
            if line.strip():
                questions.append(_question(line, f"{where}, line {number}"))
    if not questions:
        raise FlagError(f"{given_as}: {', '.join(patterns)} has no question")
    if limit is not None and len(questions) > limit:
        questions = [questions[index * len(questions) // limit] for index in range(limit)]
    return QuestionFile(name, tuple(questions))


def _content(path: str, where: str) -> bytes:
    _, compression = sniff(path)
    try:
        with open_file(path) as file:
            return b"".join(decompressed_chunks(file, compression))
    except StreamError as error:
        raise FlagError(f"{where}: {error.detail}") from error


def store_questions(files: Sequence[QuestionFile], folder: Path) -> Path:
    """Writes questions to a file named by their digest and returns its path."""
    content = json.dumps([dataclasses.asdict(each) for each in files]).encode()
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            new.write_bytes(content)
    return path


@functools.lru_cache(maxsize=2)
def load_questions(path: str) -> tuple[QuestionFile, ...]:
    """Returns the questions of a file that `store_questions` wrote; reads it once in a process."""
    return tuple(
        QuestionFile(
            each["name"],
            tuple(
                Question(one["context"], tuple(one["choices"]), one["label"])
                for one in each["questions"]
            ),
        )
        for each in json.loads(Path(path).read_bytes())
    )


def _question(line: bytes, where: str) -> Question:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise FlagError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise FlagError(f"{where} is not a JSON object")
    for fields, read in _FORMS:
        if all(field in record for field in fields):
            return _checked(read(record, where), where)
    forms = "; ".join(", ".join(fields) for fields, _ in _FORMS)
    raise FlagError(
        f"{where}: the fields {', '.join(map(str, record))} are of no known form; the forms are "
        f"{forms}"
    )


def _checked(question: Question, where: str) -> Question:
    if len(question.choices) < 2:
        raise FlagError(f"{where}: a question needs at least two choices")
    if not all(choice.strip() for choice in question.choices):
        raise FlagError(f"{where}: a choice is blank")
    if not 0 <= question.label < len(question.choices):
        raise FlagError(
            f"{where}: field label: {question.label} is none of the {len(question.choices)} "
            "choices, which count from 0"
        )
    for text in (question.context, *question.choices):
        if not _is_unicode(text):
            raise FlagError(f"{where}: a text has half of a surrogate pair and is not Unicode")
    return question


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _hellaswag(record: Mapping[str, Any], where: str) -> Question:
    context = _text(record, "ctx", where)
    if "activity_label" in record:
        context = f"{_text(record, 'activity_label', where)}: {context}"
    endings = map(_without_marks, _texts(record, "endings", where))
    return Question(_without_marks(context), tuple(endings), _label(record, where))


def _without_marks(text: str) -> str:
    """Removes the marks of WikiHow's pages, such as [title] and [step]."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _piqa(record: Mapping[str, Any], where: str) -> Question:
    choices = tuple(_text(record, field, where) for field in ("sol1", "sol2"))
    return Question(_asked(_text(record, "goal", where)), choices, _label(record, where))


def _arc(record: Mapping[str, Any], where: str) -> Question:
    question = record["question"]
    nested = isinstance(question, dict)
    asked = _text(question, "stem", where) if nested else _text(record, "question", where)
    choices = question.get("choices") if nested else record.get("choices")
    if isinstance(choices, dict):
        texts, labels = _texts(choices, "text", where), _texts(choices, "label", where)
    elif isinstance(choices, list) and all(isinstance(each, dict) for each in choices):
        texts = tuple(_text(each, "text", where) for each in choices)
        labels = tuple(_text(each, "label", where) for each in choices)
    else:
        raise FlagError(f"{where}: field choices has neither texts and labels nor a list of them")
    key = _text(record, "answerKey", where)
    if key not in labels or len(texts) != len(labels):
        raise FlagError(
            f"{where}: field answerKey: {key!r} is none of the labels {', '.join(labels)}"
        )
    return Question(_asked(asked), texts, labels.index(key))


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _plain(record: Mapping[str, Any], where: str) -> Question:
    context = _text(record, "context", where)
    return Question(context, _texts(record, "choices", where), _label(record, where))


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise FlagError(f"{where}: field {field} is not a text")
    return value


def _texts(record: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    values = record.get(field)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise FlagError(f"{where}: field {field} is not a list of texts")
    return tuple(values)


def _label(record: Mapping[str, Any], where: str) -> int:
    value = record.get("label")
    # HellaSwag of Hugging Face has labels as texts, empty in its test set.
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FlagError(
            f"{where}: field label is not the number of a choice; a test set without labels cannot "
            "be used"
        )
    return value


_FORMS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any], str], Question]], ...] = (
    (("ctx", "endings"), _hellaswag),
    (("goal", "sol1", "sol2"), _piqa),
    (("question", "answerKey"), _arc),
    (("context", "choices"), _plain),
)
