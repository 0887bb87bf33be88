r"""`datarater train`: meta-trains a rater and exports it.

    datarater train --config=meta_training/configs/default.py --workdir=work \
        --config.data.inner='corpus/*.jsonl.gz' --config.data.outer='target/*.jsonl.gz'

The same command with the same workdir resumes a run that was stopped or killed, and ends with the
rater that it would have ended with. What stands in the workdir is said in
`datarater.meta_training.run.workdir`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from datarater.meta_training import errors
from datarater.meta_training.algorithm.mesh import PlacementError
from datarater.meta_training.config import checks
from datarater.meta_training.data.texts import DataError, EmptySetError
from datarater.meta_training.errors import NonFiniteError, StoppedError, WorkdirError
from datarater.meta_training.loop import train
from datarater.meta_training.run.export import NonFiniteScoresError
from datarater.meta_training.run.metrics import METRICS_FILE, read_metrics
from datarater.meta_training.run.prepared_run import plain, prepare, versions
from datarater.meta_training.run.processes import (
    LostProcessError,
    end_process,
    join_processes,
    lost_processes,
    together,
)
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.summary import run_summary
from datarater.meta_training.run.workdir import Workdir, write_json
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import CheckpointError
from datarater.rater_model.documents.reading import NoInputError
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.documents.tfds import TFDS_PREFIX, DatasetName

_LOG = logging.getLogger("datarater")
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="Config file, such as meta_training/configs/default.py; single values by --config.section.key=value.",
    lock_config=True,
)
_WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for metrics, checkpoints and raters; a run that was stopped there is resumed. Example: --workdir=work",
)

_COORDINATOR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "coordinator",
    "",
    "With several processes that train one rater together: HOST:PORT where process 0 listens, the same in all; or "
    "'auto' where the cluster tells (TPU pods, Slurm, Open MPI). Example: --coordinator=host0:8476",
)
_PROCESSES: flags.FlagHolder[Any] = flags.DEFINE_integer(
    "processes", 1, "How many processes there are; not with --coordinator=auto", lower_bound=1
)
_PROCESS: flags.FlagHolder[Any] = flags.DEFINE_integer(
    "process", 0, "Which of them this is, from 0; not with --coordinator=auto", lower_bound=0
)


_CODES: list[tuple[tuple[type[BaseException], ...], int]] = [
    ((StoppedError, KeyboardInterrupt), exit_codes.STOPPED),
    ((WorkdirError,), exit_codes.OTHER_RUN),
    ((NoInputError,), exit_codes.NO_INPUT),
    ((EmptySetError,), exit_codes.EMPTY_CORPUS),  # before the error that it is one of
    ((errors.ConfigError, DataError, PlacementError), exit_codes.WRONG_USAGE),
    ((PermissionError,), exit_codes.NO_PERMISSION),
    (
        (NonFiniteError, NonFiniteScoresError, CheckpointError, LostProcessError, OSError),
        exit_codes.FAILED,
    ),
]


@contextlib.contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Turns the errors that a user can mend into one line and the project's exit codes."""
    try:
        yield
    except BaseException as error:
        code = next((code for kinds, code in _CODES if isinstance(error, kinds)), None)
        if code is None:
            if isinstance(error, SystemExit) or not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            end_process(exit_codes.FAILED)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = exit_codes.DISK_FULL
        hint = "; the same command resumes the run" if code == exit_codes.STOPPED else ""
        print(f"datarater train: {error or 'interrupted'}{hint}", file=sys.stderr)
        end_process(code)


def next_command(workdir: Workdir, data: ConfigDict) -> str:
    """Returns the command that curates the pool with the rater of a finished run.

    Args:
        workdir: the run's.
        data: the config's section.
    """
    words = ["datarater", "curate", "--input", data.inner]
    if data.inner.startswith(TFDS_PREFIX):
        dataset = DatasetName.parse(data.inner)
        if "[" in dataset.split:  # curation reads whole splits
            whole = "+".join(
                dict.fromkeys(part.partition("[")[0] for part in dataset.split.split("+"))
            )
            words[-1] = ":".join(
                filter(None, (f"{TFDS_PREFIX}{dataset.name}", dataset.version, whole))
            )
        if data.tfds_data_dir:
            words += ["--tfds_data_dir", data.tfds_data_dir]
    if data.text_field != ReadOptions().text_field:
        words += ["--text_field", data.text_field]
    return shlex.join(
        [*words, "--rater", str(workdir.rater), "--output", "curated", "--keep_fraction", "0.5"]
    )


