"""Tokenizers that write token files: that of a `tokenizer.json`, or the bytes of the text.

A tokenizer of the tokenizers library may be set to cut texts, to pad them or to add special tokens.
Here it does neither, and a special token's name within a text is plain text, so that the tokens of
a document are those of its whole text and of nothing else.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

from datarater.rater_model.documents.files import open_file
from datarater.rater_model.documents.remote_file import WHOLE
from datarater.rater_model.tokenizer import SEPARATOR_TOKEN, ByteTokenizer, TokenizerError

# Words that hardly any vocabulary has, of letters that a normalizer leaves.
_RARE = "qzxjvkwq \U00013000 \ua66e \u07f7"

BYTES = "byte"
"""Name of the tokenizer whose tokens are the bytes of the text."""


class PlainTokenizer:
    """Turns whole texts into token ids, without special tokens.

    Args:
        tokenizer: Tokenizer of the library; None for bytes.
        digest: SHA-256 of its `tokenizer.json`; `BYTES` for bytes.

    Attributes:
        digest: The same digest.
        vocabulary_size: Number above the highest id.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer | None, digest: str):
        self.digest = digest
        self._tokenizer = tokenizer
        if tokenizer is None:
            self.vocabulary_size = ByteTokenizer.vocabulary_size
            return
        # Ids may have gaps, so the number of tokens would be too low.
        self.vocabulary_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token of the vocabulary; None if there is no such token."""
        if self._tokenizer is None:
            return ByteTokenizer.separator_id if token == SEPARATOR_TOKEN else None
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Returns the token ids of each text."""
        if self._tokenizer is None:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int64) for encoding in encodings]


@functools.lru_cache(maxsize=2)
def load_plain_tokenizer(path: str) -> PlainTokenizer:
    """Returns a tokenizer; every process loads a file once.

    Args:
        path: Local path or URL of a `tokenizer.json`; `BYTES` for bytes.

    Raises:
        TokenizerError: if the file is not one of the tokenizers library.
        OSError: if it cannot be read.
    """
    if path == BYTES:
        return PlainTokenizer(None, BYTES)
    with open_file(path, in_order_to=WHOLE) as file:
        content = file.read()
    return PlainTokenizer(parse_tokenizer(content, path), hashlib.sha256(content).hexdigest())


def parse_tokenizer(content: bytes, path: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a `tokenizer.json`, which cuts, pads and adds nothing.

    Args:
        content: Content of the file.
        path: Path of the file, for errors.

    Raises:
        TokenizerError: if the file is not one of the tokenizers library, its vocabulary is empty,
            or it has no token for what its vocabulary lacks, so that it fails on other texts.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path} is not a tokenizer.json of the tokenizers library: {error}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if not tokenizer.get_vocab_size(with_added_tokens=True):
        raise TokenizerError(f"{path} has an empty vocabulary")
    try:
        tokenizer.encode(_RARE, add_special_tokens=False)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"{path} cannot encode every text; give it a token for unknown ones: {error}"
        ) from error
    return tokenizer
