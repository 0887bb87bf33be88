"""Errors that end an evaluation, each with its exit code (`datarater.rater_model.exit_codes`)."""

from __future__ import annotations

from datarater.rater_model import exit_codes


class EvaluationError(Exception):
    """An evaluation cannot be made; the message names the flag or file and a remedy.

    Attributes:
        exit_code: Exit code of the command.
    """

    exit_code = exit_codes.FAILED


class FlagError(EvaluationError):
    """A flag has an invalid value, or two flags contradict each other."""

    exit_code = exit_codes.WRONG_USAGE


class EmptyDataError(EvaluationError):
    """The pool, the target or the validation set has no document."""

    exit_code = exit_codes.EMPTY_CORPUS


class WorkerError(EvaluationError):
    """A worker process failed or died."""
