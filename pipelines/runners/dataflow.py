"""Dataflow: flags it cannot do without, and one worker process for each vCPU."""

from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
)

from datarater.pipelines.errors import UsageError
from datarater.pipelines.runners.execution import Execution, unless_given


def on_dataflow(beam_args: Sequence[str], named: str) -> Execution:
    """Dataflow, which starts a worker process for every vCPU; each scores with one thread.

    Raises:
        UsageError: a flag is missing that Dataflow cannot do without.
    """
    args = [*beam_args, *unless_given(beam_args, number_of_worker_harness_threads=1)]
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
    return Execution(options, named, local=False, workers=0, needs_shared_storage=True)
