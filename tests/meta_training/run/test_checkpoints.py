"""Training checkpoints: what was saved is restored, and damage is skipped."""

import dataclasses
import errno
import gc
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarater.meta_training.errors import StoppedError, WorkdirError
from datarater.meta_training.run.checkpoints import Checkpoints, _hindrance, _os_error, tree_digest
from datarater.meta_training.run.stopping import StopSignal
from datarater.rater_model import exit_codes


@dataclasses.dataclass
class Position:
    step: int
    scores: list[float] = dataclasses.field(default_factory=list)


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
    with Checkpoints(tmp_path / "checkpoints", Position, keep=2) as checkpoints:
        assert checkpoints.restore_latest(state_of(0)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), Position(step, [0.1 + 0.2]))
    with Checkpoints(tmp_path / "checkpoints", Position, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        restored = checkpoints.restore_latest(state_of(0))
        assert restored is not None
        assert restored.step == 3
        assert_equal(restored.state, state_of(3))
        assert restored.position == Position(3, [0.1 + 0.2])


def test_arrays_may_be_given_away_as_soon_as_saving_has_begun(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints", Position) as checkpoints:
        for step in range(1, 6):
            state = jax.tree.map(
                lambda x, step=step: jnp.full((200, 500), step, jnp.float32), state_of(step)
            )
            checkpoints.save(step, state, Position(step))
            jax.block_until_ready(overwrite(state))
        checkpoints.wait()
        for step in range(1, 6):
            restored = checkpoints.restore(
                step, jax.tree.map(lambda x: jnp.zeros((200, 500)), state_of(0))
            )
            assert all((leaf == step).all() for leaf in jax.tree.leaves(restored.state))


def files_of(folder: Path) -> dict[Path, bytes]:
    return {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_a_damaged_checkpoint_is_skipped_and_renamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(tmp_path, Position) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), Position(step))
    damage(tmp_path / "3" / "state")
    (tmp_path / "2" / "host" / "metadata").write_text("{")
    damaged = files_of(tmp_path / "3")
    (tmp_path / "damaged-2").mkdir()  # from earlier

    with (
        Checkpoints(tmp_path, Position) as checkpoints,
        caplog.at_level(logging.WARNING, logger="datarater"),
    ):
        restored = checkpoints.restore_latest(state_of(0))
        assert restored is not None
        assert restored[0] == 1
        assert_equal(restored[1], state_of(1))
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state_of(2), Position(2))

    assert f"checkpoint 3 in {tmp_path} is damaged and is skipped" in caplog.text
    assert "checkpoint 3 in" in caplog.text.split("is renamed to damaged-3")[0]
    assert files_of(tmp_path / "damaged-3") == damaged
    assert (tmp_path / "damaged-2-2" / "host" / "metadata").read_text() == "{"

    with Checkpoints(tmp_path, Position) as checkpoints:
        assert checkpoints.steps() == [1, 2]


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"damaged"),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(bytes(byte ^ 255 for byte in file.read_bytes())),
        Path.unlink,
        become_a_folder,
    ],
    ids=["empty", "overwritten", "cut", "flipped", "gone", "a folder"],
)
def test_harm_to_any_file_is_skipped_or_does_no_harm(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    with Checkpoints(tmp_path / "whole", Position) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), Position(step))

    renamed = 0
    for number, file in enumerate(files_of(tmp_path / "whole" / "2")):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        harm(folder / "2" / file)
        with Checkpoints(folder, Position) as checkpoints:
            restored = checkpoints.restore_latest(state_of(0))
            assert restored is not None
            step, state, position = restored
            assert_equal(state, state_of(step))
            assert position == Position(step)
            assert (folder / "damaged-2").exists() == (step == 1)
            renamed += step == 1
    assert renamed >= 3


