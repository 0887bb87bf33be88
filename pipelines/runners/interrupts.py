"""Interrupts a run by a signal or from another thread."""

from __future__ import annotations

import os
from collections.abc import Callable

from datarater.pipelines.errors import CurationError, StoppedError
from datarater.rater_model import interrupts


class Interrupts(interrupts.Interrupts):
    """`datarater.rater_model.interrupts.Interrupts` with the errors of this package.

    The error's attribute `interrupted` is set: work may continue in other threads, which end only
    with the process.
    """

    def __init__(self, leave: Callable[[int], None] = os._exit) -> None:
        super().__init__(_stopped, leave)

    def interrupt(self, error: Exception) -> None:
        """Sets the error, from any thread; only the first counts."""
        if isinstance(error, CurationError):
            error.interrupted = True
        super().interrupt(error)


def _stopped(name: str) -> StoppedError:
    return StoppedError(
        f"stopped by {name}; nothing committed is lost: run the same command to continue"
    )
