"""Chooses the files of a batch: those whose path and fingerprint no batch has taken."""

from __future__ import annotations

import datetime
import itertools
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import fsspec

from datarater.pipelines import errors
from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import Journal, Note
from datarater.pipelines.batch.taken import TakenFiles
from datarater.pipelines.errors import CurationError, InputChangedError, UsageError
from datarater.pipelines.graph.inputs import outside
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import input_differences
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import (
    MalformedPatternError,
    NoInputError,
    expand_braces,
    file_info,
    list_files,
    local_path,
)
from datarater.rater_model.documents.records import FileInfo

LATE, CHANGED, VERSION, WAITING = "late", "changed", "version", "waiting"
_MAX_NAMED = 5


@dataclass
class Intake:
    """The files that a batch takes, and notes about files that need mention.

    Attributes:
        files: The files, sorted by path.
        notes: The files to report.
        already_taken: Number of matching files that belong to earlier batches.
    """

    files: list[FileInfo] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    already_taken: int = 0

    def counts(self) -> dict[str, int]:
        """Returns the number of notes by kind."""
        return dict(Counter(note.what for note in self.notes))


def find(config: BatchConfig, journal: Journal, date: datetime.date) -> Intake:
    """Finds the files of a batch, given the journal as last read.

    A batch takes the files whose paths no batch has taken. If a path was taken with another
    fingerprint, the file has changed since; `changed_files` then decides. Each fingerprint of a
    changed file is reported once.

    Without `{date}` in the globs, a batch that starts over takes the files it had before and leaves
    newer ones to later batches.

    Args:
        config: The configuration, with the globs.
        journal: Journal of the state folder, with the claims so far.
        date: Date of the batch.

    Raises:
        InputChangedError: Files have changed, and the configuration refuses that.
        CurationError: The input cannot be listed.
    """
    dated_files = _list_with_dates(config, journal, date)
    taken = TakenFiles(journal).fingerprints(dated_files)
    reported = _reported_changes(journal) if config.changed_files == "tell" else set()

    # Sort every file into: taken before, changed since, or a candidate for this batch.
    intake = Intake()
    candidates: list[tuple[FileInfo, Note | None]] = []
    changed: list[str] = []
    for path in sorted(dated_files):
        info, file_date = dated_files[path]
        versions = taken.get(path, {})
        if info.fingerprint in versions:
            intake.already_taken += 1
            continue

        note = partial(Note, path=path, bytes=info.size, fingerprint=info.fingerprint)
        if versions:
            last_fingerprint, batch = list(versions.items())[-1]
            note = partial(note, fingerprint_taken=last_fingerprint, taken_by=batch)
            changed.append(path)
            if config.changed_files == "take":
                candidates.append((info, note(what=VERSION)))
            elif (path, info.fingerprint) not in reported:
                intake.notes.append(note(what=CHANGED))
        elif file_date == date:
            candidates.append((info, None))
        else:
            candidates.append((info, note(what=LATE, date=file_date.isoformat())))

    if changed and config.changed_files == "refuse":
        raise InputChangedError(
            f"{counted(len(changed), 'input file')} changed after a batch took them: "
            f"{_some(changed)}. Restore the old ones, or set changed_files: tell (report and "
            "ignore them) or take (take them again) in the configuration"
        )
    _add_finished(config, candidates, intake)
    return intake


def _list_with_dates(
    config: BatchConfig, journal: Journal, date: datetime.date
) -> dict[str, tuple[FileInfo, datetime.date]]:
    """Lists the files that match, each with the date of the glob that it matches."""
    dates = [date]
    if config.is_dated:
        earlier = (date - datetime.timedelta(days) for days in range(1, config.late_days + 1))
        # A date without a batch keeps its files: they are not late, their batch is.
        dates += [day for day in earlier if journal.state.claim_of(day.isoformat()) is not None]

    # What batches write is no input, although a glob may match it.
    written = (config.state, config.runs, config.publish)
    files: dict[str, tuple[FileInfo, datetime.date]] = {}
    for day in dates:
        for info in outside(list_matching(config.patterns(day)), written):
            files.setdefault(info.path, (info, day))

    released = journal.state.released_of(date.isoformat())
    if released is not None and not config.is_dated:
        paths_before = {info.path for info in journal.inputs(released)}
        return {path: dated for path, dated in files.items() if path in paths_before}
    return files


