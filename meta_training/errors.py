"""Errors that end a training run early. Each has an exit code of `datarater train`."""

from __future__ import annotations


class ConfigError(ValueError):
    """A config value is unusable; the message names the field, the value and what is allowed."""


class WorkdirError(ValueError):
    """A workdir is unusable: another run is using it, or it has another config or data."""


class NonFiniteError(ArithmeticError):
    """A loss or a meta-gradient is not finite; the message names the step and the cause."""


class StoppedError(Exception):
    """A signal stopped the run. Its work is saved, or there was nothing to save yet."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class if it has none."""
    return (str(error) or type(error).__name__).split("\n")[0]
