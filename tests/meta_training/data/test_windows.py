"""Windows: every token once; batches: the same from the same state, whatever the source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.meta_training.data.texts import DataError, Membership, TextSet, TfdsTexts
from datarater.meta_training.data.windows import (
    StreamedWindows,
    TokenWindows,
    WindowSet,
    cut_document,
    draw_batches,
    iterator_state,
    make_windows,
    restore_iterator,
)
from datarater.rater_model.tokenizer import ByteTokenizer, train_bpe
from tests.support.tensorflow_dataset import build_dataset

TOKENIZER = ByteTokenizer()
TEXTS = st.lists(
    st.text(st.sampled_from("abcdé "), min_size=1, max_size=40), min_size=1, max_size=12
)


class ListedTexts:
    """Texts of a list."""

    name, identity = "listed", ""

    def __init__(self, texts: Sequence[str]) -> None:
        self.rejected: dict[str, int] = {}
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:
        return self._texts[index]


def text_set(role: str, texts: Sequence[str]) -> TextSet:
    return TextSet(role, ListedTexts(texts), Membership())


def inner_set(texts: Sequence[str]) -> TextSet:
    return text_set("inner", texts)


@settings(deadline=None)
@given(TEXTS, st.integers(2, 16))
def test_packed_windows_hold_every_token_once_with_a_separator_behind_each_document(
    texts: list[str], length: int
) -> None:
    expected = [token for text in texts for token in (*text.encode(), TOKENIZER.separator_id)]
    if len(expected) < length:
        with pytest.raises(DataError, match="do not fill one window"):
            make_windows(texts, TOKENIZER, length, "packed")
        return
    windows = make_windows(texts, TOKENIZER, length, "packed")
    whole = len(expected) // length
    assert windows.tokens_NxL.reshape(-1).tolist() == expected[: whole * length]
    assert windows.length_N.tolist() == [length] * whole
    assert windows.documents == len(texts)


@settings(deadline=None)
@given(TEXTS, st.integers(2, 16), st.integers(0, 5))
def test_document_windows_hold_one_document_each_and_leave_out_only_short_ends(
    texts: list[str], length: int, minimum: int
) -> None:
    expected = []
    for text in texts:
        encoded = list(text.encode())
        pieces = [encoded[start : start + length] for start in range(0, len(encoded), length)]
        expected += [piece for piece in pieces if len(piece) >= max(2, minimum)]
    if not expected:
        with pytest.raises(DataError):
            make_windows(texts, TOKENIZER, length, "document", minimum)
        return
    windows = make_windows(texts, TOKENIZER, length, "document", minimum)
    actual = [row[:n].tolist() for row, n in zip(windows.tokens_NxL, windows.length_N, strict=True)]
    assert actual == expected
    for row, n in zip(windows.tokens_NxL, windows.length_N, strict=True):
        assert (row[n:] == TOKENIZER.pad_id).all()


def test_a_vocabulary_above_65536_needs_four_bytes() -> None:
    class LargeVocabulary(ByteTokenizer):
        vocabulary_size = 70_000

    assert make_windows(["abc"], LargeVocabulary(), 2, "packed").tokens_NxL.dtype == np.uint32
    assert make_windows(["abc"], TOKENIZER, 2, "packed").tokens_NxL.dtype == np.uint16


def draw(
    windows: WindowSet, count: int, shape: tuple[int, ...] = (2,), seed: int = 0
) -> list[list[int]]:
    """Returns the valid tokens of the windows of the first `count` batches."""
    batches = draw_batches(windows, shape, seed)
    drawn = []
    for _ in range(count):
        batch = next(batches)
        rows = np.asarray(batch.tokens_BxL).reshape(-1, batch.tokens_BxL.shape[-1])
        drawn += [
            row[:n].tolist()
            for row, n in zip(rows, np.asarray(batch.length_B).reshape(-1), strict=True)
        ]
    batches.close()
    return drawn


def test_stored_windows_come_once_a_round_in_another_order_each() -> None:
    windows = make_windows([f"{i:04d}" for i in range(10)], TOKENIZER, 5, "packed")
    first, second = draw(windows, 5), draw(windows, 10)[10:]
    stored = sorted(row.tolist() for row in windows.tokens_NxL)
    assert sorted(first) == sorted(second) == stored
    assert first != second
    assert draw(windows, 5, seed=1) != first


@settings(deadline=None, max_examples=10)
@given(
    st.lists(
        st.text(st.sampled_from("abcd"), min_size=1, max_size=20),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_streamed_packed_windows_hold_every_token_of_every_round_once(texts: list[str]) -> None:
    length, rounds = 6, 3
    windows = StreamedWindows(inner_set(texts), TOKENIZER, length, "packed", buffer=1)
    total = sum(len(text) + 1 for text in texts)
    drawn = draw(windows, rounds * total // length, (1,))
    stream = bytes(b if b < 256 else ord("|") for row in drawn for b in row).decode()
    whole = stream.split("|")[:-1]
    for start in range(0, len(whole) - len(texts) + 1, len(texts)):
        assert sorted(whole[start : start + len(texts)]) == sorted(texts)


def test_streamed_document_windows_come_once_a_round() -> None:
    texts = [f"{i:03d}" * (i % 4 + 1) for i in range(12)]
    expected = sorted(
        piece.tolist() for text in texts for piece in cut_document(text, TOKENIZER, 5, 2)
    )
    windows = StreamedWindows(inner_set(texts), TOKENIZER, 5, "document", 2, buffer=len(expected))
    # The buffer has exactly the size of one round, so it does not mix rounds.
    assert sorted(draw(windows, len(expected), (1,))) == expected


def test_streamed_windows_leave_out_documents_of_the_other_set() -> None:
    texts = [f"{i:03d}" for i in range(40)]
    inner = TextSet("inner", ListedTexts(texts), Membership(low=2**63))
    outer = TextSet("outer", ListedTexts(texts), Membership(high=2**63))
    seen = [
        {
            bytes(row).decode()
            for row in draw(StreamedWindows(half, TOKENIZER, 3, "document", buffer=400), 300)
        }
        for half in (inner, outer)
    ]
    assert seen == [set(inner), set(outer)]
    assert not seen[0] & seen[1]


def test_documents_too_short_for_a_window_are_refused_rather_than_waited_for() -> None:
    with pytest.raises(
        DataError,
        match=r"the inner set \(listed\) has a window of 4 tokens; lower data\.minimum_len",
    ):
        StreamedWindows(inner_set(["ab"] * 5), TOKENIZER, 8, "document", 4)


@pytest.mark.parametrize("role", ["inner", "outer"])
def test_a_refusal_says_which_set_has_no_window(role: str) -> None:
    texts = text_set(role, ["ab"] * 2)
    with pytest.raises(
        DataError, match=f"the 2 documents of the {role} set do not fill one window of 8 tokens"
    ):
        make_windows(texts, TOKENIZER, 8, "packed")
    message = (
        rf"the 2 documents of the {role} set have no window of 4 tokens; lower data\.minimum_length"
    )
    with pytest.raises(DataError, match=message):
        make_windows(texts, TOKENIZER, 8, "document", 4)
    with pytest.raises(DataError, match=f"documents of the {role} set "):
        StreamedWindows(texts, TOKENIZER, 8, "document", 4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TextSet:
    folder = tmp_path_factory.mktemp("datasets")
    texts = [f"text {i} {'word ' * (i % 7)}" for i in range(50)]
    build_dataset(folder, {"train": [*texts, "  ", b"\xff\xfe"]})
    return TextSet("inner", TfdsTexts("tiny", "text", str(folder)), Membership())


def window_sets(dataset: TextSet) -> dict[str, WindowSet]:
    return {
        "stored": make_windows(dataset, TOKENIZER, 8, "packed"),
        "stored documents": make_windows(dataset, TOKENIZER, 8, "document"),
        "streamed": StreamedWindows(dataset, TOKENIZER, 8, "packed", buffer=500),
        "streamed documents": StreamedWindows(dataset, TOKENIZER, 8, "document", 3, buffer=500),
    }


@pytest.mark.parametrize("kind", ["stored", "stored documents", "streamed", "streamed documents"])
@pytest.mark.parametrize("drawn_before", [0, 1, 5, 37])
def test_an_iterator_set_to_a_state_goes_on_with_the_same_batches(
    dataset: TextSet, kind: str, drawn_before: int
) -> None:
    windows = window_sets(dataset)[kind]
    shape = (4, 16)

    def take(batches: Any, count: int) -> list[Any]:
        return [jax.device_get(next(batches)) for _ in range(count)]

    first = draw_batches(windows, shape, 7)
    take(first, drawn_before)
    state = json.loads(json.dumps(iterator_state(first)))
    expected = take(first, 25)
    assert expected[0].tokens_BxL.shape == (4, 16, 8)
    assert expected[0].length_B.shape == (4, 16)
    second = draw_batches(windows, shape, 7)
    restore_iterator(second, state)
    for one, other in zip(expected, take(second, 25), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    first.close()
    second.close()


def test_a_dataset_is_not_read_into_memory(tmp_path: Path) -> None:
    reads = []

    class CountingTexts(ListedTexts):
        def __getitem__(self, index: int) -> str:
            reads.append(index)
            return super().__getitem__(index)

    texts = TextSet("inner", CountingTexts(["some text or other"] * 200_000), Membership())
    draw(StreamedWindows(texts, TOKENIZER, 8, "packed", buffer=16), 3)
    assert len(reads) < 2_000


def test_bpe_windows_take_the_tokenizer_s_own_separator() -> None:
    tokenizer = train_bpe(["a text with some words"] * 3, 270)
    windows = make_windows(["a text", "some words"], tokenizer, 2, "packed")
    assert (windows.tokens_NxL == tokenizer.separator_id).sum() >= 1
    assert isinstance(windows, TokenWindows)
