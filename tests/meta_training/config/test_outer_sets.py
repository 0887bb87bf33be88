"""Outer sets and their weights as the command line gives them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from datarater.meta_training.config.checks import check
from datarater.meta_training.config.outer_sets import outer_patterns, outer_weights
from datarater.meta_training.configs import default
from datarater.meta_training.errors import ConfigError


def config_with(**data: Any) -> ConfigDict:
    config = default.get_config()
    config.data.update({"inner": "pool/*.jsonl", **data})
    return config


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,5}", fullmatch=True).filter(
    lambda name: name != "questions"
)


@given(st.dictionaries(NAMES, st.floats(0.01, 100), min_size=2, max_size=5))
def test_weights_are_the_given_ones_over_their_sum(values: dict[str, float]) -> None:
    config = config_with(
        outer=";".join(f"{name}={name}/*.jsonl" for name in values),
        outer_weights=";".join(f"{name}={value}" for name, value in reversed(values.items())),
    )
    weights = outer_weights(config)
    assert list(weights) == list(values)
    assert sum(weights.values()) == pytest.approx(1)
    total = sum(values.values())
    assert weights == pytest.approx({name: value / total for name, value in values.items()})


def test_without_weights_all_sets_weigh_the_same_and_questions_are_one_of_them() -> None:
    assert outer_weights(config_with()) == {"outer": 1.0}
    assert outer_weights(config_with(outer="a=a;b=b", questions="q.jsonl")) == pytest.approx(
        {"a": 1 / 3, "b": 1 / 3, "questions": 1 / 3}
    )
    assert outer_weights(config_with(questions="q", outer_weights="questions=1;outer=0")) == {
        "outer": 0.0,
        "questions": 1.0,
    }


def test_a_path_with_an_equals_sign_is_one_set() -> None:
    assert outer_patterns("dt=2024/*.jsonl") == {"outer": "dt=2024/*.jsonl"}
    assert outer_patterns("a=dt=2024/*;b=x,y") == {"a": "dt=2024/*", "b": "x,y"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"outer": "a/*;b/*"}, r"^data\.outer: 'a/\*' is not NAME=VALUE"),
        ({"outer": "a=a/*;a=b/*"}, r"^data\.outer has two sets of the name 'a'"),
        ({"outer": "a=a/*;b="}, r"^data\.outer: 'b=' is not NAME=VALUE"),
        ({"outer": ";"}, r"^data\.outer names no set"),
        ({"outer": "a=a/*;questions=b/*"}, r"^data\.outer: the name 'questions' is that of"),
        (
            {"outer": "a=a;b=b", "outer_weights": "a=1"},
            r"^data\.outer_weights names a, but the outer sets are a, b: give each of them",
        ),
        ({"outer": "a=a;b=b", "outer_weights": "a=1;c=1"}, r"names a, c, but the outer sets are"),
        ({"outer_weights": "outer=-1"}, r"the weight of outer must be a number of at least 0"),
        ({"outer_weights": "outer=nan"}, r"the weight of outer must be .*, not 'nan'"),
        ({"outer_weights": "outer=0"}, r"^data\.outer_weights must have a sum above 0"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_field(data: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config_with(**data))
