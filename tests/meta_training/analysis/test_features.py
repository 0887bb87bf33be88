from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.analysis.features import FEATURES, features_of
from datarater.meta_training.analysis.languages import language_of

SHARES = [name for name in FEATURES if name.endswith("_share")]


def values(text: str) -> dict[str, float]:
    return dict(zip(FEATURES, features_of(text), strict=True))


@given(st.text(min_size=1, max_size=300))
def test_every_text_has_finite_features_and_shares_are_shares(text: str) -> None:
    found = values(text)
    assert all(math.isfinite(value) for value in found.values())
    for name in SHARES:
        assert 0 <= found[name] <= 1, name
    assert 0 <= found["type_token_ratio"] <= 1
    assert 0 <= found["unigram_entropy"] <= 8


@given(st.text(min_size=1, max_size=100))
def test_classes_of_characters_are_those_of_python(text: str) -> None:
    found = values(text)
    count = len(text)
    assert found["uppercase_share"] == pytest.approx(sum(map(str.isupper, text)) / count, abs=0.2)
    assert found["non_ascii_share"] == sum(not c.isascii() for c in text) / count
    assert found["digit_share"] == sum(c.isdigit() for c in text) / count
    assert found["punctuation_share"] == sum(c in ".,;:!?" for c in text) / count


def test_features_of_a_small_text_are_those_counted_by_hand() -> None:
    found = values("THE cat {sat}\n- the cat sat 12\n- the cat sat 12\n\nhttp://a.b <c>.")
    assert found["lines"] == pytest.approx(math.log(5))
    assert found["words"] == pytest.approx(math.log(16))
    assert found["curly_brace"] == 1
    assert found["repeated_line_share"] == 0.25
    assert found["bullet_line_share"] == 0.5
    assert found["terminal_punctuation_share"] == 0.25
    assert found["urls"] == pytest.approx(math.log(2))
    assert found["all_caps_share"] == pytest.approx(1 / 15)
    # the, cat, sat, an empty word for each dash, 12, http://a.b and c
    assert found["type_token_ratio"] == pytest.approx(7 / 15)
    assert found["c4_pass"] == 0


def test_repetition_compresses_and_uniform_bytes_have_full_entropy() -> None:
    rng = np.random.default_rng(0)
    noise = "".join(chr(code) for code in rng.integers(33, 127, 3000))
    assert values("again and " * 300)["compression_ratio"] < 0.05
    assert values(noise)["compression_ratio"] > 0.7
    assert values(noise)["unigram_entropy"] == pytest.approx(math.log2(94), abs=0.05)
    assert values("aaaa")["unigram_entropy"] == 0


def test_marks_of_hindi_letters_are_not_symbols() -> None:
    assert values("हिन्दी में लिखा हुआ वाक्य")["non_alphanumeric_share"] == 0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The old man walked slowly down the road to the harbor and sat by the sea.", "en"),
        ("Le vieil homme marchait lentement vers le port et regardait la mer.", "fr"),
        ("Старик медленно шёл по дороге к гавани и смотрел на море.", "ru"),
    ],
)
def test_languages_are_identified(text: str, code: str) -> None:
    assert language_of(text) == code
