"""The tokenizer of a language model, from its `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from datarater.rater_model.plain_tokenizer import parse_tokenizer
from datarater.rater_model.tokenizer import FILE, TokenizerError, in_chunks, load_tokenizer


class FileTokenizer:
    """Encodes with a tokenizer of the `tokenizers` library, given by its file.

    It neither cuts texts nor adds special tokens, and a special token's name in a text is plain
    text.

    Args:
        content: Content of the `tokenizer.json`.
        pad_id: Id that fills a window after its text; may be that of the separator.
        separator_id: Id between two documents, such as that of the token that ends a text.

    Raises:
        TokenizerError: if the content is not a tokenizer's, or has no token of one of the ids.
    """

    kind = FILE

    def __init__(self, content: bytes, pad_id: int, separator_id: int) -> None:
        self._tokenizer = parse_tokenizer(content, "tokenizer.json")
        self.content = content
        # Ids may have gaps, so the number of tokens would be too low.
        self.vocabulary_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.pad_id = pad_id
        self.separator_id = separator_id
        for name in ("pad_id", "separator_id"):
            number = getattr(self, name)
            # The library's own error of a negative id, which some configs have, is another one.
            inside = 0 <= number < self.vocabulary_size
            if not inside or self._tokenizer.id_to_token(number) is None:
                raise TokenizerError(f"tokenizer.json has no token of the {name} {number}")

    def __reduce__(self) -> tuple[Any, ...]:
        return load_tokenizer, (self.kind, self.serialise())

    def encode(self, text: str) -> np.ndarray:
        """Returns the text's ids, int32."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text; threads of the library share the texts."""
        return [
            np.asarray(encoding.ids, np.int32)
            for chunk in in_chunks(texts)
            for encoding in self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        ]

    def serialise(self) -> bytes:
        """Returns a JSON object with the two ids and the content of the file."""
        values = {
            "kind": self.kind,
            "pad_id": self.pad_id,
            "separator_id": self.separator_id,
            "tokenizer": self.content.decode("utf-8"),
        }
        return json.dumps(values, ensure_ascii=False).encode("utf-8")

    @classmethod
    def load(cls, serialised: bytes) -> FileTokenizer:
        """Returns the tokenizer that `serialise` described.

        Raises:
            TokenizerError: if the content is not one that it wrote.
        """
        try:
            values = json.loads(serialised)
            content = values["tokenizer"].encode("utf-8")
            pad_id, separator_id = int(values["pad_id"]), int(values["separator_id"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokenizerError("tokenizer.json does not describe a tokenizer's file") from error
        return cls(content, pad_id, separator_id)
