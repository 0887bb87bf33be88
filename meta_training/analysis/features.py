"""Properties of a text that a score may depend on, such as its length or its share of digits.

The paper regresses scores on 23 such features (arXiv 2505.17895, appendix); it names a few of them
only, and those are among the ones here. Sizes and counts have heavy tails, so they are logarithms.

Array dimensions: C the characters of a text, B its bytes.
"""

from __future__ import annotations

import functools
import math
import re
import string
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.evaluate.heuristics import c4_score, gopher_score

FEATURES_VERSION = 1
"""Raised whenever the same text would get other features."""

FEATURES = {
    "length": "logarithm of the UTF-8 bytes",
    "words": "logarithm of the words",
    "lines": "logarithm of the lines that are not blank",
    "mean_word_length": "characters per word, at most 100",
    "mean_line_length": "characters per line, at most 1,000",
    "non_alphanumeric_share": "characters that are no letter, digit or white space",
    "uppercase_share": "uppercase letters among the characters",
    "digit_share": "digits among the characters",
    "whitespace_share": "white space among the characters",
    "punctuation_share": "characters among . , ; : ! ?",
    "non_ascii_share": "characters outside ASCII",
    "unprintable_share": "control characters and unassigned code points among the characters",
    "curly_brace": "1 with a curly brace",
    "angle_bracket_share": "characters among < >",
    "all_caps_share": "words of two or more letters that are all uppercase",
    "long_word_share": "words of more than 20 characters",
    "stop_word_share": "English stop words among the words",
    "type_token_ratio": "different words among the first 500",
    "repeated_line_share": "lines that repeat an earlier one",
    "bullet_line_share": "lines that begin with a bullet",
    "terminal_punctuation_share": "lines that end with . ! ? or a closing quote",
    "compression_ratio": "size after zlib over size before",
    "unigram_entropy": "entropy of the bytes, in bits per byte",
    "urls": "logarithm of 1 + the number of web addresses",
    "c4_share": "share of the text that C4's rules retain",
    "c4_pass": "1 if C4's rules retain any of it",
    "gopher_violations": "number of Gopher's rules violated",
}
"""Meaning of each feature, in the order of the columns."""

_UPPER, _DIGIT, _ALPHANUMERIC, _SPACE, _UNPRINTABLE, _MARK, _ANGLE = (1 << bit for bit in range(7))
_CODE_POINTS = 0x110000
_URL = re.compile(r"https?://|\bwww\.", re.IGNORECASE)
_BULLETS = ("•", "-", "*", "‣", "◦")
_TERMINAL = (".", "!", "?", '"', "”", "'", "’")
_FIRST_WORDS = 500


def features_of(text: str) -> list[float]:
    """Returns the values of `FEATURES` for a text that is not empty.

    Example:
        >>> values = dict(zip(FEATURES, features_of("He sold 12 boats."), strict=True))
        >>> round(values["digit_share"], 3), values["curly_brace"]
        (0.118, 0.0)
    """
    data = text.encode("utf-8", "surrogatepass")
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lowered = [word.strip(string.punctuation).lower() for word in words]
    c4 = c4_score(text)

    # One look-up per character gives all classes of characters.
    codes_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes_C = _classes()[codes_C]

    def share_of(kind: int) -> float:
        return np.count_nonzero(classes_C & kind) / len(text)

    return [
        math.log(len(data)),
        math.log1p(len(words)),
        math.log1p(len(lines)),
        min(100.0, sum(map(len, words)) / max(1, len(words))),
        min(1000.0, sum(map(len, lines)) / max(1, len(lines))),
        1 - share_of(_ALPHANUMERIC | _SPACE),
        share_of(_UPPER),
        share_of(_DIGIT),
        share_of(_SPACE),
        share_of(_MARK),
        np.count_nonzero(codes_C > 127) / len(text),
        share_of(_UNPRINTABLE),
        float("{" in text or "}" in text),
        share_of(_ANGLE),
        _share(sum(len(word) > 1 and word.isupper() for word in words), words),
        _share(sum(len(word) > 20 for word in words), words),
        _share(sum(word in _stop_words() for word in lowered), words),
        _share(len(set(lowered[:_FIRST_WORDS])), lowered[:_FIRST_WORDS]),
        _share(len(lines) - len(set(lines)), lines),
        _share(sum(line.startswith(_BULLETS) for line in lines), lines),
        _share(sum(line.endswith(_TERMINAL) for line in lines), lines),
        len(zlib.compress(data)) / len(data),
        _entropy(data),
        math.log1p(len(_URL.findall(text))),
        c4,
        float(c4 > 0),
        -gopher_score(text),
    ]


def _share(count: int, parts: Sequence[str]) -> float:
    return count / max(1, len(parts))


def _entropy(data: bytes) -> float:
    """Returns the entropy of the distribution of byte values, in bits."""
    counts = np.bincount(np.frombuffer(data, np.uint8))
    shares = counts[counts > 0] / len(data)
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


@functools.cache
def _classes() -> NDArray[np.uint8]:
    """Returns the classes of every code point, as bits."""
    classes = np.zeros(_CODE_POINTS, np.uint8)
    for code in range(_CODE_POINTS):
        character = chr(code)
        # A combining mark belongs to its letter: in Hindi every other vowel is one.
        if character.isalnum() or unicodedata.category(character)[0] == "M":
            classes[code] |= _ALPHANUMERIC
            if character.isupper():
                classes[code] |= _UPPER
            if character.isdigit():
                classes[code] |= _DIGIT
        elif character.isspace():
            classes[code] |= _SPACE
        elif not character.isprintable():
            classes[code] |= _UNPRINTABLE
    classes[[ord(mark) for mark in ".,;:!?"]] |= _MARK
    classes[[ord(mark) for mark in "<>"]] |= _ANGLE
    return classes


@functools.cache
def _stop_words() -> frozenset[str]:
    # Takes a second to import.
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words: frozenset[str] = ENGLISH_STOP_WORDS
    return words
