"""Retention: decides which files of batches may be removed, and removes them.

The journal first records what may be removed, then the files are removed, then the journal records
that they are gone: after a kill in between, the next run removes the rest. Of a run folder, only
files with names that a run gives them are removed; of published documents, only those that the
record lists. All other files stay. The journal, the lists of files and the records stay forever:
they record what was taken.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Iterator

from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import MANIFEST, SUCCESS, Expired, Expiry, Journal, State
from datarater.pipelines.batch.record import read_record
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import at_once, entries_below, score_entries
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import local_path

_PLANNED = re.compile(r"(?:inputs|index|splits-\d+|[0-9a-f]{16}(?:-\d+)?)\.jsonl?")
_NUMBERED = re.compile(r"(?:[a-z]+-)?\d+\.jsonl?")


def expire(config: BatchConfig, journal: Journal, say: Callable[[str], None]) -> None:
    """Removes what the configuration no longer keeps, and what an earlier run left to remove.

    Args:
        config: The configuration: how long files are kept, and the reference, which stays.
        journal: Journal of the state folder.
        say: Function that prints a line.

    Raises:
        RunFolderError: A file cannot be removed.
    """
    state = journal.decide(lambda state: due(config, state))
    for number, expiry in sorted(state.expiries.items()):
        for claim in sorted({*expiry.scores, *expiry.published}):
            everything = claim in expiry.published
            count = _remove(journal, claim, everything=everything)
            what = "all files" if everything else "the scores"
            date = (state.claims.get(claim) or state.released[claim]).date
            say(f"retention: removed {what} of {date} ({counted(count, 'file')})")
        journal.decide(
            lambda state, number=number: (  # type: ignore[misc]
                Expired(number) if number in state.expiries else None
            )
        )


def due(config: BatchConfig, state: State) -> Expiry | None:
    """Returns what may be removed now and was not decided before; None for nothing.

    Args:
        config: The configuration.
        state: State of the journal.
    """
    # The batches that have ended; a run folder that serves as the reference stays.
    known = {**state.claims, **state.released}
    references = {
        config.reference.rstrip("/"),
        "" if state.reference is None else state.reference.path.rstrip("/"),
    }
    dates = {
        number: datetime.date.fromisoformat(known[number].date)
        for number in [*state.publications, *state.released]
        if known[number].run.rstrip("/") not in references
    }
    newest = max(
        (dates[number] for number in dates if number in state.publications),
        default=datetime.date.min,
    )

    def older_than(days: int | None, expired: set[int]) -> list[int]:
        if days is None:
            return []
        return [
            number
            for number, date in dates.items()
            if (newest - date).days > days and number not in expired
        ]

    published = [
        number
        for number in older_than(config.retention.published_days, state.all_expired)
        if number in state.publications
    ]
    scores = older_than(config.retention.scores_days, state.scores_expired | {*published})
    return Expiry(tuple(scores), tuple(published)) if scores or published else None


def _remove(journal: Journal, number: int, *, everything: bool) -> int:
    """Removes files of a batch.

    Args:
        journal: Journal of the state folder.
        number: Number of the batch's claim.
        everything: Whether to remove the published documents and the selection too.

    Returns:
        Number of files removed.
    """
    state = journal.state
    is_released = number in state.released
    claim = (state.released if is_released else state.claims)[number]
    folder = RunFolder(claim.run)
    selection = folder.selection(claim.terms.selection.name)
    count = 0

    # The kept documents; what readers look at goes first.
    if everything:
        publication = state.publications[number]
        record = read_record(journal, publication)
        paths = [f"{publication.place}/{name}" for name in (SUCCESS, MANIFEST)]
        count += _remove_files(
            [*paths, *(file.path for file in record.files)], (publication.place, claim.run)
        )
    elif is_released:
        kept = commits.list_folder(f"{selection.path}/kept")
        count += _remove_files([entry.path for entry in kept], (claim.run,))

    # The rest of the selection.
    if everything or is_released:
        paths = [
            selection.success_path,
            selection.manifest_path,
            selection.report_path,
            selection.rule_path,
            selection.mixture_path,
            selection.copies_path,
            *(entry.path for entry in entries_below(selection.ranking_path)),
        ]
        count += _remove_files([*paths, *_numbered(f"{selection.path}/counts")], (claim.run,))

    # The scores. Without scoring.json, nothing mistakes the remaining files for a scored corpus.
    count += _remove_files([folder.scoring_path], ())
    for some in _scoring_files(folder):
        count += _remove_files(some, (claim.run,))
    return count


def _scoring_files(folder: RunFolder) -> Iterator[list[str]]:
    """Yields the files of a run folder that belong to no selection, some at a time."""
    for entries in score_entries(folder):
        yield [entry.path for _, entry in entries]

    for inner in (
        folder.summaries_path,
        folder.old_summaries_path,
        f"{folder.path}/rejected",
        folder.scoring_lease_path,
    ):
        yield _numbered(inner)
    for plan in commits.list_subfolders(f"{folder.path}/plan"):
        own = [entry.path for entry in commits.list_folder(f"{folder.path}/plan/{plan}")]
        yield [path for path in own if _PLANNED.fullmatch(path.rsplit("/", 1)[-1])]
    for name in commits.list_subfolders(f"{folder.path}/lease/selections"):
        yield _numbered(folder.selection_lease_path(name))
    yield [folder.identity_path]


def _numbered(folder: str) -> list[str]:
    """Returns the JSON files of a folder whose names end with a number."""
    return [
        entry.path
        for entry in commits.list_folder(folder)
        if _NUMBERED.fullmatch(entry.path.rsplit("/", 1)[-1])
    ]


def _remove_files(paths: list[str], tops: tuple[str, ...]) -> int:
    """Removes files, and local folders that become empty.

    Args:
        paths: Paths of the files; missing ones are skipped.
        tops: Folders above which no folder is removed.

    Returns:
        Number of files that existed.
    """

    def remove(path: str) -> bool:
        existed = commits.exists(path)
        commits.remove(path)
        return existed

    count = sum(at_once(remove, paths))

    stops = [os.path.dirname(str(local_path(top))) for top in tops]
    for path in paths:
        local = local_path(path)
        if local is None:
            continue
        folder = os.path.dirname(local)
        with contextlib.suppress(OSError):  # not empty, or already removed
            while any(folder.startswith(stop + os.sep) for stop in stops):
                os.rmdir(folder)
                folder = os.path.dirname(folder)
    return count
