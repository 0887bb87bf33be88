"""Prints what a command did: counts, reasons for rejection, where the files are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping

from datarater.pipelines import bad_splits
from datarater.pipelines.errors import BadSplitsError
from datarater.pipelines.graph.cascade import by_certainty
from datarater.pipelines.graph.requests import DeduplicationRequest, SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.counts import MAX_NAMED, by_count, main_reasons
from datarater.pipelines.run_folder.duplicates import read_summary
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import read_manifest
from datarater.pipelines.run_folder.scored import Scoring, find_scoring, read_scoring
from datarater.rater_model.command_line import print_line
from datarater.rater_model.counted import counted, was_or_were
from datarater.rater_model.documents.records import Reason
from datarater.report import report_command

_NO_TEXT = (Reason.NO_TEXT, Reason.TEXT_NOT_A_STRING)
_SUBMITTED = "submitted; the job continues without this command"


def say(line: str) -> None:
    """Prints a line at once.

    Where the reader of the output has left, as `head` does, the work continues in silence.
    """
    print_line(line)


def print_scoring(folder: RunFolder) -> None:
    """Prints the counts of a scored corpus, or that its job was submitted."""
    scoring = find_scoring(folder)
    if scoring is None:
        say(_SUBMITTED)
        return
    counts = scoring.counts
    say(scoring.identity.plan.describe())
    say(
        f"scored {counted(counts.scored, 'document')} ({counted(counts.tokens, 'token')}) of "
        f"{counted(counts.read, 'record')} in {counted(scoring.splits, 'split')}; rejected "
        f"{counts.rejected:,}"
    )
    _print_reasons(counts.rejected_by_reason, folder)
    _print_share_of_rater(scoring)
    warn_if_all_rejected(scoring)
    say(f"next: datarater select --output {shlex.quote(folder.path)} --keep_fraction 0.5")


def _print_share_of_rater(scoring: Scoring) -> None:
    """Prints how much the rater scored, and not its student."""
    cascade = scoring.identity.cascade
    if cascade is None:
        return
    _, by_rater, _ = by_certainty(scoring.histogram, cascade)
    share = by_rater.tokens / max(1, scoring.counts.tokens)
    say(
        f"by rater  {by_rater.documents:>12,}  ({share:.1%} of the tokens; "
        "the student scored the others)"
    )


def _print_reasons(reasons: Mapping[str, int], folder: RunFolder) -> None:
    for reason, number in by_count(reasons):
        say(f"  {reason:<20} {number:>12,}")
    if reasons:
        say(f"  each with its file, position and reason in {folder.path}/rejected/")


def check_bad_splits(folder: RunFolder) -> None:
    """Ends a command whose run is complete but for splits that were rejected whole.

    Raises:
        BadSplitsError: There are some.
    """
    scoring = find_scoring(folder)
    if scoring is None:
        return
    described = describe_bad_splits(scoring.counts.rejected_by_reason, folder.path)
    if described:
        raise BadSplitsError(f"everything else is done, but {described}")


def describe_bad_splits(rejected_by_reason: Mapping[str, int], folder: str) -> str:
    """Describes the files and splits that were rejected whole; "" if there are none.

    Args:
        rejected_by_reason: Numbers of rejected records of a run, by reason.
        folder: Path of its run folder.
    """
    bad = bad_splits.among(rejected_by_reason)
    if not bad:
        return ""
    number = sum(bad.values())
    return (
        f"{counted(number, 'file or split', 'files or splits')} {was_or_were(number)} rejected "
        f"whole ({main_reasons(bad)}), as --on_bad_split reject asks; {folder}/rejected/ has the "
        "file and the fault of each"
    )


def warn_if_all_rejected(scoring: Scoring) -> None:
    """Warns on standard error that nothing could be scored, why, and which flag may be wrong."""
    counts = scoring.counts
    if counts.scored or not counts.read:
        return
    lines = [
        f"WARNING: of {counted(counts.read, 'record')} none could be scored, all were rejected: "
        f"{main_reasons(counts.rejected_by_reason)}"
    ]
    if any(reason in _NO_TEXT for reason, _ in by_count(counts.rejected_by_reason)[:MAX_NAMED]):
        field = scoring.identity.read.text_field
        lines.append(f"WARNING: is --text_field right? It names the field {field!r}")
    for line in lines:
        print_line(line, sys.stderr)


def print_selection(request: SelectionRequest) -> None:
    """Prints the counts of a finished selection and where its files are."""
    manifest = read_manifest(request.selection)
    if manifest is None:
        say(_SUBMITTED)
        return
    counts = manifest.counts
    say(f"read      {counts.read:>12,}")
    say(f"kept      {counts.kept:>12,}  ({counted(counts.kept_tokens, 'token')})")
    if counts.repeats:
        tokens = counted(counts.kept_tokens + counts.repeat_tokens, "token")
        say(f"written   {counts.written:>12,}  ({tokens}, with all copies)")
    say(f"dropped   {counts.dropped:>12,}")
    for reason, number in by_count(counts.excluded_by_reason):
        say(f"  {reason:<20} {number:>12,}")
    say(f"rejected  {counts.rejected:>12,}")
    _print_reasons(counts.rejected_by_reason, request.folder)
    _print_share_of_rater(read_scoring(request.folder))
    for name, table in manifest.joins.items():
        say(table.describe(name))

    say(f"kept documents: {counted(len(manifest.files), 'file')} in {request.selection.path}/kept/")
    say(f"manifest:       {request.selection.manifest_path}")
    if commits.list_folder(request.selection.incomplete_folder):
        say(
            "incomplete:     columns of some input rows are damaged or too large, and null in the "
            f"kept rows; see {request.selection.incomplete_folder}/"
        )
    say(f"mixture:        {request.selection.mixture_path}")
    output = shlex.quote(request.output)
    if commits.exists(request.selection.report_path):
        say(f"report:         {request.selection.report_path}")
    else:
        command = report_command(request.output, request.name, request.report_texts)
        say(f"report:         none; to make it: {command}")
    say(
        f"another rule, without scoring again: datarater select --output {output} --keep_fraction F"
    )
    if counts.rejected == counts.read:
        warn_if_all_rejected(read_scoring(request.folder))


def print_duplicates(request: DeduplicationRequest) -> None:
    """Prints the counts of a complete deduplication and where its files are."""
    summary = read_summary(request.duplicates)
    if summary is None:
        say(_SUBMITTED)
        return
    counts = summary.counts
    share = counts.dropped / counts.documents
    say(f"read      {counts.read:>12,}")
    say(f"kept      {counts.kept:>12,}")
    say(f"dropped   {counts.dropped:>12,}  ({share:.1%} of the documents)")
    say(f"  {'same words':<20} {counts.exact:>12,}")
    say(f"  {'similar':<20} {counts.near:>12,}")
    say(f"rejected  {counts.rejected:>12,}")
    say(f"near-duplicates: {request.duplicates.documents_folder}/, a Parquet table")
    say(f"summary:         {request.duplicates.summary_path}")
