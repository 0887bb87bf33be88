"""Training data: documents from files, cut into token windows, drawn deterministically.

The inner set is what the rater learns to weigh; the outer set is the held-out target. They never share a document:
either the outer set has files of its own, and inner documents with a text that stands there are left out, or the
outer set is a share of the inner files, chosen by a hash of the document's text.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np

from meta_training.language_model import Windows
from rater_model.documents import BadRecord, ReadOptions, list_files, read_file
from rater_model.tokenizer import Tokenizer

WINDOW_MODES = ("packed", "document")


class DataError(ValueError):
    """Data that cannot be trained on, with what to do about it."""


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """All windows of a data set, in memory.

    Attributes:
        tokens_NxL: token ids in the smallest unsigned type that holds the vocabulary.
        length_N: int32, valid tokens of each window.
        documents: documents that the windows were made of.
    """

    tokens_NxL: np.ndarray
    length_N: np.ndarray
    documents: int


@dataclasses.dataclass(frozen=True)
class DataSets:
    """What a training run reads.

    Attributes:
        inner_texts: the inner set's documents.
        outer_texts: the outer set's documents, none of which is an inner one.
        rejected: records that could not be read, by reason.
    """

    inner_texts: list[str]
    outer_texts: list[str]
    rejected: dict[str, int]


def _text_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def load_texts(
    inner: Sequence[str], outer: Sequence[str], outer_share: float, options: ReadOptions | None = None
) -> DataSets:
    """Reads the inner and the outer documents.

    Args:
        inner: paths or globs of the inner files.
        outer: paths or globs of the outer files; empty to take the outer set from the inner files.
        outer_share: the share of inner documents set apart as the outer set, where `outer` is empty.
        options: how files are read.

    Returns:
        Both sets, without a text in common.

    Raises:
        DataError: a set came out empty, or the share is not between 0 and 1.
        NoInputError: no file matches.
    """
    rejected: collections.Counter[str] = collections.Counter()

    def texts(patterns: Sequence[str]) -> Iterator[str]:
        for info in list_files(patterns):
            for record in read_file(info.path, options):
                if isinstance(record, BadRecord):
                    rejected[record.reason] += 1
                else:
                    yield record.text

    if outer:
        outer_texts = list(texts(outer))
        outer_digests = {_text_digest(text) for text in outer_texts}
        inner_texts = [text for text in texts(inner) if _text_digest(text) not in outer_digests]
    else:
        if not 0 < outer_share < 1:
            raise DataError(f"data.outer_share must lie between 0 and 1 where data.outer is empty, not {outer_share}")
        inner_texts, outer_texts = [], []
        for text in texts(inner):
            is_outer = int.from_bytes(_text_digest(text)[:8], "little") < outer_share * 2**64
            (outer_texts if is_outer else inner_texts).append(text)
    for name, found, patterns in (("inner", inner_texts, inner), ("outer", outer_texts, outer or inner)):
        if not found:
            raise DataError(f"the {name} set has no document: {', '.join(patterns)} gave none (rejected: {rejected})")
    if rejected:
        logging.warning("%d records could not be read and were left out: %s", rejected.total(), dict(rejected))
    return DataSets(inner_texts, outer_texts, dict(rejected))


def make_windows(
    texts: Iterable[str], tokenizer: Tokenizer, length: int, mode: str, minimum_length: int = 2
) -> TokenWindows:
    """Cuts documents into windows of at most `length` tokens.

    Args:
        texts: the documents.
        tokenizer: turns them into ids.
        length: L.
        mode: "packed" joins all documents, a separator behind each, and cuts the stream into full windows, so that
            a window may hold several documents; what is left at the end is dropped. "document" gives every document
            windows of its own, the last one padded.
        minimum_length: in "document" mode, a last window with fewer tokens than this is left out.

    Returns:
        The windows, in the order of the documents.

    Raises:
        DataError: the mode is unknown, or not one window came out.
    """
    if mode not in WINDOW_MODES:
        raise DataError(f"data.windows must be one of {WINDOW_MODES}, not {mode!r}")
    dtype = np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32
    encoded = [tokenizer.encode(text).astype(dtype) for text in texts]
    if mode == "packed":
        separator = np.asarray([tokenizer.separator_id], dtype)
        stream = np.concatenate([part for ids in encoded for part in (ids, separator)] or [separator])
        count = len(stream) // length
        tokens_NxL = stream[: count * length].reshape(count, length)
        length_N = np.full(count, length, np.int32)
    else:
        pieces = [
            piece
            for ids in encoded
            for start in range(0, len(ids), length)
            if len(piece := ids[start : start + length]) >= max(2, minimum_length)
        ]
        tokens_NxL = np.full((len(pieces), length), tokenizer.pad_id, dtype)
        length_N = np.asarray([len(piece) for piece in pieces], np.int32)
        for row, piece in enumerate(pieces):
            tokens_NxL[row, : len(piece)] = piece
    if not len(tokens_NxL):
        raise DataError(f"the documents do not fill one window of {length} tokens; take a smaller length or more data")
    return TokenWindows(tokens_NxL, length_N, len(encoded))


class _WindowSource:
    """Random access to windows, as grain wants it."""

    def __init__(self, windows: TokenWindows) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows.length_N)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._windows.tokens_NxL[index].astype(np.int32), self._windows.length_N[index]

    def __repr__(self) -> str:
        return f"_WindowSource({len(self)} windows)"


def draw_batches(windows: TokenWindows, shape: tuple[int, ...], seed: int) -> Any:
    """Returns an endless iterator of batches, shuffled anew each time the windows are through.

    Args:
        windows: what to draw from.
        shape: leading axes of a batch, such as (P, T, B): P inner models, T updates, B windows each.
        seed: of the shuffling.

    Returns:
        A grain iterator of `Windows` whose tokens have the shape [*shape, L]; `get_state` and `set_state` save and
        restore where it stands.
    """

    def as_batch(batch: tuple[np.ndarray, np.ndarray]) -> Windows:
        tokens, length = (jnp.asarray(x.reshape(*shape, *x.shape[1:])) for x in batch)
        return Windows(tokens, length)

    dataset = grain.MapDataset.source(_WindowSource(windows)).seed(seed).shuffle().repeat()
    dataset = dataset.batch(int(np.prod(shape)))
    return iter(dataset.map(as_batch).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
