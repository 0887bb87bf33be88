"""Token windows: documents cut into windows and drawn in batches, deterministically.

Windows of files are made once, kept in a temporary file and shuffled over the whole set. Windows of
a TensorFlow dataset are made on demand: documents are shuffled, tokenized, packed or cut, and the
windows are shuffled again within a buffer, so that those of one long document do not end up in one
batch. In both cases the iterator's state is a few numbers, and an iterator restored to it continues
with the same batches.

Dimension letters as in `datarater.meta_training.algorithm`, and N, the windows of a set.
"""

from __future__ import annotations

import array
import dataclasses
import tempfile
from collections.abc import Iterable
from typing import Any, Protocol

import grain
import numpy as np

from datarater.meta_training.algorithm.language_model import Windows
from datarater.meta_training.data.batch_order import BatchOrder
from datarater.meta_training.data.texts import DataError, TextSet
from datarater.rater_model.counted import counted
from datarater.rater_model.tokenizer import Tokenizer

WINDOW_MODES = ("packed", "document")


@dataclasses.dataclass(frozen=True)
class SingleSource:
    """How many of the batches have windows of a single source; see `batch_order`.

    Attributes:
        share: Share of the batches, in [0, 1].
        batch: B, the windows whose scores compete; a divisor of those that are drawn at a time.
    """

    share: float = 0.0
    batch: int = 1


MIXED = SingleSource()
"""Every batch has windows of all sources."""

_FOREVER = 2**62  # batches, in the length that grain asks for


class WindowSet(Protocol):
    """A set of windows to draw batches from."""

    def batches(self, count: int, seed: int, single: SingleSource = MIXED) -> grain.IterDataset:
        """Returns endless batches of `count` windows: pairs (tokens_BxL, length_B), both int32.

        Args:
            count: Windows of a batch.
            seed: Seed for shuffling.
            single: Share of batches of a single source.

        Raises:
            DataError: If the set cannot have batches of a single source.
        """

    def describe(self) -> str:
        """Returns the size of the set, for the log."""


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """All windows of a set, in a temporary file that the operating system pages in as needed.

    Attributes:
        tokens_NxL: Token ids, uint16 or, for a larger vocabulary, uint32.
        length_N: Valid tokens of each window, int32.
        documents: Number of documents that the windows were made from.
        source_N: Number of each window's source; None if windows may have documents of several.
    """

    tokens_NxL: np.ndarray
    length_N: np.ndarray
    documents: int
    source_N: np.ndarray | None = None

    def batches(self, count: int, seed: int, single: SingleSource = MIXED) -> grain.IterDataset:
        """Returns endless batches; each pass over the whole set has a shuffled order of its own."""
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        if not single.share:
            rows = grain.MapDataset.source(_Rows(self)).seed(seed).shuffle().repeat()
            return rows.batch(count).to_iter_dataset(options)

        if self.source_N is None:
            raise DataError("the windows were made without their sources")
        order = BatchOrder(self.source_N, single.batch, single.share, seed)
        at_once = count // single.batch

        def batch(position: int) -> tuple[np.ndarray, np.ndarray]:
            numbers = [order[position * at_once + i] for i in range(at_once)]
            number_B = np.concatenate(numbers)
            return self.tokens_NxL[number_B].astype(np.int32), self.length_N[number_B]

        return grain.MapDataset.range(_FOREVER).map(batch).to_iter_dataset(options)

    def describe(self) -> str:
        """Returns the numbers of windows and documents, for the log."""
        return f"{counted(len(self.length_N), 'window')} of {counted(self.documents, 'document')}"


class _Rows:
    """Random access to windows, in the form that grain expects."""

    def __init__(self, windows: TokenWindows) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows.length_N)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._windows.tokens_NxL[index].astype(np.int32), self._windows.length_N[index]

    def __repr__(self) -> str:
        return f"_Rows({len(self)} windows)"


