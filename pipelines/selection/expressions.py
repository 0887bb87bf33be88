"""Expressions over the signals of a document: conditions to keep it, and the number to rank it by.

    lang.language == 'en' and quality.score >= 0.3
    0.7 * rater + 0.3 * quality.score

The grammar is a small part of Python's, which parses the text; nothing is evaluated by Python. A
name is a column (`rater`, `quality.score`, or `quality["a name"]` for one that is no word). There
are numbers, texts, and truths; `and`, `or`, `not`; `==`, `!=`, `<`, `<=`, `>`, `>=`, also chained;
`in` and `not in` a list of constants; `is None` and `is not None`; and `+`, `-`, `*`, `/`.

Arithmetic is float64, in the order in which it is written, so that it gives the same bits on every
machine. Two integers are compared exactly, and any other two numbers as float64.

A value may be missing. What is computed from a missing value is missing too, and so is the result
of an operation that is not a number, such as 0 / 0. Truths follow the logic of SQL: `missing and
False` is false, `missing or True` is true, and `not missing` is missing. A document whose condition
is missing does not meet it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datarater.pipelines.selection.ranking import SelectionError
from datarater.rater_model.command_line import near_miss

MAX_CHARACTERS = 10_000
MAX_DEPTH = 200
"""Maximum number of operations within each other, with which a worker's stack still has room."""
_SHOWN_CHARACTERS = 200


class Kind(StrEnum):
    """What the values of a column are."""

    NUMBER = "number"
    TEXT = "text"
    TRUTH = "truth"


class ExpressionError(SelectionError):
    """An expression cannot be parsed, or does not fit the columns."""


@dataclass(frozen=True)
class _Column:
    name: str


@dataclass(frozen=True)
class _Constant:
    value: bool | int | float | str


@dataclass(frozen=True)
class _Operation:
    """An operation on other nodes; `is None` has one operand, `and` and `or` two or more."""

    name: str
    operands: tuple[_Node, ...]


_Node = _Column | _Constant | _Operation

