"""Training checkpoints: what was saved comes back, and damage is passed over."""

import logging
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_training.checkpoints import Checkpoints, tree_digest
from meta_training.errors import WorkdirError


class State(NamedTuple):
    step: jax.Array
    params: Any
    optimiser_state: Any


def state_of(step: int) -> State:
    params = {"a": jnp.full((3, 4), step, jnp.float32), "b": {"c": jnp.full(2, step, jnp.bfloat16)}}
    return State(jnp.int32(step), params, optax.adam(1e-3).init(params))


def assert_equal(one: Any, other: Any) -> None:
    def check(x: jax.Array, y: jax.Array) -> None:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)

    jax.tree.map(check, one, other)


def damage(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")


def test_what_was_saved_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.restore_latest(state_of(0)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {"data": {"next_index": step}, "scores": [0.1 + 0.2]})
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        restored = checkpoints.restore_latest(state_of(0))
        assert restored is not None
        step, state, host = restored
        assert step == 3
        assert_equal(state, state_of(3))
        assert host == {"data": {"next_index": 3}, "scores": [0.1 + 0.2]}


def test_arrays_may_be_given_away_as_soon_as_saving_has_begun(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in range(1, 6):
            state = jax.tree.map(lambda x, step=step: jnp.full((200, 500), step, jnp.float32), state_of(step))
            checkpoints.save(step, state, {})
            jax.block_until_ready(overwrite(state))
        checkpoints.wait()
        for step in range(1, 6):
            restored, _ = checkpoints.restore(step, jax.tree.map(lambda x: jnp.zeros((200, 500)), state_of(0)))
            assert all((leaf == step).all() for leaf in jax.tree.leaves(restored))


def test_a_damaged_checkpoint_is_passed_over_and_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {})
    damage(tmp_path / "3" / "state")
    (tmp_path / "2" / "host" / "metadata").write_text("{")
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING, logger="datarater"):
        restored = checkpoints.restore_latest(state_of(0))
        assert restored is not None
        assert restored[0] == 1
        assert_equal(restored[1], state_of(1))
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state_of(2), {})
    assert "checkpoint 3 cannot be read and is passed over" in caplog.text


def test_no_checkpoint_that_can_be_read_is_told_and_nothing_is_deleted(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), {})
    damage(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(WorkdirError, match=r"not one of the checkpoints \[1, 2\] .* can be read"):
            checkpoints.restore_latest(state_of(0))
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    ("present", "damaged", "expected"),
    [
        ([], None, []),
        ([3, 5], None, [3, 5]),
        ([3, 4, 5], None, [3, 5]),  # of those between, the newest is where to go on
        ([3, 4, 5], 5, [3, 4]),
        ([3, 5, 6, 9], None, [3, 6, 9]),  # 5 is needed no more
        ([3, 5, 6, 9], 6, [3, 5]),
        ([3, 5, 6, 9], 3, []),
        ([1, 2, 3, 5], 3, [2]),
        ([3, 5, 9], None, [3, 5]),  # 9 builds on 6
        ([5, 6], None, []),  # and 5 on 3
        ([1, 2], None, [2]),
        ([3, 6, 7, 9, 11, 12, 13], None, [3, 6, 9, 12]),  # complete: nothing else is kept
    ],
)
def test_a_series_is_read_up_to_its_first_gap_and_the_rest_goes(
    tmp_path: Path, present: list[int], damaged: int | None, expected: list[int]
) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in present:
            checkpoints.save(step, state_of(step), {"step": step})
    if damaged is not None:
        damage(tmp_path / str(damaged) / "state")
    with Checkpoints(tmp_path) as checkpoints:
        series = checkpoints.restore_series(state_of(0), [3, 6, 9, 12])
        assert [step for step, _, _ in series] == expected
        assert checkpoints.steps() == expected
        for step, state, host in series:
            assert_equal(state, state_of(step))
            assert host == {"step": step}


@pytest.fixture
def no_space() -> Iterator[None]:
    """Files cannot grow beyond 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_one_before_stays(tmp_path: Path, no_space: None) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(2)}, {})
        checkpoints.wait()
        checkpoints.save(2, {"a": jax.random.normal(jax.random.key(0), (200_000,))}, {})
        with pytest.raises(OSError, match=r"a checkpoint in .* could not be written"):
            checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]


def test_a_digest_sees_every_bit_type_and_shape() -> None:
    digests = {
        tree_digest(trees)
        for trees in (
            [],
            [{"a": jnp.zeros(4)}],
            [{"a": jnp.zeros(4).at[3].set(-0.0)}],
            [{"a": jnp.zeros((2, 2))}],
            [{"a": jnp.zeros(4, jnp.int32)}],
            [{"a": jnp.zeros(4)}, {"a": jnp.zeros(4)}],
        )
    }
    assert len(digests) == 6
    assert tree_digest([{"a": jnp.zeros(4)}]) == tree_digest([{"a": np.zeros(4, np.float32)}])
