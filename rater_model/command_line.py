"""What the command lines of both programs share: help that opens with an example, and hints."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import textwrap
from collections.abc import Iterable
from typing import NoReturn, TextIO

from datarater.rater_model import exit_codes

_NEAR_MISS = 0.8  # difflib ratio: one or two wrong letters, or a shortened word


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose help opens with what the command does and an example.

    Args:
        command: The command as users type it, such as `datarater curate`.
        description: What the command does, in a sentence or two.
        example: A command line.
        usage: Usage line, for a command with positional arguments.
        takes_beam_flags: Whether flags that are not the command's own go to Beam.
    """

    def __init__(
        self,
        command: str,
        description: str,
        example: str,
        *,
        usage: str = "",
        takes_beam_flags: bool = True,
    ) -> None:
        # Abbreviations are off because a shortened flag of ours could be one of Beam's.
        super().__init__(prog=command, usage=usage or f"{command} [flags]", allow_abbrev=False)
        self._about = f"{textwrap.fill(description, 80)}\n\nExample:\n  {example}\n\n"
        beam = (
            "Any other flag goes to Beam, such as --runner=FlinkRunner or "
            "--runner=DataflowRunner --project=PROJECT.\n\n"
        )
        self._notes = f"\n{beam if takes_beam_flags else ''}Exit codes:\n{exit_code_lines()}\n"

    def format_help(self) -> str:
        """Returns the help: what the command does, an example, the flags, the exit codes."""
        return self._about + super().format_help() + self._notes

    def error(self, message: str) -> NoReturn:
        """Prints one line that says what is wrong, and exits with code 2."""
        line = visible(f"{self.prog}: {message}; see {self.prog} --help")
        self.exit(exit_codes.WRONG_USAGE, f"{line}\n")


def exit_code_lines() -> str:
    """Returns the list of exit codes, one a line."""
    return "\n".join(f"  {code:>2}  {meaning}" for code, meaning in exit_codes.EXIT_CODES.items())


def near_miss(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that a misspelled one probably means, None if there is none."""
    near = difflib.get_close_matches(word, list(known), 1, _NEAR_MISS)
    return near[0] if near else None


def visible(text: str) -> str:
    r"""Returns a text with everything escaped that a terminal does not show as a character.

    Names of files may contain line ends and control sequences. The escapes are those of JSON.

    Example:
        >>> visible("a\nb\x1b[2J")
        'a\\nb\\u001b[2J'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def print_line(line: str, file: TextIO | None = None, *, start: str = "", end: str = "\n") -> None:
    """Prints one line at once, with control characters escaped (`visible`).

    Where the reader of the output has left, as `head` does, it prints nowhere.

    Args:
        line: What to print.
        file: `sys.stdout` or `sys.stderr`; standard output if None.
        start: What precedes the line, as it is.
        end: What follows the line, as it is.
    """
    stream = sys.stdout if file is None else file
    try:
        print(f"{start}{visible(line)}", file=stream, end=end, flush=True)
    except BrokenPipeError:
        leave_broken_pipe(stream)


def leave_broken_pipe(stream: TextIO | None = None) -> None:
    """Sends further output of a stream nowhere, because its reader has left.

    Args:
        stream: `sys.stdout` or `sys.stderr`; standard output if None.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
