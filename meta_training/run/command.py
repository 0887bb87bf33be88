"""Runs `datarater train` once its flags are parsed: checks, prepares, trains, prints the result."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from datarater.meta_training.config import checks
from datarater.meta_training.data.prepared import read_index
from datarater.meta_training.data.sets import INNER
from datarater.meta_training.data.texts import DataError, EmptySetError
from datarater.meta_training.errors import (
    ConfigError,
    NonFiniteError,
    StoppedError,
    WorkdirError,
)
from datarater.meta_training.loop import train
from datarater.meta_training.run.compilation import kept_programs
from datarater.meta_training.run.export import NonFiniteScoresError
from datarater.meta_training.run.length_effect import length_text
from datarater.meta_training.run.metrics import METRICS_FILE, read_metrics
from datarater.meta_training.run.preparation import check_given, prepare_in_workdir
from datarater.meta_training.run.prepared_run import open_experiment, plain, versions
from datarater.meta_training.run.processes import (
    LostProcessError,
    end_process,
    join_processes,
    lost_processes,
    together,
)
from datarater.meta_training.run.start_models import copy_models, fill_config, start_models
from datarater.meta_training.run.stopping import StopSignal
from datarater.meta_training.run.summary import run_summary
from datarater.meta_training.run.validation import choice_lines
from datarater.meta_training.run.workdir import Summary, Workdir
from datarater.rater_model import exit_codes
from datarater.rater_model.atomic_files import write_json
from datarater.rater_model.checkpoint import CheckpointError
from datarater.rater_model.command_line import print_line
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import NoInputError
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.documents.tfds import TFDS_PREFIX, DatasetName
from datarater.rater_model.json_codec import to_plain

# The first match decides, so an error comes before the errors that it derives from.
EXIT_CODES_OF_ERRORS: list[tuple[tuple[type[BaseException], ...], int]] = [
    ((StoppedError, KeyboardInterrupt), exit_codes.STOPPED),
    ((WorkdirError,), exit_codes.OTHER_RUN),
    ((NoInputError,), exit_codes.NO_INPUT),
    ((EmptySetError,), exit_codes.EMPTY_CORPUS),
    ((ConfigError, DataError), exit_codes.WRONG_USAGE),
    ((PermissionError,), exit_codes.NO_PERMISSION),
    (
        (NonFiniteError, NonFiniteScoresError, CheckpointError, LostProcessError, OSError),
        exit_codes.FAILED,
    ),
]


def run_training(
    config: ConfigDict, workdir: str, coordinator: str, processes: int, process: int
) -> int:
    """Trains a rater in a workdir, from wherever the run there was stopped.

    Args:
        config: The whole config.
        workdir: Folder of the run.
        coordinator: Address of process 0; see `join_processes`.
        processes: Number of processes.
        process: Index of this process.

    Returns:
        Exit code 0.

    Raises:
        SystemExit: The run ended early, with the exit code of its error, which is printed.
    """
    with ending_in_one_line():
        checks.check(config)
        join_processes(coordinator, processes, process)
    with (
        ending_in_one_line(),
        kept_programs(config.compilation_cache),
        lost_processes(),
        StopSignal() as stop,
        contextlib.ExitStack() as stack,
    ):
        lines = _train_in(workdir, config, stop, stack)

    for line in lines:
        print(line)
    return exit_codes.DONE


def _train_in(
    path: str, config: ConfigDict, stop: StopSignal, stack: contextlib.ExitStack
) -> list[str]:
    """Trains in the workdir of a path and returns the lines to print.

    All processes check the same things in the same order, so that a difference between them is
    reported by name and not as a deadlock.
    """
    with together() as same:
        same["versions"], same["config"] = versions(), plain(config)
        same["JAX_ENABLE_X64"] = jax.config.read("jax_enable_x64")
    with together() as same, ending_in_one_line():
        workdir = stack.enter_context(Workdir(path, jax.process_index() == 0))
        workdir.continue_earlier(config)
        models = start_models(config, workdir.models)
        config = fill_config(config, models)
        checks.check(config)
        workdir.check_config(config)
        patience = config.early_stopping.patience
        summary = workdir.finished(config.meta_steps, patience)
        same["a finished run in --workdir"] = bool(summary)
    if summary:
        stopped = summary.stopped_at is not None
        length = counted(summary.stopped_at or config.meta_steps, "meta-step")
        early = f"it stopped early, of {config.meta_steps}; raise early_stopping.patience"
        return [
            f"nothing to do: {workdir.path} has a finished run of {length}, "
            f"rater {summary.digest[:12]} in {workdir.rater}; "
            f"{early if stopped else 'raise meta_steps'} to continue",
            f"next:  {next_command(workdir, config.data)}",
        ]

    with together(), ending_in_one_line():
        if workdir.writes:
            copy_models(models, workdir.models, config)
    folder = Path(config.data.prepared) if config.data.prepared else workdir.prepared
    with together(), ending_in_one_line():
        models = start_models(config, workdir.models)
        if config.data.prepared:
            check_given(config, folder)
        elif workdir.writes:
            begun = workdir.run.exists()
            prepare_in_workdir(config, folder, workdir.begun_tokenizer(), begun, models)
    with together() as same, ending_in_one_line():
        experiment = open_experiment(config, folder, models)
        tokenizer = experiment.tokenizer.serialise()
        workdir.check_data(experiment.data, tokenizer)
        same["digest of the data"] = experiment.data
        same["digest of the tokenizer"] = hashlib.sha256(tokenizer).hexdigest()
    with together(), ending_in_one_line():
        workdir.claim(config, experiment.data, tokenizer)

    checkpoint = train(experiment, workdir, stop)
    if not workdir.writes:
        return []

    # Written last: it marks the run as finished.
    chosen = checkpoint.provenance.get("chosen", {})  # in runs with validations
    steps = chosen.get("last_step", config.meta_steps)
    lines = run_summary(read_metrics(workdir.metrics / METRICS_FILE))
    lines.append(length_text(checkpoint.provenance["scores_by_length"]))
    lines += choice_lines(chosen, config.meta_steps)
    stopped_at = steps if steps < config.meta_steps else None
    summary = Summary(config.meta_steps, checkpoint.digest, lines, stopped_at, patience)
    write_json(workdir.summary, to_plain(summary))
    return [
        f"rater {checkpoint.digest[:12]} after {counted(steps, 'meta-step')}: {workdir.rater}",
        *(f"  {line}" for line in lines),
        f"next:  {next_command(workdir, config.data)}",
    ]


@contextlib.contextmanager
def ending_in_one_line(
    command: str = "datarater train", continues: str = "the same command resumes the run"
) -> Iterator[None]:
    """Turns errors that a user can fix into one line on stderr and the project's exit codes.

    Args:
        command: The command as users type it.
        continues: What the same command does after a stop.
    """
    try:
        yield
    except BaseException as error:
        codes = (code for kinds, code in EXIT_CODES_OF_ERRORS if isinstance(error, kinds))
        code = next(codes, None)
        if code is None:
            if isinstance(error, SystemExit) or not jax.distributed.is_initialized():
                raise
            # Raised, it would wait at the end of Python for the other processes.
            traceback.print_exc()
            end_process(exit_codes.FAILED)

        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = exit_codes.DISK_FULL
        hint = f"; {continues}" if code == exit_codes.STOPPED else ""
        print_line(f"{command}: {str(error) or 'interrupted'}{hint}", sys.stderr)
        end_process(code)


def next_command(workdir: Workdir, data: ConfigDict) -> str:
    """Returns the command that curates the pool with the rater of a finished run.

    Args:
        workdir: Workdir of the run.
        data: Section `data` of the run's config. Without `inner`, the pool is the one that
            `prepared` was prepared from; FILES stands for it if that folder is gone.
    """
    pool = data.inner
    if not pool:
        index = read_index(Path(data.prepared))
        pool = index.sets[INNER].source if index else "FILES"
    words = ["datarater", "curate", "--input", pool]
    if pool.startswith(TFDS_PREFIX):
        dataset = DatasetName.parse(pool)
        if "[" in dataset.split:  # curation reads whole splits
            splits = [part.partition("[")[0] for part in dataset.split.split("+")]
            parts = (
                f"{TFDS_PREFIX}{dataset.name}",
                dataset.version,
                "+".join(dict.fromkeys(splits)),
            )
            words[-1] = ":".join(filter(None, parts))
        if data.tfds_data_dir:
            words += ["--tfds_data_dir", data.tfds_data_dir]

    if data.text_field != ReadOptions().text_field:
        words += ["--text_field", data.text_field]
    words += ["--rater", str(workdir.rater), "--output", "curated", "--keep_fraction", "0.5"]
    return shlex.join(words)
