"""A rival filter: the mean log-probability of a text's words under a bigram model of the target.

W counts the words of a text, K the different pairs of words in the target, V the word numbers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]")


class WordBigramFilter:
    """A word bigram model with Witten-Bell interpolation, fitted to a target, that scores texts.

    Words and punctuation marks, in lower case, are hashed to V numbers. With c the counts in the
    target, t(h) the number of different words that follow h, and t of all different words:

        p(w)     = (c(w) + t / V) / (c + t)
        p(w | h) = (c(h w) + t(h) p(w)) / (c(h) + t(h)),  or p(w) if nothing follows h
        score(text) = (1 / W) sum over the W words of log p(w | h)

    with h the word before w, or the start of the text (Witten and Bell, "The zero-frequency
    problem", 1991; Chen and Goodman, "An empirical study of smoothing techniques", 1999).

    Args:
        numbers: V, at most 2^24.

    Example:
        >>> bigram = WordBigramFilter().fit(["The cat sat on the mat."])
        >>> bigram.score("the cat sat") > bigram.score("sat cat the")
        True
    """

    def __init__(self, numbers: int = 2**18) -> None:
        self.numbers = numbers
        self._pairs_K = np.zeros(0, np.int64)

    def fit(self, texts: Iterable[str]) -> WordBigramFilter:
        """Counts the target's words and pairs of words; a pair never spans two texts.

        Returns:
            The filter itself.

        Raises:
            ValueError: If the texts contain no word.
        """
        numbers = [self._words(text) for text in texts]
        words = np.concatenate(numbers or [np.zeros(0, np.int64)])
        if not len(words):
            raise ValueError("the target set is empty: a filter needs text to be fitted to")
        counts_V = np.bincount(words, minlength=self.numbers)
        different = np.count_nonzero(counts_V)
        self._word_V = (counts_V + different / self.numbers) / (len(words) + different)

        pairs = np.concatenate([self._pairs(each) for each in numbers])
        self._pairs_K, self._counts_K = np.unique(pairs, return_counts=True)
        histories_K = self._pairs_K // self.numbers
        # The number after the last word's is the start of a text.
        self._followers_H = np.bincount(histories_K, minlength=self.numbers + 1)
        self._count_H = np.bincount(histories_K, weights=self._counts_K, minlength=self.numbers + 1)
        return self

    def score(self, text: str) -> float:
        """Returns the mean log-probability per word, in nats; NaN for a text without a word.

        Raises:
            RuntimeError: If the filter has not been fitted.
        """
        if not len(self._pairs_K):
            raise RuntimeError("call fit() with the target set before score()")
        words_W = self._words(text)
        if not len(words_W):
            return float("nan")
        return float(np.log(self._probabilities(words_W)).mean())

    def _probabilities(self, words_W: NDArray[np.int64]) -> NDArray[np.float64]:
        pairs_W = self._pairs(words_W)
        at_W = np.minimum(np.searchsorted(self._pairs_K, pairs_W), len(self._pairs_K) - 1)
        count_W = np.where(self._pairs_K[at_W] == pairs_W, self._counts_K[at_W], 0)
        histories_W = pairs_W // self.numbers
        followers_W, total_W = self._followers_H[histories_W], self._count_H[histories_W]
        word_W: NDArray[np.float64] = self._word_V[words_W]
        interpolated_W = (count_W + followers_W * word_W) / np.maximum(total_W + followers_W, 1)
        return np.where(followers_W > 0, interpolated_W, word_W)

    def _words(self, text: str) -> NDArray[np.int64]:
        words = _WORD.findall(text.lower())
        hashes = (zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words)
        return np.fromiter(hashes, np.int64, len(words)) % self.numbers

    def _pairs(self, words_W: NDArray[np.int64]) -> NDArray[np.int64]:
        histories_W = np.concatenate([[self.numbers], words_W[:-1]]) if len(words_W) else words_W
        return histories_W * self.numbers + words_W
