"""What `datarater evaluate`, `analyze` and `distil` share: flag values, exit codes, signals."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence

from datarater.meta_training.errors import StoppedError
from datarater.meta_training.evaluate.errors import EvaluationError, FlagError
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser, print_line
from datarater.rater_model.documents.files import expand_home, split_on_commas
from datarater.rater_model.interrupts import Interrupts


def run_command(
    parser: CommandParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
    modules: Sequence[str],
) -> int:
    """Runs a command's work and turns what ends it into one line and an exit code.

    A signal ends the work, which another thread does, and all worker processes.

    Args:
        parser: Parser of the command.
        argv: Arguments after the command's name; those of the process if None.
        work: Does the work that the parsed arguments ask for and returns the exit code.
        modules: Modules of the extra `datarater[train]` that the work imports.

    Raises:
        ModuleNotFoundError: If one of the modules is not installed.
    """
    args = parser.parse_args(argv)
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    from datarater.rater_model.checkpoint import CheckpointError
    from datarater.rater_model.documents.files import NoInputError

    def fail(message: object, code: int) -> int:
        print_line(f"{parser.prog}: {message}", sys.stderr)
        return code

    try:
        with Interrupts(StoppedError) as interrupts:
            return interrupts.wait_for(lambda: work(args))
    except FlagError as error:
        parser.error(str(error))
    except EvaluationError as error:
        return fail(error, error.exit_code)
    except NoInputError as error:
        return fail(error, exit_codes.NO_INPUT)
    except CheckpointError as error:
        return fail(f"--rater: {error}", exit_codes.WRONG_USAGE)
    except BrokenPipeError:  # handled by `datarater` as in every command
        raise
    except OSError as error:
        return fail(error, _exit_code_of(error))
    except StoppedError:
        code = fail("stopped; run the same command to continue", exit_codes.STOPPED)
        # The work would continue in its thread.
        for process in multiprocessing.active_children():
            process.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code_of(error: OSError) -> int:
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return exit_codes.NO_PERMISSION
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return exit_codes.DISK_FULL
    return exit_codes.UNREADABLE_INPUT if error.filename else exit_codes.FAILED


def patterns_of(values: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths and globs in the values of a repeatable flag, each separated by commas."""
    return tuple(expand_home(part) for value in values for part in split_on_commas(value))


# Types of values. argparse prints the message of an ArgumentTypeError after the flag's name.


def number(text: str) -> float:
    """Returns the number that a text means, NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def natural_number(text: str) -> int:
    """Returns a whole number from 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def whole_number(text: str) -> int:
    """Returns a whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positive(text: str) -> float:
    """Returns a number above 0."""
    value = number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """Returns a share between 0 and 1, neither of them included."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def share_or_all(text: str) -> float:
    """Returns a share above 0 and up to 1."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")
    return value
