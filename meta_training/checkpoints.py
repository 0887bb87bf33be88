"""Training checkpoints: what a run needs to go on as if it had never stopped.

Orbax writes them in the background, each into a folder that gets its name when it is complete, so a process killed
at any moment leaves whole checkpoints only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from meta_training.errors import WorkdirError

_LOG = logging.getLogger("datarater")


class Checkpoints:
    """The checkpoints in one folder, by step. Use as a context manager: leaving waits for what is being written.

    Args:
        folder: where they are; made if missing.
        keep: how many of the newest to keep; None for all.

    Example:
        >>> with Checkpoints(Path("work/checkpoints"), keep=2) as checkpoints:  # doctest: +SKIP
        ...     checkpoints.save(100, state, {"data": iterator.get_state()})
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True, create=True
        )
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self.wait()
        except OSError as failure:
            if kind is None:
                raise
            _LOG.warning("%s", failure)  # what ended the run before is the one to be raised
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of which there is a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
        """Begins to write a checkpoint; returns when the arrays may change again.

        Args:
            step: its number, above those that are there.
            state: a tree of arrays, on whatever devices.
            host: JSON to keep beside it.

        Raises:
            OSError: this checkpoint or the one before could not be written.
        """
        state = _as_saved(state)
        if jax.default_backend() == "cpu":
            # There the writer would read the very buffers that the next step is given to overwrite.
            state = jax.tree.map(lambda x: x.copy(), state)
        with _failing_as_os_error(self._folder):
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
            )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
            step: its number.
            like: a tree of arrays of the shapes, types and placement wanted.

        Returns:
            The state, and the JSON beside it.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_saved(like))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes), host=ocp.args.JsonRestore())
        )
        return jax.tree.map(jnp.asarray, restored.state), restored.host

    def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read; those after it, damaged, are deleted.

        Args:
            like: as for `restore`.

        Returns:
            Its step, state and JSON; None where there is no checkpoint.

        Raises:
            WorkdirError: there are checkpoints, but not one can be read.
        """
        steps = self.steps()
        failures: list[tuple[int, Exception]] = []
        for step in reversed(steps):
            try:
                state, host = self.restore(step, like)
            except Exception as error:  # orbax and tensorstore raise errors of many kinds for damaged files
                _LOG.warning("checkpoint %d cannot be read and is passed over: %s", step, _first_line(error))
                failures.append((step, error))
                continue
            for damaged, _ in failures:
                self._manager.delete(damaged)
            return step, state, host
        if failures:
            raise WorkdirError(
                f"not one of the checkpoints {steps} in {self._folder} can be read; "
                "restore one, or give another --workdir"
            ) from failures[0][1]
        return None

    def restore_series(self, like: Any, steps: Sequence[int]) -> list[tuple[int, Any, dict[str, Any]]]:
        """Reads checkpoints that build on one another, up to the first that is missing or cannot be read.

        After them comes the newest checkpoint that stands between the last of them and the next, if there is one. All
        others are deleted unread: what lies behind a gap is to be made anew, and nothing needs the rest any more.

        Args:
            like: as for `restore`.
            steps: the series, in order; other checkpoints may stand between its members.

        Returns:
            Step, state and JSON of each checkpoint, in order.
        """
        found = self.steps()
        series: list[tuple[int, Any, dict[str, Any]]] = []
        next_step = None
        for next_step in steps:
            read = self._restore_or_none(next_step, like) if next_step in found else None
            if read is None:
                break
            series.append((next_step, *read))
        else:
            next_step = None  # the series is complete, and no checkpoint behind it is wanted
        last = series[-1][0] if series else -1
        for step in reversed(found):
            if next_step is None or not last < step < next_step:
                continue
            read = self._restore_or_none(step, like)
            if read is not None:
                series.append((step, *read))
                break
        for step in set(found) - {step for step, _, _ in series}:
            self._manager.delete(step)
        return series

    def _restore_or_none(self, step: int, like: Any) -> tuple[Any, dict[str, Any]] | None:
        try:
            return self.restore(step, like)
        except Exception as error:  # as in restore_latest
            _LOG.warning("checkpoint %d in %s cannot be read: %s", step, self._folder, _first_line(error))
            return None

    def delete(self, step: int) -> None:
        """Deletes a checkpoint."""
        self._manager.delete(step)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: something could not be written.
        """
        with _failing_as_os_error(self._folder):
            self._manager.wait_until_finished()


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


@contextlib.contextmanager
def _failing_as_os_error(folder: Path) -> Iterator[None]:
    """Turns what orbax and tensorstore raise where something cannot be written, of many kinds, into one."""
    try:
        yield
    except Exception as error:
        raise OSError(f"a checkpoint in {folder} could not be written: {_first_line(error)}") from error


def _as_saved(tree: Any) -> Any:
    """Returns a tree as orbax takes it: of arrays that each process of several has for itself, the values.

    All processes have the same ones there, so one of them writes.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.asarray(x) if getattr(x, "is_fully_addressable", True) else x, tree)


def tree_digest(trees: Sequence[Any]) -> str:
    """Returns the SHA-256 of trees of arrays: of every leaf's type, shape and bytes, in order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(list(trees)):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
