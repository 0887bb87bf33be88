"""Reads the texts of a few documents of a run, by their positions in the input."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from datarater.rater_model.documents.places import read_documents_at
from datarater.rater_model.documents.records import Document, ReadOptions
from datarater.report.sample import Candidate, Place
from datarater.report.visible import cut

MAX_CHARACTERS = 600
MAX_LINES = 12


@dataclasses.dataclass(frozen=True)
class Text:
    """The beginning of a document.

    Attributes:
        head: Its first characters; None if it could not be read.
        cut: Number of characters that follow.
        reason: Why it could not be read; "" if it was.
    """

    head: str | None
    cut: int = 0
    reason: str = ""


NOT_REACHED = Text(None, reason="The text was not read: the time for reading texts ran out.")


def read_texts(
    candidates: Sequence[Candidate], options: ReadOptions, seconds: float
) -> dict[Place, Text]:
    """Reads the beginnings of documents from the input of a run.

    Nothing is raised: a document that cannot be read has the reason in its place.

    Args:
        candidates: The documents.
        options: How the run reads its input.
        seconds: Time after which no more is read; a document late in a compressed stream can take
            long.
    """
    texts: dict[Place, Text] = {}
    deadline = time.monotonic() + seconds
    # Between two records nothing looks at the clock: a thread that hangs there is left behind.
    reader = threading.Thread(
        target=_fill, args=(texts, candidates, options, deadline), name="texts", daemon=True
    )
    reader.start()
    reader.join(seconds + 1)
    return {one.place: texts.get(one.place, NOT_REACHED) for one in candidates}


def _fill(
    texts: dict[Place, Text],
    candidates: Iterable[Candidate],
    options: ReadOptions,
    deadline: float,
) -> None:
    by_split: dict[int, dict[int, Candidate]] = {}
    for one in candidates:
        by_split.setdefault(one.split.ordinal, {})[one.position] = one

    for ordinal, wanted in sorted(by_split.items()):
        missing = NOT_REACHED
        if time.monotonic() < deadline:
            missing = Text(None, reason="The text was not found where it was scored.")
            try:
                for position, text in _texts_of_split(wanted, options, deadline):
                    texts[ordinal, position] = text
            except TimeoutError:
                missing = NOT_REACHED
            except Exception as error:
                missing = Text(None, reason=f"The text cannot be read: {error}")
        for position in wanted:
            texts.setdefault((ordinal, position), missing)


def _texts_of_split(
    wanted: Mapping[int, Candidate], options: ReadOptions, deadline: float
) -> Iterator[tuple[int, Text]]:
    """Yields the texts of documents of one split, given by their positions.

    Raises:
        TimeoutError: The deadline has passed.
    """
    split = next(iter(wanted.values())).split
    for document in read_documents_at(split, wanted.keys(), options):
        if time.monotonic() > deadline:
            raise TimeoutError
        if document is not None:
            yield document.position, _checked(document, wanted[document.position].key)


def _checked(document: Document, key: str) -> Text:
    if document.key != key:
        return Text(None, reason="The input has changed since it was scored.")
    return Text(*cut(document.text.lstrip("\r\n"), MAX_CHARACTERS, MAX_LINES))
