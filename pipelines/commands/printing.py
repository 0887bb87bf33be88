"""Prints what a command did: counts, reasons for rejection, where the files are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

import orjson

from datarater.pipelines.graph import cutoff_search
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import describe_plan
from datarater.rater_model.command_line import print_line
from datarater.rater_model.documents.records import Reason

_TOP_REASONS = 3
_NO_TEXT = (Reason.NO_TEXT, Reason.TEXT_NOT_A_STRING)
_SUBMITTED = "submitted; the job continues without this command"


def say(line: str) -> None:
    """Prints a line at once.

    Where the reader of the output has left, as `head` does, the work continues in silence.
    """
    print_line(line)


def print_scoring(folder: RunFolder) -> None:
    """Prints the counts of a scored corpus, or that its job was submitted."""
    if not commits.exists(folder.scoring_path):
        say(_SUBMITTED)
        return
    scoring = cutoff_search.read_scoring(folder)
    counts = scoring["counts"]
    say(describe_plan(scoring["identity"]["plan"]))
    say(
        f"scored {counts['scored']:,} documents ({counts['tokens']:,} tokens) of "
        f"{counts['read']:,} records in {scoring['splits']:,} splits; "
        f"rejected {sum(counts['rejected'].values()):,}"
    )
    _print_reasons(counts["rejected"], folder)
    warn_if_all_rejected(scoring)
    say(f"next: datarater select --output {shlex.quote(folder.path)} --keep_fraction 0.5")


def _print_reasons(reasons: Mapping[str, int], folder: RunFolder) -> None:
    for reason, number in _by_count(reasons):
        say(f"  {reason:<20} {number:>12,}")
    if reasons:
        say(f"  each with its file, position and reason in {folder.path}/rejected/")


def _by_count(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def warn_if_all_rejected(scoring: Mapping[str, Any]) -> None:
    """Warns on standard error that nothing could be scored, why, and which flag may be wrong.

    Args:
        scoring: Fields of `scoring.json`.
    """
    counts = scoring["counts"]
    if counts["scored"] or not counts["read"]:
        return
    reasons = _by_count(counts["rejected"])[:_TOP_REASONS]
    top = ", ".join(f"{reason} {number:,}" for reason, number in reasons)
    lines = [
        f"WARNING: none of {counts['read']:,} records could be scored, all were rejected: {top}"
    ]
    if any(reason in _NO_TEXT for reason, _ in reasons):
        field = scoring["identity"]["read"]["text_field"]
        lines.append(f"WARNING: is --text_field right? It names the field {field!r}")
    print_line("\n".join(lines), sys.stderr)


def read_manifest(request: SelectionRequest) -> dict[str, Any] | None:
    """Returns the manifest of a finished selection, None for one that is not finished."""
    if not commits.exists(request.selection.success_path):
        return None
    manifest: dict[str, Any] = orjson.loads(commits.read_bytes(request.selection.manifest_path))
    return manifest


def print_selection(request: SelectionRequest) -> None:
    """Prints the counts of a finished selection and where its files are."""
    manifest = read_manifest(request)
    if manifest is None:
        say(_SUBMITTED)
        return
    counts = manifest["counts"]
    say(f"read      {counts['read']:>12,}")
    say(f"kept      {counts['kept']:>12,}  ({counts['kept_tokens']:,} tokens)")
    say(f"dropped   {counts['dropped']:>12,}")
    say(f"rejected  {counts['rejected']:>12,}")
    _print_reasons(counts["rejected_by_reason"], request.folder)

    say(f"kept documents: {len(manifest['files'])} files in {request.selection.path}/kept/")
    say(f"manifest:       {request.selection.manifest_path}")
    output = shlex.quote(request.output)
    say(
        f"another rule, without scoring again: datarater select --output {output} --keep_fraction F"
    )
    if counts["rejected"] == counts["read"]:
        warn_if_all_rejected(cutoff_search.read_scoring(request.folder))