_ARITHMETIC = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}
_COMPARISONS = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_FUNCTIONS = {
    "+": pc.add,
    "-": pc.subtract,
    "*": pc.multiply,
    "/": pc.divide,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_CONSTANT_NAMES = {"true": True, "false": False}


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: The text that was parsed.
    """

    text: str
    _root: _Node

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Parses an expression.

        Raises:
            ExpressionError: The text is not an expression of the grammar.

        Example:
            >>> Expression.parse("0.7 * rater + 0.3 * quality.score").columns()
            ['rater', 'quality.score']
        """
        if len(text) > MAX_CHARACTERS:
            raise ExpressionError(f"the expression is longer than {MAX_CHARACTERS:,} characters")
        shown = repr(text[:_SHOWN_CHARACTERS]) + "..." * (len(text) > _SHOWN_CHARACTERS)
        try:
            root = _node(ast.parse(text.strip(), mode="eval").body)
            too_deep = _depth(root) > MAX_DEPTH
        except (SyntaxError, ValueError) as error:
            if isinstance(error, ExpressionError):
                raise ExpressionError(f"{shown}: {error}") from None
            what = error.msg if isinstance(error, SyntaxError) else str(error)
            raise ExpressionError(f"{shown} is not an expression: {what}") from None
        except (RecursionError, MemoryError):
            too_deep = True
        if too_deep:
            raise ExpressionError(
                f"{shown} is nested too deeply: it has more than {MAX_DEPTH} operations within "
                "each other"
            )
        return cls(text, root)

    def columns(self) -> list[str]:
        """Returns the names of the columns, each once, in the order of their first use."""
        return list(dict.fromkeys(_columns(self._root)))

    def check(self, kinds: Mapping[str, Kind], result: Kind) -> None:
        """Checks the expression against the columns that there are.

        Args:
            kinds: Kind of every column, by name.
            result: What the expression must be.

        Raises:
            ExpressionError: A column is unknown, an operation does not fit its operands, or the
                result is of another kind.
        """
        actual = _kind(self._root, kinds)
        if actual is not result:
            raise ExpressionError(f"{self.text!r} is a {actual}, not a {result}")

    def evaluate(self, columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
        """Returns the value of the expression for every row.

        Args:
            columns: The columns, each an array of `rows` values: float64 or int64, text, or bool.
            rows: Number of rows.

        Returns:
            The values: float64 or int64, text, or bool; null where they are missing.
        """
        value = _value(self._root, columns)
        return pa.repeat(value, rows) if isinstance(value, pa.Scalar) else value


# Parsing.


def _node(tree: ast.AST) -> _Node:
    match tree:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return _Constant(_storable(value))
        case ast.Name(id=name) if name in _CONSTANT_NAMES:
            return _Constant(_CONSTANT_NAMES[name])
        case ast.Name() | ast.Attribute() | ast.Subscript():
            return _Column(_column_name(tree))
        case ast.BoolOp(op=op, values=values):
            name = "and" if isinstance(op, ast.And) else "or"
            return _Operation(name, tuple(map(_node, values)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _Operation("not", (_node(operand),))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _negative(_node(operand))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _node(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _Operation(_ARITHMETIC[type(op)], (_node(left), _node(right)))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            operands = [left, *rights]
            parts = [
                _comparison(op, before, after)
                for op, before, after in zip(ops, operands, operands[1:], strict=False)
            ]
            return parts[0] if len(parts) == 1 else _Operation("and", tuple(parts))
    raise ExpressionError(
        f"{ast.unparse(tree)!r} is not allowed here; write columns, constants, comparisons, and, "
        "or, not, in, is None, and + - * /"
    )


def _storable(value: bool | int | float | str) -> bool | int | float | str:
    """Returns a constant, unless no column can have its value."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ExpressionError("a number is too large for float64")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ExpressionError(f"{value!r} has a lone surrogate, which no text has") from None
    return value


def _depth(node: _Node) -> int:
    """Returns the number of nodes on the longest way from a node to a column or a constant."""
    return 1 + max(map(_depth, node.operands), default=0) if isinstance(node, _Operation) else 1


def _negative(operand: _Node) -> _Node:
    if isinstance(operand, _Constant) and not isinstance(operand.value, bool | str):
        return _Constant(-operand.value)
    return _Operation("-", (_Constant(0.0), operand))


def _column_name(tree: ast.AST) -> str:
    match tree:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{_column_name(value)}.{name}"
        case ast.Subscript(value=value, slice=ast.Constant(value=str() as name)):
            return f"{_column_name(value)}.{name}"
    raise ExpressionError(f"{ast.unparse(tree)!r} is not the name of a column")


def _comparison(op: ast.cmpop, left: ast.AST, right: ast.AST) -> _Node:
    if isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise ExpressionError("`is` compares with None alone; use == to compare values")
        is_missing = _Operation("is None", (_node(left),))
        return is_missing if isinstance(op, ast.Is) else _Operation("not", (is_missing,))
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List | ast.Set):
            raise ExpressionError("`in` needs a list of constants, such as ('en', 'de')")
        values = tuple(map(_node, right.elts))
        if not all(isinstance(value, _Constant) for value in values):
            raise ExpressionError("`in` needs a list of constants, such as ('en', 'de')")
        is_in = _Operation("in", (_node(left), *values))
        return is_in if isinstance(op, ast.In) else _Operation("not", (is_in,))
    for side in (left, right):
        if isinstance(side, ast.Constant) and side.value is None:
            raise ExpressionError("compare with None by `is None` or `is not None`")
    return _Operation(_COMPARISONS[type(op)], (_node(left), _node(right)))


def _columns(node: _Node) -> Iterator[str]:
    if isinstance(node, _Column):
        yield node.name
    elif isinstance(node, _Operation):
        for operand in node.operands:
            yield from _columns(operand)


# Kinds.


def unknown_column(name: str, known: Sequence[str]) -> ExpressionError:
    """Returns the error about a column that does not exist, with the name that was likely meant."""
    near = near_miss(name, known)
    hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(known)}"
    return ExpressionError(f"there is no column {name!r}{hint}")


def _kind(node: _Node, kinds: Mapping[str, Kind]) -> Kind:
    if isinstance(node, _Column):
        if node.name not in kinds:
            raise unknown_column(node.name, list(kinds))
        return kinds[node.name]
    if isinstance(node, _Constant):
        if isinstance(node.value, bool):
            return Kind.TRUTH
        return Kind.TEXT if isinstance(node.value, str) else Kind.NUMBER

    actual = [_kind(operand, kinds) for operand in node.operands]
    shown = [_shown(operand) for operand in node.operands]
    match node.name:
        case "is None":
            return Kind.TRUTH
        case "and" | "or" | "not":
            _require(Kind.TRUTH, actual, shown, f"`{node.name}`")
            return Kind.TRUTH
        case "+" | "-" | "*" | "/":
            _require(Kind.NUMBER, actual, shown, f"`{node.name}`")
            return Kind.NUMBER

    # A comparison.
    for kind, text in zip(actual[1:], shown[1:], strict=True):
        if kind is not actual[0]:
            raise ExpressionError(
                f"{shown[0]} is a {actual[0]} and {text} a {kind}: they cannot be compared"
            )
    if actual[0] is Kind.TRUTH and node.name not in ("==", "!=", "in"):
        raise ExpressionError(f"{shown[0]} is a truth, which has no order: use == or !=")
    return Kind.TRUTH


def _require(expected: Kind, actual: Sequence[Kind], shown: Sequence[str], what: str) -> None:
    for kind, text in zip(actual, shown, strict=True):
        if kind is not expected:
            raise ExpressionError(f"{text} is a {kind}, but {what} needs a {expected}")


def _shown(node: _Node) -> str:
    if isinstance(node, _Column):
        return f"`{node.name}`"
    return repr(node.value) if isinstance(node, _Constant) else f"the result of `{node.name}`"


# Values.


def _value(node: _Node, columns: Mapping[str, pa.Array]) -> Any:
    if isinstance(node, _Column):
        return columns[node.name]
    if isinstance(node, _Constant):
        return _scalar(node.value)

    values = [_value(operand, columns) for operand in node.operands]
    match node.name:
        case "is None":
            return pc.is_null(values[0])
        case "not":
            return pc.invert(values[0])
        case "and" | "or":
            join = pc.and_kleene if node.name == "and" else pc.or_kleene
            total = values[0]
            for value in values[1:]:
                total = join(total, value)
            return total
        case "+" | "-" | "*" | "/":
            result = _FUNCTIONS[node.name](*map(_as_float, values))
            return pc.if_else(pc.is_nan(result), pa.scalar(None, pa.float64()), result)
        case "in":
            if len(values) == 1:
                return pc.and_kleene(pc.is_null(values[0]), False)
            equal = _compared("==", values[0], values[1])
            for value in values[2:]:
                equal = pc.or_kleene(equal, _compared("==", values[0], value))
            return equal
    return _compared(node.name, *values)


def _scalar(value: bool | int | float | str) -> pa.Scalar:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        value = float(value)
    return pa.scalar(value)


def _as_float(value: Any) -> Any:
    return value.cast(pa.float64(), safe=False) if pa.types.is_integer(value.type) else value


def _compared(name: str, left: Any, right: Any) -> Any:
    if pa.types.is_floating(left.type) != pa.types.is_floating(right.type):
        left, right = _as_float(left), _as_float(right)
    return _FUNCTIONS[name](left, right)
