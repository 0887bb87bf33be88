"""Runners: what each needs set, and what its layout is.

Without `--runner` a command runs on this machine with Beam's FnApiRunner, by its name: `DirectRunner` would try
to fetch a runner binary from the network first.

On Dataflow every vCPU gets a worker process of its own, with one scoring thread.
On Flink every slot gets a worker process of its own, with one scoring thread, and workers outlive the steps of a job,
so that each loads the rater once. What the user gave stays as it was given.
"""

import argparse
import dataclasses
import difflib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.runner import create_runner

from pipelines import flink
from pipelines.errors import UsageError
from pipelines.flink import FlinkCluster

LOCAL_RUNNER = "FnApiRunner"
_MEANS_LOCAL = ("directrunner", "direct", "fnapirunner", "fnapi")
_FLINK, _PORTABLE, _PRISM, _DATAFLOW = "flinkrunner", "portablerunner", "prismrunner", "dataflowrunner"
_NO_CLUSTER = ("[auto]", "[local]")

BUILT_PRISM = Path(__file__).resolve().parents[1] / ".prism" / "prism"
"""Where `make prism` puts Prism."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a run's work happens.

    Attributes:
        options: for Beam.
        runner: its name.
        local: whether all of it happens on this machine, under this process.
        workers: worker processes of a local run.
        supervised: whether these are processes of their own, which the command must watch.
        beam_args: the flags that are not ours, from which the same layout can be chosen again.
        cluster: the Flink cluster, where it is one that can be asked.
        job_name: of the job there.
        needs_shared_storage: whether no worker can see this machine's disk.
    """

    options: PipelineOptions
    runner: str
    local: bool
    workers: int
    supervised: bool = False
    beam_args: tuple[str, ...] = ()
    cluster: FlinkCluster | None = None
    job_name: str = ""
    needs_shared_storage: bool = False

    def describe(self) -> str:
        """One line for a person."""
        if self.cluster is not None:
            workers = "1 worker process" if self.workers == 1 else f"{self.workers} worker processes"
            where = f"{workers}, one scoring thread in each; job {self.job_name}"
            return f"runner {self.runner}, {self.cluster.describe()}; {where}"
        if self.runner.lower() == _DATAFLOW:
            return f"runner {self.runner}, a worker process for every vCPU, one scoring thread in each"
        if not self.local:
            return f"runner {self.runner}; workers and threads as its own flags say"
        where = "in this process" if self.workers == 1 else f"{self.workers} worker processes"
        return f"runner {self.runner} on this machine, {where}, one scoring thread in each"


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
        hint = f"did you mean {known[near[0]]}?" if near and near[0] != name.lower() else " ".join(str(error).split())
        raise UsageError(f"--runner: there is no {name} here; {hint}") from error


def choose(beam_args: Sequence[str], local_workers: int) -> Layout:
    """Beam's options for a run.

    Args:
        beam_args: the flags that are not ours; a user's own pass untouched.
        local_workers: worker processes where the run is local.

    Raises:
        UnknownFlagError: in a local run, a flag that Beam does not know either. (Other runners take flags
            that only they know.)
        UsageError: a runner that Beam cannot make, or Prism without its binary.
        FlinkError: a Flink cluster that does not answer, or has fewer slots than are asked for.
    """
    named = _named_runner(beam_args)
    if named is not None and named.lower() not in _MEANS_LOCAL:
        _check_runner(named)
        if named.lower() == _PRISM:
            return _on_prism(beam_args, named)
        if named.lower() in (_FLINK, _PORTABLE):
            return _on_flink(beam_args, named)
        if named.lower() == _DATAFLOW:
            return _on_dataflow(beam_args, named)
        options = PipelineOptions(list(beam_args), save_main_session=False)
        return Layout(options, named, local=False, workers=0)
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
    return Layout(
        options,
        LOCAL_RUNNER,
        local=True,
        workers=(direct.direct_num_workers or os.cpu_count() or 1) if supervised else local_workers,
        supervised=supervised,
        beam_args=tuple(beam_args),
    )


def _is_given(beam_args: Sequence[str], *flags: str) -> bool:
    return any(arg.split("=")[0] == f"--{flag}" for arg in beam_args for flag in flags)


def _unless_given(beam_args: Sequence[str], **flags: object) -> list[str]:
    """The flags, in order, but for those that the user gave."""
    return [f"--{flag}={value}" for flag, value in flags.items() if not _is_given(beam_args, flag)]


