"""Runs a scoring, a selection or both: checks what can be checked, then runs one graph."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence

from apache_beam.runners.runner import PipelineResult

from datarater.pipelines import errors
from datarater.pipelines.commands import printing
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph import cutoff_search, scoring
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest, Work
from datarater.pipelines.run_folder import commits, split_marks
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.lease import Launch, Lease
from datarater.pipelines.run_folder.manifest import check_rule, read_manifest
from datarater.pipelines.run_folder.reference import read_reference
from datarater.pipelines.runners import choice, flink, local_workers
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.runners.interrupts import Interrupts
from datarater.pipelines.runners.logs import quieten_beam
from datarater.pipelines.runners.progress_display import Progress
from datarater.rater_model.documents.files import local_path
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.scorer import limit_cpu_threads

Say = Callable[[str], None]


def score(
    request: ScoringRequest,
    execution: Execution,
    say: Say = printing.say,
    shows_progress: bool = True,
) -> PipelineResult | None:
    """Scores a corpus, unless that is done.

    Args:
        request: What to score, and how.
        execution: The runner and its options.
        say: Called with each line about the run.
        shows_progress: Whether the progress of the work is printed on standard error.

    Returns:
        Beam's result; None where worker processes of this machine did the work, or nothing was
        left to do.

    Raises:
        CurationError: The run cannot continue; the message says why and what to do.
    """
    limit_cpu_threads()
    files = scoring.preflight(request)
    check_writable(request.folder)
    if commits.exists(request.folder.scoring_path):
        return None
    _say_inputs(files, say)
    return run_graph(Work(scoring=request), execution, say, shows_progress)


def select(
    request: SelectionRequest,
    execution: Execution,
    say: Say = printing.say,
    shows_progress: bool = True,
) -> PipelineResult | None:
    """Selects from a scored corpus, unless that is done; see `score`."""
    if not commits.exists(request.folder.path):
        raise UsageError(f"--output: {request.folder.path} does not exist")
    cutoff_search.first_cutoffs(request)
    check_rule(request.selection, request.options)
    if read_manifest(request.selection) is not None:
        return None
    check_writable(request.folder)
    return run_graph(Work(selection=request), execution, say, shows_progress)


def curate(
    request: ScoringRequest,
    selection: SelectionRequest,
    execution: Execution,
    say: Say = printing.say,
    shows_progress: bool = True,
) -> PipelineResult | None:
    """Scores a corpus and selects from it in one graph, unless that is done; see `score`."""
    limit_cpu_threads()
    files = scoring.preflight(request)
    if selection.reference is not None:
        read_reference(selection.reference, request.plan.options)
    check_rule(selection.selection, selection.options)
    check_writable(request.folder)
    if read_manifest(selection.selection) is not None:
        return None
    _say_inputs(files, say)
    return run_graph(Work(scoring=request, selection=selection), execution, say, shows_progress)


def _say_inputs(files: Sequence[FileInfo], say: Say) -> None:
    say(f"input: {len(files):,} files, {sum(file.size for file in files):,} bytes")


def check_writable(folder: RunFolder) -> None:
    """Makes a local run folder, and refuses one that cannot be written.

    Raises:
        RunFolderError: The message says why.
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


def _report_earlier_deaths(work: Work, say: Say) -> None:
    for split, deaths in split_marks.clear_finished(work.folder).items():
        if deaths >= split_marks.MOST_DEATHS:
            say(f"note: {deaths} worker processes died while scoring {split}")


def run_graph(
    work: Work, execution: Execution, say: Say = printing.say, shows_progress: bool = True
) -> PipelineResult | None:
    """Builds and runs a graph, and waits for its end.

    Args:
        work: What to do.
        execution: The runner and its options.
        say: Called with each line about the run.
        shows_progress: Whether the progress of the work is printed on standard error.

    Returns:
        Beam's result; None where worker processes of this machine did the work.

    Raises:
        LeaseHeldError: Another launch is working in the run folder.
        FlinkError: The cluster is not ready for the job, or the job failed there.
        CurationError: The reason why the run stopped, if it is one of ours.
    """
    choice.check_ready(execution)
    launch = Launch.new(execution.runner, local=execution.local)
    work = work.of_launch(launch.id, execution.workers if execution.supervised else 0)
    max_rejected = 1.0 if work.scoring is None else work.scoring.max_rejected_fraction
    cluster = execution.cluster
    # Where the command waits for the end, it shows progress.
    watched = execution.local or cluster is not None
    if execution.local:
        quieten_beam()

    with Interrupts() as interrupts, Lease(work.leases(), launch, interrupts.interrupt) as lease:
        say(f"runner: {execution.describe()}")
        _report_earlier_deaths(work, say)

        with contextlib.ExitStack() as watchers:
            if watched or max_rejected < 1:
                progress = Progress(
                    work.folder,
                    prints=watched and shows_progress,
                    max_rejected_fraction=max_rejected,
                    interrupt=interrupts.interrupt,
                )
                watchers.enter_context(progress)
            if cluster is not None:
                watchers.enter_context(
                    flink.Watch(cluster, execution.job_name, interrupts.interrupt, say)
                )
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
