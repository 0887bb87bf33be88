"""What ends a training run before its time, and the exit code that each gives the command."""

from __future__ import annotations

import logging

_LOG = logging.getLogger("datarater")


class NonFiniteError(ArithmeticError):
    """A loss or a meta-gradient that is not finite; the message names the step and the cause."""


class WorkdirError(ValueError):
    """A workdir that cannot be used: another run holds it, or it belongs to another config or other data."""


class StoppedError(Exception):
    """A signal has stopped the run; what it has done is saved, or there was nothing to save yet."""


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, the name of its kind where it says nothing."""
    return (str(error) or type(error).__name__).split("\n")[0]


class ConfigError(ValueError):
    """A config value that cannot be used; the message names the field, the value and what is allowed."""
