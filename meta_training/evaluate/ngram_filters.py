"""Rival filters: the mean log-probability of a text's bytes under an n-gram model of the target.

Raters are compared with these. If a unigram or bigram filter separates documents as well as a rater
does, the rater has proved nothing.

Dimension letters in array names: L the bytes of a text, M its n-grams, G all n-grams of an order, H
the histories of n - 1 bytes, B the 256 byte values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from datarater.rater_model.byte_ngrams import BYTES, grams, utf8

_MAX_ORDER = 3  # a table of 256 ** 3 counts takes 128 MiB; 256 ** 4 would take 32 GiB


class NgramFilter:
    """A byte n-gram model with add-alpha smoothing, fitted to a target set, that scores texts.

    With c the counts in the target and h the n - 1 bytes before byte b:

        p(b | h) = (c(h b) + alpha) / (c(h) + 256 alpha)
        score(text) = (1 / L) sum over the L bytes of log p(b | h)

    The first n - 1 bytes of a text have a shorter history and use the model of the order that fits
    it. Texts are encoded as UTF-8.

    Args:
        order: n, from 1 (byte frequencies alone) to 3.
        alpha: Number above 0, added to every count.

    Raises:
        ValueError: If the order or alpha is out of range.

    Example:
        >>> bigram = NgramFilter(order=2).fit(["the cat sat on the mat"])
        >>> bigram.score("the mat") > bigram.score("hte tam")
        True
    """

    def __init__(self, order: int, alpha: float = 0.1) -> None:
        if not 1 <= order <= _MAX_ORDER:
            raise ValueError(f"order must be between 1 and {_MAX_ORDER}, not {order}")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number above 0, not {alpha}")
        self.order = order
        self.alpha = alpha
        self._log_probabilities: list[NDArray[np.float64]] = []

    def fit(self, texts: Iterable[str]) -> NgramFilter:
        """Counts the target's n-grams; replaces the counts of an earlier target.

        Args:
            texts: Target set, for instance held-out documents. An n-gram never spans two texts.

        Returns:
            The filter itself.

        Raises:
            ValueError: If the texts contain no byte.
        """
        counts = [np.zeros(BYTES**order, dtype=np.int64) for order in range(1, self.order + 1)]
        for text in texts:
            bytes_L = utf8(text)
            for order, counts_G in enumerate(counts, start=1):
                grams_M, times_M = np.unique(grams(bytes_L, order), return_counts=True)
                counts_G[grams_M] += times_M
        if not counts[0].any():
            raise ValueError("the target set is empty: a filter needs text to be fitted to")

        self._log_probabilities = []
        for counts_G in counts:
            counts_HxB = counts_G.reshape(-1, BYTES)
            total_Hx1 = counts_HxB.sum(axis=1, keepdims=True)
            probability_HxB = (counts_HxB + self.alpha) / (total_Hx1 + BYTES * self.alpha)
            self._log_probabilities.append(np.log(probability_HxB).reshape(-1))
        return self

    def score(self, text: str) -> float:
        """Returns the mean log-probability per byte, in nats; higher means more like the target.

        Args:
            text: Text with at least one character.

        Returns:
            A finite number below 0.

        Raises:
            ValueError: If the text is empty.
            RuntimeError: If the filter has not been fitted.
        """
        if not self._log_probabilities:
            raise RuntimeError("call fit() with the target set before score()")
        bytes_L = utf8(text)
        if not len(bytes_L):
            raise ValueError("an empty text has no mean log-probability")

        total = 0.0
        for order in range(1, self.order):
            # The byte at index order - 1 has a history of order - 1 bytes.
            total += float(self._log_probabilities[order - 1][grams(bytes_L[:order], order)].sum())
        total += float(self._log_probabilities[self.order - 1][grams(bytes_L, self.order)].sum())
        return total / len(bytes_L)

    def score_all(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns the score of each text, as a float64 array.

        Args:
            texts: Texts with at least one character each.
        """
        return np.array([self.score(text) for text in texts], dtype=np.float64)


def unigram_filter(texts: Iterable[str], alpha: float = 0.1) -> NgramFilter:
    """Returns a filter by byte frequencies alone, fitted to `texts`; see `NgramFilter`."""
    return NgramFilter(order=1, alpha=alpha).fit(texts)


def bigram_filter(texts: Iterable[str], alpha: float = 0.1) -> NgramFilter:
    """Returns a filter by pairs of adjacent bytes, fitted to `texts`; see `NgramFilter`."""
    return NgramFilter(order=2, alpha=alpha).fit(texts)
