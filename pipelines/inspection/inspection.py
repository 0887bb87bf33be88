"""Answers a question about the documents of a run: finds them, reads them, says what was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.inspection.found_documents import (
    FoundDocument,
    find_places,
    key_forms,
    read_rows,
)
from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.inspection.rejected_records import find_rejected
from datarater.pipelines.inspection.score_file_choice import ScoreFileChoice, choose_score_files
from datarater.pipelines.inspection.texts import Text, read_texts
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import selections
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import Manifest, read_manifest
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES
from datarater.pipelines.run_folder.plan import CommittedPlans, find_plans
from datarater.pipelines.run_folder.score_files import SCHEMA
from datarater.pipelines.run_folder.scored import Scoring, find_scoring
from datarater.pipelines.selection.ranking import KEY_BITS, RankKeys
from datarater.rater_model.counted import counted
from datarater.report.keeping import Keeping

_SHOWN_NAMES = 20


@dataclasses.dataclass(frozen=True)
class ShownDocument:
    """A document, or a rejected record, as it is shown.

    Attributes:
        row: Its row of the score file, or of the list of rejected records.
        file: Path of its file.
        text: Its text, or the first bytes of a rejected record; None if it could not be read.
        reason: Why it could not be read; "" if it was.
        scores: All its scores by the names of their columns.
        selection: Name of the selection that decides; "" for none.
        chance: Chance that the selection keeps it, 0 or 1 unless the rule draws; None if the
            selection does not cover it, or for no selection.
    """

    row: Mapping[str, Any]
    file: str
    text: str | None
    reason: str = ""
    scores: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    selection: str = ""
    chance: float | None = None

    @property
    def is_rejected(self) -> bool:
        """Whether it is a record without a score."""
        return "reason" in self.row

    @property
    def kept(self) -> bool | None:
        """Whether the selection keeps it; None if chance decides, or no selection does."""
        return None if self.chance not in (0, 1) else self.chance == 1

    @property
    def decision(self) -> str:
        """What the selection decides, in words; "" without one."""
        if not self.selection:
            return ""
        if self.chance is None:
            return "added after the selection"
        if self.kept is None:
            return f"kept with a chance of {self.chance:.0%}"
        return "kept" if self.kept else "dropped"


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


@dataclasses.dataclass(frozen=True)
class _Judge:
    """A finished selection, which decides about documents.

    Attributes:
        manifest: Its manifest.
        keeping: Its cutoffs.
        end: Ordinal after those that it covers.
    """

    manifest: Manifest
    keeping: Keeping
    end: int

    @classmethod
    def of(cls, manifest: Manifest, plans: CommittedPlans) -> _Judge:
        """Returns the judge of a manifest."""
        end = plans.indices[manifest.plans - 1].end
        return cls(manifest, Keeping.of(manifest.cutoff), end)

    def chance(self, document: FoundDocument) -> float | None:
        """Returns the chance that a document is kept; None if the selection does not cover it."""
        if document.place.part >= self.end:
            return None
        row = document.row
        keys = RankKeys.of(
            np.asarray([row["score"]], np.float32),
            np.asarray([row["key_hash"]], np.uint64),
            self.manifest.seed,
            document.place.part,
            np.asarray([row["position"]]),
            np.asarray([row["tokens"]], np.int64),
        )
        scores_N, codes_N = np.asarray([row["score"]]), np.zeros(1, np.int64)
        return float(self.keeping.chances(keys, scores_N, codes_N, [row["source"]])[0])


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
    judge = None if manifest is None else _Judge.of(manifest, plans)
    if question.show is Show.CUTOFF:
        assert judge is not None
        question = dataclasses.replace(question, end=_end(judge, question.source))

    choice = choose_score_files(folder, plans, scoring, question)
    if not choice.committed:
        raise CurationError(f"{folder.path} has no scores yet: there is nothing to show")
    seed = 0 if judge is None else judge.manifest.seed
    found = read_rows(folder, find_places(folder, choice.ordinals, question, seed))
    if question.show is Show.KEY:
        forms = {key for given in question.keys for key in key_forms(given)}
        found = [one for one in found if one.row["key"] in forms]

    texts = read_texts(found, plans.identity.read, max_unpacked_bytes)
    documents = [_shown(one, texts[one.place], judge) for one in found]
    notes = _notes(folder, question, scoring, choice, len(documents))
    if judge is not None:
        notes.append(f"selection: {judge.manifest.name}")
    return Inspection(notes, documents, question.skip + 1)


def _shown(document: FoundDocument, text: Text, judge: _Judge | None) -> ShownDocument:
    known = set(SCHEMA.names)
    scores = {
        name: value
        for name, value in document.row.items()
        if name == "score" or (name not in known and isinstance(value, float))
    }
    return ShownDocument(
        document.row,
        document.split.path,
        text.text,
        text.reason,
        scores,
        "" if judge is None else judge.manifest.name,
        None if judge is None else judge.chance(document),
    )


def _check_names(question: Question, scoring: Scoring | None) -> None:
    """Refuses a source or a reason that the corpus does not have.

    Raises:
        UsageError: The message names the flag and what there is.
    """
    if scoring is None:
        return
    source, sources = question.source, scoring.sources
    if source is not None and source not in sources and OTHER_SOURCES not in sources:
        raise UsageError(f"--source: no source is called {source!r}; the run has {_few(sources)}")
    reasons = scoring.counts.rejected_by_reason
    if question.reason is not None and question.reason not in reasons:
        raise UsageError(
            f"--reason: no record was rejected for {question.reason!r}; the run has "
            f"{_few(reasons) or 'no rejected records'}"
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


def _end(judge: _Judge, source: str | None) -> int:
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
    else:
        notes.append(f"read: a sample, {read}; --max_score_files 0 gives the exact answer")
    return notes
