"""Hashes of sequences of consecutive words, for many documents at once.

W counts words, S sequences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def sequence_hashes(
    words_W: NDArray[np.uint64], documents_W: NDArray[np.int32], length: int
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Returns a hash of every sequence of consecutive words that lies in one document.

    The hash of the words w_0 ... w_{L-1} is the sum of w_i * m^(L-1-i) modulo 2^64.

    Args:
        words_W: Well-mixed hashes of words, document by document.
        documents_W: Index of each word's document, in ascending order.
        length: Number of words in a sequence, L.

    Returns:
        hashes_S, and the index of each sequence's document, in the order of the words. A document
        of fewer words has no sequence.
    """
    count = max(0, len(words_W) - length + 1)
    hashes_W = np.zeros(count, np.uint64)
    for offset in range(length):
        hashes_W *= _MULTIPLIER
        hashes_W += words_W[offset : offset + count]

    # A sequence must not run from one document into the next.
    inside_W = documents_W[:count] == documents_W[len(documents_W) - count :]
    return hashes_W[inside_W], documents_W[:count][inside_W]
