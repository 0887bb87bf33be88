"""Defines the n-gram rater: a linear function of a text's byte n-grams, for scoring without JAX.

    score(x) = sum over orders n of the mean over the n-grams g of x of w_n[row(g)]

where row is the number of the n-gram, hashed for large n (`datarater.rater_model.byte_ngrams`). A
text shorter than n has no n-gram of that order, which then adds nothing. `datarater distil` fits
such a rater, the *student*, to the scores of another one.

Dimension letters in array names: L bytes, M n-grams, G the rows of a table, N texts, E the two ends
of a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.rater_model.byte_ngrams import MAX_ORDER, grams, hashed, table_rows

KIND = "ngram"
HELD_OUT_COLUMNS = ("student", "rater", "bytes")
_PIECE_BYTES = 2**15  # its n-grams and their rows fit into a core's cache


@dataclasses.dataclass(frozen=True)
class NgramConfig:
    """The shape of an n-gram rater.

    Attributes:
        orders: Orders n of the n-grams, from 1 to 7.
        row_bits: Logarithm to base 2 of the largest number of rows of a table.
        held_out: Number of documents whose scores by both raters the checkpoint contains.
    """

    orders: tuple[int, ...] = (1, 2, 3)
    row_bits: int = 18
    held_out: int = 0

    def __post_init__(self) -> None:
        distinct = len(set(self.orders)) == len(self.orders) > 0
        if not distinct or not all(1 <= order <= MAX_ORDER for order in self.orders):
            raise ValueError(
                f"orders must be distinct whole numbers from 1 to {MAX_ORDER}, not {self.orders}"
            )
        if not 8 <= self.row_bits <= 32:
            raise ValueError(f"row_bits must be from 8 to 32, not {self.row_bits}")
        if self.held_out < 0:
            raise ValueError(f"held_out must be at least 0, not {self.held_out}")

    def to_json(self) -> dict[str, Any]:
        """Returns the config as a JSON-able dict, which `from_json` reads."""
        return {"kind": KIND, **dataclasses.asdict(self), "orders": list(self.orders)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NgramConfig:
        """Returns the config that `to_json` described.

        Raises:
            TypeError: if a key is unknown or missing.
            ValueError: if a value is out of range.
        """
        fields = {name: value for name, value in values.items() if name != "kind"}
        return cls(**{**fields, "orders": tuple(values["orders"])})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array of the checkpoint, by its name there."""
        shapes: dict[str, tuple[int, ...]] = {}
        for order in self.orders:
            shapes[table_name(order)] = (table_rows(order, self.row_bits),)
        for name in HELD_OUT_COLUMNS:
            shapes[held_out_name(name)] = (self.held_out,)
        return shapes


def table_name(order: int) -> str:
    """Returns the name of the table of an order in the checkpoint."""
    return f"order_{order}"


def held_out_name(column: str) -> str:
    """Returns the name of a column of `HELD_OUT_COLUMNS` in the checkpoint."""
    return f"held_out/{column}"


def rows_by_order(config: NgramConfig, text: bytes) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields the rows of a text's n-grams, piece by piece, each with its order.

    Args:
        config: Shape of the rater.
        text: The text in UTF-8.
    """
    bytes_L = np.frombuffer(text, np.uint8)
    for start in range(0, len(bytes_L), _PIECE_BYTES):
        for order in config.orders:
            # An n-gram belongs to the piece in which it begins.
            piece_L = bytes_L[start : start + _PIECE_BYTES + order - 1]
            yield order, hashed(grams(piece_L, order), order, config.row_bits)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of one order as whole numbers, whose sums are exact in any order.

    Attributes:
        numbers_G: Weights in units, int32.
        unit: Size of a unit: the largest weight has about 2^30.
    """

    numbers_G: NDArray[np.int32]
    unit: float

    @classmethod
    def of(cls, table_G: NDArray[np.float32]) -> Weights:
        """Returns the weights of a table."""
        unit = float(np.abs(table_G).max()) / 2**30 or 1.0
        return cls(np.rint(table_G / unit).astype(np.int32), unit)

    def at(self, rows_M: NDArray[np.int64]) -> NDArray[np.int32]:
        """Returns the weights of n-grams, given by their rows."""
        return self.numbers_G.take(rows_M)


def score_texts(
    config: NgramConfig, weights: Mapping[int, Weights], texts: Sequence[bytes]
) -> NDArray[np.float64]:
    """Returns the scores of texts, not centered; NaN for an empty one.

    A score does not depend on the other texts, not even in its last bit.

    Args:
        config: Shape of the rater.
        weights: Weights of each order.
        texts: N texts in UTF-8.
    """
    sizes_N = np.asarray([len(text) for text in texts], np.int64)
    sums = {order: np.zeros(len(texts), np.int64) for order in config.orders}

    # Short texts are scored together: otherwise NumPy's calls would take longer than their work.
    for first, end in _together(sizes_N.tolist()):
        part = slice(first, end)
        if end - first == 1:
            for order, rows_M in rows_by_order(config, texts[first]):
                sums[order][first] += int(weights[order].at(rows_M).sum(dtype=np.int64))
            continue
        bytes_L = np.frombuffer(b"".join(texts[part]), np.uint8)
        for order in config.orders:
            values_M = weights[order].at(hashed(grams(bytes_L, order), order, config.row_bits))
            sums[order][part] = _sums_by_text(values_M, sizes_N[part], order)

    scores_N = np.zeros(len(texts))
    for order in config.orders:
        counts_N = np.maximum(sizes_N - order + 1, 1)
        scores_N += sums[order] / counts_N * weights[order].unit
    return np.where(sizes_N > 0, scores_N, np.nan)


def _together(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields ranges of texts that are not longer together than a piece, unless one is alone."""
    first, total = 0, 0
    for index, size in enumerate(sizes):
        if total + size > _PIECE_BYTES and index > first:
            yield first, index
            first, total = index, 0
        total += size
    if first < len(sizes):
        yield first, len(sizes)


def _sums_by_text(
    values_M: NDArray[np.int32], sizes_N: NDArray[np.int64], order: int
) -> NDArray[np.int64]:
    """Adds up the weights of the n-grams of each of several texts that follow one another.

    Args:
        values_M: Weights of all n-grams, also of those that belong to two texts.
        sizes_N: Sizes of the texts in bytes.
        order: Order of the n-grams.
    """
    ends_N = np.cumsum(sizes_N)
    has_any_N = sizes_N >= order
    sums_N = np.zeros(len(sizes_N), np.int64)
    if not has_any_N.any():
        return sums_N

    # Every second sum is of what lies between two texts.
    starts_N = ends_N - sizes_N
    bounds_NxE = np.stack([starts_N, ends_N - order + 1], axis=1)[has_any_N]
    bounds = bounds_NxE.ravel()
    if bounds[-1] == len(values_M):
        bounds = bounds[:-1]
    sums_N[has_any_N] = np.add.reduceat(values_M, bounds, dtype=np.int64)[::2]
    return sums_N
