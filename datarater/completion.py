"""`datarater completion`: prints a completion script for bash, zsh or tcsh."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import shtab

from datarater import cli
from datarater.meta_training import train
from datarater.rater_model.command_line import CommandParser

COMMAND = "datarater completion"
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
        if name == "train":
            flags_of_command = _train_parser()
        else:
            module = importlib.import_module(command.module)
            flags_of_command = module.make_parser()
        subparsers.add_parser(
            name, parents=[flags_of_command], add_help=False, help=command.summary
        )
    return parser


def _train_parser() -> argparse.ArgumentParser:
    """Returns the flags of `datarater train`, which absl parses."""
    parser = argparse.ArgumentParser()
    for name, meaning in train.FLAG_HELP.items():
        parser.add_argument(f"--{name}", help=meaning)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script and returns the exit code."""
    args = make_parser().parse_args(argv)
    print(shtab.complete(umbrella_parser(), shell=args.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
