"""Chooses the runner of a run, and checks that it is ready.

Without `--runner` a command runs on this machine with Beam's FnApiRunner, chosen by name:
`DirectRunner` would first try to fetch a runner binary from the network. The other modules of this
package set the options of Flink, Dataflow and Prism. A value that the user gave is kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DirectOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.runner import create_runner

from datarater.pipelines.errors import UsageError
from datarater.pipelines.runners import flink
from datarater.pipelines.runners.beam_import import is_local, named_runner
from datarater.pipelines.runners.dataflow import on_dataflow
from datarater.pipelines.runners.execution import (
    DATAFLOW,
    FLINK,
    LOCAL_RUNNER,
    PORTABLE,
    PRISM,
    Execution,
)
from datarater.pipelines.runners.flink_options import on_flink
from datarater.pipelines.runners.prism import on_prism
from datarater.rater_model.command_line import near_miss
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.store_errors import one_line


class UnknownFlagError(ValueError):
    """A flag that neither this package nor Beam knows."""


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose(
    beam_args: Sequence[str], local_workers: int, max_workers: int | None = None
) -> Execution:
    """Chooses the runner of a run and its options.

    Args:
        beam_args: Flags that this package does not know.
        local_workers: Number of worker processes of a local run.
        max_workers: Maximum for that number; the number of cores if None.

    Raises:
        UnknownFlagError: Beam does not know a flag of a local run either. (Other runners have flags
            that only they know.)
        UsageError: Beam cannot create the runner, or there is no Prism binary.
        FlinkError: A Flink cluster does not answer, or has fewer slots than are requested.
    """
    named = named_runner(beam_args)
    if named is not None and not is_local(named):
        _check_runner(named)
        if named.lower() == PRISM:
            return on_prism(beam_args, named)
        if named.lower() in (FLINK, PORTABLE):
            return on_flink(beam_args, named)
        if named.lower() == DATAFLOW:
            return on_dataflow(beam_args, named)
        options = PipelineOptions(list(beam_args), save_main_session=False)
        return Execution(options, named, local=False, workers=0)

    # A local run has no flags but these.
    unknown = _beam_parser().parse_known_args(list(beam_args))[1]
    if unknown:
        raise UnknownFlagError(f"unknown flags: {' '.join(unknown)}")

    options = PipelineOptions(list(beam_args))
    options.view_as(StandardOptions).runner = LOCAL_RUNNER
    # Nothing is pickled from the command's own module: workers import what they run.
    options.view_as(SetupOptions).save_main_session = False

    # The user's own options of the local runner take the place of --local_workers.
    direct = options.view_as(DirectOptions)
    requested = 0
    if not any(arg.startswith("--direct_") for arg in beam_args):
        requested = local_workers
        local_workers = min(local_workers, max_workers or available_cores())
        direct.direct_num_workers = local_workers
        direct.direct_running_mode = "in_memory" if local_workers == 1 else "multi_processing"
    supervised = direct.direct_running_mode == "multi_processing"
    workers = (direct.direct_num_workers or os.cpu_count() or 1) if supervised else local_workers
    return Execution(
        options,
        LOCAL_RUNNER,
        local=True,
        workers=workers,
        requested_workers=requested,
        supervised=supervised,
        beam_args=tuple(beam_args),
    )


def limited(execution: Execution, splits: int, cores: int) -> tuple[Execution, str]:
    """Returns an execution with no more local workers than there are cores and splits.

    Args:
        execution: The execution.
        splits: Number of splits of the run, or an upper bound of it.
        cores: Number of cores of this machine.

    Returns:
        The execution, and a line that says why it has fewer workers than requested; "" if it has
        as many.
    """
    requested = execution.requested_workers
    workers = max(1, min(requested, cores, splits))
    if workers == requested or not requested:
        return execution, ""
    limit = counted(cores, "core") if cores <= splits else counted(splits, "split")
    where = "this machine has" if cores <= splits else "the run has at most"
    note = f"--local_workers {requested}: {where} {limit}, so {workers} of them will work"
    return choose(execution.beam_args, requested, workers), note


def check_ready(execution: Execution) -> None:
    """Refuses a job that would fail or wait forever, before it is submitted.

    Args:
        execution: Execution of the job.

    Raises:
        FlinkError: The message says what is missing.
    """
    if execution.cluster is None:
        return

    # A given job server must listen; FlinkRunner starts one with Java otherwise.
    portable = execution.options.view_as(PortableOptions)
    if portable.job_endpoint:
        flink.check_job_endpoint("--job_endpoint", portable.job_endpoint)
        if portable.artifact_endpoint:
            flink.check_job_endpoint("--artifact_endpoint", portable.artifact_endpoint)
    elif execution.runner.lower() == FLINK:
        flink.check_java(execution.options.view_as(JobServerOptions).job_server_java_launcher)

    # Only a worker pool of this machine can be reached from here.
    if (
        portable.environment_type == "EXTERNAL"
        and portable.environment_config
        and execution.cluster.is_here
    ):
        flink.check_worker_pool(portable.environment_config)


def _beam_parser() -> argparse.ArgumentParser:
    parser = _BeamArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    kinds = [PipelineOptions]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if "_add_argparse_args" in kind.__dict__:
            kind._add_argparse_args(parser)
    return parser


def beam_flags() -> set[str]:
    """Returns the flags that Beam itself knows; other runners may know more."""
    return set(_beam_parser()._option_string_actions)


def _check_runner(name: str) -> None:
    """Refuses a runner that Beam does not know or that lacks packages, by creating it once.

    Raises:
        UsageError: The message suggests a similar name, or names the package to install.
    """
    try:
        create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        known = {runner.lower(): runner for runner in StandardOptions.KNOWN_RUNNER_NAMES}
        near = near_miss(name.lower(), known)
        hint = (
            f"did you mean {known[near]}?"
            if near and near != name.lower()
            else one_line(error, None)
        )
        raise UsageError(f"--runner: there is no {name} here; {hint}") from error
