from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.rater_model.json_codec import (
    IF_SET,
    DecodingError,
    decode,
    from_plain,
    stored_as,
    to_plain,
)


class Color(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Part:
    size: int
    share: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(Part):
    color: Color
    reasons: Counter[str] = dataclasses.field(metadata=stored_as("rejected"))
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Part] = dataclasses.field(default_factory=dict)
    draw: Part | None = dataclasses.field(default=None, metadata=IF_SET)
    rest: Any = None


PARTS = st.builds(
    Part,
    st.integers(-(2**63), 2**64 - 1),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
WHOLES = st.builds(
    Whole,
    size=st.integers(0, 9),
    color=st.just(Color.RED),
    reasons=st.dictionaries(st.text(max_size=3), st.integers(0, 9)).map(Counter),
    parts=st.lists(PARTS, max_size=2).map(tuple),
    by_name=st.dictionaries(st.text(max_size=3), PARTS, max_size=2),
    draw=st.none() | PARTS,
)


@given(WHOLES)
def test_a_value_survives_json(whole: Whole) -> None:
    assert decode(Whole, orjson.dumps(to_plain(whole))) == whole


def test_a_file_has_its_own_names_and_leaves_out_what_is_not_set() -> None:
    plain = to_plain(Whole(size=1, color=Color.RED, reasons=Counter(a=2), parts=(Part(3),)))
    assert plain == {
        "size": 1,
        "share": None,
        "color": "red",
        "rejected": {"a": 2},
        "parts": [{"size": 3, "share": None}],
        "by_name": {},
        "rest": None,
    }
    assert type(plain["rejected"]) is dict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "1"}, r"expected int, not '1' at \$\.size"),
        ({"size": True}, r"expected int, not True at \$\.size"),
        ({"size": 1.0}, r"expected int, not 1.0 at \$\.size"),
        ({"color": "green"}, r"'green' is not a valid Color at \$\.color"),
        ({"parts": [{}]}, r"missing field at \$\.parts\[0\]\.size"),
        ({"by_name": {"a": {"size": 1, "siez": 2}}}, r"unknown field siez at \$\.by_name\['a'\]"),
        ({"rejected": [1]}, r"at \$\.reasons"),
        ({"reasons": {}}, r"unknown field reasons at \$"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    plain = {"size": 1, "color": "red", "rejected": {}, **change}
    with pytest.raises(DecodingError, match=message):
        from_plain(Whole, plain)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(DecodingError, match=r"\$\.size; .*\$\.color; .*\$\.reasons"):
        from_plain(Whole, {"size": None})


@pytest.mark.parametrize("data", [b"", b"{", b"[1, 2]", b"7"])
def test_what_is_not_a_document_is_refused(data: bytes) -> None:
    with pytest.raises(DecodingError):
        decode(Whole, data)
