"""`datarater train`: meta-trains a rater and exports it.

This module reads the command line. It stays free of JAX, so that `--help` and wrong usage answer
at once; the work is in `datarater.meta_training.run.command`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from absl import app, flags
from absl import logging as absl_logging

from datarater.meta_training.config.names import DEFAULT_CONFIG, config_names, config_path
from datarater.meta_training.errors import ConfigError
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import exit_code_lines, print_line

if TYPE_CHECKING:
    from ml_collections import ConfigDict

COMMAND = "datarater train"
_LOG = logging.getLogger("datarater")
_HELP_FLAGS = {"--help", "-h", "-help", "--helpshort", "--helpfull"}

# What the [train] extra installs and every run imports.
TRAIN_MODULES = ("grain", "ml_collections", "optax", "orbax.checkpoint", "tensorboardX")

# ml_collections passes on what it runs into: a config file that fails to import, a missing field.
_FLAG_ERRORS = (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    ImportError,
    OSError,
)

FLAG_HELP = {
    "config": (
        "Config of the run: a name from the list below, or a Python file with a function "
        "get_config(). FILE:ARGUMENT calls get_config(ARGUMENT). Example: --config=pile"
    ),
    "workdir": (
        "Folder for metrics, checkpoints and raters. The same command resumes a run that was "
        "stopped. Example: --workdir=work"
    ),
    "coordinator": (
        "HOST:PORT on which process 0 listens, if several processes train one rater together; "
        "the same in all of them. Use 'auto' where the cluster provides it (TPU pods, Slurm, Open "
        "MPI). Example: --coordinator=host0:8476"
    ),
    "processes": "Number of processes; not used with --coordinator=auto.",
    "process": "Index of this process, from 0; not used with --coordinator=auto.",
}


def main(argv: Sequence[str] | None = None, train_modules: Sequence[str] = TRAIN_MODULES) -> int:
    """Runs `datarater train` and returns its exit code.

    Args:
        argv: Arguments after the command's name; those of this process if None.
        train_modules: Modules that must be installed.
    """

    def run(values: flags.FlagValues) -> int:
        from datarater.meta_training.run import command  # JAX, which takes seconds to import

        return command.run_training(
            values.config, values.workdir, values.coordinator, values.processes, values.process
        )

    return run_with_config(COMMAND, argv, help_text, parse_flags, run, train_modules)


def run_with_config(
    command: str,
    argv: Sequence[str] | None,
    text: Callable[[], str],
    parse: Callable[[Sequence[str], flags.FlagValues], None],
    run: Callable[[flags.FlagValues], int],
    train_modules: Sequence[str] = TRAIN_MODULES,
) -> int:
    """Runs a command that takes a config, and returns its exit code.

    Args:
        command: The command as users type it, such as `datarater train`.
        argv: Arguments after the command's name; those of this process if None.
        text: Returns the text of `--help`.
        parse: Parses arguments into flag values, such as `parse_flags`.
        run: Does the work, given the flag values, and returns the exit code.
        train_modules: Modules that must be installed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if _HELP_FLAGS & set(arguments):
        print(text())
        return exit_codes.DONE

    missing = [name for name in train_modules if not _is_installed(name)]
    if missing:
        print(
            f"{command} needs the train extra: pip install 'datarater[train]' "
            f"(no module named {missing[0]!r})",
            file=sys.stderr,
        )
        return exit_codes.FAILED

    values = flags.FlagValues()

    def parse_all(argv: Sequence[str]) -> list[str]:
        parse(argv[1:], values)
        return list(argv[:1])

    # absl handles its own flags (--verbosity, --pdb, --run_with_profiling) and ends by SystemExit.
    try:
        with logging_of_a_run():
            app.run(lambda _: run(values), argv=[command, *arguments], flags_parser=parse_all)
    except ConfigError as error:
        print_line(f"{command}: {error}; see {command} --help", sys.stderr)
        return exit_codes.WRONG_USAGE
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return exit_codes.STOPPED
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or exit_codes.DONE
        raise


def help_text() -> str:
    """Returns the text of `--help`: an example, the flags, the configs and the exit codes."""
    return f"""\
Meta-trains a rater and exports it to WORKDIR/rater. The same command with the same workdir resumes
a run that was stopped or killed, and produces a bit-identical rater.

Example:
  datarater train --workdir=work --config.data.inner='corpus/*.jsonl.gz' \\
      --config.data.outer='target/*.jsonl.gz'

usage: {COMMAND} --workdir=DIR [flags]

{options_text(FLAG_HELP)}"""


def options_text(flag_help: Mapping[str, str]) -> str:
    """Returns the end of the text of `--help`: the flags, the configs and the exit codes."""
    entries = "\n".join(
        f"  --{name}\n" + textwrap.indent(textwrap.fill(text, 90), " " * 8)
        for name, text in flag_help.items()
    )
    return f"""\
options:
{entries}
  --config.SECTION.FIELD=VALUE
        Changes one field of the config. Example: --config.population.size=8

Configs ({DEFAULT_CONFIG} if none is given):
  {", ".join(config_names())}

Exit codes:
{exit_code_lines()}"""


