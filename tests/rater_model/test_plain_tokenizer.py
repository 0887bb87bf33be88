"""Which `tokenizer.json` files can turn every text into tokens."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from datarater.rater_model.plain_tokenizer import parse_tokenizer
from datarater.rater_model.tokenizer import TokenizerError

WORDS = {"text": 0, "[UNK]": 1}


def content_of(model: models.Model) -> bytes:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    content: str = tokenizer.to_str()
    return content.encode()


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece(WORDS, unk_token="[UNK]"),
        models.WordLevel(WORDS, unk_token="[UNK]"),
        models.Unigram([("text", -1.0), ("[UNK]", -2.0)], unk_id=1),
    ],
)
def test_a_text_is_neither_cut_nor_padded(model: models.Model) -> None:
    tokenizer = parse_tokenizer(content_of(model), "t.json")
    assert tokenizer.encode("text text other text").ids == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.BPE(), "has an empty vocabulary"),
        (models.WordPiece({"text": 0}, unk_token="[UNK]"), "cannot encode every text"),
        (models.WordLevel({"text": 0}, unk_token="[UNK]"), "cannot encode every text"),
        (models.Unigram([("text", -1.0)], None), "cannot encode every text"),
    ],
)
def test_a_tokenizer_that_fails_on_some_texts_is_refused(model: models.Model, message: str) -> None:
    with pytest.raises(TokenizerError, match=rf"^t\.json {message}"):
        parse_tokenizer(content_of(model), "t.json")
