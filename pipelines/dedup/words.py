"""Words: what a text is compared by, as 64-bit hashes.

A word is a run of letters, digits, combining marks and underscores. In scripts that are written
without spaces (Han, kana, Thai, Lao, Khmer, Burmese and others), each character is a word. Case,
punctuation, white space and compatibility forms (Unicode NFKC) make no difference; nor do soft
hyphens and joiners, which are within words and not seen.

Characters are handled as arrays, many texts at a time. A long text is handled in pieces, so that
time and memory stay proportional to its size. C counts characters, W words.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.selection.ranking import seeded_hash

_SEPARATOR, _PART, _ALONE = 0, 1, 2
"""Kinds of characters: between words, a part of a word, a word of its own."""
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),  # more Bopomofo and Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA980, 0xA9DF),  # Javanese
    (0xA9E0, 0xAADF),  # more Burmese, Cham, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0x1B000, 0x1B16F),  # more kana
    (0x20000, 0x3FFFF),  # Han
)
_INVISIBLE = "\u00ad\u200c\u200d\u2060\ufeff"
"""Soft hyphen, joiners, word joiner and byte order mark: some copies of a text have them within
words, where they separate nothing."""
_CODE_POINTS = 0x40000
"""Code points that can be in words; the planes beyond have none."""
_MAX_CHARACTERS = 2**18
"""Characters that are handled at a time."""
_MULTIPLIER = 0xD1342543DE82EF95
_WORD_SEED, _CHARACTER_SEED = 1, 2


@dataclass(frozen=True)
class Words:
    """The words of N documents.

    Attributes:
        hashes_W: Hashes of the words, document by document, uint64.
        counts_N: Number of words of each document.
    """

    hashes_W: NDArray[np.uint64]
    counts_N: NDArray[np.int64]


def normalized(text: str) -> str:
    """Returns a text without differences of case, compatibility forms and invisible characters."""
    for character in _INVISIBLE:
        text = text.replace(character, "")
    return unicodedata.normalize("NFKC", text).casefold()


def words_of(texts: Sequence[str]) -> Words:
    """Returns the words of normalized texts.

    Example:
        >>> words = words_of(["the cat, the dog", "", "猫 cat"])
        >>> words.counts_N.tolist()
        [4, 0, 2]
        >>> bool(words.hashes_W[0] == words.hashes_W[2])
        True
    """
    parts: list[NDArray[np.uint64]] = []
    counts: list[int] = []
    for batch in _batches(texts):
        if len(batch) == 1:
            long = [_words(codes_C)[0] for codes_C in _pieces(batch[0])]
            counts.append(sum(map(len, long)))
            parts += long
            continue

        # A line end after each text keeps its words apart from those of the next one.
        codes_C = _codes("\n".join(batch))
        hashes_W, starts_W = _words(codes_C)
        ends_N = np.cumsum([len(text) + 1 for text in batch])
        before_N = np.searchsorted(starts_W, ends_N)
        counts += np.diff(before_N, prepend=0).tolist()
        parts.append(hashes_W)
    return Words(
        np.concatenate([np.zeros(0, np.uint64), *parts]),
        np.asarray(counts, np.int64),
    )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields texts of up to _MAX_CHARACTERS together; a longer text by itself."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) >= _MAX_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield batch


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _pieces(text: str) -> Iterator[NDArray[np.uint32]]:
    """Yields the characters of a text in pieces, which end where a word does if they can."""
    start = 0
    while start < len(text):
        codes_C = _codes(text[start : start + _MAX_CHARACTERS])
        if start + len(codes_C) < len(text):
            is_part_C = _kinds().take(codes_C, mode="clip") == _PART
            gaps = np.flatnonzero(~(is_part_C[1:] & is_part_C[:-1]))
            # A word without an end is cut.
            codes_C = codes_C[: gaps[-1] + 1] if len(gaps) else codes_C
        yield codes_C
        start += len(codes_C)


def _words(codes_C: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns the hashes of the words in characters, and the place of each one's first character.

    The characters c_0 ... c_k of a word have the hash mix(sum of mix(c_i) * m^i). All words take
    one running sum of mix(c_j) * m^j, of which a word is a difference, times m^-start.
    """
    kinds_C = _kinds().take(codes_C, mode="clip")
    is_part_C, is_alone_C = kinds_C == _PART, kinds_C == _ALONE
    begins_C, ends_C = is_part_C.copy(), is_part_C.copy()
    begins_C[1:] &= ~is_part_C[:-1]
    ends_C[:-1] &= ~is_part_C[1:]
    starts_W = np.flatnonzero(begins_C | is_alone_C)
    ends_W = np.flatnonzero(ends_C | is_alone_C) + 1

    powers, inverses = _powers(_MULTIPLIER), _powers(pow(_MULTIPLIER, -1, 2**64))
    sums_C = np.zeros(len(codes_C) + 1, np.uint64)
    terms_C = _character_hashes().take(codes_C, mode="clip")
    terms_C *= powers[: len(codes_C)]
    np.cumsum(terms_C, out=sums_C[1:])
    hashes_W = (sums_C[ends_W] - sums_C[starts_W]) * inverses[starts_W]
    return seeded_hash(hashes_W, _WORD_SEED), starts_W


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """Returns the kind of every code point."""
    kinds = np.zeros(_CODE_POINTS, np.uint8)
    for code in range(_CODE_POINTS):
        character = chr(code)
        if character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M":
            kinds[code] = _PART
    for first, last in _UNSPACED:
        kinds[first : last + 1][kinds[first : last + 1] == _PART] = _ALONE
    kinds[-1] = _SEPARATOR  # that of all planes beyond
    return kinds


@functools.cache
def _character_hashes() -> NDArray[np.uint64]:
    return seeded_hash(np.arange(_CODE_POINTS, dtype=np.uint64), _CHARACTER_SEED)


@functools.cache
def _powers(base: int) -> NDArray[np.uint64]:
    """Returns base^0, base^1, ... modulo 2^64."""
    factors = np.full(_MAX_CHARACTERS + 1, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def split_words(words: Words) -> list[NDArray[np.uint64]]:
    """Returns the words of each document."""
    ends = np.cumsum(words.counts_N).tolist()
    return [words.hashes_W[start:end] for start, end in itertools.pairwise([0, *ends])]
