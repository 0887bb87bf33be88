"""`datarater completion`: prints a completion script for bash, zsh or tcsh."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import shtab

from datarater import cli
from datarater.meta_training import prepare, train
from datarater.rater_model.command_line import CommandParser

COMMAND = "datarater completion"
_ABSL_FLAGS = {"train": train.FLAG_HELP, "prepare": prepare.FLAG_HELP}
_INSTRUCTIONS = {
    "bash": 'eval "$(datarater completion bash)"',
    "zsh": 'datarater completion zsh > "${fpath[1]}/_datarater"',
    "tcsh": "datarater completion tcsh > ~/.datarater.tcsh; source ~/.datarater.tcsh",
}


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Prints a completion script for a shell.",
        _INSTRUCTIONS["bash"],
        usage=f"{COMMAND} {{{','.join(_INSTRUCTIONS)}}}",
        takes_beam_flags=False,
    )
    parser.add_argument("shell", choices=tuple(_INSTRUCTIONS), help="Shell to complete for.")
    return parser


def umbrella_parser() -> argparse.ArgumentParser:
    """Returns one parser of all subcommands and their flags, for completion only."""
    parser = argparse.ArgumentParser(prog="datarater", add_help=False)
    parser.add_argument("--help", action="store_true", help="Show help.")
    parser.add_argument("--version", action="store_true", help="Show the version.")
    subparsers = parser.add_subparsers()
    for name, command in cli.COMMANDS.items():
        if name in _ABSL_FLAGS:
            flags_of_command = _absl_parser(_ABSL_FLAGS[name])
        else:
            module = importlib.import_module(command.module)
            flags_of_command = module.make_parser()
        subparsers.add_parser(
            name, parents=[flags_of_command], add_help=False, help=command.summary
        )
    return parser


def _absl_parser(flag_help: dict[str, str]) -> argparse.ArgumentParser:
    """Returns the flags of a command whose flags absl parses."""
    parser = argparse.ArgumentParser()
    for name, meaning in flag_help.items():
        parser.add_argument(f"--{name}", help=meaning)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script and returns the exit code."""
    args = make_parser().parse_args(argv)
    print(shtab.complete(umbrella_parser(), shell=args.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
