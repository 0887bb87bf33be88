"""Makes hostile text harmless to look at: nothing is invisible, and nothing changes what surrounds.

HTML's own characters are not escaped here; `datarater.report.markup` does that.
"""

from __future__ import annotations

import re
import unicodedata

_JOINERS = "\u200c\u200d"
# Joiners belong to emoji and to several scripts; after anything else they are only hidden.
_STRAY_JOINER = re.compile(rf"(?<![^\x00-\x7f{_JOINERS}])[{_JOINERS}]")
_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_MANY_MARKS = re.compile(rf"([{_MARKS}]{{4}})([{_MARKS}]+)")
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that look like nothing, although their category is that of letters or marks."""


class _Replacements(dict[int, str]):
    """What stands for each character in `str.translate`; filled as characters occur."""

    def __missing__(self, code: int) -> str:
        self[code] = shown = _shown(chr(code))
        return shown


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or character in _JOINERS:
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if hidden or noncharacter or character in _BLANK or 0xE0100 <= code <= 0xE01EF:
        return named(character)
    return character


_REPLACEMENTS = _Replacements()


def named(character: str) -> str:
    """Returns a character's code point in angle brackets, such as `⟨U+202E⟩`."""
    return f"\u27e8U+{ord(character):04X}\u27e9"


def visible(text: str) -> str:
    r"""Returns text in which every character can be seen and none affects others.

    Control characters become their pictures; direction overrides, zero-width characters, line
    separators, lone surrogates and noncharacters become their code points. Newlines and tabs stay,
    and so do joiners within emoji and scripts that use them. Of more than four combining marks on
    one letter the rest is counted.

    Example:
        >>> visible("a\x00b\u202ec")
        'a␀b⟨U+202E⟩c'
    """
    text = text.replace("\r\n", "\n").translate(_REPLACEMENTS)
    text = _STRAY_JOINER.sub(lambda match: named(match[0]), text)
    return _MANY_MARKS.sub(lambda match: f"{match[1]}\u27e8+{len(match[2])} marks\u27e9", text)


def short_name(name: str, max_characters: int = 60) -> str:
    """Returns a name that fits beside others, with an ellipsis where it is cut."""
    return name if len(name) <= max_characters else f"{name[: max_characters - 1]}\u2026"


def cut(text: str, max_characters: int, max_lines: int) -> tuple[str, int]:
    """Returns the beginning of a text, and how many characters are left out.

    Args:
        text: The text.
        max_characters: Maximum number of characters to keep.
        max_lines: Maximum number of lines to keep.
    """
    head = text[:max_characters]
    lines = head.split("\n", max_lines)
    head = "\n".join(lines[:max_lines])
    return head, len(text) - len(head)
