"""What the commands share: running a graph, exit codes, what is printed at the end."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from apache_beam.runners.runner import PipelineResult

from pipelines import attempts, commits, errors, flink, runners, selecting, splits, supervise
from pipelines.errors import CurationError
from pipelines.interrupts import Interrupts
from pipelines.lease import Launch, Lease
from pipelines.ledger import RunFolder
from pipelines.progress import Progress, quieten_beam
from pipelines.runners import Layout
from pipelines.selecting import SelectionRequest
from pipelines.work import Work
from rater_model import exit_codes
from rater_model.files import local_path
from rater_model.records import Reason

_TOP_REASONS = 3
_NO_TEXT = (Reason.NO_TEXT, Reason.TEXT_NOT_A_STRING)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


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
    for split, deaths in attempts.clear_finished(work.folder).items():
        if deaths >= attempts.MOST_DEATHS:
            say(f"note: {deaths} workers ended without a word while scoring {split}")


def run_graph(work: Work, layout: Layout) -> PipelineResult | None:
    """Builds and runs a graph, and waits for its end.

    Args:
        work: what to do.
        layout: the runner and its options.

    Returns:
        Beam's result; None where worker processes of this machine did the work.

    Raises:
        LeaseHeldError: another launch is at work in the run folder.
        FlinkError: the cluster is not ready for the job, or it failed there.
        CurationError: what stopped the run, if it is one of ours.
    """
    runners.check_ready(layout)
    launch = Launch.new(layout.runner, local=layout.local)
    work = work.of_launch(launch.id, layout.workers if layout.supervised else 0)
    most = 1.0 if work.scoring is None else work.scoring.max_rejected_fraction
    cluster = layout.cluster
    watched = layout.local or cluster is not None  # the command waits for the end, and says how far it is
    if layout.local:
        quieten_beam()
    with Interrupts() as interrupts, Lease(work.leases(), launch, interrupts.interrupt) as lease:
        say(f"layout: {layout.describe()}")
        _tell_of_earlier_deaths(work)
        with (
            Progress(work.folder, prints=watched, max_rejected_fraction=most, interrupt=interrupts.interrupt)
            if watched or most < 1
            else contextlib.nullcontext(),
            flink.Watch(cluster, layout.job_name, interrupts.interrupt, say)
            if cluster is not None
            else contextlib.nullcontext(),
        ):
            result = None
            if layout.supervised:
                supervise.run_supervised(work, layout, launch.id, say)
            else:
                result = supervise.run_here(work, layout)
        if commits.exists(work.goal):
            attempts.clear_finished(work.folder)
            for folder in work.folders():
                commits.sweep(folder)
        elif not layout.local:
            lease.leave_to_workers()
    return result


def run_command(command: str, run: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None) -> int:
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


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}"


def print_scoring(folder: RunFolder) -> None:
    """Prints the counts of a scored corpus."""
    scoring = selecting.read_scoring(folder)
    say(splits.describe_plan(scoring["identity"]["plan"]))
    counts = scoring["counts"]
    rejected = sum(counts["rejected"].values())
    say(
        f"scored {_count(counts['scored'], 'documents')} ({_count(counts['tokens'], 'tokens')}) of "
        f"{_count(counts['read'], 'records')} in {_count(scoring['splits'], 'splits')}; "
        f"rejected {rejected:,}"
    )
    _print_reasons(counts["rejected"], folder)
    warn_if_all_rejected(scoring)


def _print_reasons(reasons: dict[str, int], folder: RunFolder) -> None:
    for reason, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        say(f"  {reason:<20} {number:>12,}")
    if reasons:
        say(f"  each with its file, position and reason in {folder.path}/rejected/")


def warn_if_all_rejected(scoring: dict[str, Any]) -> None:
    """Says on standard error that nothing could be scored, why, and which flag may be amiss.

    Args:
        scoring: the fields of `scoring.json`.
    """
    counts = scoring["counts"]
    if counts["scored"] or not counts["read"]:
        return
    reasons = sorted(counts["rejected"].items(), key=lambda item: (-item[1], item[0]))
    top = ", ".join(f"{reason} {number:,}" for reason, number in reasons[:_TOP_REASONS])
    lines = [f"WARNING: not one of {counts['read']:,} records could be scored, all were rejected: {top}"]
    if any(reason in _NO_TEXT for reason, _ in reasons[:_TOP_REASONS]):
        field = scoring["identity"]["read"]["text_field"]
        lines.append(f"WARNING: is --text_field right? The text was looked for in the field {field!r}")
    print("\n".join(lines), file=sys.stderr, flush=True)


def read_manifest(request: SelectionRequest) -> dict[str, Any] | None:
    """The manifest of a finished selection, None if it is not finished."""
    if not commits.exists(request.selection.success_path):
        return None
    manifest: dict[str, Any] = orjson.loads(commits.read_bytes(request.selection.manifest_path))
    return manifest


def print_selection(request: SelectionRequest) -> None:
    """Prints the counts of a finished selection, and where its files are."""
    manifest = read_manifest(request)
    if manifest is None:
        say("submitted; the job goes on without this command")
        return
    counts = manifest["counts"]
    say(f"read      {counts['read']:>12,}")
    say(f"kept      {counts['kept']:>12,}  ({counts['kept_tokens']:,} tokens)")
    say(f"dropped   {counts['dropped']:>12,}")
    say(f"rejected  {counts['rejected']:>12,}")
    _print_reasons(counts["rejected_by_reason"], request.folder)
    say(f"kept documents: {len(manifest['files'])} files in {request.selection.path}/kept/")
    say(f"manifest:       {request.selection.manifest_path}")
    say(f"another rule, without scoring again: datarater-select --output {request.output} --keep_fraction F")
    if counts["rejected"] == counts["read"]:
        warn_if_all_rejected(selecting.read_scoring(request.folder))
