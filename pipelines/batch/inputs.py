"""Which files a batch takes: those that no batch has taken, by path and fingerprint; and what is told of the others."""

import datetime
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec

from datarater.pipelines import errors
from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import Journal
from datarater.pipelines.errors import CurationError, InputChangedError, UsageError
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import input_differences
from datarater.rater_model.documents.files import NoInputError, file_info, list_files, local_path
from datarater.rater_model.documents.records import FileInfo

LATE, CHANGED, VERSION, WAITING = "late", "changed", "version", "waiting"
_NAMED = 5


@dataclass
class Found:
    """What a batch would take.

    Attributes:
        files: sorted by path.
        notes: rows to tell of: `what` (late, changed, version, waiting), `path`, and what else
            there is to say.
        before: how many files that were found belong to earlier batches.
    """

    files: list[FileInfo] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    before: int = 0

    def counts(self) -> dict[str, int]:
        """The number of notes by kind."""
        return dict(Counter(note["what"] for note in self.notes))


def find(config: BatchConfig, journal: Journal, date: datetime.date) -> Found:
    """Finds the files of a batch, as the journal was last read.

    A file is a batch's if no batch has taken its path. One whose path was taken with another
    fingerprint has changed
    since: `changed_files` says what becomes of it. It is told once for each of its fingerprints.

    Without `{date}` in the globs, a batch that begins anew takes the files that it had, and leaves
    later ones to the batches after it.

    Args:
        config: where to look.
        journal: what was taken.
        date: of the batch.

    Raises:
        InputChangedError: files changed, and the configuration refuses that.
        CurationError: the input cannot be listed.
    """
    dates = _dates_of(config, journal, date)
    taken = _taken(journal, dates)
    told = _told(journal) if config.changed_files == "tell" else set()
    found = Found()
    candidates: list[tuple[FileInfo, dict[str, Any]]] = []
    changed: list[str] = []
    for path in sorted(dates):
        info, own = dates[path]
        versions = taken.get(path, {})
        if info.fingerprint in versions:
            found.before += 1
            continue
        note = {"path": path, "bytes": info.size, "fingerprint": info.fingerprint}
        if versions:
            was, batch = list(versions.items())[-1]
            note |= {"fingerprint_taken": was, "taken_by": batch}
            changed.append(path)
            if config.changed_files == "take":
                candidates.append((info, {"what": VERSION, **note}))
            elif (path, info.fingerprint) not in told:
                found.notes.append({"what": CHANGED, **note})
        else:
            late = {} if own == date else {"what": LATE, **note, "date": own.isoformat()}
            candidates.append((info, late))
    if changed and config.changed_files == "refuse":
        raise InputChangedError(
            f"{len(changed):,} input files have changed since a batch took them: {_some(changed)}. Put the old ones "
            "back, or say in the configuration what becomes of them: changed_files: tell, or take"
        )
    _keep_quiet(config, candidates, found)
    return found


def _dates_of(
    config: BatchConfig, journal: Journal, date: datetime.date
) -> dict[str, tuple[FileInfo, datetime.date]]:
    """The files that are there, each with the date to which its glob belongs."""
    dates = [date]
    if config.is_dated:
        earlier = (date - datetime.timedelta(days) for days in range(1, config.late_days + 1))
        # A date without a batch keeps its files: they are not late, their batch is.
        dates += [day for day in earlier if journal.state.claim_of(day.isoformat()) is not None]
    files: dict[str, tuple[FileInfo, datetime.date]] = {}
    for day in dates:
        for info in list_matching(config.patterns(day)):
            files.setdefault(info.path, (info, day))
    before = journal.state.released_of(date.isoformat())
    if before is not None and not config.is_dated:
        had = {info.path for info in journal.inputs(before)}
        return {path: found for path, found in files.items() if path in had}
    return files


def list_matching(patterns: Sequence[str]) -> list[FileInfo]:
    """The files that match, which may be none.

    Raises:
        UsageError: a pattern is a folder.
        UnreadableInputError: a file system cannot be reached.
    """
    found: list[FileInfo] = []
    for pattern in patterns:
        try:
            found += list_files([pattern])
        except NoInputError as error:
            file_system, inner = fsspec.url_to_fs(pattern)
            if file_system.isdir(inner):
                raise UsageError(f"input: {error}") from error
        except OSError as error:
            raise errors.reading_failed(error.filename or pattern, error) from error
    return found


def _taken(journal: Journal, paths: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By path, the fingerprints that batches have taken, each with the batch's date; of these paths alone."""
    taken: dict[str, dict[str, str]] = {}
    claims = journal.state.claims
    for number, files in journal.each_inputs(list(claims)):
        for info in files:
            if info.path in paths:
                taken.setdefault(info.path, {})[info.fingerprint] = claims[number].date
    return taken


def _told(journal: Journal) -> set[tuple[str, str]]:
    """The changed files that an earlier batch has told, by path and fingerprint."""
    return {
        (note["path"], note["fingerprint"])
        for claim in journal.state.claims.values()
        if claim.notes.get(CHANGED)
        for note in journal.notes(claim)
        if note["what"] == CHANGED
    }


def _keep_quiet(
    config: BatchConfig, candidates: Sequence[tuple[FileInfo, dict[str, Any]]], found: Found
) -> None:
    """Takes the files that nobody seems to be writing any more."""
    if config.quiet_minutes:
        ages = list(at_once(lambda item: _age(item[0].path), candidates))
    else:
        ages = [float("inf")] * len(candidates)
    for (info, note), age in zip(candidates, ages, strict=True):
        if age is None:  # gone since it was listed
            continue
        if age < config.quiet_minutes * 60:
            found.notes.append(
                {"what": WAITING, "path": info.path, "bytes": info.size, "seconds": round(age)}
            )
            continue
        found.files.append(info)
        if note:
            found.notes.append(note)


def _age(path: str) -> float | None:
    """Seconds since a file was modified; None if it is gone.

    Raises:
        CurationError: the file system does not say.
    """
    local = local_path(path)
    try:
        if local is not None:
            return time.time() - os.stat(local).st_mtime
        file_system, inner = fsspec.url_to_fs(path)
        when = file_system.modified(inner)
        if isinstance(when, str):
            when = datetime.datetime.fromisoformat(when)
        return time.time() - float(when.timestamp())
    except FileNotFoundError:
        return None
    except (NotImplementedError, KeyError, AttributeError, ValueError) as error:
        raise CurationError(
            f"{path}: its file system does not say when a file was modified; set quiet_minutes: 0 and see to it that "
            "files appear whole"
        ) from error


def changed_since(files: Sequence[FileInfo]) -> list[str]:
    """Which files are not any more what they were when a batch took them.

    Returns:
        A line for each of the first few.

    Raises:
        UnreadableInputError: a file system cannot be reached.
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
    more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


def lines(found: Found) -> list[str]:
    """What there is to tell of a batch's files, for a person."""
    said = {
        LATE: "late: files of earlier dates whose batches are made already; they join this one",
        VERSION: "changed since a batch took them: taken again, as new versions",
        CHANGED: "changed since a batch took them: left alone (changed_files: tell)",
        WAITING: "modified so lately that they may still be being written: left to the next batch",
    }
    told = []
    for what, text in said.items():
        paths = [note["path"] for note in found.notes if note["what"] == what]
        if paths:
            told.append(f"  {len(paths):,} {text}: {_some(paths)}")
    return told