def list_matching(patterns: Sequence[str]) -> list[FileInfo]:
    """Returns the files that match; there may be none.

    Args:
        patterns: Paths, URLs, folders or globs.

    Raises:
        UsageError: A pattern is malformed.
        UnreadableInputError: A file system cannot be reached.
    """
    files: list[FileInfo] = []
    # One alternative of a brace may have files although another one has none.
    for pattern in itertools.chain.from_iterable(map(expand_braces, patterns)):
        try:
            files += list_files([pattern])
        except MalformedPatternError as error:
            raise UsageError(f"input: {error}") from error
        except NoInputError:
            continue
        except OSError as error:
            raise errors.reading_failed(error.filename or pattern, error) from error
    return files


def describe_patterns(patterns: Sequence[str]) -> str:
    """Returns globs for messages, each as a pattern in a folder: `'*.jsonl' in /crawl`."""
    described = []
    for pattern in patterns:
        parts = pattern.split("/")
        # The folder is what comes before the first wildcard, and never the whole pattern.
        first = next((n for n, part in enumerate(parts) if set(part) & set("*?[{")), len(parts))
        first = min(first, len(parts) - 1)
        described.append(f"{'/'.join(parts[first:])!r} in {'/'.join(parts[:first])}")
    return " or ".join(described)


def _reported_changes(journal: Journal) -> set[tuple[str, str | None]]:
    """Returns path and fingerprint of the changed files that earlier batches reported."""
    return {
        (note.path, note.fingerprint)
        for claim in journal.state.claims.values()
        if claim.notes.changed
        for note in journal.notes(claim)
        if note.what == CHANGED
    }


def _add_finished(
    config: BatchConfig, candidates: Sequence[tuple[FileInfo, Note | None]], intake: Intake
) -> None:
    """Adds the candidates that nobody seems to be writing any more to the intake.

    Args:
        config: The configuration, with `quiet_minutes`.
        candidates: Files, each with its note; None for none.
        intake: The intake, which is changed.
    """
    if config.quiet_minutes:
        ages = list(at_once(lambda item: _age(item[0].path), candidates))
    else:
        ages = [float("inf")] * len(candidates)

    for (info, note), age in zip(candidates, ages, strict=True):
        if age is None:  # removed since it was listed
            continue
        if age < config.quiet_minutes * 60:
            intake.notes.append(
                Note(what=WAITING, path=info.path, bytes=info.size, seconds=round(age))
            )
            continue
        intake.files.append(info)
        if note is not None:
            intake.notes.append(note)


def _age(path: str) -> float | None:
    """Returns the seconds since a file was modified; None if it is gone.

    Raises:
        CurationError: The file system has no modification times.
    """
    local = local_path(path)
    try:
        if local is not None:
            return time.time() - os.stat(local).st_mtime
        file_system, inner = fsspec.url_to_fs(path)
        modified = file_system.modified(inner)
        if isinstance(modified, str):
            modified = datetime.datetime.fromisoformat(modified)
        return time.time() - float(modified.timestamp())
    except FileNotFoundError:
        return None
    except (NotImplementedError, KeyError, AttributeError, ValueError) as error:
        raise CurationError(
            f"{path}: its file system does not report modification times; set quiet_minutes: 0 and "
            "make sure that files appear complete"
        ) from error


def changed_since(files: Sequence[FileInfo]) -> list[str]:
    """Compares files with what they were when a batch took them.

    Args:
        files: The files as they were.

    Returns:
        A line for each of the first few that differ.

    Raises:
        UnreadableInputError: A file system cannot be reached.
    """

    def look(info: FileInfo) -> FileInfo | None:
        try:
            return file_info(info.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.reading_failed(info.path, error) from error

    return input_differences([info for info in at_once(look, files) if info is not None], files)


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _MAX_NAMED:,} more" if len(paths) > _MAX_NAMED else ""
    return ", ".join(paths[:_MAX_NAMED]) + more


def lines(intake: Intake) -> list[str]:
    """Returns the notes of an intake as lines for people, one for each kind."""
    meanings = {
        LATE: "late: files of earlier dates that already have a batch; they join this one",
        VERSION: "changed since a batch took them: taken again as new versions",
        CHANGED: "changed since a batch took them: ignored (changed_files: tell)",
        WAITING: "modified too recently, perhaps still being written: they wait for the next batch",
    }
    described = []
    for what, meaning in meanings.items():
        paths = [note.path for note in intake.notes if note.what == what]
        if paths:
            described.append(f"  {len(paths):,} {meaning}: {_some(paths)}")
    return described
