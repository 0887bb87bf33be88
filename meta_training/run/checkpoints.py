"""Training checkpoints: what a run needs to go on as if it had never stopped.

Orbax writes them in the background, each into a folder that gets its name when it is complete, so a
process killed at any moment leaves whole checkpoints only. One that is damaged all the same is set
aside under another name; only what is sure to be damage counts as such, and a disk, a network or a
memory that fails ends the run instead.
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from datarater.meta_training.errors import StoppedError, WorkdirError, first_line
from datarater.meta_training.run.processes import gather_texts, is_lost_process

_LOG = logging.getLogger("datarater")
_DAMAGED, _SUPERSEDED = (
    "damaged",
    "superseded",
)  # what the names of checkpoints set aside begin with
_NEVER_DAMAGE = (
    StoppedError,
    MemoryError,
    KeyboardInterrupt,
    SystemExit,
    jax.errors.JaxRuntimeError,
)
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_OS_ERROR_CODE = re.compile(r"os_error_code='(\d+)'|\[OS error (\d+):")  # in what tensorstore says
_NO_SPACE = re.compile(r"No space left on device|(Disk quota exceeded)")
_UNREACHABLE = re.compile(  # status codes of tensorstore that tell of the storage, not of what is stored
    r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE"
    r"|UNKNOWN): "
)


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
            max_to_keep=keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            create=True,
        )
        self._folder = folder
        for logger in ("absl", "asyncio"):
            logging.getLogger(logger).addFilter(_not_raised_by_orbax)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        # Each process reads for itself: where one of several cannot, the others would wait for it
        # within orbax.
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
            self._reader.close()
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
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host)
                ),
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
        restored = self._reader.restore(
            self._folder.resolve() / str(step),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes), host=ocp.args.JsonRestore()
            ),
        )
        return jax.tree.map(jnp.asarray, restored.state), restored.host

    def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that is not damaged; those after it are set aside as `damaged-STEP`.

        Of several processes all read the same one: a checkpoint that one of them finds damaged
        counts as damaged.

        Args:
            like: as for `restore`.

        Returns:
            Its step, state and JSON; None where there is no checkpoint.

        Raises:
            WorkdirError: there are checkpoints, and all are damaged; they stay where they are.
            OSError: one cannot be read for another reason than damage.
        """
        steps = self._agreed_steps()
        failures: list[tuple[int, BaseException | None]] = []
        for step in reversed(steps):
            read, failure = self._read_or_damaged(step, like)
            if read is None:
                failures.append((step, failure))
                continue
            self._set_aside([step for step, _ in failures], _DAMAGED)
            return step, *read
        if failures:
            raise WorkdirError(
                f"not one of the checkpoints {steps} in {self._folder} can be read; "
                "restore one, or give another --workdir"
            ) from failures[0][1]
        return None

    def restore_series(
        self, like: Any, steps: Sequence[int]
    ) -> list[tuple[int, Any, dict[str, Any]]]:
        """Reads checkpoints that build on one another, up to the first that is missing or damaged.

        After them comes the newest checkpoint that stands between the last of them and the next, if
        there is one. Those before it that nothing needs any more are deleted. What lies behind a
        gap is to be made anew, and stands aside until `delete_superseded`.

        Args:
            like: as for `restore`.
            steps: the series, in order; other checkpoints may stand between its members.

        Returns:
            Step, state and JSON of each checkpoint, in order.

        Raises:
            OSError: one cannot be read for another reason than damage.
        """
        found = self._agreed_steps()
        series: list[tuple[int, Any, dict[str, Any]]] = []
        damaged: list[int] = []
        next_step = None
        for next_step in steps:
            read = self._read_or_damaged(next_step, like)[0] if next_step in found else None
            if read is None:
                damaged += [next_step] if next_step in found else []
                break
            series.append((next_step, *read))
        else:
            next_step = None  # the series is complete, and no checkpoint behind it is wanted
        last = series[-1][0] if series else -1
        for step in reversed(found):
            if next_step is None or not last < step < next_step:
                continue
            read = self._read_or_damaged(step, like)[0]
            if read is not None:
                series.append((step, *read))
                break
            damaged.append(step)
        kept = {step for step, _, _ in series} | set(damaged)
        behind = [
            step
            for step in found
            if next_step is not None and step > next_step and step not in kept
        ]
        for step in set(found) - kept - set(behind):
            self._manager.delete(step)
        self._set_aside(damaged, _DAMAGED)
        self._set_aside(behind, _SUPERSEDED)
        return series

    def delete_superseded(self) -> None:
        """Deletes what `restore_series` has set aside to be made anew, now that it is."""
        if jax.process_index() == 0:
            for folder in self._folder.glob(f"{_SUPERSEDED}-*"):
                shutil.rmtree(folder)

    def last_written(self) -> int | None:
        """Waits until everything is written, and returns the newest step of which there is a checkpoint, or None."""
        try:
            self.wait()
        except OSError as failure:
            _LOG.warning("%s", failure)
        return max(self.steps(), default=None)

    def _agreed_steps(self) -> list[int]:
        """Returns the steps of which there is a checkpoint, which must be the same for all processes.

        Raises:
            OSError: they are not.
        """
        steps = self.steps()
        if len(set(gather_texts(json.dumps(steps)))) > 1:
            raise OSError(
                f"the processes of this run see different checkpoints in {self._folder}, this one {steps}: "
                "--workdir must lie on a file system that all of them share; start all of them again"
            )
        return steps

    def _read_or_damaged(
        self, step: int, like: Any
    ) -> tuple[tuple[Any, dict[str, Any]] | None, BaseException | None]:
        """Reads a checkpoint in all processes, or in none.

        Returns:
            State and JSON, or None where a process finds it damaged; and what it met, if it was
            this one.

        Raises:
            OSError: a process cannot read it for another reason than damage.
        """
        read, damage, hindrance = None, None, None
        try:
            read = self.restore(step, like)
        except (
            BaseException
        ) as error:  # orbax and tensorstore raise errors of many kinds, for whatever reason
            hindrance = _hindrance(error, f"checkpoint {step} in {self._folder} could not be read")
            if isinstance(hindrance, _NEVER_DAMAGE):
                raise hindrance from error
            damage = error
        outcomes = gather_texts("hindered" if hindrance else "damaged" if damage else "read")
        if hindrance:
            raise hindrance from damage
        if "hindered" in outcomes:
            raise OSError(
                f"another process of this run could not read checkpoint {step} in {self._folder}"
            )
        if "damaged" not in outcomes:
            return read, None
        told = first_line(damage) if damage else "another process of this run finds it damaged"
        _LOG.warning(
            "checkpoint %d in %s is damaged and is passed over: %s", step, self._folder, told
        )
        return None, damage

    def _set_aside(self, steps: Sequence[int], label: str) -> None:
        """Renames checkpoints, so that they count no more; nothing of them is lost."""
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
                _LOG.warning("checkpoint %d in %s now stands aside as %s", step, self._folder, name)
        gather_texts("")  # nobody looks before they are renamed
        self._manager.reload()

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


