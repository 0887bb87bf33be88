"""Runs work in a run folder: checks what can be checked, then runs one graph."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable

from apache_beam.runners.runner import PipelineResult

from datarater.pipelines import errors
from datarater.pipelines.commands import printing
from datarater.pipelines.dedup.entries import grouped_bytes
from datarater.pipelines.dedup.signatures import Bands
from datarater.pipelines.errors import InputChangedError, UsageError
from datarater.pipelines.graph import cutoff_search, scoring
from datarater.pipelines.graph.requests import Work
from datarater.pipelines.run_folder import commits, split_marks
from datarater.pipelines.run_folder.duplicates import check_options
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    as_committed,
    cost_changes,
    read_identity,
)
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.lease import Launch, Lease
from datarater.pipelines.run_folder.manifest import check_rule, forget_unfinished
from datarater.pipelines.run_folder.reference import read_reference
from datarater.pipelines.run_folder.scored import count_plans, last_scoring_path, read_scoring
from datarater.pipelines.runners import choice, flink, local_workers
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.runners.interrupts import Interrupts
from datarater.pipelines.runners.logs import quieten_beam
from datarater.pipelines.runners.progress_display import Progress
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import local_path
from datarater.rater_model.scoring_options import limit_cpu_threads

Say = Callable[[str], None]

COPIES_IN_MEMORY = 4.3
"""Copies of what is grouped that Beam's local runner has in memory at a time, as measured."""
MIN_BYTES_TO_SAY = 10**9
"""Memory that is worth a line."""


def run(
    work: Work,
    execution: Execution,
    say: Say = printing.say,
    shows_progress: bool = True,
) -> PipelineResult | None:
    """Scores a corpus, finds near-duplicates, selects, or does several of these, unless it is done.

    Args:
        work: What to do.
        execution: The runner and its options.
        say: Called with each line about the run.
        shows_progress: Whether the progress of the work is printed on standard error.

    Returns:
        Beam's result; None where worker processes of this machine did the work, or nothing was
        left to do.

    Raises:
        CurationError: The run cannot continue; the message says why and what to do.
    """
    checked = _check(work)
    if checked is not None and work.scoring is not None:
        request = dataclasses.replace(work.scoring, plans=checked.plans)
        work = dataclasses.replace(work, scoring=request)
    if commits.exists(work.goal):
        return None
    check_writable(work.folder)

    if not _run_first_pass(work, execution, say, shows_progress):
        return None

    committed = read_identity(work.folder)
    if work.scoring is None and committed is not None:
        _warn_of_student(work, committed, say)
    if work.scoring is not None and committed is not None:
        for line in cost_changes(work.scoring.options, committed):
            say(f"note: {line}")
    work = _as_committed(work, committed)

    if checked is not None:
        inputs = checked.inputs
        say(f"input: {counted(inputs.files, 'file')}, {counted(inputs.bytes, 'byte')}")
        if checked.plans > 1 and checked.new:
            say(f"append: {checked.new:,} new")
    execution, note = choice.limited(
        execution, _max_splits(work, checked), choice.available_cores()
    )
    if note:
        say(note)
    if execution.local:
        say_memory(work, say)
    return run_graph(work, execution, say, shows_progress)


def _run_first_pass(work: Work, execution: Execution, say: Say, shows_progress: bool) -> bool:
    """Scores all documents with the student, if there is one and the rater is not done.

    Returns:
        Whether the rater can begin; False while a job that scores them continues elsewhere.
    """
    scoring = work.scoring
    if scoring is None or scoring.options.cascade is None or commits.exists(work.scoring_path):
        return True
    cascade = scoring.options.cascade
    if (cascade.surely_kept, cascade.surely_dropped) == (0, 1):
        say(
            "note: the student is in doubt of every document at --agreement "
            f"{cascade.agreement:g}, or too few were held out to tell: the rater scores them all"
        )
    first_pass = Work(scoring.first_pass)
    say(f"first pass: the student scores all documents into {first_pass.folder.path}")
    run(first_pass, execution, say, shows_progress)
    if not commits.exists(last_scoring_path(first_pass.folder)):
        say("first pass: submitted; run the same command again once the job has ended")
        return False
    say("second pass: the rater scores the documents of which the student is in doubt")
    return True


