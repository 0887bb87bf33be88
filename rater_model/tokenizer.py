"""Tokenizers: bytes by default, or a byte-level BPE trained on the corpus. Both travel in the checkpoint.

Every tokenizer keeps two ids of its own beside those of the text: one to pad a window with, one
that separates the documents packed into one window.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import tokenizers

PAD_TOKEN = "<pad>"
SEPARATOR_TOKEN = "<separator>"


class TokenizerError(ValueError):
    """A serialised tokenizer that cannot be used, with the reason."""


class Tokenizer(Protocol):
    """What the rater and the inner models need of a tokenizer.

    Attributes:
        kind: the name under which `load_tokenizer` finds it: "byte" or "bpe".
        vocabulary_size: number of ids, the two special ones included.
        pad_id: fills a window behind its text; masked wherever it stands.
        separator_id: stands between two documents packed into one window.
    """

    kind: str
    vocabulary_size: int
    pad_id: int
    separator_id: int

    def encode(self, text: str) -> np.ndarray:
        """Returns the text's token ids, without special tokens, in any integer type."""

    def serialise(self) -> bytes:
        """Returns what `load_tokenizer` reads: the content of `tokenizer.json`."""


class ByteTokenizer:
    """One token a byte of the text's UTF-8: ids 0 to 255, then padding (256) and separator (257).

    Example:
        >>> ByteTokenizer().encode("né").tolist()
        [110, 195, 169]
    """

    kind = "byte"
    vocabulary_size = 258
    pad_id = 256
    separator_id = 257

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of the text, uint8: a text of any size costs its bytes once."""
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def serialise(self) -> bytes:
        """Returns a JSON object that says that there is nothing to load."""
        return json.dumps({"kind": self.kind, "vocabulary_size": self.vocabulary_size}).encode()


class BpeTokenizer:
    """A byte-level BPE of the `tokenizers` library with the two special tokens added to it.

    Args:
        tokenizer: the library's tokenizer; it must know `<pad>` and `<separator>`.

    Raises:
        TokenizerError: one of the special tokens is missing.
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
        """Returns the text's BPE ids, int32; text that spells a special token is encoded as plain text."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def serialise(self) -> bytes:
        """Returns the library's own JSON."""
        return self._tokenizer.to_str().encode("utf-8")


def _plain_text_only(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    # Otherwise a document that spells "<separator>" would yield the separator's id.
    tokenizer.encode_special_tokens = True
    return tokenizer


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> BpeTokenizer:
    """Trains a byte-level BPE on texts.

    Args:
        texts: the corpus, read once.
        vocabulary_size: number of ids wanted, at least 258 (the bytes and the special tokens).

    Returns:
        The tokenizer; it has fewer ids where the texts do not hold enough pairs.

    Raises:
        TokenizerError: the vocabulary is too small to hold every byte.
    """
    if vocabulary_size < 258:
        raise TokenizerError(
            f"a byte-level BPE needs a vocabulary of at least 258 ids, not {vocabulary_size}"
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
    """Loads a tokenizer from what its `serialise` returned.

    Args:
        kind: "byte" or "bpe".
        serialised: the content of `tokenizer.json`.

    Raises:
        TokenizerError: the kind is unknown or the content is not of this kind.
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
                f"tokenizer.json is no tokenizer of the tokenizers library: {error}"
            ) from error
        return BpeTokenizer(_plain_text_only(tokenizer))
    raise TokenizerError(f"unknown tokenizer kind {kind!r}; known are 'byte' and 'bpe'")