def _not_raised_by_orbax(record: logging.LogRecord) -> bool:
    """Keeps tracebacks out of the log of errors that orbax, or its event loop, raises here as well."""
    return not (record.exc_info and ("orbax" in record.pathname or "orbax" in record.getMessage()))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _os_error(error: BaseException, told: str) -> OSError | None:
    """Returns what the operating system said at the root of an error, after our own words; None if it said nothing."""
    for link in _chain(error):
        number = link.errno if isinstance(link, OSError) else None
        if number is None and (found := _OS_ERROR_CODE.search(str(link))):
            number = int(found[1] or found[2])
        if number is None and (found := _NO_SPACE.search(str(link))):
            number = errno.EDQUOT if found[1] else errno.ENOSPC
        if number is not None:
            return OSError(number, f"{told}: {os.strerror(number)}")
    return None


def _hindrance(error: BaseException, told: str) -> BaseException | None:
    """Returns what kept a checkpoint from being read, to be raised; None where the checkpoint is damaged."""
    for link in _chain(error):
        if isinstance(link, _NEVER_DAMAGE):
            return link
        if isinstance(link, _MISSING):
            return None
        said = _os_error(link, told)
        if said is not None and isinstance(said, _MISSING):
            return None
        if said is not None or isinstance(link, OSError) or _UNREACHABLE.match(str(link)):
            return said or OSError(f"{told}: {first_line(link)}")
    return None


@contextlib.contextmanager
def _failing_as_os_error(folder: Path) -> Iterator[None]:
    """Turns what orbax and tensorstore raise where something cannot be written, of many kinds, into one."""
    try:
        yield
    except Exception as error:
        lost = jax.process_count() > 1 and is_lost_process(error)  # said by `lost_processes`
        if lost or isinstance(error, StoppedError | MemoryError):
            raise
        told = f"a checkpoint in {folder} could not be written"
        raise (_os_error(error, told) or OSError(f"{told}: {first_line(error)}")) from error


def _as_saved(tree: Any) -> Any:
    """Returns a tree as orbax takes it: of arrays that each process of several has for itself, the values.

    All processes have the same ones there, so one of them writes.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(
        lambda x: np.asarray(x) if getattr(x, "is_fully_addressable", True) else x, tree
    )


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
