"""Training checkpoints, from which a run resumes as if it had never stopped.

Orbax writes them in the background, each into a folder that gets its name once it is complete, so a
process killed at any moment leaves complete checkpoints only. A checkpoint that is damaged anyway
is renamed and skipped. Only certain damage counts as such: a failing disk, network or memory ends
the run instead.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from datarater.meta_training.errors import StoppedError, WorkdirError, first_line
from datarater.meta_training.run.processes import gather_texts, is_lost_process
from datarater.rater_model.json_codec import from_plain, to_plain

_LOG = logging.getLogger("datarater")
_DAMAGED, _SUPERSEDED = "damaged", "superseded"  # prefixes of the names of renamed checkpoints
_NEVER_DAMAGE = (
    StoppedError,
    MemoryError,
    KeyboardInterrupt,
    SystemExit,
    jax.errors.JaxRuntimeError,
)
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_OS_ERROR_CODE = re.compile(r"os_error_code='(\d+)'|\[OS error (\d+):")  # of tensorstore
_NO_SPACE = re.compile(r"No space left on device|(Disk quota exceeded)")

# Status codes of tensorstore that are about the storage, not about its content.
_UNREACHABLE = re.compile(
    r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|RESOURCE_EXHAUSTED"
    r"|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): "
)


P = TypeVar("P")


class Saved(NamedTuple, Generic[P]):
    """A checkpoint that was read.

    Attributes:
        step: Number of the checkpoint.
        state: Tree of arrays.
        position: What was stored beside it.
    """

    step: int
    state: Any
    position: P


class Checkpoints(Generic[P]):
    """The checkpoints in one folder, by step.

    As a context manager it waits on leaving until everything is written.

    Args:
        folder: Folder of the checkpoints; created if it is missing.
        positions: Dataclass of what is stored beside the arrays, with fields that JSON can express.
        keep: Number of newest checkpoints to keep; None for all.

    Example:
        >>> folder = Path("work/checkpoints")
        >>> with Checkpoints(folder, Position, keep=2) as checkpoints:  # doctest: +SKIP
        ...     checkpoints.save(100, state, Position(iterator.get_state()))
    """

    def __init__(self, folder: Path, positions: type[P], keep: int | None = None) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            create=True,
        )
        self._folder, self._positions = folder, positions
        for logger in ("absl", "asyncio"):
            logging.getLogger(logger).addFilter(_not_raised_by_orbax)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

        # Each process reads on its own: otherwise, when one of several cannot read, the others
        # would wait for it within orbax.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"reader_{jax.process_index()}",
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
            ),
            multiprocessing_options=alone,
        )

    def __enter__(self) -> Checkpoints[P]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self.wait()
        except OSError as failure:
            if kind is None:
                raise
            _LOG.warning("%s", failure)  # the error that ended the run is the one to raise
        finally:
            self._reader.close()
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, position: P) -> None:
        """Starts to write a checkpoint; returns once the arrays may change again.

        Args:
            step: Number of the checkpoint, above the existing ones.
            state: Tree of arrays on any devices.
            position: What to store beside it.

        Raises:
            OSError: This checkpoint or the one before could not be written.
        """
        state = _as_saved(state)
        if jax.default_backend() == "cpu":
            # On a CPU the writer would read the buffers that the next step overwrites.
            state = jax.tree.map(lambda x: x.copy(), state)
        with _failing_as_os_error(self._folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    host=ocp.args.JsonSave(to_plain(position)),
                ),
            )

    def restore(self, step: int, like: Any) -> Saved[P]:
        """Reads a checkpoint.

        Args:
            step: Number of the checkpoint.
            like: Tree of arrays with the shapes, types and placement to restore.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_saved(like))
        restored = self._reader.restore(
            self._folder.resolve() / str(step),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes), host=ocp.args.JsonRestore()
            ),
        )
        state = jax.tree.map(jnp.asarray, restored.state)
        return Saved(step, state, from_plain(self._positions, restored.host))

    def restore_latest(self, like: Any) -> Saved[P] | None:
        """Reads the newest checkpoint that is not damaged; renames later ones to `damaged-STEP`.

        All processes of a run read the same one: a checkpoint that one of them finds damaged counts
        as damaged.

        Args:
            like: Tree of arrays with the shapes, types and placement to restore.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            WorkdirError: There are checkpoints, and all are damaged; they keep their names.
            OSError: A checkpoint cannot be read for another reason than damage.
        """
        steps = self._agreed_steps()
        failures: list[tuple[int, BaseException | None]] = []
        for step in reversed(steps):
            saved, failure = self._read_or_damaged(step, like)
            if saved is None:
                failures.append((step, failure))
                continue
            self._set_aside([step for step, _ in failures], _DAMAGED)
            return saved
        if failures:
            raise WorkdirError(
                f"not one of the checkpoints {steps} in {self._folder} can be read; "
                "restore one, or give another --workdir"
            ) from failures[0][1]
        return None

    def restore_series(self, like: Any, steps: Sequence[int]) -> list[Saved[P]]:
        """Reads checkpoints that build on one another, up to the first that is missing or damaged.

        Then follows the newest checkpoint between the last of them and the next, if there is one.
        Earlier checkpoints that are no longer needed are deleted. Checkpoints after a gap will be
        made again; they are renamed until `delete_superseded`.

        Args:
            like: Tree of arrays with the shapes, types and placement to restore.
            steps: Steps of the series, in order; other checkpoints may lie between its members.

        Returns:
            The checkpoints, in order.

        Raises:
            OSError: A checkpoint cannot be read for another reason than damage.
        """
        existing = self._agreed_steps()
        series: list[Saved[P]] = []
        damaged: list[int] = []
        next_step = None
        for next_step in steps:
            saved = self._read_or_damaged(next_step, like)[0] if next_step in existing else None
            if saved is None:
                damaged += [next_step] if next_step in existing else []
                break
            series.append(saved)
        else:
            next_step = None  # the series is complete; later checkpoints are not needed

        # The newest readable checkpoint on the way to the next member.
        last = series[-1].step if series else -1
        for step in reversed(existing):
            if next_step is None or not last < step < next_step:
                continue
            saved = self._read_or_damaged(step, like)[0]
            if saved is not None:
                series.append(saved)
                break
            damaged.append(step)

        kept = {saved.step for saved in series} | set(damaged)
        after_gap = [
            step
            for step in existing
            if next_step is not None and step > next_step and step not in kept
        ]
        for step in set(existing) - kept - set(after_gap):
            self._manager.delete(step)
        self._set_aside(damaged, _DAMAGED)
        self._set_aside(after_gap, _SUPERSEDED)
        return series

    def delete_superseded(self) -> None:
        """Deletes the checkpoints that `restore_series` renamed because they are made again."""
        if jax.process_index() == 0:
            for folder in self._folder.glob(f"{_SUPERSEDED}-*"):
                shutil.rmtree(folder)

    def last_written(self) -> int | None:
        """Waits until everything is written; returns the newest checkpoint's step, or None."""
        try:
            self.wait()
        except OSError as failure:
            _LOG.warning("%s", failure)
        return max(self.steps(), default=None)

    def _agreed_steps(self) -> list[int]:
        """Returns the steps that have a checkpoint.

        Raises:
            OSError: The processes of this run see different ones.
        """
        steps = self.steps()
        if len(set(gather_texts(json.dumps(steps)))) > 1:
            raise OSError(
                f"the processes of this run see different checkpoints in {self._folder}, this one "
                f"{steps}: --workdir must lie on a file system that all of them share; start all "
                "of them again"
            )
        return steps

    def _read_or_damaged(
        self, step: int, like: Any
    ) -> tuple[Saved[P] | None, BaseException | None]:
        """Reads a checkpoint in all processes, or in none.

        Returns:
            The checkpoint, or None if a process finds it damaged; and this process's error, if it
            is the one.

        Raises:
            OSError: A process cannot read the checkpoint for another reason than damage.
        """
        saved, damage, hindrance = None, None, None
        try:
            saved = self.restore(step, like)
        except BaseException as error:  # orbax and tensorstore raise errors of many kinds
            hindrance = _hindrance(error, f"checkpoint {step} in {self._folder} could not be read")
            if isinstance(hindrance, _NEVER_DAMAGE):
                raise hindrance from error
            damage = error

        # One process that cannot read the checkpoint decides for all.
        outcomes = gather_texts("hindered" if hindrance else "damaged" if damage else "read")
        if hindrance:
            raise hindrance from damage
        if "hindered" in outcomes:
            raise OSError(
                f"another process of this run could not read checkpoint {step} in {self._folder}"
            )
        if "damaged" not in outcomes:
            return saved, None
        cause = first_line(damage) if damage else "another process of this run finds it damaged"
        _LOG.warning("checkpoint %d in %s is damaged and is skipped: %s", step, self._folder, cause)
        return None, damage

    def _set_aside(self, steps: Sequence[int], label: str) -> None:
        """Renames checkpoints so that they no longer count; nothing in them is lost."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                name = f"{label}-{step}"
                number = 1
                while (self._folder / name).exists():
                    number += 1
                    name = f"{label}-{step}-{number}"
                (self._folder / str(step)).rename(self._folder / name)
                _LOG.warning("checkpoint %d in %s is renamed to %s", step, self._folder, name)
        gather_texts("")  # no process continues before they are renamed
        self._manager.reload()

    def delete(self, step: int) -> None:
        """Deletes a checkpoint."""
        self._manager.delete(step)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: A checkpoint could not be written.
        """
        with _failing_as_os_error(self._folder):
            self._manager.wait_until_finished()


