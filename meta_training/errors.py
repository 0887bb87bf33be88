"""What ends a training run before its time, and the exit code that each gives the command."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np

_LOG = logging.getLogger("datarater")


class NonFiniteError(ArithmeticError):
    """A loss or a meta-gradient that is not finite; the message names the step and the cause."""


class WorkdirError(ValueError):
    """A workdir that cannot be used: another run holds it, or it belongs to another config or other data."""


class StoppedError(Exception):
    """A signal has stopped the run; what it has done is saved, or there was nothing to save yet."""


class StopSignal:
    """Turns SIGTERM and SIGINT into a stop at the next place where a run can be saved.

    Outside of `deferred` a signal stops the command at once: nothing is lost. Inside, it is kept for the loop to
    ask for by `requested`; a second one stops at once all the same, and the run resumes from its last checkpoint.

    Example:
        >>> with StopSignal() as stop, stop.deferred():  # doctest: +SKIP
        ...     while not stop.requested():
        ...         step()
    """

    def __init__(self) -> None:
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._received or not self._deferred:
            raise StoppedError(f"stopped by {name}")
        self._received = name
        _LOG.warning("%s: saving at the end of this step; once more to leave at once", name)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Keeps a signal until it is asked for."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def requested(self) -> bool:
        """Returns whether to save and leave; the same on every process of a run, so that all save the same step."""
        import jax

        if jax.process_count() == 1:
            return bool(self._received)
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.asarray(bool(self._received)))))
