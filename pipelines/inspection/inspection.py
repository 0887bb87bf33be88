"""Answers a question about the documents of a run: finds them, reads them, says what was read."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.inspection.found_documents import (
    FoundDocument,
    Place,
    find_excluded,
    find_places,
    key_forms,
    read_rows,
)
from datarater.pipelines.inspection.judge import Decision, Judge
from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.inspection.rejected_records import find_rejected
from datarater.pipelines.inspection.score_file_choice import (
    ScoreFileChoice,
    choose_score_files,
    count_splits,
    splits_with_excluded,
)
from datarater.pipelines.inspection.texts import Text, read_texts
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import selections
from datarater.pipelines.run_folder.counts import by_count
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import Manifest, read_manifest
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES
from datarater.pipelines.run_folder.plan import CommittedPlans, find_plans
from datarater.pipelines.run_folder.score_files import OTHER_SCORE, RANKED_BY
from datarater.pipelines.run_folder.scored import Scoring, find_scoring
from datarater.pipelines.run_folder.summaries import summarised_groups
from datarater.pipelines.selection.ranking import KEY_BITS
from datarater.rater_model.counted import counted

_SHOWN_NAMES = 20


@dataclasses.dataclass(frozen=True)
class ShownDocument:
    """A document, or a rejected record, as it is shown.

    Attributes:
        row: Its row of the score file, or of the list of rejected records.
        file: Path of its file.
        text: Its text, or the first bytes of a rejected record; None if it could not be read.
        reason: Why it could not be read; "" if it was.
        scores: All its scores, and the values that a selection used, by the names of their columns.
        decision: What the selection decides; None without one.
    """

    row: Mapping[str, Any]
    file: str
    text: str | None
    reason: str = ""
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decision: Decision | None = None

    @property
    def is_rejected(self) -> bool:
        """Whether it is a record without a score."""
        return "reason" in self.row


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The answer to a question.

    Attributes:
        notes: What was read, in lines for people.
        documents: The documents, in order.
        first_number: Number of the first document.
    """

    notes: Sequence[str]
    documents: Sequence[ShownDocument]
    first_number: int = 1


def inspect_run(
    folder: RunFolder, question: Question, selection: str | None, max_unpacked_bytes: int
) -> Inspection:
    """Answers a question about a run, finished or not.

    Args:
        folder: Run folder.
        question: Which documents to show.
        selection: Name of the selection that decides; None for the only finished one, if any.
        max_unpacked_bytes: Maximum number of bytes of a compressed stream that are unpacked to
            reach a document.

    Raises:
        UsageError: The run has no such selection, source or reason; the message names the flag.
        CurationError: Nothing is scored yet, or a file of the run is damaged.
    """
    plans = find_plans(folder)
    if plans is None:
        raise CurationError(f"{folder.path} is not planned yet: there is nothing to show")
    scoring = find_scoring(folder)
    _check_names(question, scoring)

    if question.show is Show.REJECTED:
        rows, is_complete = find_rejected(folder, plans, scoring, question)
        documents = [ShownDocument(row, row["file"], row["excerpt"]) for row in rows]
        notes = _notes(folder, question, scoring, None, len(documents))
        if not is_complete:
            notes.append("read: not all lists; --max_score_files 0 looks in all of them")
        return Inspection(notes, documents, question.skip + 1)

    manifest = _manifest_of(folder, question, selection)
    judge = None if manifest is None else Judge.of(folder, manifest, plans)
    places, choice = _find(folder, plans, scoring, judge, question)
    found = read_rows(folder, places) if judge is None else judge.read_rows(places)
    if question.show is Show.KEY:
        forms = {key for given in question.keys for key in key_forms(given)}
        found = [one for one in found if one.row["key"] in forms]

    texts = read_texts(found, plans.identity.read, max_unpacked_bytes)
    decisions: list[Decision | None] = [None] * len(found)
    if judge is not None:
        decisions = [*judge.decide(found)]
    columns = [] if judge is None else judge.columns
    documents = [
        _shown(one, texts[one.place], decision, columns)
        for one, decision in zip(found, decisions, strict=True)
    ]
    notes = _notes(folder, question, scoring, choice, len(documents))
    if question.show is Show.KEY and not question.skip and len(found) < question.count:
        shown = {one.row["key"] for one in found}
        absent = [given for given in question.keys if shown.isdisjoint(key_forms(given))]
        notes += [f"not found: {', '.join(map(repr, absent))}"] if absent else []
    if judge is not None:
        notes += _selection_notes(judge, plans)
    return Inspection(notes, documents, question.skip + 1)


