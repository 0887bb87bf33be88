"""An execution: the runner of a run, with its options and workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from datarater.pipelines.runners.flink import FlinkCluster
from datarater.rater_model.counted import counted

LOCAL_RUNNER = "FnApiRunner"
FLINK = "flinkrunner"
PORTABLE = "portablerunner"
PRISM = "prismrunner"
DATAFLOW = "dataflowrunner"


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and how a run works.

    Attributes:
        options: Options for Beam.
        runner: Name of the runner.
        local: Whether all work happens on this machine and ends with this process.
        workers: Number of worker processes, of a run on this machine or on Flink.
        requested_workers: Value of `--local_workers` that was given; 0 where it has no effect.
        supervised: Whether the workers are separate processes that the command must watch.
        beam_args: Flags for Beam, from which the same execution can be chosen again.
        cluster: Flink cluster of the job, if its job manager can be asked.
        job_name: Name of the job on the cluster.
        needs_shared_storage: Whether the workers cannot see this machine's disk.
        has_gpu: Whether each machine has one worker process, which uses its GPU.
    """

    options: PipelineOptions
    runner: str
    local: bool
    workers: int
    requested_workers: int = 0
    supervised: bool = False
    beam_args: tuple[str, ...] = ()
    cluster: FlinkCluster | None = None
    job_name: str = ""
    needs_shared_storage: bool = False
    has_gpu: bool = False

    def describe(self) -> str:
        """Describes the execution in one line."""
        if self.cluster is not None:
            workers = counted(self.workers, "worker process", "worker processes")
            where = f"{workers}, one scoring thread in each; job {self.job_name}"
            return f"{self.runner}, {self.cluster.describe()}; {where}"

        if self.has_gpu:
            return f"{self.runner}, a worker process per machine, whose threads share its GPU"

        if self.runner.lower() == DATAFLOW:
            return f"{self.runner}, a worker process per vCPU, one scoring thread in each"

        if not self.local:
            return f"{self.runner}; its own flags set workers and threads"

        where = "in this process"
        if self.workers != 1:
            where = counted(self.workers, "worker process", "worker processes")
        return f"{self.runner} on this machine, {where}, one scoring thread in each"


def is_given(beam_args: Sequence[str], *flags: str) -> bool:
    """Returns whether the user gave one of several flags."""
    return any(arg.split("=")[0] == f"--{flag}" for arg in beam_args for flag in flags)


def unless_given(beam_args: Sequence[str], **flags: object) -> list[str]:
    """Returns flags with their values, in order, without those that the user gave."""
    return [f"--{flag}={value}" for flag, value in flags.items() if not is_given(beam_args, flag)]
