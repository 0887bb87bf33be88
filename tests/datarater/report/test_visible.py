"""Hostile text is shown, and changes nothing around it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.report.visible import cut, visible

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_nothing_invisible_is_left_except_joiners_between_letters(text: str) -> None:
    shown = visible(text)
    for before, character in zip(f" {shown}", shown, strict=False):
        if character in "\u200c\u200d":
            assert not before.isascii()
        elif character not in "\n\t":
            assert unicodedata.category(character) not in HIDDEN
    shown.encode()


@given(ANY_TEXT)
def test_visible_text_stays_as_it_is(text: str) -> None:
    assert visible(visible(text)) == visible(text)


@given(st.text("abc äöü 漢字 العربية हिन्दी\n\t<>&\"'"))
def test_ordinary_text_is_not_changed(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b[31m\x7f", "a␀b␛[31m␡"),
        ("photo\u202egnp.exe", "photo⟨U+202E⟩gnp.exe"),
        ("zero\u200bwidth\u2028line\ufeff", "zero⟨U+200B⟩width⟨U+2028⟩line⟨U+FEFF⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\U0001ffff \U000e0041", "⟨U+1FFFF⟩ ⟨U+E0041⟩"),
        ("a\u200db \u3164", "a⟨U+200D⟩b ⟨U+3164⟩"),
        ("👩\u200d🔬 نامه\u200cای", "👩\u200d🔬 نامه\u200cای"),
        ("line\r\nnext\rsame", "line\nnext␍same"),
        ("e" + "\u0301" * 9, "e" + "\u0301" * 4 + "⟨+5 marks⟩"),
    ],
)
def test_what_stands_for_hidden_characters(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(ANY_TEXT, st.integers(0, 30), st.integers(1, 5))
def test_a_text_is_cut_to_a_beginning_within_both_limits(
    text: str, characters: int, lines: int
) -> None:
    head, left = cut(text, characters, lines)
    assert text.startswith(head)
    assert len(head) + left == len(text)
    assert len(head) <= characters
    assert head.count("\n") < lines