def _find(
    folder: RunFolder,
    plans: CommittedPlans,
    scoring: Scoring | None,
    judge: Judge | None,
    question: Question,
) -> tuple[list[Place], ScoreFileChoice]:
    """Finds the documents that are asked for, and says which score files were read.

    Raises:
        UsageError: The selection has no such cutoff or reason; the message names the flag.
        CurationError: Nothing is scored yet, or a file of the run is damaged.
    """
    # What is found by rank is found as the selection ranks; the rest is found in the whole run.
    by_rank = question.show not in (Show.RANDOM, Show.KEY)
    if by_rank and judge is not None and judge.has_ranking:
        folder, plans, scoring = judge.folder, judge.plans, judge.scoring()

    if question.show is Show.EXCLUDED:
        _check_excluded(question, judge)
        candidates = splits_with_excluded(folder, question)
        places, read = find_excluded(
            folder, itertools.islice(candidates, question.max_score_files or None), question
        )
        is_complete = len(places) == question.count or (
            question.fits(len(summarised_groups(folder))) and next(candidates, None) is None
        )
        return places, ScoreFileChoice(read, count_splits(plans), is_complete)

    if question.show is Show.CUTOFF:
        assert judge is not None
        question = dataclasses.replace(question, end=_end(judge, question.source))
    choice = choose_score_files(folder, plans, scoring, question)
    if not choice.committed:
        raise CurationError(f"{folder.path} has no scores yet: there is nothing to show")
    seed = 0 if judge is None else judge.manifest.seed
    return find_places(folder, choice.ordinals, question, seed), choice


def _shown(
    document: FoundDocument, text: Text, decision: Decision | None, columns: Sequence[str]
) -> ShownDocument:
    """Returns a document to show, given the columns of joined tables to show with its scores."""
    row = document.row
    names = ["score", *(name for name in (RANKED_BY,) if name in row)]
    names += [name for name in row if name.startswith(OTHER_SCORE)]
    names += [name for name in columns if name in row]
    scores = {name: row[name] for name in names}
    return ShownDocument(row, document.split.path, text.text, text.reason, scores, decision)


def _check_names(question: Question, scoring: Scoring | None) -> None:
    """Refuses a source or a reason that the corpus does not have.

    Raises:
        UsageError: The message names the flag and what there is.
    """
    if scoring is None:
        return
    source, sources, reason = question.source, scoring.sources, question.reason
    if source is not None and source not in sources and OTHER_SOURCES not in sources:
        raise UsageError(f"--source: no source is called {source!r}; the run has {_few(sources)}")
    reasons = scoring.counts.rejected_by_reason
    if question.show is Show.REJECTED and reason is not None and reason not in reasons:
        raise UsageError(
            f"--reason: no record was rejected for {reason!r}; the run has "
            f"{_few(reasons) or 'no rejected records'}"
        )


def _check_excluded(question: Question, judge: Judge | None) -> None:
    """Refuses a reason for which the selection excludes nothing.

    Raises:
        UsageError: The message names the flag and what there is.
    """
    flag = "--show excluded" if question.reason is None else "--reason"
    if judge is None:
        raise UsageError(f"{flag}: name a finished selection with --selection")
    reasons = judge.manifest.counts.excluded_by_reason
    if not reasons:
        raise UsageError(f"{flag}: the selection {judge.manifest.name} excludes no document")
    if question.reason is not None and question.reason not in reasons:
        raise UsageError(
            f"--reason: the selection {judge.manifest.name} excludes no document for "
            f"{question.reason!r}; it does for {_few(reasons)}"
        )


