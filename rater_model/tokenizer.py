"""Turns texts into token ids: bytes by default, or a byte-level BPE trained on the corpus.

A third kind is the tokenizer of a language model (`datarater.rater_model.file_tokenizer`). Each is
stored in the rater's checkpoint. Every tokenizer has two ids besides those of the text: one that
pads a window, and one that separates the documents packed into one window.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers

PAD_TOKEN = "<pad>"
SEPARATOR_TOKEN = "<separator>"
FILE = "file"  # kind of `file_tokenizer.FileTokenizer`
CHARACTERS_AT_ONCE = 2**20


class TokenizerError(ValueError):
    """A serialized tokenizer cannot be used; the message gives the reason."""


class Tokenizer(Protocol):
    """The interface of a tokenizer that the rater and the inner models use.

    Attributes:
        kind: Name of the tokenizer for `load_tokenizer`: "byte", "bpe" or "file".
        vocabulary_size: Number of ids, including the two special ones.
        pad_id: Id that fills a window after its text; always masked.
        separator_id: Id between two documents packed into one window.
    """

    kind: str
    vocabulary_size: int
    pad_id: int
    separator_id: int

    def encode(self, text: str) -> np.ndarray:
        """Returns the text's token ids, without special tokens, in any integer type."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns what `encode` returns for each text, with all cores where that helps."""

    def serialise(self) -> bytes:
        """Returns the content of `tokenizer.json`, which `load_tokenizer` reads."""


class ByteTokenizer:
    """Takes each byte of a text's UTF-8 as a token: ids 0 to 255, then pad (256), separator (257).

    Example:
        >>> ByteTokenizer().encode("né").tolist()
        [110, 195, 169]
    """

    kind = "byte"
    vocabulary_size = 258
    pad_id = 256
    separator_id = 257

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of the text, uint8, without copying them again."""
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the bytes of each text."""
        return [self.encode(text) for text in texts]

    def serialise(self) -> bytes:
        """Returns a JSON object with the kind and the size; there is nothing else to load."""
        return json.dumps({"kind": self.kind, "vocabulary_size": self.vocabulary_size}).encode()


class BpeTokenizer:
    """Encodes with a byte-level BPE of the `tokenizers` library, plus the two special tokens.

    Args:
        tokenizer: Tokenizer of the library; its vocabulary must include `<pad>` and `<separator>`.

    Raises:
        TokenizerError: if one of the special tokens is missing.
    """

    kind = "bpe"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        pad_id, separator_id = (
            tokenizer.token_to_id(token) for token in (PAD_TOKEN, SEPARATOR_TOKEN)
        )
        if pad_id is None or separator_id is None:
            raise TokenizerError(
                f"the BPE lacks one of the special tokens {PAD_TOKEN} and {SEPARATOR_TOKEN}"
            )
        self._tokenizer = tokenizer
        self.vocabulary_size = tokenizer.get_vocab_size()
        self.pad_id = pad_id
        self.separator_id = separator_id

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickle forgets that special tokens in a text are plain text.
        return load_tokenizer, (self.kind, self.serialise())

    def encode(self, text: str) -> np.ndarray:
        """Returns the text's BPE ids, int32; a special token in the text is plain text."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the BPE ids of each text; threads of the library share the texts."""
        # The library's encodings take ten times the memory of the ids, so there are few at a time.
        ids: list[np.ndarray] = []
        for chunk in in_chunks(texts):
            encodings = self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
            ids += [np.asarray(encoding.ids, np.int32) for encoding in encodings]
        return ids

    def serialise(self) -> bytes:
        """Returns the library's own JSON."""
        return self._tokenizer.to_str().encode("utf-8")


def in_chunks(texts: Iterable[str], characters: int = CHARACTERS_AT_ONCE) -> Iterator[list[str]]:
    """Yields texts in lists of at most so many characters, or of one longer text."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and size + len(text) > characters:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk


def _plain_text_only(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    # Otherwise a document that contains "<separator>" would yield the separator's id.
    tokenizer.encode_special_tokens = True
    return tokenizer


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> BpeTokenizer:
    """Trains a byte-level BPE on texts.

    Args:
        texts: Texts of the corpus, read once.
        vocabulary_size: Target number of ids, at least 258 (the bytes and the special tokens).

    Returns:
        The tokenizer; it has fewer ids if the texts do not have enough pairs.

    Raises:
        TokenizerError: if the vocabulary is too small for every byte.
    """
    if vocabulary_size < ByteTokenizer.vocabulary_size:
        raise TokenizerError(
            f"a byte-level BPE needs a vocabulary of at least {ByteTokenizer.vocabulary_size} ids, "
            f"not {vocabulary_size}"
        )

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD_TOKEN, SEPARATOR_TOKEN],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BpeTokenizer(_plain_text_only(tokenizer))


def load_tokenizer(kind: str, serialised: bytes) -> Tokenizer:
    """Returns the tokenizer that `serialise` described.

    Args:
        kind: Kind of the tokenizer, "byte", "bpe" or "file".
        serialised: Content of `tokenizer.json`.

    Raises:
        TokenizerError: if the kind is unknown or the content does not match it.
    """
    if kind == ByteTokenizer.kind:
        if serialised != ByteTokenizer().serialise():
            raise TokenizerError(
                "tokenizer.json does not describe the byte tokenizer of this version"
            )
        return ByteTokenizer()

    if kind == BpeTokenizer.kind:
        try:
            tokenizer = tokenizers.Tokenizer.from_str(serialised.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(
                f"tokenizer.json is not a tokenizer of the tokenizers library: {error}"
            ) from error
        return BpeTokenizer(_plain_text_only(tokenizer))

    if kind == FILE:
        from datarater.rater_model.file_tokenizer import FileTokenizer

        return FileTokenizer.load(serialised)

    raise TokenizerError(
        f"unknown tokenizer kind {kind!r}; the known kinds are 'byte', 'bpe' and 'file'"
    )