def test_a_checkpoint_that_cannot_be_read_for_want_of_file_handles_stays(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, Position) as checkpoints:
        for step in (3, 6, 9):
            checkpoints.save(step, state_of(step), Position(step))
    before = files_of(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    with Checkpoints(tmp_path, Position) as checkpoints:
        reads: list[Callable[[], object]] = [
            lambda: checkpoints.restore_latest(state_of(0)),
            lambda: checkpoints.restore_series(state_of(0), [3, 6, 9]),
        ]
        for read in reads:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # no number is left
            try:
                with pytest.raises(
                    OSError, match=r"checkpoint \d in .* could not be read: Too many open files"
                ) as raised:
                    read()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert raised.value.errno == errno.EMFILE
        assert checkpoints.steps() == [3, 6, 9]
    assert files_of(tmp_path) == before


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            caused(Exception("while reading array index"), StoppedError("stopped by SIGTERM")),
            StoppedError,
        ),
        (caused(ValueError("x"), MemoryError()), MemoryError),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
            jax.errors.JaxRuntimeError,
        ),
        (OSError(errno.EIO, "Input/output error"), OSError),
        (caused(Exception("x"), OSError(errno.ESTALE, "Stale file handle")), OSError),
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (ValueError("UNAVAILABLE: Error reading"), OSError),
        (
            ValueError(
                "UNKNOWN: Error reading: Failed [os_error_code='5'] [tensorstore_spec='...']"
            ),
            OSError,
        ),
        (ValueError("DATA_LOSS: Error decoding manifest"), None),
        (ValueError("NOT_FOUND: Error reading [os_error_code='2']"), None),
        (FileNotFoundError("File a/b not found."), None),
        (KeyError("state"), None),
    ],
)
def test_what_is_no_damage_ends_the_run(
    error: Exception, expected: type[BaseException] | None
) -> None:
    hindrance = _hindrance(error, "checkpoint 3 could not be read")
    assert hindrance is None if expected is None else isinstance(hindrance, expected)


def test_no_readable_checkpoint_is_an_error_and_nothing_is_deleted(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, Position) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), Position(step))
    damage(tmp_path)
    with Checkpoints(tmp_path, Position) as checkpoints:
        with pytest.raises(
            WorkdirError, match=r"not one of the checkpoints \[1, 2\] .* can be read"
        ):
            checkpoints.restore_latest(state_of(0))
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    ("present", "damaged", "expected"),
    [
        ([], None, []),
        ([3, 5], None, [3, 5]),
        ([3, 4, 5], None, [3, 5]),  # it continues from the newest of those between
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
    with Checkpoints(tmp_path, Position) as checkpoints:
        for step in present:
            checkpoints.save(step, state_of(step), Position(step))
    if damaged is not None:
        damage(tmp_path / str(damaged) / "state")

    with Checkpoints(tmp_path, Position) as checkpoints:
        series = checkpoints.restore_series(state_of(0), [3, 6, 9, 12])
        assert [step for step, _, _ in series] == expected
        assert checkpoints.steps() == expected
        for step, state, position in series:
            assert_equal(state, state_of(step))
            assert position == Position(step)

        gap = next((step for step in (3, 6, 9, 12) if step not in expected), 13)
        renamed = {f"superseded-{step}" for step in present if step > gap}  # unread
        renamed |= {f"damaged-{damaged}"} if damaged else set()
        names = {folder.name for folder in tmp_path.iterdir()}
        assert names == {str(step) for step in expected} | renamed
        checkpoints.delete_superseded()
        assert not list(tmp_path.glob("superseded-*"))


def test_a_signal_while_a_checkpoint_is_read_is_kept_and_all_checkpoints_stay(
    tmp_path: Path,
) -> None:
    state = {str(i): jnp.zeros(200_000) for i in range(8)}
    with Checkpoints(tmp_path, Position) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, Position(step))
    with StopSignal() as stop, Checkpoints(tmp_path, Position) as checkpoints, stop.deferred():
        threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGTERM)).start()
        restored = checkpoints.restore_latest(state)
        while not stop.requested():
            checkpoints.restore_latest(state)
        assert restored is not None
        assert restored[0] == 2
        assert checkpoints.steps() == [1, 2]


def test_a_signal_outside_of_what_is_deferred_leaves_at_once_even_from_a_callback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def as_xla_does(phase: str, details: object) -> None:
        gc.callbacks.remove(as_xla_does)
        signal.raise_signal(signal.SIGINT)

    left: list[int] = []
    with StopSignal(left.append) as stop:
        with stop.deferred(), stop.deferred():
            pass
        gc.callbacks.append(as_xla_does)
        gc.collect()  # an error out of the handler would end here
    assert left == [exit_codes.STOPPED]
    said = "datarater train: stopped by SIGINT; the same command resumes the run\n"
    assert capfd.readouterr().err.startswith(said)


