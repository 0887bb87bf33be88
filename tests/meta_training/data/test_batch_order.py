"""Batches of a single source: their share, their windows, and how they are drawn again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.data.batch_order import BatchOrder
from datarater.meta_training.data.texts import DataError, FileTexts
from datarater.meta_training.data.windows import (
    draw_batches,
    iterator_state,
    restore_iterator,
)
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.support.prepared import windows_of

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 8)


def sources_of(sizes: list[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@given(SIZES, st.integers(2, 8), st.floats(0, 1), st.integers(0, 5), st.integers(0, 3))
def test_a_pass_has_the_share_of_single_source_batches_and_each_window_at_most_once(
    sizes: list[int], batch: int, share: float, seed: int, number: int
) -> None:
    source_N = sources_of(sizes, seed)
    order = BatchOrder(source_N, batch, share, seed)
    count = order.batches_per_pass
    assert count == len(source_N) // batch
    drawn = np.stack([order[number * count + i] for i in range(count)])
    assert len(np.unique(drawn)) == drawn.size == count * batch

    # Mixed batches may be of one source by chance, and then count too.
    single = sum(len(np.unique(source_N[numbers])) == 1 for numbers in drawn)
    assert single >= int(share * sum(size // batch for size in sizes))


def test_single_source_batches_come_from_each_source_in_proportion_over_passes() -> None:
    source_N = sources_of([400, 100, 3], 0)
    order = BatchOrder(source_N, 10, 0.3, 1)
    passes = 200
    counts = np.zeros(3)
    for position in range(passes * order.batches_per_pass):
        its_sources = np.unique(source_N[order[position]])
        if len(its_sources) == 1:
            counts[its_sources[0]] += 1
    # 15 of 50 batches; a few mixed ones happen to be of the large source alone.
    assert counts[0] / passes == pytest.approx(12, abs=3.5)
    assert counts[1] / passes == pytest.approx(3, abs=0.2)
    assert counts[2] == 0


def test_every_window_is_drawn_about_equally_often() -> None:
    order = BatchOrder(sources_of([33, 9, 5], 0), 4, 0.7, 0)
    passes = 400
    drawn = np.concatenate([order[i] for i in range(passes * order.batches_per_pass)])
    times = np.bincount(drawn, minlength=47) / passes
    assert times.min() > 0.8
    assert times.max() <= 1


def test_a_batch_depends_on_its_position_and_the_seed_alone() -> None:
    source_N = sources_of([40, 30], 0)
    forward = BatchOrder(source_N, 4, 0.5, 3)
    batches = [forward[i] for i in range(60)]
    backward = BatchOrder(source_N, 4, 0.5, 3)
    for i in reversed(range(60)):
        np.testing.assert_array_equal(backward[i], batches[i])
    other = BatchOrder(source_N, 4, 0.5, 4)
    assert any((other[i] != batches[i]).any() for i in range(17))


def test_fewer_windows_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="has 3 windows, fewer than one batch of 4"):
        BatchOrder(np.zeros(3, int), 4, 0.5, 0)


POOL = [letter * length for length in (3, 5, 9, 14, 7, 11) for letter in "ab"]
SOURCES = [0, 1] * 6


def test_the_sources_of_texts_are_known(tmp_path: Path) -> None:
    records = [json.dumps({"text": text, "where": text[0]}) for text in POOL]
    (tmp_path / "pool.jsonl").write_text("\n".join(records))
    texts = FileTexts([str(tmp_path / "pool.jsonl")], ReadOptions(source_field="where"))
    assert texts.source_names == ("a", "b")
    assert texts.source_N.tolist() == SOURCES


@pytest.mark.parametrize("mode", ["packed", "document"])
def test_windows_within_sources_have_tokens_of_one_source(tmp_path: Path, mode: str) -> None:
    tokenizer = ByteTokenizer()
    windows = windows_of(tmp_path, POOL, 4, mode, source_N=SOURCES, unit_bytes=5, shard_bytes=40)
    tokens_NxL, _ = windows.read(np.arange(len(windows)))
    letters = {0: ord("a"), 1: ord("b")}
    for source, tokens in zip(windows.source_N, tokens_NxL, strict=True):
        others = {tokenizer.separator_id, tokenizer.pad_id, letters[int(source)]}
        assert set(tokens.tolist()) <= others
    if mode == "packed":
        # 49 letters and 6 separators of each source: 13 windows, and the rest is dropped.
        assert np.bincount(windows.source_N).tolist() == [13, 13]


def test_drawn_batches_of_one_source_continue_from_a_state(tmp_path: Path) -> None:
    windows = windows_of(tmp_path, POOL, 4, "packed", source_N=SOURCES)
    first = draw_batches(windows, (2, 3, 4), 5, within_source_share=1.0)
    drawn = [next(first) for _ in range(3)]
    assert drawn[0].tokens_BxL.shape == (2, 3, 4, 4)
    state = json.loads(json.dumps(iterator_state(first)))
    expected = next(first)

    second = draw_batches(windows, (2, 3, 4), 5, within_source_share=1.0)
    restore_iterator(second, state)
    np.testing.assert_array_equal(next(second).tokens_BxL, expected.tokens_BxL)
    first.close()
    second.close()

    # Each source fills 3 batches of a pass, and one window of each is left: no mixed batch.
    for batch in np.concatenate([np.asarray(x.tokens_BxL).reshape(-1, 4, 4) for x in drawn]):
        assert not {ord("a"), ord("b")} <= set(batch.ravel().tolist())


def test_windows_of_several_sources_cannot_be_drawn_by_source(tmp_path: Path) -> None:
    windows = windows_of(tmp_path, POOL, 4, "packed")
    with pytest.raises(DataError, match=r"prepared for data\.within_source_share 0"):
        draw_batches(windows, (2, 3, 4), 5, within_source_share=1.0)
