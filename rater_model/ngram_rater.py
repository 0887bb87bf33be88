"""Defines the n-gram rater: a linear function of a text's byte n-grams, for scoring without JAX.

    score(x) = sum over orders n of the mean over the n-grams g of x of w_n[row(g)]

where row is the number of the n-gram, hashed for large n (`datarater.rater_model.byte_ngrams`). A
text shorter than n has no n-gram of that order, which then adds nothing. `datarater distil` fits
such a rater, the *student*, to the scores of another one.

Dimension letters in array names: L the bytes of a text, M its n-grams, G the rows of a table, H the
documents that were held out of the fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.rater_model.byte_ngrams import MAX_ORDER, grams, hashed, table_rows, utf8

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


def rows_by_order(config: NgramConfig, text: str) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields the rows of a text's n-grams, piece by piece, each with its order.

    Args:
        config: Shape of the rater.
        text: The text.
    """
    bytes_L = utf8(text)
    for start in range(0, len(bytes_L), _PIECE_BYTES):
        for order in config.orders:
            # An n-gram belongs to the piece in which it begins.
            piece_L = bytes_L[start : start + _PIECE_BYTES + order - 1]
            yield order, hashed(grams(piece_L, order), order, config.row_bits)


def score_text(config: NgramConfig, tables: Mapping[int, NDArray[np.float32]], text: str) -> float:
    """Returns the score of a text, not centered; NaN for an empty one.

    Args:
        config: Shape of the rater.
        tables: Weights w_n of each order, float32, shape [G].
        text: The text.
    """
    if not text:
        return float("nan")
    sums = dict.fromkeys(config.orders, 0.0)
    counts = dict.fromkeys(config.orders, 0)
    for order, rows_M in rows_by_order(config, text):
        # In float64 the order of the sum, which depends on the processor, changes no score.
        sums[order] += float(tables[order].take(rows_M).sum(dtype=np.float64))
        counts[order] += len(rows_M)
    return sum(sums[order] / max(1, counts[order]) for order in config.orders)
