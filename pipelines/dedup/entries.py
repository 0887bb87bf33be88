"""Entries: documents in buckets, as rows of structured arrays.

A bucket is everything with the same hash: of a whole text, or of a band of a signature. An entry
has the bucket, the document's place in the run's total order, and a sketch that verifies what the
bucket suggests. It takes 36 bytes for a text and 92 for a band.

N counts documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.dedup.signatures import SKETCH_WORDS, Bands, Signatures

Table = NDArray[Any]
"""A structured array."""

_PLACE_BITS = np.uint64(32)
RANK_FIELDS: list[tuple[str, str]] = [("order", "<u4"), ("tie", "<u8"), ("place", "<u8")]
"""A document's place in the run's total order (`datarater.pipelines.selection.ranking`): the order
of its score, the seeded hash of its key, and where it is (`places_of`). Smaller is better."""


def entry_type(sketch_words: int) -> np.dtype[Any]:
    """Returns the type of an entry.

    Args:
        sketch_words: Number of 64-bit words of a sketch.
    """
    return np.dtype([("bucket", "<u8"), *RANK_FIELDS, ("sketch", "<u8", (sketch_words,))])


TEXT_ENTRY = entry_type(1)
"""A document in the bucket of one half of its digest; the sketch is the other half."""
BAND_ENTRY = entry_type(SKETCH_WORDS)
"""A document in the bucket of a band."""


def grouped_bytes(bands: Bands) -> int:
    """Returns the bytes of all entries of a document that has no equal one above it."""
    return TEXT_ENTRY.itemsize + bands.count * BAND_ENTRY.itemsize


def places_of(split: int, rows_N: NDArray[Any]) -> NDArray[np.uint64]:
    """Returns where documents are, as integers in the order of (path, position).

    Args:
        split: Ordinal of their split.
        rows_N: Their rows in its score file.
    """
    return np.uint64(split << 32) | rows_N.astype(np.uint64)


def split_of(places_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns the ordinals of the splits of places."""
    return (places_N >> _PLACE_BITS).astype(np.int64)


def row_of(places_N: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Returns the rows of places in their score files."""
    return places_N.astype(np.uint32)


def by_code(codes_N: NDArray[Any], table: Table) -> Iterator[tuple[int, Table]]:
    """Yields the rows of a table with each code, such as the number of a split."""
    order_N = np.argsort(codes_N, kind="stable")
    codes, firsts = np.unique(codes_N[order_N], return_index=True)
    parts = np.split(table[order_N], firsts[1:])
    yield from zip(codes.tolist(), parts, strict=False)


def signature_type(bands: Bands) -> np.dtype[Any]:
    """Returns the type of a signed document, from which its entries are made."""
    return np.dtype(
        [
            ("row", "<u4"),
            ("order", "<u4"),
            ("tie", "<u8"),
            ("has_words", "?"),
            ("digest", "<u8", (2,)),
            ("bands", "<u8", (bands.count,)),
            ("sketch", "<u8", (SKETCH_WORDS,)),
        ]
    )


def signed(
    texts: Sequence[str],
    bands: Bands,
    rows_N: NDArray[Any],
    orders_N: NDArray[np.uint32],
    ties_N: NDArray[np.uint64],
) -> Table:
    """Returns signed documents.

    Args:
        texts: Their texts.
        bands: How signatures are divided.
        rows_N: Their rows in the score file of their split.
        orders_N: Orders of their scores.
        ties_N: Seeded hashes of their keys.
    """
    signatures = Signatures.of(texts)
    table = np.zeros(len(texts), signature_type(bands))
    table["row"], table["order"], table["tie"] = rows_N, orders_N, ties_N
    table["has_words"] = signatures.has_words_N
    table["digest"] = signatures.digests_Nx2
    table["bands"] = signatures.bands(bands)
    table["sketch"] = signatures.sketches()
    return table


def text_entries(signatures: Table, split: int) -> Table:
    """Returns an entry for the whole text of each document.

    Args:
        signatures: Signed documents.
        split: Ordinal of their split.
    """
    entries = _ranked(signatures, TEXT_ENTRY, split)
    entries["bucket"] = signatures["digest"][:, 0]
    entries["sketch"] = signatures["digest"][:, 1:]
    return entries


def band_entries(signatures: Table, split: int, without: NDArray[Any]) -> Table:
    """Returns an entry for each band of the documents that have words.

    Args:
        signatures: Signed documents.
        split: Ordinal of their split.
        without: Rows of documents to leave out: those with an equal one above them. Whatever they
            are similar to, the equal one is too.
    """
    left = signatures[signatures["has_words"] & ~np.isin(signatures["row"], without)]
    count = left["bands"].shape[1]
    entries = _ranked(left, BAND_ENTRY, split, count)
    entries["bucket"] = left["bands"].reshape(-1)
    entries["sketch"] = np.repeat(left["sketch"], count, axis=0)
    return entries


def _ranked(signatures: Table, kind: np.dtype[Any], split: int, each: int = 1) -> Table:
    """Returns entries with the ranks of documents, each of which gets several in a row."""
    entries = np.zeros(len(signatures) * each, kind)
    entries["order"] = np.repeat(signatures["order"], each)
    entries["tie"] = np.repeat(signatures["tie"], each)
    entries["place"] = np.repeat(places_of(split, signatures["row"]), each)
    return entries
