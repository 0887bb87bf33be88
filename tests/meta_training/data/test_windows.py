"""Windows: every token once; batches: the same from the same state."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import pickle
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from array_record.python import array_record_module  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.meta_training.data.cutting import CutOptions
from datarater.meta_training.data.prepare import write_prepared
from datarater.meta_training.data.prepared import PreparedWindows, check_complete, read_index
from datarater.meta_training.data.texts import DataError
from datarater.meta_training.data.windows import draw_batches, iterator_state, restore_iterator
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.rater_model.tokenizer import ByteTokenizer, train_bpe
from tests.support.prepared import ListedTexts, all_of, plan_of, windows_of

TOKENIZER = ByteTokenizer()
TEXTS = st.lists(
    st.text(st.sampled_from("abcdé "), min_size=1, max_size=40), min_size=1, max_size=12
)


def rows(windows: PreparedWindows) -> tuple[np.ndarray, np.ndarray]:
    return windows.read(np.arange(len(windows)))


@settings(deadline=None)
@given(TEXTS, st.integers(2, 16), st.integers(1, 4), st.integers(1, 200))
def test_packed_windows_hold_every_token_once_with_a_separator_behind_each_document(
    texts: list[str], length: int, unit: int, shard_bytes: int
) -> None:
    expected = [token for text in texts for token in (*text.encode(), TOKENIZER.separator_id)]
    with tempfile.TemporaryDirectory() as path:
        sizes: dict[str, Any] = {"unit_bytes": unit, "shard_bytes": shard_bytes}
        if len(expected) < length:
            with pytest.raises(DataError, match="do not fill one window"):
                windows_of(Path(path), texts, length, "packed", **sizes)
            return
        windows = windows_of(Path(path), texts, length, "packed", **sizes)
        tokens_NxL, length_N = rows(windows)
    whole = len(expected) // length
    assert tokens_NxL.reshape(-1).tolist() == expected[: whole * length]
    assert length_N.tolist() == [length] * whole


@settings(deadline=None)
@given(TEXTS, st.integers(2, 16), st.integers(0, 5), st.integers(1, 4), st.integers(1, 200))
def test_document_windows_hold_one_document_each_and_leave_out_only_short_ends(
    texts: list[str], length: int, minimum: int, unit: int, shard_bytes: int
) -> None:
    expected = []
    for text in texts:
        encoded = list(text.encode())
        pieces = [encoded[start : start + length] for start in range(0, len(encoded), length)]
        expected += [piece for piece in pieces if len(piece) >= max(2, minimum)]
    with tempfile.TemporaryDirectory() as path:
        sizes: dict[str, Any] = {"unit_bytes": unit, "shard_bytes": shard_bytes}
        if not expected:
            with pytest.raises(DataError, match=r"lower data\.minimum_length"):
                windows_of(Path(path), texts, length, "document", minimum, **sizes)
            return
        windows = windows_of(Path(path), texts, length, "document", minimum, **sizes)
        tokens_NxL, length_N = rows(windows)
    assert [row[:n].tolist() for row, n in zip(tokens_NxL, length_N, strict=True)] == expected
    for row, n in zip(tokens_NxL, length_N, strict=True):
        assert (row[n:] == TOKENIZER.pad_id).all()


def test_a_vocabulary_above_65536_needs_four_bytes(tmp_path: Path) -> None:
    class LargeVocabulary(ByteTokenizer):
        vocabulary_size = 70_000
        separator_id = 69_999

    windows = windows_of(tmp_path, ["abc"], 4, "packed", tokenizer=LargeVocabulary())
    assert rows(windows)[0].tolist() == [[*b"abc", 69_999]]
    assert json.loads((tmp_path / "index.json").read_bytes())["bytes_per_token"] == 4


@pytest.mark.parametrize("role", ["inner", "outer", "validation"])
def test_a_refusal_says_which_set_has_no_window(role: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"the 2 documents of the {role} set do not fill one"):
        windows_of(tmp_path, ["ab"] * 2, 8, "packed", role=role)
    with pytest.raises(DataError, match=r"have no window of 4 tokens; lower data\.minimum_length"):
        windows_of(tmp_path, ["ab"] * 2, 8, "document", 4, role=role)


def test_a_refusal_says_that_near_duplicates_left_too_little(tmp_path: Path) -> None:
    story = " ".join(f"word{i}" for i in range(40))
    sets = {
        "inner": all_of("inner", ListedTexts([f"{story} {i}" for i in range(3)])),
        "validation": all_of("validation", ListedTexts([f"{story} held out"])),
    }
    cutting = CutOptions(length=8, mode="packed")
    plan = plan_of(sets, cutting, ByteTokenizer(), exclude_near_duplicates=True)
    with pytest.raises(
        DataError,
        match=r"the 0 documents of the inner set, without 3 near-duplicates of held-out ones "
        r"\(data\.exclude_near_duplicates\), do not fill one window of 8 tokens",
    ):
        write_prepared(plan, tmp_path, WorkerPool(0))


def test_a_full_disk_under_a_shard_is_an_error_of_that_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = array_record_module.ArrayRecordWriter
    monkeypatch.setattr(
        array_record_module, "ArrayRecordWriter", lambda _, options: writer("/dev/full", options)
    )
    with pytest.raises(OSError, match=r"cannot be written.*No space left") as raised:
        windows_of(tmp_path, ["text " * 100], 8, "packed")
    assert raised.value.errno == errno.ENOSPC


def draw(
    windows: PreparedWindows, count: int, shape: tuple[int, ...] = (2,), seed: int = 0
) -> list[list[int]]:
    """Returns the valid tokens of the windows of the first `count` batches."""
    batches = draw_batches(windows, shape, seed)
    drawn = []
    for _ in range(count):
        batch = next(batches)
        tokens = np.asarray(batch.tokens_BxL).reshape(-1, batch.tokens_BxL.shape[-1])
        drawn += [
            row[:n].tolist()
            for row, n in zip(tokens, np.asarray(batch.length_B).reshape(-1), strict=True)
        ]
    batches.close()
    return drawn


def test_windows_come_once_a_round_in_another_order_each(tmp_path: Path) -> None:
    texts = [f"{i:04d}" for i in range(10)]
    windows = windows_of(tmp_path, texts, 5, "packed", shard_bytes=30)
    first, second = draw(windows, 5), draw(windows, 10)[10:]
    stored = sorted(rows(windows)[0].tolist())
    assert len(list(tmp_path.glob("inner-*.array_record"))) == 4
    assert sorted(first) == sorted(second) == stored
    assert first != second
    assert draw(windows, 5, seed=1) != first


@pytest.mark.parametrize("mode", ["packed", "document"])
@pytest.mark.parametrize("drawn_before", [0, 1, 5, 37])
def test_an_iterator_set_to_a_state_goes_on_with_the_same_batches(
    tmp_path: Path, mode: str, drawn_before: int
) -> None:
    texts = [f"text {i} {'word ' * (i % 7)}" for i in range(50)]
    windows = windows_of(tmp_path, texts, 8, mode, 3, shard_bytes=256)
    shape = (4, 16)

    def take(batches: Any, count: int) -> list[Any]:
        return [jax.device_get(next(batches)) for _ in range(count)]

    first = draw_batches(windows, shape, 7)
    take(first, drawn_before)
    state = json.loads(json.dumps(iterator_state(first)))
    expected = take(first, 25)
    assert expected[0].tokens_BxL.shape == (4, 16, 8)
    assert expected[0].length_B.shape == (4, 16)
    second = draw_batches(pickle.loads(pickle.dumps(windows)), shape, 7)
    restore_iterator(second, state)
    for one, other in zip(expected, take(second, 25), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    first.close()
    second.close()


def test_processes_read_the_batches_of_a_thread_and_either_continues_the_other(
    tmp_path: Path,
) -> None:
    texts = [f"text {i}" for i in range(60)]
    sources = [i % 3 for i in range(60)]
    windows = windows_of(tmp_path, texts, 8, "packed", source_N=sources, shard_bytes=256)

    def batches(processes: int) -> Any:
        return draw_batches(windows, (2, 4), 7, within_source_share=0.5, processes=processes)

    with closing(batches(0)) as thread, closing(batches(2)) as processes:
        for _ in range(5):
            jax.tree.map(np.testing.assert_array_equal, next(thread), next(processes))
        expected = [next(thread) for _ in range(3)]

        # Either goes on from the other's state, and reads again what it has read ahead.
        state = json.loads(json.dumps(iterator_state(processes)))
        for other in (processes, thread):
            restore_iterator(other, state)
            for batch in expected:
                jax.tree.map(np.testing.assert_array_equal, batch, next(other))
            assert iterator_state(other) == {"next_index": 8}


def test_a_process_that_cannot_read_ends_the_batches_with_the_name_of_the_shard(
    tmp_path: Path,
) -> None:
    windows = windows_of(tmp_path, ["some text"] * 9, 8, "packed")
    (shard,) = tmp_path.glob("*.array_record")
    shard.unlink()
    with (
        closing(draw_batches(windows, (2,), 0, processes=1)) as batches,
        pytest.raises(OSError, match=r"inner-00000\.array_record cannot be read"),
    ):
        next(batches)


def test_a_process_that_is_killed_ends_the_batches_with_what_to_do(tmp_path: Path) -> None:
    windows = windows_of(tmp_path, ["some text"] * 9, 8, "packed")
    before = set(multiprocessing.active_children())
    with closing(draw_batches(windows, (2,), 0, processes=1)) as batches:
        next(batches)
        (reader,) = set(multiprocessing.active_children()) - before
        reader.kill()
        with pytest.raises(OSError, match=r"may have run out of memory: lower data\.reader_proc"):
            list(itertools.islice(batches, 100))


@pytest.mark.parametrize("own", [[0, 5], [3], []])
def test_windows_that_a_process_does_not_need_are_zeros(tmp_path: Path, own: list[int]) -> None:
    windows = windows_of(tmp_path, [f"text {i}" for i in range(40)], 8, "packed", shard_bytes=64)
    own_TxB = np.zeros((2, 3), bool)
    own_TxB.reshape(-1)[own] = True
    with (
        closing(draw_batches(windows, (2, 3), 1)) as whole,
        closing(draw_batches(windows, (2, 3), 1, own=own_TxB)) as part,
    ):
        for _ in range(3):
            expected, batch = next(whole), next(part)
            np.testing.assert_array_equal(
                batch.tokens_BxL, expected.tokens_BxL * own_TxB[..., None]
            )
            np.testing.assert_array_equal(batch.length_B, expected.length_B * own_TxB)


def test_windows_that_a_process_does_not_need_are_not_read(tmp_path: Path) -> None:
    windows = windows_of(tmp_path, ["one window"] * 4, 11, "packed", shard_bytes=22)
    number_B = np.arange(len(windows))
    sorted(tmp_path.glob("*.array_record"))[2].unlink()
    with pytest.raises(OSError, match=r"inner-00002\.array_record cannot be read"):
        windows.read(number_B)
    _, length_B = windows.read(number_B, number_B != 2)
    assert length_B.tolist() == [11, 11, 0, 11]


def test_bpe_windows_take_the_tokenizer_s_own_separator(tmp_path: Path) -> None:
    tokenizer = train_bpe(["a text with some words"] * 3, 270)
    windows = windows_of(tmp_path, ["a text", "some words"], 2, "packed", tokenizer=tokenizer)
    assert (rows(windows)[0] == tokenizer.separator_id).sum() >= 1


def test_sets_whose_names_begin_alike_keep_their_shards(tmp_path: Path) -> None:
    roles = ("inner", "outer web-new", "outer web")
    sets = {role: all_of(role, ListedTexts([f"text of {role} " * 9])) for role in roles}
    plan = plan_of(sets, CutOptions(length=8, mode="packed"), ByteTokenizer())
    write_prepared(plan, tmp_path, WorkerPool(0))
    for role in roles:
        PreparedWindows(tmp_path, role).read(np.array([0]))


def test_a_lost_or_damaged_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    windows = windows_of(tmp_path, ["some text " * 50] * 40, 64, "packed")
    (shard,) = tmp_path.glob("*.array_record")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    shard.write_bytes(content)
    with pytest.raises(OSError, match=r"inner-00000\.array_record cannot be read"):
        rows(windows)
    shard.unlink()
    with pytest.raises(OSError, match=r"inner-00000\.array_record cannot be read"):
        rows(PreparedWindows(tmp_path, "inner"))


def test_a_folder_that_was_copied_in_part_is_refused_by_the_name_of_a_file(tmp_path: Path) -> None:
    windows_of(tmp_path, ["some text " * 50] * 40, 64, "packed")
    index = read_index(tmp_path)
    assert index is not None
    check_complete(tmp_path, index)
    (tmp_path / "inner-00000.array_record").unlink()
    with pytest.raises(
        DataError, match=r"lacks inner-00000\.array_record of its index\.json; copy"
    ):
        check_complete(tmp_path, index)
    (tmp_path / "inner.lengths.npy").unlink()
    with pytest.raises(DataError, match=r"lacks inner\.lengths\.npy and 1 other file of its"):
        check_complete(tmp_path, index)
