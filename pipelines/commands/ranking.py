"""Turns the flags of a ranking into `RankingOptions`, after checking them against the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from datarater.pipelines.commands import flags
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph import joined_tables
from datarater.pipelines.graph.joined_tables import column_type, is_key_type
from datarater.pipelines.graph.token_counts import TokenCounter
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.ranking_options import (
    ID_COLUMN,
    KEY_COLUMN,
    OWN_COLUMNS,
    RECORD,
    ColumnType,
    JoinedTable,
    RankingOptions,
)
from datarater.pipelines.selection.expressions import (
    Expression,
    ExpressionError,
    Kind,
    unknown_column,
)
from datarater.rater_model.command_line import near_miss
from datarater.rater_model.documents.records import FileInfo

FOOTERS_AT_FIRST = 100
"""Number of files of a joined table whose columns are checked before work begins."""

PathLike = str | Path


@dataclasses.dataclass(frozen=True)
class _Found:
    """A joined table as its files are."""

    name: str
    patterns: tuple[str, ...]
    key: str
    types: dict[str, ColumnType | None]
    files: tuple[FileInfo, ...]


def ranking_options(
    joins: Mapping[str, Sequence[str]],
    keys: Mapping[str, str] | None = None,
    where: str = "",
    rank_by: str = "",
    tokens_from: str = "",
    raters: Sequence[str] = (),
    duplicates: str = "",
) -> RankingOptions | None:
    """Returns the ranking that options describe; None if there is none.

    Args:
        joins: Paths, folders and globs of each joined table, by its name.
        keys: Name of the key column by table; by default `key`, else `id`.
        where: Condition that a document must meet; "" for none.
        rank_by: Number to rank by; "" for the run's score.
        tokens_from: What counts the tokens of a document: a column, a field of its record as
            `record.FIELD`, or the path of a `tokenizer.json`; "" for the rater's tokenizer.
        raters: Names of the raters of the run beside the first one.
        duplicates: Name of the deduplication whose near-duplicates are left out; "" for none.

    Raises:
        UsageError: An expression cannot be parsed or does not fit the columns, or a table is of no
            use; the message names the flag.
        NoMatchError: No file of a table matches.
        UnreadableInputError: A file cannot be read.
    """
    # What needs no file is checked first.
    expressions = {
        flag: _parsed(flag, text) for flag, text in (("where", where), ("rank_by", rank_by)) if text
    }
    keys = keys or {}
    for name in joins:
        check_name(name, raters)
    for name in keys:
        if name not in joins:
            raise UsageError(f"--join_key {name}: there is no --join {name}")
    if not (joins or expressions or tokens_from or duplicates):
        return None

    # Then the expressions against the columns that the tables have.
    tables = [_find(name, patterns, keys.get(name)) for name, patterns in joins.items()]
    types: dict[str, ColumnType | None] = {
        f"{table.name}.{column}": kind for table in tables for column, kind in table.types.items()
    }
    own = OWN_COLUMNS | dict.fromkeys(raters, Kind.NUMBER)
    kinds = own | {name: kind.kind for name, kind in types.items() if kind is not None}
    used: list[str] = []
    for flag, expression in expressions.items():
        _check(flag, expression, types, kinds, Kind.TRUTH if flag == "where" else Kind.NUMBER)
        used += expression.columns()
    tokenizer = ""
    if tokens_from and (_is_column(tokens_from, types) or tokens_from in own):
        _check("tokens_from", _parsed("tokens_from", tokens_from), types, kinds, Kind.NUMBER)
        used.append(tokens_from)
    elif tokens_from and (commits.exists(tokens_from) or not _is_field(tokens_from)):
        tokenizer = _tokenizer_digest(tokens_from, kinds)

    return RankingOptions(
        joins=tuple(_used_of(table, used) for table in tables),
        where=where,
        rank_by=rank_by,
        tokens_from=tokens_from,
        duplicates=duplicates,
        tokenizer=tokenizer,
    )


def check_rater_name(name: str) -> None:
    """Refuses a name that another rater cannot have.

    Raises:
        UsageError: The message says why.
    """
    if not flags.is_column_name(name):
        raise UsageError(f"--rater {name}: {name!r} is not a {flags.COLUMN_NAME}")
    if name in OWN_COLUMNS:
        raise UsageError(
            f"--rater {name}: {name!r} is a column of every document; give the rater another name"
        )


def check_name(name: str, raters: Sequence[str] = ()) -> None:
    """Refuses a name that a joined table cannot have.

    Args:
        name: The name.
        raters: Names of the raters of the run beside the first one.

    Raises:
        UsageError: The message says why.
    """
    if not flags.is_column_name(name):
        raise UsageError(f"--join {name}: {name!r} is not a {flags.COLUMN_NAME}")
    if name in OWN_COLUMNS or name in raters:
        raise UsageError(
            f"--join {name}: {name!r} is a column of every document; give the table another name"
        )
    if f"{name}." == RECORD:
        raise UsageError(
            f"--join {name}: {RECORD}FIELD is a field of the records in --tokens_from; give the "
            "table another name"
        )


def _parsed(flag: str, text: str) -> Expression:
    try:
        return Expression.parse(text)
    except ExpressionError as error:
        raise UsageError(f"--{flag}: {error}") from error


def _is_column(text: str, types: Iterable[str]) -> bool:
    """Returns whether a text names a column of a joined table, or nearly so, and no file."""
    return text in types or (not commits.exists(text) and near_miss(text, types) is not None)


def _is_field(text: str) -> bool:
    """Returns whether a text names a field of the records."""
    return text.startswith(RECORD) and text != RECORD


def _tokenizer_digest(path: str, kinds: Iterable[str]) -> str:
    """Returns the digest of a `tokenizer.json`.

    Raises:
        UsageError: There is no such file.
        TokenCounterError: It is not a tokenizer.
        UnreadableInputError: It cannot be read.
    """
    if not commits.exists(path):
        raise UsageError(
            f"--tokens_from: {path!r} is neither a tokenizer.json nor a column; there are the "
            f"columns {', '.join(kinds)}; write {RECORD}FIELD for a field of the records"
        )
    return TokenCounter(path).digest


def _check(
    flag: str,
    expression: Expression,
    types: Mapping[str, ColumnType | None],
    kinds: Mapping[str, Kind],
    result: Kind,
) -> None:
    unusable = [name for name in expression.columns() if types.get(name, True) is None]
    if unusable:
        raise UsageError(
            f"--{flag}: rules can use numbers, texts and truths, and {unusable[0]!r} is none of "
            "them, or not the same in all files; write a column of one of these"
        )
    try:
        expression.check(kinds, result)
    except ExpressionError as error:
        raise UsageError(f"--{flag}: {error}") from error


def _find(name: str, patterns: Sequence[str], key: str | None) -> _Found:
    """Looks at the files of a table; see `ranking_options`."""
    files = tuple(joined_tables.files_of(name, patterns))

    def schema_of(file: FileInfo) -> pa.Schema:
        with joined_tables.opened(name, file.path) as parquet:
            return parquet.schema_arrow

    first = files[:FOOTERS_AT_FIRST]
    schemas = list(zip(first, at_once(schema_of, first), strict=True))
    for file, schema in schemas:
        joined_tables.check_names(name, file.path, schema, schema.names)
    key = _key_column(name, first[0].path, schemas[0][1], key)
    types: dict[str, ColumnType | None] = {}
    for field in schemas[0][1]:
        stored = [
            schema.field(field.name).type for _, schema in schemas if field.name in schema.names
        ]
        types[field.name] = _common_type(stored)
    return _Found(name, tuple(patterns), key, types, files)


def _key_column(name: str, path: str, schema: pa.Schema, key: str | None) -> str:
    """Returns the name of the key column.

    Raises:
        UsageError: There is none, or it is neither text nor integer.
    """
    flag = f"--join_key {name}=COLUMN"
    if key is None:
        known = [column for column in (KEY_COLUMN, ID_COLUMN) if column in schema.names]
        if not known:
            raise UsageError(
                f"--join {name}: {path} has no column `key` or `id`; name the column with the "
                f"documents' ids by {flag}; there are {', '.join(schema.names)}"
            )
        key = known[0]
    elif key not in schema.names:
        error = unknown_column(key, schema.names)
        raise UsageError(f"--join_key {name}={key}: {path}: {error}")
    kind = schema.field(key).type
    if not is_key_type(kind) and not pa.types.is_null(kind):
        raise UsageError(
            f"--join {name}: the key column {key!r} of {path} is of type {kind}, not text or "
            f"integer; name another one by {flag}"
        )
    return key


def _common_type(stored: Iterable[pa.DataType]) -> ColumnType | None:
    """Returns the type that columns of several files are read as; None if rules cannot use it.

    A column that is null in all files is a text.
    """
    types = {column_type(kind) for kind in stored if not pa.types.is_null(kind)}
    if types == {ColumnType.INTEGER, ColumnType.NUMBER}:
        return ColumnType.NUMBER
    if len(types) > 1:
        return None
    return types.pop() if types else ColumnType.TEXT


def _used_of(table: _Found, used: Sequence[str]) -> JoinedTable:
    """Returns a table with the columns that rules use.

    Raises:
        UsageError: There are none.
        JoinError: A file lacks one of them.
    """
    columns: dict[str, ColumnType] = {}
    for name in sorted(set(used)):
        kind = table.types.get(name.removeprefix(f"{table.name}."))
        if name.startswith(f"{table.name}.") and kind is not None:
            columns[name.removeprefix(f"{table.name}.")] = kind
    if not columns:
        raise UsageError(
            f"--join {table.name}: no rule uses a column of it; name one as {table.name}.COLUMN in "
            "--where, --rank_by or --tokens_from"
        )
    return JoinedTable(
        name=table.name,
        patterns=table.patterns,
        key=table.key,
        columns=columns,
        inputs=joined_tables.identify(table.files),
    )