def main(argv: Sequence[str]) -> None:
    """Trains by the flags."""
    config = _CONFIG.value
    with ending_in_one_line():
        checks.check(config)
        join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with (
        ending_in_one_line(),
        lost_processes(),
        StopSignal() as stop,
        contextlib.ExitStack() as stack,
    ):
        with together() as same:
            same["versions"], same["config"] = versions(), plain(config)
            same["JAX_ENABLE_X64"] = jax.config.read("jax_enable_x64")
        with together() as same, ending_in_one_line():
            workdir = stack.enter_context(Workdir(_WORKDIR.value, jax.process_index() == 0))
            workdir.check_config(plain(config))
            summary = workdir.finished(config.meta_steps)
            same["--workdir holds this run, finished"] = bool(summary)
        if summary:
            print(
                f"nothing to do: {workdir.path} holds a finished run of {config.meta_steps} meta-steps, rater "
                f"{summary['digest'][:12]} in {workdir.rater}; raise meta_steps to go on\n"
                f"next:  {next_command(workdir, config.data)}"
            )
            return
        with together() as same, ending_in_one_line():
            experiment = prepare(config, workdir.begun_tokenizer())
            tokenizer = experiment.tokenizer.serialise()
            workdir.check_data(experiment.data, tokenizer)
            same["digest of data.inner and data.outer"] = experiment.data
            same["digest of the tokenizer"] = hashlib.sha256(tokenizer).hexdigest()
        with together(), ending_in_one_line():
            workdir.claim(plain(config), experiment.data, tokenizer)
        checkpoint = train(experiment, workdir, stop)
        if not workdir.writes:
            return
        lines = run_summary(read_metrics(workdir.metrics / METRICS_FILE))
        write_json(
            workdir.summary,
            {"meta_steps": config.meta_steps, "digest": checkpoint.digest, "summary": lines},
        )
    print(f"rater {checkpoint.digest[:12]} after {config.meta_steps} meta-steps: {workdir.rater}")
    for line in lines:
        print(f"  {line}")
    print(f"next:  {next_command(workdir, config.data)}")


def help_text() -> str:
    """Returns what `--help` prints: what the command does, its flags, how config fields are changed, the exit codes."""
    entries = "\n".join(
        f"  --{flag.name}\n" + textwrap.indent(textwrap.fill(str(flag.help), 90), " " * 8)
        for flag in (
            flags.FLAGS[name]
            for name in ("config", "workdir", "coordinator", "processes", "process")
        )
    )
    meanings = "\n".join(
        f"  {code:>2}  {meaning}" for code, meaning in exit_codes.EXIT_CODES.items()
    )
    return (
        f"{str(__doc__).strip()}\n\nflags:\n{entries}\n\n"
        "Any field of the config is changed by --config.section.field=value, such as --config.population.size=8; the\n"
        "fields, their defaults and what they mean stand in meta_training/configs/default.py and in the README.\n\n"
        f"exit codes:\n{meanings}"
    )


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Reads the command line; what is wrong with it is said in one line, with exit code 2.

    Args:
        argv: the command line.
    """
    if {"--help", "-h", "--helpshort", "--helpfull"} & set(argv):
        print(help_text())
        sys.exit(exit_codes.DONE)
    try:
        for number, argument in enumerate(argv):
            path = (
                argument.partition("=")[2]
                if "=" in argument
                else "".join(argv[number + 1 : number + 2])
            )
            if argument.lstrip("-").partition("=")[0] == "config" and not os.path.exists(
                path.partition(":")[0]
            ):
                raise OSError(
                    f"--config: there is no file {path!r}; give one such as meta_training/configs/default.py"
                )
        rest = flags.FLAGS(argv)
        plain(
            _CONFIG.value
        )  # a config file that could not be loaded is told only when it is looked into
    except (
        flags.Error,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        ImportError,
        OSError,
    ) as error:
        # ml_collections raises what it comes across: a config file that is not there, a field that
        # the config lacks.
        message = str(error)
        if isinstance(
            error, AttributeError | KeyError
        ):  # their text is a KeyError's, quoted once or twice
            message = re.sub(r"[\\']", "", message.replace("\\n", ". ")).strip('"')
            message = f"the config has no field {message}"
        print(
            f"datarater train: {' '.join(message.split())}; see datarater train --help",
            file=sys.stderr,
        )
        sys.exit(exit_codes.WRONG_USAGE)
    if len(rest) > 1:
        print(f"datarater train: unexpected arguments: {shlex.join(rest[1:])}", file=sys.stderr)
        sys.exit(exit_codes.WRONG_USAGE)
    return list(rest)


def set_up_logging() -> None:
    """Lets the run's own lines through, and of libraries only warnings: they tell of every part of every save."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("jax").setLevel(logging.WARNING)


def run() -> None:
    """Entry point of the console command."""
    flags.mark_flags_as_required(["config", "workdir"])
    set_up_logging()
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
