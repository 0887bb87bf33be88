"""`datarater prepare`: tokenizes and cuts a corpus once, for any number of runs.

This module reads the command line. It stays free of JAX, so that `--help` and wrong usage answer
at once; the work is in `datarater.meta_training.run.prepare_command`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from datarater.meta_training.config.names import DEFAULT_CONFIG
from datarater.meta_training.errors import ConfigError
from datarater.meta_training.train import COMMAND as TRAIN_COMMAND
from datarater.meta_training.train import FLAG_HELP as TRAIN_FLAG_HELP
from datarater.meta_training.train import (
    TRAIN_MODULES,
    options_text,
    parse_with_config,
    run_with_config,
)

COMMAND = "datarater prepare"
FLAG_HELP = {
    "config": TRAIN_FLAG_HELP["config"],
    "output": (
        "Folder for the prepared data, for --config.data.prepared of datarater train. The same "
        "command continues a preparation that was stopped. Example: --output=prepared"
    ),
    "processes": "Number of processes that tokenize and cut. Default: one for each core.",
}


def main(argv: Sequence[str] | None = None, train_modules: Sequence[str] = TRAIN_MODULES) -> int:
    """Runs `datarater prepare` and returns its exit code.

    Args:
        argv: Arguments after the command's name; those of this process if None.
        train_modules: Modules that must be installed.
    """
    config_name = ""

    def parse(arguments: Sequence[str], values: flags.FlagValues) -> None:
        nonlocal config_name
        config_name = parse_flags(arguments, values)

    def run(values: flags.FlagValues) -> int:
        from datarater.meta_training.run import prepare_command  # JAX takes seconds to import

        return prepare_command.run_preparation(
            values.config,
            values.output,
            values.processes,
            train_command(config_name, values),
        )

    return run_with_config(COMMAND, argv, help_text, parse, run, train_modules)


def help_text() -> str:
    """Returns the text of `--help`: an example, the flags, the configs and the exit codes."""
    return f"""\
Tokenizes a corpus and cuts it into windows once, in parallel, in a folder that any number of runs
of datarater train read. The same command with the same folder continues a preparation that was
stopped or killed; on a finished folder it checks that the inputs and the options are the same.

Example:
  datarater prepare --output=prepared --config.data.inner='corpus/*.jsonl.gz' \\
      --config.data.outer='target/*.jsonl.gz'

usage: {COMMAND} --output=DIR [flags]

{options_text(FLAG_HELP)}"""


def parse_flags(arguments: Sequence[str], values: flags.FlagValues) -> str:
    """Defines the command's flags and parses the command line into them.

    Args:
        arguments: Arguments after the command's name.
        values: Empty flag values.

    Returns:
        The config, as the command line gives it.

    Raises:
        ConfigError: The command line is wrong; the message is one line.
    """

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("output", None, FLAG_HELP["output"], values)
        flags.DEFINE_integer(
            "processes", None, FLAG_HELP["processes"], lower_bound=1, flag_values=values
        )

    config_name = parse_with_config(COMMAND, arguments, values, define)
    if not values.output:
        raise ConfigError(
            "--output is missing: give the folder of the prepared data, such as --output=prepared"
        )
    values.output = os.path.expanduser(values.output)
    return config_name


def train_command(config_name: str, values: flags.FlagValues) -> str:
    """Returns the command that trains on the folder.

    Args:
        config_name: The config, as the command line gives it.
        values: The flag values; fields that the command line changes are repeated.
    """
    from ml_collections import config_flags

    words = [*TRAIN_COMMAND.split(), "--workdir=work"]
    if config_name != DEFAULT_CONFIG:
        words.append(f"--config={config_name}")
    for field in config_flags.get_override_values(values["config"]):
        words.append(f"--config.{field}={_value(values.config, field)}")
    words.append(f"--config.data.prepared={values.output}")
    return shlex.join(words)


def _value(config: Any, field: str) -> Any:
    """Returns the value of a field, given its dotted name."""
    for name in field.split("."):
        config = config[name]
    return config


if __name__ == "__main__":
    sys.exit(main())
