"""Options of a run on Dataflow: required flags, and one worker process per vCPU or per GPU."""

from __future__ import annotations

from collections.abc import Sequence

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from datarater.pipelines.errors import UsageError
from datarater.pipelines.runners.execution import Execution, unless_given

# Splits that a process with a GPU scores at once. While one is opened or committed, the others read
# and tokenize for the model.
_THREADS_OF_GPU = 4


def on_dataflow(beam_args: Sequence[str], named: str) -> Execution:
    """Returns a run on Dataflow.

    It starts a worker process with one scoring thread per vCPU. Where the flags ask for a GPU
    (`worker_accelerator`), it starts one process per machine, whose threads share the GPU.

    Args:
        beam_args: Flags for Beam; a value that the user gave is kept.
        named: Name of the runner, as the user wrote it.

    Raises:
        UsageError: A flag is missing that Dataflow requires.
    """
    has_gpu = any("worker_accelerator=" in arg for arg in beam_args)
    threads = _THREADS_OF_GPU if has_gpu else 1
    args = [*beam_args, *unless_given(beam_args, number_of_worker_harness_threads=threads)]
    # Otherwise each vCPU would start a process with a copy of the rater on the only GPU.
    if has_gpu and not any("no_use_multiple_sdk_containers" in arg for arg in beam_args):
        args.append("--experiments=no_use_multiple_sdk_containers")
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

    return Execution(
        options, named, local=False, workers=0, needs_shared_storage=True, has_gpu=has_gpu
    )
