"""What `datarater export` and `datarater push` share: exit codes of what ends them."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser, print_line


def run_command(
    parser: CommandParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace], list[str]],
) -> int:
    """Runs a command's work, prints its lines, and turns errors into one line and an exit code.

    Args:
        parser: Parser of the command.
        argv: Arguments after the command's name; those of the process if None.
        work: Does the work that the parsed arguments ask for and returns the lines to print.
    """
    args = parser.parse_args(argv)

    # Imported after parsing, so that --help does not wait for NumPy and fsspec.
    from datarater.rater_model.checkpoint import CheckpointError
    from datarater.rater_model.hugging_face.errors import HuggingFaceError

    def fail(message: object, code: int) -> int:
        print_line(f"{parser.prog}: {message}", sys.stderr)
        return code

    try:
        lines = work(args)
    except HuggingFaceError as error:
        return fail(error, exit_codes.WRONG_USAGE)
    except CheckpointError as error:
        return fail(f"--rater: {error}", exit_codes.WRONG_USAGE)
    except BrokenPipeError:  # handled by `datarater` as in every command
        raise
    except PermissionError as error:
        return fail(error, exit_codes.NO_PERMISSION)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return fail(error, exit_codes.DISK_FULL if full else exit_codes.FAILED)
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again", exit_codes.STOPPED)
    for line in lines:
        print_line(line)
    return exit_codes.DONE
