"""Conditions and numbers over signals: their values, missing ones too, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.selection.expressions import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    Expression,
    ExpressionError,
    Kind,
)

KINDS = {
    "rater": Kind.NUMBER,
    "n": Kind.NUMBER,
    "lang.language": Kind.TEXT,
    "lang.is ok": Kind.TRUTH,
}
ROWS: list[dict[str, Any]] = [
    {"rater": 0.5, "n": 3, "lang.language": "en", "lang.is ok": True},
    {"rater": -1.5, "n": None, "lang.language": None, "lang.is ok": None},
    {"rater": 0.0, "n": 0, "lang.language": "de", "lang.is ok": False},
]


def values_of(text: str, rows: list[dict[str, Any]] = ROWS) -> list[Any]:
    types = {"n": pa.int64(), "rater": pa.float64(), "lang.is ok": pa.bool_()}
    columns = {
        name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in KINDS
    }
    values: list[Any] = Expression.parse(text).evaluate(columns, len(rows)).to_pylist()
    return values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lang.language == 'en'", [True, None, False]),
        ("not lang.language == 'en'", [False, None, True]),
        ("lang.language is None", [False, True, False]),
        ("lang.language is not None and rater > 0", [True, False, False]),
        ("lang.language == 'en' or rater < 0", [True, True, False]),
        ("lang.language in ('en', 'fr')", [True, None, False]),
        ("lang.language not in ['en']", [False, None, True]),
        ("-1 < rater <= 0.5", [True, False, True]),
        ("n == 3.0", [True, None, False]),
        ("n == 3 and lang['is ok']", [True, None, False]),
        ("lang['is ok'] == false", [False, None, True]),
        ("2 > 1", [True, True, True]),
        ("0.5 * rater + 2 * n", [6.25, None, 0.0]),
        ("-n - 1", [-4.0, None, -1.0]),
        ("rater / n", [0.5 / 3, None, None]),  # 0 / 0 is missing
        ("1 / n", [1 / 3, None, math.inf]),
    ],
)
def test_an_expression_has_the_values_of_its_grammar(text: str, values: list[Any]) -> None:
    assert values_of(text) == values


def test_integers_are_compared_exactly() -> None:
    rows = [{**ROWS[0], "n": 2**60 + 1}]
    assert values_of(f"n == {2**60}", rows) == [False]
    assert values_of(f"n == {2**60 + 1}", rows) == [True]
    assert values_of(f"n < {10**30}", rows) == [True]


NUMBERS = st.none() | st.floats(-1e6, 1e6)


@given(NUMBERS, st.none() | st.integers(-(10**6), 10**6), st.floats(-10, 10), st.floats(-10, 10))
def test_a_weighted_sum_is_pythons_to_the_bit(
    rater: float | None, n: int | None, first: float, second: float
) -> None:
    rows = [{**ROWS[0], "rater": rater, "n": n}]
    (actual,) = values_of(f"{first!r} * rater + {second!r} * n", rows)
    expected = None if rater is None or n is None else first * rater + second * float(n)
    assert actual == expected


@given(NUMBERS, NUMBERS)
def test_a_missing_value_never_meets_a_condition_or_its_negation(
    rater: float | None, limit: float | None
) -> None:
    rows = [{**ROWS[0], "rater": rater}]
    limit = 0.0 if limit is None else limit
    met, not_met = (
        values_of(f"rater >= {limit!r}", rows),
        values_of(f"not rater >= {limit!r}", rows),
    )
    if rater is None:
        assert met == not_met == [None]
    else:
        assert met == [rater >= limit]
        assert not_met == [rater < limit]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rater >", "not an expression"),
        ("rater = 1", "not an expression"),
        ("__import__('os')", "not allowed"),
        ("rater ** 2 > 1", "not allowed"),
        ("rater if n else 1", "not allowed"),
        ("rater == None", "is None"),
        ("rater is 3", "use =="),
        ("lang.language in 'en'", "list of constants"),
        ("rater in (n, 1)", "list of constants"),
        ("(rater).x[0] > 1", "not the name of a column"),
        ("(" * 3000 + "rater" + ")" * 3000, "expression|nested"),
        ("rater > " + "1" * MAX_CHARACTERS, "longer"),
        ("+".join(["rater"] * (MAX_DEPTH + 1)), "nested too deeply: it has more than 200"),
        ("not " * MAX_DEPTH + "rater is None", "nested too deeply"),
        ("rater > " + "9" * 400, "too large for float64"),
        (r"source == '\ud800'", "lone surrogate"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        Expression.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lang.langage == 'en'", r"no column 'lang.langage'; did you mean 'lang.language'\?"),
        ("quality > 1", "no column 'quality'; there are rater, n, lang.language, lang.is ok"),
        ("rater == 'en'", "`rater` is a number and 'en' a text: they cannot be compared"),
        ("lang.language", "is a text, not a truth"),
        ("rater + 1", "is a number, not a truth"),
        ("lang.language + 1 > 2", r"`lang.language` is a text, but `\+` needs a number"),
        ("rater and n > 1", "`rater` is a number, but `and` needs a truth"),
        ("lang['is ok'] < true", "no order"),
    ],
)
def test_what_does_not_fit_the_columns_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        Expression.parse(text).check(KINDS, Kind.TRUTH)


def test_a_sum_as_deep_as_allowed_is_evaluated() -> None:
    text = "+".join(["rater"] * MAX_DEPTH)
    assert values_of(text)[0] == sum([ROWS[0]["rater"]] * MAX_DEPTH)
