"""Execution: the runner of a run, its options and its workers."""

import dataclasses
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    PipelineOptions,
)

from datarater.pipelines.runners.flink import FlinkCluster

LOCAL_RUNNER = "FnApiRunner"
FLINK = "flinkrunner"
PORTABLE = "portablerunner"
PRISM = "prismrunner"
DATAFLOW = "dataflowrunner"


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where a run's work happens.

    Attributes:
        options: for Beam.
        runner: its name.
        local: whether all of it happens on this machine, under this process.
        workers: worker processes of a local run.
        supervised: whether these are processes of their own, which the command must watch.
        beam_args: the flags that are not ours, from which the same execution can be chosen again.
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
            workers = (
                "1 worker process" if self.workers == 1 else f"{self.workers} worker processes"
            )
            where = f"{workers}, one scoring thread in each; job {self.job_name}"
            return f"{self.runner}, {self.cluster.describe()}; {where}"
        if self.runner.lower() == DATAFLOW:
            return (
                f"runner {self.runner}, a worker process for every vCPU, one scoring thread in each"
            )
        if not self.local:
            return f"{self.runner}; workers and threads as its own flags say"
        where = "in this process" if self.workers == 1 else f"{self.workers} worker processes"
        return f"{self.runner} on this machine, {where}, one scoring thread in each"


def is_given(beam_args: Sequence[str], *flags: str) -> bool:
    return any(arg.split("=")[0] == f"--{flag}" for arg in beam_args for flag in flags)


def unless_given(beam_args: Sequence[str], **flags: object) -> list[str]:
    """The flags, in order, but for those that the user gave."""
    return [f"--{flag}={value}" for flag, value in flags.items() if not is_given(beam_args, flag)]
