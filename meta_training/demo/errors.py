"""Errors that stop the demo, each with its exit code (`datarater.rater_model.exit_codes`)."""

from __future__ import annotations

from datarater.rater_model import exit_codes


class DemoError(RuntimeError):
    """A step of the demo failed; the message says which one and what to do.

    Attributes:
        exit_code: Exit code of a command that ends with this error.
    """

    exit_code = exit_codes.FAILED


class TooLittleTextError(DemoError):
    """This Python installation contains too little text to make a corpus of."""


class NotOurFolderError(DemoError):
    """A folder that would be replaced contains something that the demo did not make."""

    exit_code = exit_codes.OTHER_RUN


class CommandError(DemoError):
    """A command that the demo started failed or was killed.

    Args:
        message: Message that names the command and how it ended.
        exit_code: Exit code to pass on.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
