"""Where the windows of a set begin and end in the stream of its documents' tokens.

The stream of a set is its documents one after the other; "packed" ends each with a separator.
Dimension letters: D documents of a set, W windows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from datarater.rater_model.tokenizer import Tokenizer

WINDOW_MODES = ("packed", "document")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutOptions:
    """How documents are cut into windows.

    Attributes:
        length: L, the tokens of a window.
        mode: "packed" joins all documents, each followed by a separator, and cuts the stream into
            full windows, so a window may contain several documents; the rest at the end is dropped.
            "document" gives each document windows of its own and pads the last one.
        minimum_length: In "document" mode, a last window with fewer tokens than this is dropped.
        within_sources: Whether a window's documents must be of one source: each source is packed by
            itself, and the rest at its end is dropped.
    """

    length: int
    mode: str
    minimum_length: int = 2
    within_sources: bool = False


@dataclasses.dataclass(frozen=True)
class Cut:
    """The windows of a stream, in its order.

    Attributes:
        start_W: Place of each window's first token in the stream.
        length_W: Tokens of each window, int32.
        document_W: Document at the middle of each window.
    """

    start_W: np.ndarray
    length_W: np.ndarray
    document_W: np.ndarray


def cut(tokens_D: np.ndarray, source_D: np.ndarray, options: CutOptions) -> Cut:
    """Cuts a stream into windows.

    Args:
        tokens_D: Tokens of each document, a separator included; `within_sources`, the documents of
            a source follow one another.
        source_D: Number of each document's source.
        options: How to cut.

    Example:
        >>> options = CutOptions(length=4, mode="packed")
        >>> cut(np.array([3, 6]), np.array([0, 0]), options).start_W.tolist()
        [0, 4]
        >>> options = CutOptions(length=4, mode="document")
        >>> cut(np.array([3, 6, 5]), np.array([0, 0, 0]), options).length_W.tolist()
        [3, 4, 2, 4]
    """
    if options.mode == "document":
        return _cut_documents(tokens_D, options)
    return _cut_packed(tokens_D, source_D, options)


def _cut_packed(tokens_D: np.ndarray, source_D: np.ndarray, options: CutOptions) -> Cut:
    length, end_D = options.length, np.cumsum(tokens_D, dtype=np.int64)
    start_D = end_D - tokens_D

    # A part is what is packed by itself: a source, or everything.
    first_P = np.zeros(min(1, len(tokens_D)), np.int64)
    if options.within_sources and len(tokens_D):
        first_P = np.flatnonzero(np.diff(source_D, prepend=source_D[0] - 1))
    begin_P = start_D[first_P]
    windows_P = np.diff(begin_P, append=end_D[-1:]) // length

    inside_W = np.arange(windows_P.sum()) - np.repeat(np.cumsum(windows_P) - windows_P, windows_P)
    start_W = np.repeat(begin_P, windows_P) + inside_W * length
    document_W = np.searchsorted(end_D, start_W + length // 2, side="right")
    return Cut(start_W, np.full(len(start_W), length, np.int32), document_W)


def _cut_documents(tokens_D: np.ndarray, options: CutOptions) -> Cut:
    length, end_D = options.length, np.cumsum(tokens_D, dtype=np.int64)
    minimum = max(2, options.minimum_length)
    whole_D = tokens_D // length if length >= minimum else np.zeros_like(tokens_D)
    windows_D = whole_D + (tokens_D % length >= minimum)

    document_W = np.repeat(np.arange(len(tokens_D)), windows_D)
    inside_W = np.arange(len(document_W)) - np.repeat(np.cumsum(windows_D) - windows_D, windows_D)
    start_W = (end_D - tokens_D)[document_W] + inside_W * length
    length_W = np.minimum(length, end_D[document_W] - start_W).astype(np.int32)
    return Cut(start_W, length_W, document_W)


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
