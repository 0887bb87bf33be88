"""Every byte has an id, no text yields a special id, and tokenizers load as they were saved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.rater_model.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    TokenizerError,
    load_tokenizer,
    train_bpe,
)

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog"] * 5


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return train_bpe(TEXTS, 300)


@given(st.text())
def test_bytes_are_the_ids(text: str) -> None:
    assert bytes(ByteTokenizer().encode(text).tolist()) == text.encode()


@given(
    text=st.one_of(
        st.text(), st.sampled_from(["<pad>", "<separator>", "a<pad>b", "<separator><separator>"])
    )
)
def test_special_ids_never_come_out_of_text(bpe: BpeTokenizer, text: str) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert not {tokenizer.pad_id, tokenizer.separator_id} & set(ids.tolist())
        assert ((ids >= 0) & (ids < tokenizer.vocabulary_size)).all()


@given(st.text())
def test_what_is_saved_is_what_is_loaded(bpe: BpeTokenizer, text: str) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        loaded = load_tokenizer(tokenizer.kind, tokenizer.serialise())
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert loaded.vocabulary_size == tokenizer.vocabulary_size
        assert (loaded.pad_id, loaded.separator_id) == (tokenizer.pad_id, tokenizer.separator_id)


@given(texts=st.lists(st.text() | st.sampled_from(["<pad>", "a <separator> b", ""]), max_size=8))
def test_a_batch_is_encoded_as_each_text_is(bpe: BpeTokenizer, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    for tokenizer in (bpe, ByteTokenizer()):
        together = tokenizer.encode_batch(texts)
        assert len(together) == len(texts)
        for ids, text in zip(together, texts, strict=True):
            expected = tokenizer.encode(text)
            assert ids.dtype == expected.dtype
            assert ids.tolist() == expected.tolist()


def test_a_bpe_shortens_what_it_was_trained_on(bpe: BpeTokenizer) -> None:
    assert len(bpe.encode("the cat sat")) < len(ByteTokenizer().encode("the cat sat")) / 2


@pytest.mark.parametrize(
    ("kind", "serialised", "message"),
    [
        ("words", b"{}", "unknown tokenizer kind 'words'"),
        ("byte", b"{}", "does not describe the byte tokenizer"),
        ("bpe", b"{}", "not a tokenizer of the tokenizers library"),
    ],
)
def test_what_cannot_be_loaded_is_refused(kind: str, serialised: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(kind, serialised)


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match="at least 258 ids, not 100"):
        train_bpe(TEXTS, 100)
