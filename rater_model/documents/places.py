"""Reads single documents by their positions, with as few other bytes as their format allows."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.reading import read_split
from datarater.rater_model.documents.records import Document, ReadOptions, Split


def read_documents_at(
    split: Split, positions: Collection[int], options: ReadOptions
) -> Iterator[Document | None]:
    """Yields documents of a split, and None for every record on the way.

    Lines of plain JSONL files, row groups of Parquet and records of local ArrayRecord files are
    read by themselves; any other split from its beginning to the last document.

    Args:
        split: The split that contains the documents.
        positions: Positions of the documents.
        options: How the run reads its input.

    Raises:
        OSError: if the file cannot be read.
    """
    left = set(positions)
    for part in format_named(split.format).narrowed(split, sorted(left)):
        for record in read_split(part, options):
            wanted = record.position in left
            yield record if wanted and isinstance(record, Document) else None
            left.discard(record.position)
            if not left:
                return