def _warn_of_student(work: Work, committed: CommittedIdentity, say: Say) -> None:
    """Warns that the order far from the cutoff that a run was made for is the student's.

    Rules on what is left without some documents have another cutoff, and near-duplicates are
    ranked everywhere.
    """
    cascade, selection = committed.cascade, work.selection
    if cascade is None:
        return
    is_as_made = (
        selection is not None
        and selection.keeps_share_of_all
        and selection.policy.rule.value == cascade.keep
    )
    if not is_as_made:
        say(
            f"note: this run was made for --keep_fraction {cascade.keep}: the rater scored only "
            f"what its student left in doubt there, from the best {cascade.surely_kept:.1%} to the "
            f"best {cascade.surely_dropped:.1%}; the student alone decides elsewhere"
        )


def say_memory(work: Work, say: Say, min_bytes: int = MIN_BYTES_TO_SAY) -> None:
    """Says how much memory it takes to compare documents here, where nothing is spilled to disk.

    Args:
        work: The work; if it scores, the number of documents is unknown, and nothing is said.
        say: Called with the line.
        min_bytes: Number of bytes from which it is worth a line.
    """
    request = work.duplicates
    if (
        request is None
        or work.scoring is not None
        or commits.exists(request.duplicates.success_path)
    ):
        return
    documents = read_scoring(work.folder).counts.scored
    grouped = documents * grouped_bytes(Bands.for_similarity(request.similarity))
    if COPIES_IN_MEMORY * grouped >= min_bytes:
        say(
            f"note: to compare {counted(documents, 'document')} at similarity "
            f"{request.similarity:g} takes about {COPIES_IN_MEMORY * grouped / 1e9:,.1f} GB of "
            "memory on this machine; Flink and Dataflow can spill it to disk"
        )


def _as_committed(work: Work, committed: CommittedIdentity | None) -> Work:
    """Returns the work with the limits of the run that it resumes, which may be an earlier one."""
    scoring = work.scoring
    if committed is None or scoring is None:
        return work
    options = as_committed(scoring.options, committed)
    return dataclasses.replace(work, scoring=dataclasses.replace(scoring, options=options))


def _max_splits(work: Work, checked: scoring.Preflight | None) -> int:
    """Returns an upper bound of the number of splits of a run, which may not be planned yet."""
    identity = read_identity(work.folder)
    planned = 1 if identity is None else identity.plan.splits
    return planned if checked is None else max(planned, checked.max_splits)


def _check(work: Work) -> scoring.Preflight | None:
    """Makes the checks of the graph before it is built; returns what a scoring is about to do."""
    request, selection = work.scoring, work.selection
    checked = None
    if request is not None:
        limit_cpu_threads()
        checked = scoring.preflight(request)
    if request is None and not commits.exists(work.folder.path):
        raise UsageError(f"--output: {work.folder.path} does not exist")
    if work.duplicates is not None:
        if request is None:
            read_scoring(work.folder)
        plans = count_plans(work.folder) if checked is None else checked.plans
        check_options(work.duplicates.duplicates, work.duplicates.options_over(plans))
    if selection is None:
        return checked

    if request is None:
        cutoff_search.check_policy(selection)
    elif selection.reference is not None:
        read_reference(selection.reference, request.options)
    is_scored = commits.exists(last_scoring_path(work.folder))
    if checked is not None and not checked.new and is_scored:
        cutoff_search.check_policy(selection)
    plans = count_plans(work.folder) if checked is None else checked.plans
    check_rule(selection.selection, selection.options_over(plans))
    return checked


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
        if deaths >= split_marks.MAX_DEATHS_IN_SPLIT:
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
    slots = execution.workers if execution.supervised else 0
    spare = execution.local and 2 * execution.workers <= choice.available_cores()
    work = work.of_launch(launch.id, slots, elsewhere=not execution.local, reads_ahead=spare)
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
                    scores=work.scoring is not None,
                    duplicates="" if work.duplicates is None else work.duplicates.name,
                    selection="" if work.selection is None else work.selection.name,
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
            try:
                if execution.supervised:
                    local_workers.run_supervised(work, execution, launch.id, say, interrupts)
                else:
                    result = local_workers.run_here(work, execution, interrupts)
            except InputChangedError:
                # What was counted and written belongs to inputs that are no more.
                if work.selection is not None:
                    forget_unfinished(work.selection.selection)
                raise

        if commits.exists(work.goal):
            split_marks.clear_finished(work.folder)
            for folder in work.folders():
                commits.sweep(folder)
        elif not execution.local:
            lease.leave_to_workers()
    return result
