"""Turns what ends a command into its exit code, and an error into one line.

This module is light: the umbrella command and `datarater status` load it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from datarater.pipelines.errors import CurationError
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import print_line


def exit_code_of(
    command: str, run: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None
) -> int:
    """Runs a command and returns the exit code that says how it ended.

    Args:
        command: The command as users type it, which begins an error's line.
        run: The command.
        argv: Its arguments; those of this process if None.
    """
    try:
        run(argv)
    except CurationError as error:
        print_line(f"{command}: {error}", sys.stderr)
        if error.interrupted:
            # Threads of the local runner would continue with their splits; what matters is
            # committed.
            sys.stdout.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except OSError as error:
        print_line(f"{command}: {error}", sys.stderr)
        return exit_codes.NO_PERMISSION if isinstance(error, PermissionError) else exit_codes.FAILED
    except KeyboardInterrupt:
        print_line(f"{command}: interrupted", sys.stderr)
        return exit_codes.STOPPED
    return exit_codes.DONE
