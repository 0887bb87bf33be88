"""What the commands share: running a graph, exit codes, what is printed at the end."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from apache_beam.runners.runner import PipelineResult

from datarater.pipelines import errors
from datarater.pipelines.commands.printing import say
from datarater.pipelines.errors import CurationError
from datarater.pipelines.graph.curation import Work
from datarater.pipelines.run_folder import commits, split_marks
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.lease import Launch, Lease
from datarater.pipelines.runners import choice, flink, local_workers
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.runners.interrupts import Interrupts
from datarater.pipelines.runners.progress_display import Progress, quieten_beam
from datarater.rater_model import exit_codes
from datarater.rater_model.documents.files import local_path


def check_writable(folder: RunFolder) -> None:
    """Makes a local run folder, and refuses one that cannot be written.

    Raises:
        RunFolderError: saying why.
    """
    local = local_path(folder.path)
    if local is None:
        return
    try:
        os.makedirs(local, exist_ok=True)
        if not os.access(local, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise errors.writing_failed(f"--output: {folder.path}", error) from error


def _tell_of_earlier_deaths(work: Work) -> None:
    for split, deaths in split_marks.clear_finished(work.folder).items():
        if deaths >= split_marks.MOST_DEATHS:
            say(f"note: {deaths} workers ended without a word while scoring {split}")


def run_graph(work: Work, execution: Execution) -> PipelineResult | None:
    """Builds and runs a graph, and waits for its end.

    Args:
        work: what to do.
        execution: the runner and its options.

    Returns:
        Beam's result; None where worker processes of this machine did the work.

    Raises:
        LeaseHeldError: another launch is at work in the run folder.
        FlinkError: the cluster is not ready for the job, or it failed there.
        CurationError: what stopped the run, if it is one of ours.
    """
    choice.check_ready(execution)
    launch = Launch.new(execution.runner, local=execution.local)
    work = work.of_launch(launch.id, execution.workers if execution.supervised else 0)
    most = 1.0 if work.scoring is None else work.scoring.max_rejected_fraction
    cluster = execution.cluster
    watched = (
        execution.local or cluster is not None
    )  # the command waits for the end, and says how far it is
    if execution.local:
        quieten_beam()
    with Interrupts() as interrupts, Lease(work.leases(), launch, interrupts.interrupt) as lease:
        say(f"runner: {execution.describe()}")
        _tell_of_earlier_deaths(work)
        with (
            Progress(
                work.folder,
                prints=watched,
                max_rejected_fraction=most,
                interrupt=interrupts.interrupt,
            )
            if watched or most < 1
            else contextlib.nullcontext(),
            flink.Watch(cluster, execution.job_name, interrupts.interrupt, say)
            if cluster is not None
            else contextlib.nullcontext(),
        ):
            result = None
            if execution.supervised:
                local_workers.run_supervised(work, execution, launch.id, say)
            else:
                result = local_workers.run_here(work, execution)
        if commits.exists(work.goal):
            split_marks.clear_finished(work.folder)
            for folder in work.folders():
                commits.sweep(folder)
        elif not execution.local:
            lease.leave_to_workers()
    return result


def run_command(
    command: str, run: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None
) -> int:
    """Runs a command and says by its exit code how it ended."""
    try:
        run(argv)
    except CurationError as error:
        print(f"{command}: {error}", file=sys.stderr, flush=True)
        if error.interrupted:
            # Threads of the local runner would go on with their splits; what matters is committed.
            sys.stdout.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except OSError as error:
        print(f"{command}: {error}", file=sys.stderr, flush=True)
        return exit_codes.NO_PERMISSION if isinstance(error, PermissionError) else exit_codes.FAILED
    return exit_codes.DONE
