"""Retention: which batches' files may go, and their removal, file by file.

What may go is decided in the journal first, then removed, then recorded as removed: killed in
between, the next run removes the rest. Of a run folder only files with the names that a run gives
them are removed, and of published documents only those that the record lists. Anything else that
lies there stays. The journal, the lists of files and the records stay for ever: they say what was
taken.
"""

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Iterator

import orjson

from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import MANIFEST, SUCCESS, Expired, Expiry, Journal, State
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import at_once, score_entries
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.rater_model.documents.files import local_path

_NUMBERED = re.compile(r"(?:[a-z]+-)?\d+\.jsonl?")


def expire(config: BatchConfig, journal: Journal, say: Callable[[str], None]) -> None:
    """Decides what may go by the configuration, and removes what was decided, now or before.

    Args:
        config: how long files are kept, and the reference, which stays.
        journal: of the state folder.
        say: prints a line.

    Raises:
        RunFolderError: a file cannot be removed.
    """
    state = journal.decide(lambda state: due(config, state))
    for number, expiry in sorted(state.expiries.items()):
        for claim in sorted({*expiry.scores, *expiry.published}):
            everything = claim in expiry.published
            count = _remove(journal, claim, everything=everything)
            what = "the published documents and all else" if everything else "the scores"
            date = (state.claims.get(claim) or state.released[claim]).date
            say(f"retention: {what} of {date} removed, {count:,} files")
        journal.decide(
            lambda state, number=number: (  # type: ignore[misc]
                Expired(number) if number in state.expiries else None
            )
        )


def due(config: BatchConfig, state: State) -> Expiry | None:
    """What may go now, and was not decided before; None for nothing."""
    known = {**state.claims, **state.released}
    ended = [*state.publications, *state.released]
    references = {
        config.reference.rstrip("/"),
        "" if state.reference is None else state.reference.path.rstrip("/"),
    }
    dates = {
        number: datetime.date.fromisoformat(known[number].date)
        for number in ended
        if known[number].run.rstrip("/") not in references
    }
    newest = max(
        (dates[number] for number in dates if number in state.publications),
        default=datetime.date.min,
    )

    def older_than(days: int | None, gone: set[int]) -> list[int]:
        if days is None:
            return []
        return [
            number
            for number, date in dates.items()
            if (newest - date).days > days and number not in gone
        ]

    published = [
        n
        for n in older_than(config.retention.published_days, state.all_expired)
        if n in state.publications
    ]
    scores = older_than(config.retention.scores_days, state.scores_expired | {*published})
    return Expiry(tuple(scores), tuple(published)) if scores or published else None


def _remove(journal: Journal, number: int, *, everything: bool) -> int:
    """Removes files of a batch; gives their number."""
    state = journal.state
    released = number in state.released
    claim = (state.released if released else state.claims)[number]
    folder = RunFolder(claim.run)
    count = 0
    if everything:
        publication = state.publications[number]
        record = orjson.loads(journal.read_kept("records", publication.record))
        # What readers look at goes first.
        paths = [f"{publication.place}/{name}" for name in (SUCCESS, MANIFEST)]
        count += _remove_files(
            [*paths, *(file["path"] for file in record["files"])], (publication.place, claim.run)
        )
    elif released:
        kept = commits.list_folder(
            f"{folder.selection(claim.terms['selection']['name']).path}/kept"
        )
        count += _remove_files([entry.path for entry in kept], (claim.run,))
    if everything or released:
        selection = folder.selection(claim.terms["selection"]["name"])
        paths = [selection.success_path, selection.manifest_path, selection.rule_path]
        count += _remove_files([*paths, *_numbered(f"{selection.path}/counts")], (claim.run,))
    # Without this one, nothing takes what is left for a scored corpus.
    count += _remove_files([folder.scoring_path], ())
    for some in _scoring_files(folder):
        count += _remove_files(some, (claim.run,))
    return count


def _scoring_files(folder: RunFolder) -> Iterator[list[str]]:
    """The files of a run folder that are not a selection's, some at a time."""
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
        yield [*_numbered(f"{folder.path}/plan/{plan}"), f"{folder.path}/plan/{plan}/inputs.jsonl"]
    for name in commits.list_subfolders(f"{folder.path}/lease/selections"):
        yield _numbered(folder.selection_lease_path(name))
    yield [folder.identity_path]


def _numbered(folder: str) -> list[str]:
    return [
        entry.path
        for entry in commits.list_folder(folder)
        if _NUMBERED.fullmatch(entry.path.rsplit("/", 1)[-1])
    ]


def _remove_files(paths: list[str], tops: tuple[str, ...]) -> int:
    """Removes files, and the local folders that are empty then, up to some top folders; gives how many were there."""

    def remove(path: str) -> bool:
        there = commits.exists(path)
        commits.remove(path)
        return there

    count = sum(at_once(remove, paths))
    for path in paths:
        local, stops = local_path(path), [os.path.dirname(str(local_path(top))) for top in tops]
        if local is None:
            continue
        folder = os.path.dirname(local)
        with contextlib.suppress(OSError):  # not empty, or gone already
            while any(folder.startswith(stop + os.sep) for stop in stops):
                os.rmdir(folder)
                folder = os.path.dirname(folder)
    return count