def _not_raised_by_orbax(record: logging.LogRecord) -> bool:
    """Filters out tracebacks of errors that orbax or its event loop also raises."""
    return not (record.exc_info and ("orbax" in record.pathname or "orbax" in record.getMessage()))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _os_error(error: BaseException, message: str) -> OSError | None:
    """Returns the operating system's error at the root of an error; None if there is none."""
    for link in _chain(error):
        number = link.errno if isinstance(link, OSError) else None
        if number is None and (match := _OS_ERROR_CODE.search(str(link))):
            number = int(match[1] or match[2])
        if number is None and (match := _NO_SPACE.search(str(link))):
            number = errno.EDQUOT if match[1] else errno.ENOSPC
        if number is not None:
            return OSError(number, f"{message}: {os.strerror(number)}")
    return None


def _hindrance(error: BaseException, message: str) -> BaseException | None:
    """Returns the error to raise for an unreadable checkpoint; None if it is damaged."""
    for link in _chain(error):
        if isinstance(link, _NEVER_DAMAGE):
            return link
        if isinstance(link, _MISSING):
            return None
        os_error = _os_error(link, message)
        if os_error is not None and isinstance(os_error, _MISSING):
            return None
        if os_error is not None or isinstance(link, OSError) or _UNREACHABLE.match(str(link)):
            return os_error or OSError(f"{message}: {first_line(link)}")
    return None


@contextlib.contextmanager
def _failing_as_os_error(folder: Path) -> Iterator[None]:
    """Turns the many errors of orbax and tensorstore about a failed write into an OSError."""
    try:
        yield
    except Exception as error:
        lost = jax.process_count() > 1 and is_lost_process(error)  # `lost_processes` reports it
        if lost or isinstance(error, StoppedError | MemoryError):
            raise
        message = f"a checkpoint in {folder} could not be written"
        raise (_os_error(error, message) or OSError(f"{message}: {first_line(error)}")) from error


def _as_saved(tree: Any) -> Any:
    """Returns a tree as orbax accepts it: local arrays of one of several processes become NumPy's.

    All processes have the same values in them, so one of them writes.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(
        lambda x: np.asarray(x) if getattr(x, "is_fully_addressable", True) else x, tree
    )


def tree_digest(trees: Sequence[Any]) -> str:
    """Returns the SHA-256 of the types, shapes and bytes of all leaves of trees, in order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(list(trees)):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
