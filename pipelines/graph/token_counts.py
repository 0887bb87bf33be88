"""Counts the tokens of documents in a pass over their records: by another tokenizer, or by a field.

Only the documents that a ranking leaves are counted. Their records are compared with the score
file as in the second read of a selection.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datarater.pipelines import errors
from datarater.pipelines.errors import InputChangedError, UsageError
from datarater.pipelines.graph.output_files import ScoredPart
from datarater.pipelines.graph.record_writers import take_field
from datarater.pipelines.graph.second_read import KeptSplit, by_section
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.rater_model.documents.files import open_file
from datarater.rater_model.documents.json_lines import load_json
from datarater.rater_model.documents.parquet import find_column
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.documents.remote_file import WHOLE
from datarater.rater_model.documents.store_errors import raising_os_errors
from datarater.rater_model.plain_tokenizer import parse_tokenizer
from datarater.rater_model.tokenizer import TokenizerError, in_chunks

MAX_TOKENS = 2**32
"""Maximum number of tokens of a document. What is larger is no count but, for example, a hash, of
which the sum over a corpus would not be an int64."""


class TokenCounterError(UsageError):
    """A `tokenizer.json` cannot be used; the message names it."""


class TokenCounter:
    """Counts tokens with a `tokenizer.json` of the tokenizers library.

    The tokens are those of the text alone: no token is added before or after it, and a special
    token that a text contains is plain text.

    Args:
        path: Path or URL of the `tokenizer.json`.

    Attributes:
        digest: SHA-256 of the file.

    Raises:
        TokenCounterError: The file is not a tokenizer for every text.
        UnreadableInputError: It cannot be read.
    """

    def __init__(self, path: str):
        try:
            with raising_os_errors(path), open_file(path, in_order_to=WHOLE) as file:
                content = file.read()
        except OSError as error:
            raise errors.reading_failed(path, error) from error
        try:
            self._tokenizer = parse_tokenizer(content, path)
        except TokenizerError as error:
            raise TokenCounterError(f"--tokens_from: {error}") from error
        self.digest = hashlib.sha256(content).hexdigest()

    @classmethod
    def unchanged(cls, path: str, digest: str) -> TokenCounter:
        """Returns the counter of a file, which must have a digest.

        Raises:
            InputChangedError: The file was modified.
        """
        counter = cls(path)
        if counter.digest != digest:
            raise InputChangedError(
                f"--tokens_from: {path} was modified since the selection began; restore it, or run "
                "the command again with another --name"
            )
        return counter

    def counts(self, kept: KeptSplit) -> Iterator[int]:
        """Yields the number of tokens of each kept document of a file."""
        yield from self.count(document.text for document, _ in kept.documents())

    def count(self, texts: Iterable[str]) -> Iterator[int]:
        """Yields the number of tokens of each text."""
        for chunk in in_chunks(texts):
            for encoding in self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                yield len(encoding)


@dataclasses.dataclass(frozen=True)
class FieldCounter:
    """Takes the number of tokens from a field of the records.

    Attributes:
        field: Name of the field, or its dotted path.
    """

    field: str

    def counts(self, kept: KeptSplit) -> Iterator[int | None]:
        """Yields the count of each kept document of a file; None where it has none.

        A count is a whole number from 0 to `MAX_TOKENS`.
        """
        source = kept.source
        if source.is_table:
            for table, _ in kept.scored_tables():
                yield from map(_count, self._column(table))
            return
        for document, _ in kept.documents():
            fields = load_json(source.json_line(document, kept.options))
            yield _count(take_field(fields, self.field, source.nested_separator))

    def _column(self, table: pa.Table) -> list[Any]:
        place = find_column(table.schema, self.field)
        if place is None:
            return [None] * table.num_rows
        index, names, _ = place
        column = table.column(index)
        return (pc.struct_field(column, list(names)) if names else column).to_pylist()


def _count(value: Any) -> int | None:
    """Returns a value as a number of tokens; None if it is none."""
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value <= MAX_TOKENS and value % 1 == 0 else None


def token_counts(
    counter: TokenCounter | FieldCounter,
    parts: Callable[[], Iterable[ScoredPart]],
    read: ReadOptions,
) -> Iterator[int | None]:
    """Yields the tokens of the chosen documents of a split, in the order of its score file.

    Of a document without a count it yields None.

    Args:
        counter: What counts them.
        parts: Returns the row groups of the split's score file, each with the mask of the chosen
            rows.
        read: How records are read.

    Raises:
        InputChangedError: An input has changed since it was scored.
        UnreadableInputError: An input cannot be read.
    """
    chosen = {number for part in parts() for number, _, mask_S in by_section(*part) if mask_S.any()}
    rows = (row for part in parts() for row in by_section(*part))
    for number, of_section in itertools.groupby(rows, operator.itemgetter(0)):
        if number not in chosen:
            continue
        kept = _kept_split(of_section, read)
        path = kept.task.split.path
        try:
            with raising_os_errors(path):
                yield from counter.counts(kept)
        except OSError as error:
            raise errors.reading_failed(path, error) from error


def _kept_split(
    rows: Iterator[tuple[int, ScoreFile, NDArray[np.bool_]]], read: ReadOptions
) -> KeptSplit:
    """Returns the chosen documents of one file, given its rows, a part at a time."""
    _, section, mask_S = next(rows)
    more = ((part.table, more_S) for _, part, more_S in rows)
    tables = itertools.chain([(section.table, mask_S)], more)
    return KeptSplit(section.task, section.content, tables, read)