def parse_flags(arguments: Sequence[str], values: flags.FlagValues) -> None:
    """Defines the command's flags and parses the command line into them.

    Args:
        arguments: Arguments after the command's name.
        values: Empty flag values. Each call needs its own, since `--config.section.field` flags are
            defined while parsing.

    Raises:
        ConfigError: The command line is wrong; the message is one line.
    """

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, FLAG_HELP["workdir"], values)
        flags.DEFINE_string("coordinator", "", FLAG_HELP["coordinator"], values)
        flags.DEFINE_integer(
            "processes", 1, FLAG_HELP["processes"], lower_bound=1, flag_values=values
        )
        flags.DEFINE_integer("process", 0, FLAG_HELP["process"], lower_bound=0, flag_values=values)

    parse_with_config(COMMAND, arguments, values, define)
    if not values.workdir:
        raise ConfigError(
            "--workdir is missing: give the folder of the run, such as --workdir=work"
        )
    values.workdir = os.path.expanduser(values.workdir)


def parse_with_config(
    command: str,
    arguments: Sequence[str],
    values: flags.FlagValues,
    define: Callable[[flags.FlagValues], None],
) -> str:
    """Parses a command line with a config, whose paths of data may begin with `~`.

    Args:
        command: The command as users type it.
        arguments: Arguments after the command's name.
        values: Empty flag values.
        define: Defines the command's own flags.

    Returns:
        The config, as the command line gives it.

    Raises:
        ConfigError: The command line is wrong; the message is one line.
    """
    from ml_collections import config_flags

    try:
        config, rest = _split_config(flags.FLAGS.read_flags_from_files(list(arguments), False))
        arguments = [f"--config={config_path(config)}", *rest]  # first, as ml_collections needs it
        config_flags.DEFINE_config_file(
            "config",
            help_string=FLAG_HELP["config"],
            flag_values=values,
            lock_config=True,
            sys_argv=arguments,
        )
        define(values)

        # absl's own flags are parsed by the same call, and read from `flags.FLAGS` by absl.
        values.append_flag_values(flags.FLAGS)
        rest = values([command, *arguments])[1:]
        flags.FLAGS.mark_as_parsed()
        _check_config(values)
    except _FLAG_ERRORS as error:
        raise ConfigError(_in_one_line(error)) from error

    if rest:
        raise ConfigError(f"unexpected arguments: {shlex.join(rest)}")
    _expand_data_paths(values.config)
    return config


def _split_config(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the value of the last `--config`, and the other arguments."""
    config = DEFAULT_CONFIG
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            config = value if equals else next(words, "")
        elif word == "--":
            rest += [word, *words]
        else:
            rest.append(word)
    return config, rest


def _check_config(values: flags.FlagValues) -> None:
    """Refuses a config that is not a ConfigDict of plain values.

    ml_collections reports a config file that could not be loaded only when the config is used.
    """
    from ml_collections import ConfigDict, config_flags

    path = config_flags.get_config_filename(values["config"])
    getattr(values.config, "data", None)
    if not isinstance(values.config, ConfigDict):
        kind = type(values.config).__name__
        raise TypeError(f"--config={path}: get_config() must return a ConfigDict, not a {kind}")
    values.config.to_json()


def _in_one_line(error: Exception) -> str:
    """Returns the message of an error of flags or configs, in one line and without a traceback."""
    message = str(error)
    if isinstance(error, AttributeError | KeyError):  # their text is quoted once or twice
        field = re.sub(r"[\\']", "", message.replace("\\n", ". ")).strip('"')
        message = f"the config has no field {field}"
    if "Traceback (most recent call last)" in message:
        before, _, traceback = message.partition("Error whilst parsing config file")
        message = before + traceback.strip().rpartition("\n")[2]
    return " ".join(message.split())


def _expand_data_paths(config: ConfigDict) -> None:
    """Replaces `~` by the home folder in the paths of a config."""
    from datarater.rater_model.documents.files import expand_home, split_on_commas

    data = config.get("data")
    if not isinstance(data, type(config)):
        return  # refused later, with the name of what is missing

    def expand(patterns: str) -> str:
        return ",".join(map(expand_home, split_on_commas(patterns)))

    for field in ("inner", "questions", "validation", "test"):
        if isinstance(data.get(field), str):
            data[field] = expand(data[field])
    if isinstance(data.get("outer"), str):  # NAME=FILES;NAME=FILES, or files
        sets = (part.partition("=") for part in data.outer.split(";"))
        several = ";" in data.outer
        data.outer = (
            ";".join(f"{name}{equals}{expand(files)}" for name, equals, files in sets)
            if several
            else expand(data.outer)
        )
    for field in ("tfds_data_dir", "prepared"):
        if isinstance(data.get(field), str):
            data[field] = expand_home(data[field])

    start = config.get("start")
    if isinstance(start, type(config)):
        for field in ("rater", "inner_model"):
            if isinstance(start.get(field), str):
                start[field] = expand_home(start[field])
        if isinstance(start.get("scores"), str):
            start.scores = ",".join(map(expand_home, split_on_commas(start.scores)))


@contextlib.contextmanager
def logging_of_a_run() -> Iterator[None]:
    """Logs the run's own lines, and only warnings of the libraries, which log every save."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    level, propagate = _LOG.level, _LOG.propagate
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(level)
        _LOG.propagate = propagate


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


if __name__ == "__main__":
    sys.exit(main())
