"""Options of a run on a Flink cluster, whose job manager is asked for its slots first."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
)

from datarater.pipelines.errors import UsageError
from datarater.pipelines.runners.execution import FLINK, Execution, is_given, unless_given
from datarater.pipelines.runners.flink import DEFAULT_WORKER_POOL, check_parallelism, look

_NO_CLUSTER = ("[auto]", "[local]")


def on_flink(beam_args: Sequence[str], named: str) -> Execution:
    """Returns a run on a Flink cluster by FlinkRunner or PortableRunner.

    Each slot gets a worker process of its own with one scoring thread. Workers outlive the steps of
    a job, so that each loads the rater once. A PortableRunner without a Flink cluster keeps its
    options as they are.

    Args:
        beam_args: Flags for Beam; a value that the user gave is kept.
        named: Name of the runner, as the user wrote it.

    Raises:
        UsageError: There is no job server for the cluster's version of Flink.
        FlinkError: The cluster does not answer, or has fewer slots than are requested.
    """
    args = list(beam_args)
    given = PipelineOptions(args)
    master = given.view_as(FlinkRunnerOptions).flink_master.strip()
    if master in _NO_CLUSTER:
        return Execution(
            PipelineOptions(args, save_main_session=False), named, local=False, workers=0
        )
    cluster = look(master)

    # The user configures an environment of another type, in containers or by a command.
    if not is_given(args, "environment_type", "environment_option", "environment_options"):
        args.append("--environment_type=EXTERNAL")
    if _environment_type(args) == "EXTERNAL" and not is_given(
        args, "environment_option", "environment_options"
    ):
        args += unless_given(args, environment_config=DEFAULT_WORKER_POOL)

    args += unless_given(
        args,
        parallelism=cluster.slots,
        sdk_worker_parallelism=cluster.max_slots,
        environment_cache_millis=cluster.environment_cache_millis,
        job_name=f"datarater-{uuid.uuid4().hex[:8]}",
    )

    # FlinkRunner starts a job server of its own, which must fit the version of the cluster.
    starts_job_server = named.lower() == FLINK and not is_given(args, "job_endpoint")
    if starts_job_server and not is_given(
        args, "flink_job_server_jar", "flink_version", "flink_submit_uber_jar"
    ):
        version = ".".join(cluster.version.split(".")[:2])
        if version not in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS:
            known = ", ".join(FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS)
            raise UsageError(
                f"--flink_master: Flink {cluster.version} runs there, but this Beam has job "
                f"servers for {known}; give --flink_job_server_jar or --job_endpoint of a "
                "suitable one"
            )
        args.append(f"--flink_version={version}")

    options = PipelineOptions(args, save_main_session=False)
    parallelism = options.view_as(FlinkRunnerOptions).parallelism
    check_parallelism(cluster, parallelism)
    name = str(options.get_all_options()["job_name"])
    return Execution(
        options, named, local=False, workers=max(parallelism, 1), cluster=cluster, job_name=name
    )


def _environment_type(args: Sequence[str]) -> str:
    return (PipelineOptions(list(args)).view_as(PortableOptions).environment_type or "").upper()