def _few(names: Mapping[str, Any]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:_SHOWN_NAMES])
    return shown + (f" and {len(names) - _SHOWN_NAMES:,} more" if len(names) > _SHOWN_NAMES else "")


def _manifest_of(folder: RunFolder, question: Question, name: str | None) -> Manifest | None:
    """Returns the manifest of the selection that decides; None for none.

    Raises:
        UsageError: There is none of that name, it is not finished, or none is named where one is
            needed; the message names the flag.
    """
    begun = selections(folder)
    finished = [one for one in begun if commits.exists(folder.selection(one).success_path)]
    known = ", ".join(finished) or "none"
    if name is None:
        if question.show is Show.CUTOFF and len(finished) != 1:
            raise UsageError(
                f"--show cutoff: name a finished selection with --selection; the run has {known}"
            )
        name = finished[0] if len(finished) == 1 else None
    elif name not in begun:
        raise UsageError(f"--selection: the run has no selection {name}; it has {known}")
    elif name not in finished:
        raise UsageError(f"--selection: {name} is not finished; finished are: {known}")
    return None if name is None else read_manifest(folder.selection(name))


def _end(judge: Judge, source: str | None) -> int:
    """Returns the rank key of the cutoff.

    Raises:
        UsageError: The selection has none, or one for each source; the message names the flag.
    """
    keeping, name = judge.keeping, judge.manifest.name
    if keeping.draws:
        raise UsageError(f"--show cutoff: the selection {name} draws documents; it has no cutoff")
    if keeping.per_source and source is None:
        raise UsageError(
            f"--show cutoff: the selection {name} has a cutoff for each source; name one with "
            "--source"
        )
    end = keeping.end(source or "")
    if not 0 < end < 1 << KEY_BITS:
        what = "everything" if end else "nothing"
        raise UsageError(f"--show cutoff: the selection {name} keeps {what}; it has no cutoff")
    return end


def _notes(
    folder: RunFolder,
    question: Question,
    scoring: Scoring | None,
    choice: ScoreFileChoice | None,
    shown: int,
) -> list[str]:
    """Returns what was read, in lines for people."""
    of_source = "" if question.source is None else f" of the source {question.source}"
    what = "record" if question.show is Show.REJECTED else "document"
    notes = [f"{folder.path}: {question.show}, {counted(shown, what)}{of_source}"]
    if scoring is None:
        notes.append("still being scored: only splits that are committed are looked at")
    if choice is None:
        return notes

    read = f"{len(choice.ordinals):,} of {counted(choice.committed, 'score file')}"
    if choice.is_complete:
        notes.append(f"read: {read}")
    elif question.show is Show.KEY:
        notes.append(f"read: {read}; --max_score_files 0 looks in all of them")
    elif question.show is Show.EXCLUDED:
        notes.append(f"read: {read}; --max_score_files 0 looks for more")
    else:
        notes.append(f"read: a sample, {read}; --max_score_files 0 gives the exact answer")
    return notes


def _selection_notes(judge: Judge, plans: CommittedPlans) -> list[str]:
    """Returns what the selection is and leaves out, in lines for people."""
    manifest = judge.manifest
    line = f"selection: {manifest.name}"
    if manifest.ranking is not None and manifest.ranking.rank_by:
        line += f", ranked by {manifest.ranking.rank_by}"
    notes = [line]
    excluded = by_count(manifest.counts.excluded_by_reason)
    if excluded:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in excluded)
        notes.append(f"excluded before it ranks: {reasons}")
    if judge.has_ranking and judge.plans.end < plans.end:
        notes.append("files were appended after the selection: only --show random and key see them")
    return notes
