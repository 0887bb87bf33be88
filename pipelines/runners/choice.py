"""Runners: what each needs set, and what its execution is.

Without `--runner` a command runs on this machine with Beam's FnApiRunner, by its name:
`DirectRunner` would try to fetch a runner binary from the network first.

On Dataflow every vCPU gets a worker process of its own, with one scoring thread. On Flink every
slot gets a worker process of its own, with one scoring thread, and workers outlive the steps of a
job, so that each loads the rater once. What the user gave stays as it was given.
"""

import argparse
import difflib
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

_MEANS_LOCAL = ("directrunner", "direct", "fnapirunner", "fnapi")


class UnknownFlagError(ValueError):
    """A flag that is neither ours nor Beam's."""


def _named_runner(beam_args: Sequence[str]) -> str | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--runner")
    return finder.parse_known_args(list(beam_args))[0].runner


def _beam_parser() -> argparse.ArgumentParser:
    every = _BeamArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    kinds = [PipelineOptions]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if "_add_argparse_args" in kind.__dict__:
            kind._add_argparse_args(every)
    return every


def beam_flags() -> set[str]:
    """The flags that Beam itself knows; a runner elsewhere may know more."""
    return set(_beam_parser()._option_string_actions)


def _check_runner(name: str) -> None:
    """Makes a runner once, as Beam will, to refuse one that it does not know or that lacks its packages.

    Raises:
        UsageError: naming a runner that may be meant, or the package to install.
    """
    try:
        create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        known = {known.lower(): known for known in StandardOptions.KNOWN_RUNNER_NAMES}
        near = difflib.get_close_matches(name.lower(), known, 1)
        hint = (
            f"did you mean {known[near[0]]}?"
            if near and near[0] != name.lower()
            else " ".join(str(error).split())
        )
        raise UsageError(f"--runner: there is no {name} here; {hint}") from error


def choose(beam_args: Sequence[str], local_workers: int) -> Execution:
    """Beam's options for a run.

    Args:
        beam_args: the flags that are not ours; a user's own pass untouched.
        local_workers: worker processes where the run is local.

    Raises:
        UnknownFlagError: in a local run, a flag that Beam does not know either. (Other runners take
            flags that only they know.)
        UsageError: a runner that Beam cannot make, or Prism without its binary.
        FlinkError: a Flink cluster that does not answer, or has fewer slots than are asked for.
    """
    named = _named_runner(beam_args)
    if named is not None and named.lower() not in _MEANS_LOCAL:
        _check_runner(named)
        if named.lower() == PRISM:
            return on_prism(beam_args, named)
        if named.lower() in (FLINK, PORTABLE):
            return on_flink(beam_args, named)
        if named.lower() == DATAFLOW:
            return on_dataflow(beam_args, named)
        options = PipelineOptions(list(beam_args), save_main_session=False)
        return Execution(options, named, local=False, workers=0)
    unknown = _beam_parser().parse_known_args(list(beam_args))[1]
    if unknown:
        raise UnknownFlagError(f"unknown flags: {' '.join(unknown)}")
    options = PipelineOptions(list(beam_args))
    options.view_as(StandardOptions).runner = LOCAL_RUNNER
    # Nothing is pickled from the command's own module: workers import what they run.
    options.view_as(SetupOptions).save_main_session = False
    direct = options.view_as(DirectOptions)
    if not any(arg.startswith("--direct_") for arg in beam_args):
        direct.direct_num_workers = local_workers
        direct.direct_running_mode = "in_memory" if local_workers == 1 else "multi_processing"
    supervised = direct.direct_running_mode == "multi_processing"
    return Execution(
        options,
        LOCAL_RUNNER,
        local=True,
        workers=(direct.direct_num_workers or os.cpu_count() or 1) if supervised else local_workers,
        supervised=supervised,
        beam_args=tuple(beam_args),
    )


def check_ready(execution: Execution) -> None:
    """Before a job is submitted: refuses what would let it fail or wait for ever.

    Args:
        execution: where it is to run.

    Raises:
        FlinkError: saying what is missing.
    """
    if execution.cluster is None:
        return
    portable = execution.options.view_as(PortableOptions)
    if portable.job_endpoint:
        flink.check_job_endpoint("--job_endpoint", portable.job_endpoint)
        if portable.artifact_endpoint:
            flink.check_job_endpoint("--artifact_endpoint", portable.artifact_endpoint)
    elif execution.runner.lower() == FLINK:
        flink.check_java(execution.options.view_as(JobServerOptions).job_server_java_launcher)
    if (
        portable.environment_type == "EXTERNAL"
        and portable.environment_config
        and execution.cluster.is_here
    ):
        flink.check_worker_pool(portable.environment_config)
