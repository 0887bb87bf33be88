"""Options of a run on Dataflow: required flags, and one worker process per vCPU."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from datarater.pipelines.errors import UsageError
from datarater.pipelines.runners.execution import Execution, unless_given


def on_dataflow(beam_args: Sequence[str], named: str) -> Execution:
    """Returns a run on Dataflow, which starts a worker process with one scoring thread per vCPU.

    Args:
        beam_args: Flags for Beam; a value that the user gave is kept.
        named: Name of the runner, as the user wrote it.

    Raises:
        UsageError: A flag is missing that Dataflow requires.
    """
    args = [*beam_args, *unless_given(beam_args, number_of_worker_harness_threads=1)]
    options = PipelineOptions(args, save_main_session=False)

    # Beam would report a missing flag only while it submits the job, with a traceback.
    cloud = options.view_as(GoogleCloudOptions)
    for flag, meaning in (
        ("project", "the Google Cloud project that runs the job"),
        ("region", "where it runs, as in us-central1"),
        ("temp_location", "a gs:// folder for the files that the job stages"),
    ):
        value = getattr(cloud, flag)
        if not value or (flag == "temp_location" and not str(value).startswith("gs://")):
            raise UsageError(f"--runner={named} needs --{flag}: {meaning}")

    return Execution(options, named, local=False, workers=0, needs_shared_storage=True)