def make_windows(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    length: int,
    mode: str,
    minimum_length: int = 2,
    within_sources: bool = False,
) -> TokenWindows:
    """Cuts documents into windows of at most `length` tokens.

    Args:
        texts: The documents.
        tokenizer: Tokenizer of the documents.
        length: L, the tokens of a window.
        mode: "packed" joins all documents, each followed by a separator, and cuts the stream into
            full windows, so a window may contain several documents; the rest at the end is dropped.
            "document" gives each document windows of its own and pads the last one.
        minimum_length: In "document" mode, a last window with fewer tokens than this is dropped.
        within_sources: Whether a window's documents must be of one source: each source is packed by
            itself, and the rest at its end is dropped. The texts must then be a `TextSet`.

    Returns:
        The windows, in the order of the documents; `within_sources`, of one source after the other.

    Raises:
        DataError: If the documents yield no window.
    """
    minimum_length = max(2, minimum_length)
    dtype = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32)
    separator = np.asarray([tokenizer.separator_id], dtype)
    if within_sources and not isinstance(texts, TextSet):
        raise TypeError("only a TextSet knows the sources of its texts")
    documents_of_sources = (
        texts.by_source()
        if within_sources and isinstance(texts, TextSet)
        else ((0, text) for text in texts)
    )

    documents, tokens, packed_source = 0, 0, 0
    lengths, sources = array.array("i"), array.array("i")
    # The file lives as long as its memory map.
    file = tempfile.TemporaryFile(prefix="datarater-windows-")  # noqa: SIM115
    for source, text in documents_of_sources:
        documents += 1
        if mode == "packed":
            if source != packed_source:
                # What is left of the source before does not fill a window, and is written over.
                tokens -= tokens % length
                file.seek(tokens * dtype.itemsize)
                packed_source = source
            ids = tokenizer.encode(text).astype(dtype)
            file.write(ids.tobytes() + separator.tobytes())
            tokens += len(ids) + 1
            sources.extend([source] * (tokens // length - len(sources)))
        else:
            for ids in cut_document(text, tokenizer, length, minimum_length):
                file.write(pad(ids, length, tokenizer).astype(dtype).tobytes())
                lengths.append(len(ids))
                sources.append(source)
    file.flush()

    length_N = (
        np.full(tokens // length, length, np.int32)
        if mode == "packed"
        else np.frombuffer(lengths, np.int32)
    )
    if not len(length_N):
        raise DataError(_no_window(texts, documents, length, mode, minimum_length))
    return TokenWindows(
        np.memmap(file, dtype, "r", shape=(len(length_N), length)),
        length_N,
        documents,
        np.frombuffer(sources, np.int32) if within_sources else None,
    )


def _no_window(
    texts: Iterable[str], documents: int, length: int, mode: str, minimum_length: int
) -> str:
    """Returns the message that documents yield no window."""
    which = (
        f"the {counted(documents, 'document')} of the {texts.role} set"
        if isinstance(texts, TextSet)
        else "the documents"
    )
    if mode == "document":
        return (
            f"{which} have no window of {counted(minimum_length, 'token')}; lower "
            "data.minimum_length"
        )
    return (
        f"{which} do not fill one window of {counted(length, 'token')}; use a smaller length "
        "or more data"
    )


def cut_document(
    text: str, tokenizer: Tokenizer, length: int, minimum_length: int
) -> list[np.ndarray]:
    """Returns a document's windows, without those shorter than the minimum length.

    Args:
        text: The document.
        tokenizer: Tokenizer of the document.
        length: L, the maximum length of a window in tokens.
        minimum_length: Minimum length of a window in tokens; 2 if smaller.
    """
    ids = tokenizer.encode(text).astype(np.int32)
    pieces = (ids[start : start + length] for start in range(0, len(ids), length))
    return [piece for piece in pieces if len(piece) >= max(2, minimum_length)]


def pad(ids: np.ndarray, length: int, tokenizer: Tokenizer) -> np.ndarray:
    """Returns ids padded to a length."""
    return np.pad(ids, (0, length - len(ids)), constant_values=tokenizer.pad_id)


class StreamedWindows:
    """Windows made on demand, for sets larger than memory and disk.

    Documents are shuffled over the whole source, in a new order on each pass. In "packed" mode they
    are joined, each followed by a separator, and the stream is cut into full windows across passes,
    so no token is lost. Windows are then shuffled within a buffer.

    Args:
        texts: The documents.
        tokenizer: Tokenizer of the documents.
        length: L, the tokens of a window.
        mode: "packed" or "document", as for `make_windows`.
        minimum_length: In "document" mode, a last window with fewer tokens than this is dropped.
        buffer: Windows in the shuffle buffer. Restoring an iterator makes as many windows again.

    Raises:
        DataError: If the first documents yield no window.
    """

    def __init__(
        self,
        texts: TextSet,
        tokenizer: Tokenizer,
        length: int,
        mode: str,
        minimum_length: int = 2,
        buffer: int = 4096,
    ) -> None:
        self._texts, self._tokenizer, self._length, self._mode = texts, tokenizer, length, mode
        self._minimum_length, self._buffer = minimum_length, buffer

        # An endless iterator over no windows would block forever.
        if mode == "document" and not any(map(self._cut, texts.spread(1000))):
            raise DataError(
                f"none of up to 1,000 documents of the {texts.role} set ({texts.source.name}) has "
                f"a window of {counted(max(2, minimum_length), 'token')}; lower data.minimum_length"
            )

    def _cut(self, text: str) -> list[np.ndarray]:
        return cut_document(text, self._tokenizer, self._length, self._minimum_length)

    def _windows(self, seed: int) -> grain.IterDataset:
        documents = grain.MapDataset.source(_Documents(self._texts)).seed(seed).shuffle().repeat()
        options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)
        tokenizer, length = self._tokenizer, self._length
        if self._mode == "packed":
            separator = np.asarray([tokenizer.separator_id], np.int32)
            ids = documents.map(
                lambda text: {"ids": np.concatenate([tokenizer.encode(text), separator])}
            )
            packed = grain.experimental.ConcatThenSplitIterDataset(
                ids.to_iter_dataset(options), length_struct={"ids": length}
            )
            return packed.map(lambda window: (window["ids"].astype(np.int32), np.int32(length)))
        cut = documents.map(self._cut).to_iter_dataset(options)
        pieces = grain.experimental.FlatMapIterDataset(cut, _Pieces())
        return pieces.map(
            lambda ids: (pad(ids, length, tokenizer).astype(np.int32), np.int32(len(ids)))
        )

    def batches(self, count: int, seed: int, single: SingleSource = MIXED) -> grain.IterDataset:
        """Returns endless batches of `count` windows; see the class."""
        if single.share:
            raise DataError(
                f"data.within_source_share is {single.share}, but a TensorFlow dataset "
                f"({self._texts.source.name}) is read without the sources of its documents: "
                "set it to 0, or give files"
            )
        windows = grain.experimental.WindowShuffleIterDataset(
            self._windows(seed), window_size=max(self._buffer, count), seed=seed
        )
        return grain.experimental.ThreadPrefetchIterDataset(
            windows.batch(count), prefetch_buffer_size=2
        )

    def describe(self) -> str:
        """Returns the source and its number of documents, including those of other sets."""
        return (
            f"windows drawn from {self._texts.source.name} "
            f"({counted(len(self._texts.source), 'document')})"
        )


class _Documents:
    """Random access to documents, in the form that grain expects; it skips those that are None."""

    def __init__(self, texts: TextSet) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts.source)

    def __getitem__(self, index: int) -> str | None:
        return self._texts.get(index)

    def __repr__(self) -> str:
        return f"_Documents({self._texts.source!r})"


class _Pieces(grain.experimental.FlatMapTransform):
    """Emits a document's windows one by one."""

    def flat_map(self, element: list[np.ndarray]) -> list[np.ndarray]:
        return element


def draw_batches(
    windows: WindowSet, shape: tuple[int, ...], seed: int, within_source_share: float = 0.0
) -> Any:
    """Returns an endless iterator of batches.

    Args:
        windows: The `WindowSet` to draw from, or other elements with such batches.
        shape: Leading axes of a batch, such as (P, T, B) for P inner models, T updates and B
            windows each.
        seed: Seed for shuffling.
        within_source_share: Share of the batches, along the last leading axis, whose windows are of
            a single source.

    Returns:
        A grain iterator of `Windows` of NumPy arrays, whose tokens have the shape [*shape, L];
        `iterator_state` and `restore_iterator` save and restore its position.
    """
    single = SingleSource(within_source_share, shape[-1])
    return in_shape(windows.batches(int(np.prod(shape)), seed, single), shape)


def in_shape(batches: grain.IterDataset, shape: tuple[int, ...], kind: Any = Windows) -> Any:
    """Returns an iterator of batches with several leading axes in place of one.

    Args:
        batches: Batches of as many elements as the shape has, as tuples of arrays.
        shape: Leading axes of the arrays.
        kind: Tuple that the arrays make.
    """

    def as_batch(batch: tuple[np.ndarray, ...]) -> Any:
        # Arrays of the host, which go straight to the devices that use them.
        return kind(*(x.reshape(*shape, *x.shape[1:]) for x in batch))

    return iter(batches.map(as_batch))


def iterator_state(iterator: Any) -> Any:
    """Returns the position of an iterator of `draw_batches`, as JSON."""
    return iterator.get_state()


def restore_iterator(iterator: Any, state: Any) -> None:
    """Moves an iterator to the position of another one with the same data, shape and seed.

    Args:
        iterator: Iterator of `draw_batches`.
        state: Position that `iterator_state` returned, whether or not it has been stored as JSON.
    """
    # Grain's packing compares slices as tuples. JSON turns them into lists, with which grain would
    # lose a document.
    iterator.set_state(_lists_to_tuples(state))


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_lists_to_tuples(item) for item in value)
    return value
