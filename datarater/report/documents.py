"""Reads the texts of a few documents of a run, by their positions in the input."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator

from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.rater_model.documents.jsonl import Jsonl
from datarater.rater_model.documents.reading import read_split
from datarater.rater_model.documents.records import (
    Compression,
    Document,
    ReadOptions,
    Split,
)
from datarater.report.visible import cut

MAX_CHARACTERS = 600
MAX_LINES = 12
Place = tuple[int, int]
"""A split's ordinal and a position in its file."""


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
    folder: RunFolder, places: Iterable[Place], options: ReadOptions, seconds: float
) -> dict[Place, Text]:
    """Reads the beginnings of documents from the input of a run.

    Nothing is raised: a document that cannot be read has the reason in its place.

    Args:
        folder: The run folder.
        places: Where the documents are.
        options: How the run reads its input.
        seconds: Time after which no more is read; a document late in a compressed stream can take
            long.
    """
    by_split: dict[int, set[int]] = {}
    for ordinal, position in places:
        by_split.setdefault(ordinal, set()).add(position)

    deadline = time.monotonic() + seconds
    texts: dict[Place, Text] = {}
    for ordinal, positions in sorted(by_split.items()):
        missing = NOT_REACHED
        if time.monotonic() < deadline:
            missing = Text(None, reason="The text was not found where it was scored.")
            try:
                for position, text in _texts_of_split(
                    folder, ordinal, positions, options, deadline
                ):
                    texts[ordinal, position] = text
            except TimeoutError:
                missing = NOT_REACHED
            except Exception as error:
                missing = Text(None, reason=f"The text cannot be read: {error}")
        for position in positions:
            texts.setdefault((ordinal, position), missing)
    return texts


def _texts_of_split(
    folder: RunFolder, ordinal: int, positions: set[int], options: ReadOptions, deadline: float
) -> Iterator[tuple[int, Text]]:
    """Yields the texts at some positions of a split.

    Raises:
        TimeoutError: The deadline has passed.
    """
    file = ScoreFile.read(folder, ordinal, ("position", "key"))
    columns = file.table.to_pydict()
    keys = dict(zip(columns["position"], columns["key"], strict=True))
    left = set(positions)
    for split in (*_lines(file.task.split, sorted(left)), file.task.split):
        if not left:
            return
        for record in read_split(split, options):
            if time.monotonic() > deadline:
                raise TimeoutError
            if record.position in left and isinstance(record, Document):
                left.remove(record.position)
                yield record.position, _checked(record, keys[record.position])
            if not left:
                return


def _lines(split: Split, positions: Iterable[int]) -> Iterator[Split]:
    """Yields the line at each position, where a file can be read from any byte."""
    if split.format == Jsonl.name and split.compression is Compression.NONE:
        for position in positions:
            yield dataclasses.replace(split, start=position, end=position + 1)


def _checked(document: Document, key: str) -> Text:
    if document.key != key:
        return Text(None, reason="The input has changed since it was scored.")
    return Text(*cut(document.text.lstrip("\r\n"), MAX_CHARACTERS, MAX_LINES))
