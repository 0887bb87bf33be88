from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.dedup import words
from datarater.pipelines.dedup.words import normalized, split_words, words_of


def hashes(text: str) -> list[int]:
    return words_of([normalized(text)]).hashes_W.tolist()


@given(st.lists(st.text("ab1_ .,\n", max_size=30), max_size=8))
def test_words_are_equal_exactly_where_their_letters_are(texts: list[str]) -> None:
    found = split_words(words_of([normalized(text) for text in texts]))
    expected = [re.findall(r"\w+", text) for text in texts]
    assert [len(part) for part in found] == [len(part) for part in expected]
    hash_of: dict[str, int] = {}
    for part, names in zip(found, expected, strict=True):
        for value, name in zip(part.tolist(), names, strict=True):
            assert hash_of.setdefault(name, value) == value
    assert len(set(hash_of.values())) == len(hash_of)


@given(st.lists(st.text(max_size=50), max_size=5))
def test_any_text_has_the_same_words_alone_and_among_others(texts: list[str]) -> None:
    texts = [normalized(text) for text in texts]
    together = split_words(words_of(texts))
    alone = [words_of([text]).hashes_W for text in texts]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_case_punctuation_spaces_and_compatibility_forms_make_no_difference() -> None:
    plain = hashes("the cafe strasse 12 fi")
    assert hashes("  The, CAFE;\tSTRASSE!\u00a0１２ ﬁ") == plain
    assert hashes("straße") == hashes("STRASSE")
    assert hashes("caf\u00e9") == hashes("cafe\u0301") != hashes("cafe")


def test_soft_hyphens_and_joiners_are_not_seen() -> None:
    assert hashes("\ufeffco\u00adope\u00adrate \u2060now") == hashes("cooperate now")
    assert hashes("می\u200cخواهم") == hashes("میخواهم")
    assert hashes("one\u200btwo") == hashes("one two")


@pytest.mark.parametrize(
    "text",
    [
        "今日は天気がいい",
        "ราคาถูก",
        "ភាសាខ្មែរ",
        "မြန်မာ",
        "ꦲꦏ꧀ꦱꦫꦗꦮ",
        "ᬅᬓ᭄ᬱᬭᬩᬮᬶ",
        "ꪼꪕꪒꪾ",
        "\U00020000\U00030000",
    ],
)
def test_each_character_of_a_script_without_spaces_is_a_word(text: str) -> None:
    text = unicodedata.normalize("NFKC", text)
    assert len(hashes(text)) == len(text)
    assert hashes(f"a{text}b") == [*hashes("a"), *hashes(text), *hashes("b")]


@pytest.mark.parametrize("text", ["नमस्ते", "السَّلَام", "한국어", "Ελληνικά", "čeština", "x_1"])
def test_a_word_of_a_script_with_spaces_has_its_marks(text: str) -> None:
    assert len(hashes(text)) == 1


@pytest.mark.parametrize("text", ["", "  \n\t", "!?—…", "\ud800", "😀😀", "\u200b\U000e0100"])
def test_a_text_without_letters_has_no_words(text: str) -> None:
    assert hashes(text) == []


def test_a_surrogate_separates_words() -> None:
    assert hashes("one\udc80two") == hashes("one two")


def test_a_long_text_has_the_words_of_its_parts() -> None:
    part = "some words 字, and punctuation; " * 1000
    number = 3 * words._MAX_CHARACTERS // len(part)
    assert hashes(part * number) == hashes(part) * number


def test_a_word_without_an_end_is_cut() -> None:
    size = words._MAX_CHARACTERS
    assert len(hashes("x" * (2 * size + 1))) == 3
