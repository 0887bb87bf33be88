"""Hand-written quality rules as rivals: those of C4 and of Gopher.

Both were made to accept or reject a page. Here they rank, so that any share can be kept: a document
scores by how little of it, or how few of its rules, it violates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

_TERMINAL = (".", "!", "?", '"', "”")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_BULLETS = ("•", "-", "*", "‣", "◦")
_ELLIPSES = ("...", "…")
_SENTENCE_END = re.compile(r"[.!?]+[\"”')\]]*(?:\s|$)")


def c4_score(text: str) -> float:
    r"""Returns the share of a text that C4's rules retain.

    A line is retained if it ends in a terminal punctuation mark, has at least 5 words, and mentions
    neither JavaScript nor a cookie or privacy policy. The whole text is dropped, and scores 0, if
    it contains "lorem ipsum" or a curly brace, or its retained lines have fewer than 3 sentences
    (Raffel et al., arXiv 1910.10683, section 2.2). The list of offensive words and the removal of
    repeated spans are left out.

    Example:
        >>> c4_score("Home | Login\n" + "This sentence has five words. " * 4) > 0.85
        True
    """
    lowered = text.lower()
    if "lorem ipsum" in lowered or "{" in text:
        return 0.0
    retained = [line for line in text.splitlines() if _is_retained(line.strip())]
    sentences = sum(len(_SENTENCE_END.findall(line)) for line in retained)
    return sum(map(len, retained)) / max(1, len(text)) if sentences >= 3 else 0.0


def _is_retained(line: str) -> bool:
    if not line.endswith(_TERMINAL) or line.endswith(_ELLIPSES) or len(line.split()) < 5:
        return False
    lowered = line.lower()
    return "javascript" not in lowered and not any(phrase in lowered for phrase in _POLICY)


def gopher_score(text: str) -> float:
    """Returns minus the number of Gopher's rules that a text violates.

    The rules of quality and of repetition of Rae et al., arXiv 2112.11446, table A1, without those
    on duplicate n-grams of 5 and more words.

    Example:
        >>> gopher_score("buy " * 300) < gopher_score("The rain and the wind, to be fair, eased. ")
        True
    """
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return -float(sum(rule(text, words, lines, paragraphs) for rule in _GOPHER))


Rule = Callable[[str, Sequence[str], Sequence[str], Sequence[str]], bool]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _repeated(parts: Sequence[str]) -> float:
    """Returns the share of parts that repeat an earlier one."""
    return _share(len(parts) - len(set(parts)), len(parts))


def _repeated_characters(text: str, parts: Sequence[str]) -> float:
    repeats = sum(len(part) * (count - 1) for part, count in Counter(parts).items())
    return _share(repeats, len(text))


def _top_ngram(text: str, words: Sequence[str], order: int) -> float:
    """Returns the share of the text's characters in its most frequent n-gram."""
    grams = Counter(zip(*(words[offset:] for offset in range(order)), strict=False))
    if not grams:
        return 0.0
    gram, count = grams.most_common(1)[0]
    return _share(sum(map(len, gram)) * count, len(text)) if count > 1 else 0.0


_GOPHER: tuple[Rule, ...] = (
    lambda text, words, lines, paragraphs: not 50 <= len(words) <= 100_000,
    lambda text, words, lines, paragraphs: not 3 <= _share(sum(map(len, words)), len(words)) <= 10,
    lambda text, words, lines, paragraphs: _share(text.count("#"), len(words)) > 0.1,
    lambda text, words, lines, paragraphs: (
        _share(sum(text.count(mark) for mark in _ELLIPSES), len(words)) > 0.1
    ),
    lambda text, words, lines, paragraphs: (
        _share(sum(line.startswith(_BULLETS) for line in lines), len(lines)) > 0.9
    ),
    lambda text, words, lines, paragraphs: (
        _share(sum(line.endswith(_ELLIPSES) for line in lines), len(lines)) > 0.3
    ),
    lambda text, words, lines, paragraphs: (
        _share(sum(any(map(str.isalpha, word)) for word in words), len(words)) < 0.8
    ),
    lambda text, words, lines, paragraphs: (
        len(_STOP_WORDS & {word.lower().strip(".,;:!?\"'()") for word in words}) < 2
    ),
    lambda text, words, lines, paragraphs: _repeated(lines) > 0.3,
    lambda text, words, lines, paragraphs: _repeated(paragraphs) > 0.3,
    lambda text, words, lines, paragraphs: _repeated_characters(text, lines) > 0.2,
    lambda text, words, lines, paragraphs: _repeated_characters(text, paragraphs) > 0.2,
    lambda text, words, lines, paragraphs: _top_ngram(text, words, 2) > 0.20,
    lambda text, words, lines, paragraphs: _top_ngram(text, words, 3) > 0.18,
    lambda text, words, lines, paragraphs: _top_ngram(text, words, 4) > 0.16,
)
