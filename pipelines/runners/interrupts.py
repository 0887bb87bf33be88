"""Interrupts a run from outside of its main thread: by a signal or from another thread."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

from datarater.pipelines.errors import CurationError, StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While its block runs, SIGINT, SIGTERM and `interrupt` raise an error in the main thread.

    The error's attribute `interrupted` is set: the work of the main thread may continue in other
    threads, which end only with the process. A block that runs outside of the main thread is never
    interrupted.
    """

    def __init__(self) -> None:
        self._error: CurationError | None = None
        self._previous: dict[int, Any] = {}

    def interrupt(self, error: CurationError) -> None:
        """Raises an error in the main thread; only the first counts. Call it from other threads."""
        if self._error is None:
            self._error = error
            if self._previous:
                os.kill(os.getpid(), signal.SIGTERM)

    def _stop(self, number: int, _: Any) -> None:
        error = self._error or StoppedError(
            f"stopped by {signal.Signals(number).name}; nothing committed is lost: run the same "
            "command to continue"
        )
        error.interrupted = True
        raise error

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
