"""Printing what a command did: counts, reasons for rejection, where the files are."""

import sys
from typing import Any

import orjson

from datarater.pipelines.graph import cutoff_search
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import describe_plan
from datarater.rater_model.documents.records import Reason

_TOP_REASONS = 3
_NO_TEXT = (Reason.NO_TEXT, Reason.TEXT_NOT_A_STRING)


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}"


def print_scoring(folder: RunFolder) -> None:
    """Prints the counts of a scored corpus."""
    scoring = cutoff_search.read_scoring(folder)
    say(describe_plan(scoring["identity"]["plan"]))
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
    lines = [
        f"WARNING: not one of {counts['read']:,} records could be scored, all were rejected: {top}"
    ]
    if any(reason in _NO_TEXT for reason, _ in reasons[:_TOP_REASONS]):
        field = scoring["identity"]["read"]["text_field"]
        lines.append(
            f"WARNING: is --text_field right? The text was looked for in the field {field!r}"
        )
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
    say(
        f"another rule, without scoring again: datarater select --output {request.output} --keep_fraction F"
    )
    if counts["rejected"] == counts["read"]:
        warn_if_all_rejected(cutoff_search.read_scoring(request.folder))
