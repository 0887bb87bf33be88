"""Reads the texts of found documents from the input of a run, and nothing else of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from datarater.pipelines.graph.second_read import is_same_key
from datarater.pipelines.inspection.found_documents import FoundDocument, Place
from datarater.pipelines.run_folder.committed import at_once
from datarater.rater_model.documents.places import read_documents_at
from datarater.rater_model.documents.records import Compression, ReadOptions


@dataclasses.dataclass(frozen=True)
class Text:
    """The text of a document.

    Attributes:
        text: The whole text; None if it could not be read.
        reason: Why it could not be read; "" if it was.
    """

    text: str | None
    reason: str = ""


def read_texts(
    documents: Sequence[FoundDocument], options: ReadOptions, max_unpacked_bytes: int
) -> dict[Place, Text]:
    """Reads texts; one that cannot be read has the reason in its place.

    Args:
        documents: The documents.
        options: How the run reads its input.
        max_unpacked_bytes: Maximum number of bytes of a compressed stream that are unpacked to
            reach a document.
    """
    by_part: dict[int, list[FoundDocument]] = {}
    for document in documents:
        by_part.setdefault(document.place.part, []).append(document)

    texts: dict[Place, Text] = {}
    parts = list(by_part.values())
    for one in at_once(lambda part: dict(_texts_of(part, options, max_unpacked_bytes)), parts):
        texts |= one
    return texts


def _texts_of(
    documents: Iterable[FoundDocument], options: ReadOptions, max_unpacked_bytes: int
) -> Iterator[tuple[Place, Text]]:
    """Yields the texts of documents of one part of a file."""
    wanted: dict[int, FoundDocument] = {}
    for document in documents:
        split, place = document.split, document.place
        is_stream = split.compression is not Compression.NONE and not split.virtual
        if is_stream and place.position > max_unpacked_bytes:
            yield (
                place,
                Text(
                    None,
                    f"the text is {place.position:,} bytes into a compressed stream; "
                    "--max_unpacked_bytes reads that far",
                ),
            )
            continue
        wanted[place.position] = document

    if not wanted:
        return
    split = next(iter(wanted.values())).split
    missing = "the input has changed since it was scored: the text is not where it was"
    try:
        for record in read_documents_at(split, wanted.keys(), options):
            if record is None:
                continue
            document = wanted.pop(record.position)
            row = document.row
            same = record.size == row["bytes"] and is_same_key(record.key, row["key"])
            yield document.place, Text(record.text) if same else Text(None, missing)
    except OSError as error:
        missing = f"the input cannot be read: {error}"
    for document in wanted.values():
        yield document.place, Text(None, missing)
