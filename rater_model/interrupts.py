"""Stops work on a signal without an error out of a signal handler.

Python runs a handler wherever the main thread is, also inside a callback of a library. An error
that a handler raises may end there: XLA's callback of the garbage collector only prints it. So a
handler sets a flag, and the main thread looks at the flag while another thread works.
"""

from __future__ import annotations

import contextvars
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from datarater.rater_model import exit_codes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_SECONDS = 0.1

T = TypeVar("T")

_open: list[Interrupts] = []


class Interrupts:
    """While its block runs, SIGINT, SIGTERM and `interrupt` set an error, which `check` raises.

    A second signal ends the process at once, as a kill would but with the exit code of a stop.
    Outside the main thread signals are left to the main thread.

    Args:
        stopped: Returns the error that stands for a signal, given its name.
        leave: Ends the process with an exit code.

    Example:
        >>> with Interrupts(RuntimeError) as interrupts:
        ...     interrupts.wait_for(lambda: 6 * 7)
        42
    """

    def __init__(
        self, stopped: Callable[[str], Exception], leave: Callable[[int], None] = os._exit
    ) -> None:
        self._stopped = stopped
        self._leave = leave
        self._error: Exception | None = None
        self._has_raised = False
        self._has_signal = False
        self._previous: dict[int, Any] = {}

    def interrupt(self, error: Exception) -> None:
        """Sets the error, from any thread; only the first counts."""
        if self._error is None:
            self._error = error

    def check(self) -> None:
        """Raises the error of this block or of one around it, if there is one."""
        around = _open[: _open.index(self)] if self in _open else _open
        for block in (*around, self):
            if block._error is not None:
                block._has_raised = True
                raise block._error

    def wait_for(self, work: Callable[[], T]) -> T:
        """Does work in another thread; returns its result, or raises what it raises.

        Args:
            work: The work.

        Raises:
            Exception: The block was interrupted. The work continues in its thread, which ends with
                the process.
        """
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(run,), name="work", daemon=True)
        thread.start()
        while thread.is_alive():
            self.check()
            thread.join(_LOOK_SECONDS)

        if failures:
            raise failures[0]
        return results[0]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._has_signal:
            # Python's streams may be in the middle of a line.
            os.write(2, f"stopped by a second {name}\n".encode())
            self._leave(exit_codes.STOPPED)
        self._has_signal = True
        self.interrupt(self._stopped(name))

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        _open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _open.remove(self)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if error is None and self._error is not None and not self._has_raised:
            raise self._error


def check() -> None:
    """Raises the error of an open block of `Interrupts`, if one has been interrupted.

    Call it between two steps of work that is not in `Interrupts.wait_for`.
    """
    for block in list(_open):
        block.check()
