"""Hand-written quality rules as rivals: those of C4 and of Gopher.

Both were made to accept or reject a page. Here they rank, so that any share can be kept: a document
scores by how little of it, or how few of its rules, it violates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter

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
_SPAN = 3
_SENTENCE_END = re.compile(r"[.!?]+[\"”')\]]*(?:\s|$)")


def c4_score(text: str) -> float:
    r"""Returns the share of a text that C4's rules retain.

    A line is retained if it ends in a terminal punctuation mark, has at least 5 words, and mentions
    neither JavaScript nor a cookie or privacy policy. The whole text is dropped, and scores 0, if
    it contains "lorem ipsum" or a curly brace, or its retained lines have fewer than 3 sentences
    (Raffel et al., arXiv 1910.10683, section 2.2). Of a span of 3 sentences that occurs again, the
    first is retained; C4 looks for it in all documents, this in the text alone. C4's list of
    offensive words is not part of the project, so that rule is left out.

    Example:
        >>> c4_score("Home | Login\n" + "This sentence has five words. " * 4) > 0.85
        True
    """
    lowered = text.lower()
    if "lorem ipsum" in lowered or "{" in text:
        return 0.0
    retained = "\n".join(line for line in text.splitlines() if _is_retained(line.strip()))
    if len(_SENTENCE_END.findall(retained)) < 3:
        return 0.0
    return sum(map(len, _without_repeated_spans(_sentences(retained)))) / len(text)


def _is_retained(line: str) -> bool:
    if not line.endswith(_TERMINAL) or line.endswith(_ELLIPSES) or len(line.split()) < 5:
        return False
    lowered = line.lower()
    return "javascript" not in lowered and not any(phrase in lowered for phrase in _POLICY)


def _sentences(text: str) -> list[str]:
    """Returns the sentences with the white space after them, and what follows the last one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return [text[start:end] for start, end in pairwise([0, *ends, len(text)]) if start < end]


def _without_repeated_spans(sentences: Sequence[str]) -> list[str]:
    """Leaves out each span of 3 sentences that occurred before, without overlap."""
    words = [" ".join(sentence.casefold().split()) for sentence in sentences]
    first: dict[tuple[str, ...], int] = {}
    retained, index = [], 0
    while index < len(sentences):
        span = tuple(words[index : index + _SPAN])
        if len(span) == _SPAN and first.setdefault(span, index) <= index - _SPAN:
            index += _SPAN
        else:
            retained.append(sentences[index])
            index += 1
    return retained


def gopher_score(text: str) -> float:
    """Returns minus the number of Gopher's rules that a text violates.

    The rules of quality and of repetition of Rae et al., arXiv 2112.11446, section A.1.

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


def _top_ngram(words: Sequence[str], order: int) -> float:
    """Returns the share of the words' characters that are in the most frequent n-gram."""
    grams = Counter(_ngrams(words, order))
    gram, count = max(grams.items(), key=itemgetter(1), default=((), 0))
    return _share(sum(map(len, gram)) * count, sum(map(len, words))) if count > 1 else 0.0


def _repeated_ngrams(words: Sequence[str], order: int) -> float:
    """Returns the share of the words' characters in n-grams that occurred before.

    A word in several of them counts once.
    """
    seen: set[tuple[str, ...]] = set()
    repeated, counted = 0, 0
    for start, gram in enumerate(_ngrams(words, order)):
        if gram in seen:
            repeated += sum(map(len, words[max(start, counted) : start + order]))
            counted = start + order
        seen.add(gram)
    return _share(repeated, sum(map(len, words)))


def _ngrams(words: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(order)), strict=False)


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
    lambda text, words, lines, paragraphs: _top_ngram(words, 2) > 0.20,
    lambda text, words, lines, paragraphs: _top_ngram(words, 3) > 0.18,
    lambda text, words, lines, paragraphs: _top_ngram(words, 4) > 0.16,
    lambda text, words, lines, paragraphs: _repeated_ngrams(words, 5) > 0.15,
    lambda text, words, lines, paragraphs: _repeated_ngrams(words, 6) > 0.14,
    lambda text, words, lines, paragraphs: _repeated_ngrams(words, 7) > 0.13,
    lambda text, words, lines, paragraphs: _repeated_ngrams(words, 8) > 0.12,
    lambda text, words, lines, paragraphs: _repeated_ngrams(words, 9) > 0.11,
    lambda text, words, lines, paragraphs: _repeated_ngrams(words, 10) > 0.10,
)
