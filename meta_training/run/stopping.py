"""Stops a run on a signal, between two steps."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np

from datarater.rater_model import exit_codes

_LOG = logging.getLogger("datarater")


@functools.cache
def _any_device() -> tuple[Any, Any]:
    """Returns a mesh of all devices, and a compiled "or" over a flag of each."""
    import jax

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("devices",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return mesh, jax.jit(lambda flags: flags.any(), out_shardings=everywhere)


class StopSignal:
    """Turns SIGTERM and SIGINT into a stop at the next point where the run can be saved.

    Inside `deferred` a signal is kept until the loop asks for it by `requested`. Outside, where
    nothing would be lost, it ends the process at once, as a kill would but with the exit code of a
    stop. So does a second signal: the run resumes from its last checkpoint. The handler raises no
    error, which callbacks of libraries would swallow or take for damage.

    Args:
        leave: Ends the process with an exit code.
        command: The command as users type it, for the message.
        continues: What the same command does, for the message.

    Example:
        >>> with StopSignal() as stop, stop.deferred():  # doctest: +SKIP
        ...     while not stop.requested():
        ...         step()
    """

    def __init__(
        self,
        leave: Callable[[int], None] = os._exit,
        command: str = "datarater train",
        continues: str = "the same command resumes the run",
    ) -> None:
        self._leave = leave
        self._command, self._continues = command, continues
        self._received = ""
        self._deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Keeps a signal until `requested` asks for it."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def requested(self) -> bool:
        """Returns whether to save and leave.

        All processes of a run get the same answer, so that all save the same step.
        """
        return self.ask()()

    def ask(self) -> Callable[[], bool]:
        """Asks all processes whether to save and leave, without waiting for them.

        Returns:
            A function that waits for the answer and returns it. Between several processes it
            arrives by their devices, once what was dispatched before is done.
        """
        import jax

        if jax.process_count() == 1:
            return lambda: bool(self._received)
        from jax.experimental import multihost_utils

        mesh, anywhere = _any_device()
        own = np.full(jax.local_device_count(), bool(self._received))
        answer = anywhere(
            multihost_utils.host_local_array_to_global_array(
                own, mesh, jax.sharding.PartitionSpec(*mesh.axis_names)
            )
        )
        return lambda: bool(answer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._received or not self._deferred:
            # The message bypasses Python's streams, which the signal may have interrupted in the
            # middle of a line.
            which = f"a second {name}" if self._received else name
            message = f"{self._command}: stopped by {which}; {self._continues}\n"
            os.write(2, message.encode())
            self._leave(exit_codes.STOPPED)
        self._received = name
        _LOG.warning("%s: stopping once everything is saved; a second signal stops at once", name)