def _on_prism(beam_args: Sequence[str], named: str) -> Layout:
    """Prism as a process of this machine; the steps run in this process.

    Raises:
        UsageError: its binary is nowhere; Beam would try to download it.
    """
    args = list(beam_args)
    if not _is_given(args, "prism_location", "job_endpoint"):
        binary = shutil.which("prism") or (str(BUILT_PRISM) if BUILT_PRISM.exists() else None)
        if binary is None:
            raise UsageError(
                f"--runner={named}: Prism's binary is neither on PATH nor at {BUILT_PRISM}; build it with `make "
                "prism`, say where it is with --prism_location, or leave --runner out to run in this process"
            )
        args.append(f"--prism_location={binary}")
    options = PipelineOptions(args, save_main_session=False)
    return Layout(options, named, local=True, workers=1, beam_args=tuple(beam_args))


def _on_dataflow(beam_args: Sequence[str], named: str) -> Layout:
    """Dataflow, which starts a worker process for every vCPU; each scores with one thread.

    Raises:
        UsageError: a flag is missing that Dataflow cannot do without.
    """
    args = [*beam_args, *_unless_given(beam_args, number_of_worker_harness_threads=1)]
    options = PipelineOptions(args, save_main_session=False)
    cloud = options.view_as(GoogleCloudOptions)
    for flag, meaning in (
        ("project", "the Google Cloud project that runs the job"),
        ("region", "where it runs, as in us-central1"),
        ("temp_location", "a gs:// folder for what the job stages"),
    ):
        value = getattr(cloud, flag)
        if not value or (flag == "temp_location" and not str(value).startswith("gs://")):
            raise UsageError(f"--runner={named} needs --{flag}: {meaning}")
    return Layout(options, named, local=False, workers=0, needs_shared_storage=True)


def _on_flink(beam_args: Sequence[str], named: str) -> Layout:
    """A Flink cluster by FlinkRunner or PortableRunner; what else the latter may lead to is left as it is.

    Raises:
        UsageError: there is no job server for the cluster's version of Flink.
        FlinkError: the cluster does not answer, or has fewer slots than are asked for.
    """
    args = list(beam_args)
    given = PipelineOptions(args)
    master = given.view_as(FlinkRunnerOptions).flink_master.strip()
    if master in _NO_CLUSTER:
        return Layout(PipelineOptions(args, save_main_session=False), named, local=False, workers=0)
    cluster = flink.look(master)
    # An environment of another type, in containers or by a command, is the user's own affair.
    if not _is_given(args, "environment_type", "environment_option", "environment_options"):
        args.append("--environment_type=EXTERNAL")
    if (_type_of_environment(args) == "EXTERNAL") and not _is_given(args, "environment_option", "environment_options"):
        args += _unless_given(args, environment_config=flink.DEFAULT_WORKER_POOL)
    args += _unless_given(
        args,
        parallelism=cluster.slots,
        sdk_worker_parallelism=cluster.most_slots,
        environment_cache_millis=cluster.environment_cache_millis,
        job_name=f"datarater-{uuid.uuid4().hex[:8]}",
    )
    starts_job_server = named.lower() == _FLINK and not _is_given(args, "job_endpoint")
    if starts_job_server and not _is_given(args, "flink_job_server_jar", "flink_version", "flink_submit_uber_jar"):
        version = ".".join(cluster.version.split(".")[:2])
        if version not in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS:
            known = ", ".join(FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS)
            raise UsageError(
                f"--flink_master: Flink {cluster.version} runs there, and this Beam has job servers for {known}; give "
                "--flink_job_server_jar or --job_endpoint of one that fits"
            )
        args.append(f"--flink_version={version}")
    options = PipelineOptions(args, save_main_session=False)
    parallelism = options.view_as(FlinkRunnerOptions).parallelism
    flink.check_parallelism(cluster, parallelism)
    name = str(options.get_all_options()["job_name"])
    return Layout(options, named, local=False, workers=max(parallelism, 1), cluster=cluster, job_name=name)


def _type_of_environment(args: Sequence[str]) -> str:
    return (PipelineOptions(list(args)).view_as(PortableOptions).environment_type or "").upper()


def check_ready(layout: Layout) -> None:
    """Before a job is submitted: refuses what would let it fail or wait for ever.

    Args:
        layout: where it is to run.

    Raises:
        FlinkError: saying what is missing.
    """
    if layout.cluster is None:
        return
    portable = layout.options.view_as(PortableOptions)
    if portable.job_endpoint:
        flink.check_job_endpoint("--job_endpoint", portable.job_endpoint)
        if portable.artifact_endpoint:
            flink.check_job_endpoint("--artifact_endpoint", portable.artifact_endpoint)
    elif layout.runner.lower() == _FLINK:
        flink.check_java(layout.options.view_as(JobServerOptions).job_server_java_launcher)
    if portable.environment_type == "EXTERNAL" and portable.environment_config and layout.cluster.is_here:
        flink.check_worker_pool(portable.environment_config)
