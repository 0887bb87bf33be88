"""Byte n-grams: as exact numbers, and hashed into the rows of a table.

Dimension letters in array names: L the bytes of a text, M its n-grams.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BYTES = 256
MAX_ORDER = 7  # 256 ** 7 fits into an int64
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 over the golden ratio


def utf8(text: str) -> NDArray[np.uint8]:
    """Returns the bytes of a text in UTF-8."""
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)


def grams(bytes_L: NDArray[np.uint8], order: int) -> NDArray[np.int64]:
    """Returns a text's n-grams as numbers: n bytes are the digits of a number in base 256.

    Args:
        bytes_L: Bytes of the text.
        order: n, from 1 to 7.

    Returns:
        Numbers from 0 to 256^n - 1, shape [max(0, L - n + 1)].

    Example:
        >>> grams(utf8("aba"), 2).tolist() == [97 * 256 + 98, 98 * 256 + 97]
        True
    """
    count = len(bytes_L) - order + 1
    if count <= 0:
        return np.zeros(0, dtype=np.int64)
    grams_M = bytes_L[:count].astype(np.int64)
    for offset in range(1, order):
        grams_M <<= 8
        grams_M |= bytes_L[offset : offset + count]
    return grams_M


def table_rows(order: int, row_bits: int) -> int:
    """Returns the number of rows of a table: one for each n-gram, but at most 2^row_bits."""
    return min(BYTES**order, 1 << row_bits)


def hashed(grams_M: NDArray[np.int64], order: int, row_bits: int) -> NDArray[np.int64]:
    """Returns the row of each n-gram in a table of `table_rows`.

    A table that has a row for each n-gram is not hashed. Otherwise the row is the upper bits of the
    product with an odd number, modulo 2^64 (Knuth, The Art of Computer Programming, vol. 3, 6.4).

    Args:
        grams_M: N-grams as numbers (`grams`).
        order: Their order n.
        row_bits: Logarithm to base 2 of the largest number of rows, up to 32.
    """
    if 8 * order <= row_bits:
        return grams_M
    products_M = grams_M.view(np.uint64) * _MULTIPLIER
    products_M >>= np.uint64(64 - row_bits)
    return products_M.view(np.int64)