TWO_SIGNALS = """
import os, signal, sys, threading, time
from pathlib import Path
import jax
from datarater.meta_training.run.checkpoints import Checkpoints
from datarater.meta_training.run.command import ending_in_one_line
from datarater.meta_training.run.stopping import StopSignal
from tests.meta_training.run.test_checkpoints import Position

state = {str(i): jax.random.normal(jax.random.key(i), (1_500_000,)) for i in range(16)}
opened = Checkpoints(Path(sys.argv[1]), Position)
with ending_in_one_line(), StopSignal() as stop, opened as checkpoints, stop.deferred():
    checkpoints.save(1, {"a": state["0"]}, Position(1))
    checkpoints.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested()
    checkpoints.save(2, state, Position(2))
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    checkpoints.wait()
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_signal_while_a_checkpoint_is_written_leaves_at_once_with_75(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_SIGNALS, str(tmp_path / "checkpoints")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == exit_codes.STOPPED, done.stderr
    message = "datarater train: stopped by a second SIGTERM; the same command resumes the run"
    assert done.stderr.splitlines()[-1] == message
    assert "could not be written" not in done.stderr
    with Checkpoints(tmp_path / "checkpoints", Position) as checkpoints:
        assert 1 in checkpoints.steps()


@pytest.fixture
def no_space() -> Iterator[None]:
    """Files cannot grow beyond 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_is_reported_and_the_one_before_stays(
    tmp_path: Path, no_space: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(tmp_path, Position) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(2)}, Position(1))
        checkpoints.wait()
        checkpoints.save(2, {"a": jax.random.normal(jax.random.key(0), (200_000,))}, Position(2))
        with pytest.raises(
            OSError, match=r"a checkpoint in .* could not be written: File too large$"
        ) as raised:
            checkpoints.wait()
        assert raised.value.errno == errno.EFBIG  # for the exit code
        assert checkpoints.last_written() == 1
    assert [
        record for record in caplog.records if record.exc_info
    ] == []  # orbax's, of every thread
    with Checkpoints(tmp_path, Position) as checkpoints:
        assert checkpoints.steps() == [1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (
            "RESOURCE_EXHAUSTED: Error writing [os_error_code='28'] [tensorstore_spec='...']",
            errno.ENOSPC,
        ),
        ("Failed to write 10 bytes to file 7: No space left on device", errno.ENOSPC),
        ("Failed: Disk quota exceeded", errno.EDQUOT),
    ],
)
def test_a_full_disk_is_recognized_however_deep(text: str, number: int) -> None:
    error = _os_error(
        caused(RuntimeError("save failed"), ValueError(text)), "a checkpoint could not be written"
    )
    assert error is not None
    assert error.errno == number


ONE_OF_TWO_PROCESSES = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from datarater.meta_training.run.checkpoints import Checkpoints
from tests.meta_training.run.test_checkpoints import Position

process, address, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, process)
halves = NamedSharding(Mesh(np.asarray(jax.devices()), ("x",)), PartitionSpec("x"))
values = {step: np.arange(8, dtype=np.float32) + step for step in (1, 2)}
state = {
    step: {"a": jax.make_array_from_callback((8,), halves, values[step].__getitem__)}
    for step in values
}
if sys.argv[4:] == ["write"]:
    with Checkpoints(folder, Position) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state[step], Position(step))
else:
    with Checkpoints(folder, Position) as checkpoints:
        try:
            step, read, position = checkpoints.restore_latest(state[1])
        except OSError as error:
            print(error)
        else:
            assert position == Position(step)
            for shard in read["a"].addressable_shards:
                np.testing.assert_array_equal(shard.data, values[step][shard.index])
            print("read", step)
"""


def two_processes(first: Path, second: Path, *arguments: str) -> list[str]:
    """Returns the last lines of two processes that read the checkpoints, each in its own folder."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        address = f"localhost:{listening.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO_PROCESSES, str(i), address, str(folder), *arguments],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, folder in enumerate((first, second))
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    # Gloo prints lines before it.
    return [output.splitlines()[-1] if output else "" for output, _ in outputs]


@pytest.mark.slow
def test_processes_agree_on_the_checkpoint_that_they_resume(tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    two_processes(shared, shared, "write")
    assert two_processes(shared, shared) == ["read 2"] * 2

    shutil.copytree(shared, other)  # as a second host sees it whose cache is damaged
    (other / "2" / "host" / "metadata").write_text("{")
    assert two_processes(shared, other) == ["read 1"] * 2
    assert {folder.name for folder in shared.iterdir()} == {"1", "damaged-2"}

    outputs = two_processes(shared, other)  # in `other`, 2 still has its name
    assert all(
        "the processes of this run see different checkpoints" in output for output in outputs
    ), outputs
    assert {folder.name for folder in shared.iterdir()} == {"1", "damaged-2"}


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
