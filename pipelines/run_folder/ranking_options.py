"""What a selection ranks documents by, if it is not the score of the run alone."""

from __future__ import annotations

import dataclasses
import enum

import pyarrow as pa

from datarater.pipelines.run_folder.identity import InputsDigest
from datarater.pipelines.selection.expressions import Kind
from datarater.rater_model.json_codec import IF_SET

KEY_COLUMN = "key"
"""The column of a joined table whose values are keys of documents as score files have them."""
ID_COLUMN = "id"

OWN_COLUMNS = {
    "rater": Kind.NUMBER,
    "tokens": Kind.NUMBER,
    "bytes": Kind.NUMBER,
    "source": Kind.TEXT,
}
"""The columns of every document: the run's own score, tokens, bytes and source."""

RECORD = "record."
"""What the name of a field of the records begins with in `--tokens_from`."""

NEAR_DUPLICATE = "near_duplicate"
CONDITION_NOT_MET = "condition_not_met"
CONDITION_MISSING = "condition_missing"
RANK_MISSING = "rank_missing"
RANK_NOT_FINITE = "rank_not_finite"
TOKENS_MISSING = "tokens_missing"
EXCLUSIONS = (
    NEAR_DUPLICATE,
    CONDITION_NOT_MET,
    CONDITION_MISSING,
    RANK_MISSING,
    RANK_NOT_FINITE,
    TOKENS_MISSING,
)
"""Reasons why a ranking excludes a document, in the order in which they are checked."""


class ColumnType(enum.StrEnum):
    """The type that a column of a joined table is read as."""

    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    TRUTH = "truth"

    @property
    def kind(self) -> Kind:
        """What the values are in an expression."""
        return Kind.NUMBER if self is ColumnType.INTEGER else Kind(str(self))

    @property
    def arrow(self) -> pa.DataType:
        """The type of the values in Arrow."""
        return _ARROW[self]


_ARROW = {
    ColumnType.INTEGER: pa.int64(),
    ColumnType.NUMBER: pa.float64(),
    ColumnType.TEXT: pa.string(),
    ColumnType.TRUTH: pa.bool_(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinedTable:
    """A table of scores or labels made elsewhere: Parquet files with a key column.

    Attributes:
        name: What its columns are called by: `name.column`.
        patterns: Paths, folders and globs of its files.
        key: Name of the key column. Its values are keys as score files have them if it is called
            `key`, and ids of documents otherwise.
        columns: Type of each column that a rule uses, by its name in the files.
        inputs: What identifies the files.
    """

    name: str
    patterns: tuple[str, ...]
    key: str
    columns: dict[str, ColumnType]
    inputs: InputsDigest

    @property
    def by_id(self) -> bool:
        """Whether the key column has ids of documents."""
        return self.key != KEY_COLUMN

    def full_names(self) -> dict[str, ColumnType]:
        """Returns the type of each used column, by its name in rules."""
        return {f"{self.name}.{column}": kind for column, kind in self.columns.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """How the documents of a selection are filtered, ranked and measured.

    Attributes:
        joins: The joined tables.
        where: Condition that a document must meet; "" for none.
        rank_by: Number that documents are ranked by; "" for the run's score.
        tokens_from: What counts the tokens of a document: a column, a field of its record as
            `record.FIELD`, or the path of a `tokenizer.json`; "" for the rater's tokenizer.
        tokenizer: SHA-256 of the `tokenizer.json`; "" if a column or a field counts.
        duplicates: Name of the deduplication whose near-duplicates are left out; "" for none.
    """

    joins: tuple[JoinedTable, ...] = ()
    where: str = dataclasses.field(default="", metadata=IF_SET)
    rank_by: str = dataclasses.field(default="", metadata=IF_SET)
    tokens_from: str = dataclasses.field(default="", metadata=IF_SET)
    tokenizer: str = dataclasses.field(default="", metadata=IF_SET)
    duplicates: str = dataclasses.field(default="", metadata=IF_SET)

    @property
    def tokens_column(self) -> str:
        """The column that counts tokens; "" if something else does."""
        return "" if self.tokenizer or self.tokens_field else self.tokens_from

    @property
    def tokens_field(self) -> str:
        """The field of the records that counts tokens; "" if something else does."""
        is_field = not self.tokenizer and self.tokens_from.startswith(RECORD)
        return self.tokens_from.removeprefix(RECORD) if is_field else ""


@dataclasses.dataclass
class JoinCounts:
    """What was found in a joined table.

    Attributes:
        rows: Number of rows.
        without_key: Rows without a key, which are left out.
        duplicates: Rows with the key of an earlier row, which are left out. Rows are in the order
            of the files' paths.
    """

    rows: int = 0
    without_key: int = 0
    duplicates: int = 0

    def add(self, other: JoinCounts) -> None:
        """Adds other counts to these."""
        self.rows += other.rows
        self.without_key += other.without_key
        self.duplicates += other.duplicates


@dataclasses.dataclass(frozen=True)
class JoinsFile:
    """The content of `joins.json`.

    Attributes:
        tables: Counts of the joined tables, by name.
    """

    tables: dict[str, JoinCounts]
