"""The journal of scheduled batches: all decisions in order, each made by committing one file.

    STATE/
      journal/000001.json ...       the decisions
      inputs/SHA256.jsonl           the files of a batch: path, size, fingerprint
      notes/SHA256.jsonl            files that were reported: late, changed, version, waiting
      baselines/SHA256.json         the score distributions of a frozen reference
      records/SHA256.json           the record of a published batch
      taken/LEVEL-NUMBER.parquet    the lists of several batches, compacted (`batch.taken`)

A decision builds on all decisions before it: entry n + 1 is created only if it is absent, by a
launch that has read the first n. If two launches decide at the same time, one wins; the other reads
on and decides again. So there is a single order of decisions, whoever made them and wherever a
launch was killed. The journal is the state: every other file either lies under the digest of its
content or can be made again from the journal.

The kinds of entries:

- `reference`: scores are compared with this reference from here on.
- `claim`: these files belong to the batch of a date. No other batch takes them.
- `release`: an unpublished batch releases its files.
- `publish`: the batch is published with this record, forever.
- `expire`: the scores of some batches, or all their documents, may be removed now.
- `expired`: they have been removed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import RunOptions
from datarater.pipelines.run_folder.layout import decode_lines, now, to_json
from datarater.pipelines.run_folder.manifest import SelectionOptions
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.json_codec import IF_SET, from_plain

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
"""Name of the record of a batch in the folder of its date, which readers rely on."""
SUCCESS = "_SUCCESS"
"""Name of an empty file beside it, which is committed after it."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A frozen reference.

    Attributes:
        kind: `run` or `rater`.
        path: Path when it was frozen, for people.
        digest: Digest of its scores: that of a run's `scoring.json`, or the rater's own.
        rater: Digest of the rater that made the scores.
        baseline: Digest of the file in `baselines/`.
    """

    kind: str
    path: str
    digest: str
    rater: str
    baseline: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoteCounts:
    """How many files were reported when a batch was claimed, by kind."""

    late: int = dataclasses.field(default=0, metadata=IF_SET)
    changed: int = dataclasses.field(default=0, metadata=IF_SET)
    version: int = dataclasses.field(default=0, metadata=IF_SET)
    waiting: int = dataclasses.field(default=0, metadata=IF_SET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """A file that a claim reports, one line of a file in `notes/`.

    Attributes:
        what: Late, changed, version or waiting.
        path: Path of the file.
        bytes: Its size.
        fingerprint: Its fingerprint; None for a file that waits.
        fingerprint_taken: The fingerprint that a batch took last; None if no batch took the path.
        taken_by: Date of that batch.
        date: Date of a late file.
        seconds: Time since a file that waits was modified.
    """

    what: str
    path: str
    bytes: int
    fingerprint: str | None = dataclasses.field(default=None, metadata=IF_SET)
    fingerprint_taken: str | None = dataclasses.field(default=None, metadata=IF_SET)
    taken_by: str | None = dataclasses.field(default=None, metadata=IF_SET)
    date: str | None = dataclasses.field(default=None, metadata=IF_SET)
    seconds: int | None = dataclasses.field(default=None, metadata=IF_SET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimNotes(NoteCounts):
    """The numbers of reported files, and the digest of the file in `notes/` if there are any."""

    sha256: str | None = dataclasses.field(default=None, metadata=IF_SET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedSelection(SelectionOptions):
    """The options of a selection, and its name."""

    name: str


@dataclasses.dataclass(frozen=True)
class Terms:
    """Everything that decides which documents of a batch are kept.

    Attributes:
        scoring: Options of the scoring.
        selection: Options of the selection.
        reference: Digest of the frozen reference.
    """

    scoring: RunOptions
    selection: NamedSelection
    reference: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """The files of a batch.

    Attributes:
        date: Date of the batch, such as 2026-01-31.
        files: Number of files.
        bytes: Size of all files.
        inputs: Digest of the file in `inputs/`.
        notes: Files that were reported.
        terms: Everything that decides which documents are kept.
        run: Path of the run folder.
        claimed: Time of the claim in UTC.
    """

    date: str
    files: int
    bytes: int
    inputs: str
    notes: ClaimNotes
    terms: Terms
    run: str
    claimed: str


@dataclasses.dataclass(frozen=True)
class Release:
    """A batch releases its files.

    Attributes:
        claim: Number of the claim's entry.
        why: Reason, for people.
    """

    claim: int
    why: str


@dataclasses.dataclass(frozen=True)
class Publication:
    """A batch is published.

    Attributes:
        claim: Number of the claim's entry.
        record: Digest of the file in `records/`.
        place: Folder of the date, where readers find the batch.
    """

    claim: int
    record: str
    place: str


@dataclasses.dataclass(frozen=True)
class Expiry:
    """Permission to remove files of batches.

    Attributes:
        scores: Claims whose plans, scores and rejected records are removed; if the claim was
            released, its whole run folder.
        published: Claims of which everything is removed except the record in the state folder.
    """

    scores: tuple[int, ...]
    published: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Expired:
    """The files of an `Expiry` have been removed.

    Attributes:
        expiry: Number of the expiry's entry.
    """

    expiry: int


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The content of an entry's file."""

    kind: str
    decision: Any
    written: str
    id: str
    format: int = FORMAT_VERSION


Decision = Reference | Claim | Release | Publication | Expiry | Expired
_KINDS: dict[str, type[Any]] = {
    "reference": Reference,
    "claim": Claim,
    "release": Release,
    "publish": Publication,
    "expire": Expiry,
    "expired": Expired,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclasses.dataclass
class State:
    """The sum of a journal's entries, up to one of them.

    Attributes:
        number: Number of the last entry; 0 for none.
        reference: Current reference; None before the first.
        claims: Claims that were not released, by number.
        released: Claims that were released, by number; the files of a date's last one wait for the
            batch to start over.
        publications: Publications by number of the claim.
        expiries: Expiries whose files may not all be removed yet, by number.
        scores_expired: Claims whose scores were or may be removed.
        all_expired: Claims of which everything was or may be removed.
    """

    number: int = 0
    reference: Reference | None = None
    claims: dict[int, Claim] = dataclasses.field(default_factory=dict)
    released: dict[int, Claim] = dataclasses.field(default_factory=dict)
    publications: dict[int, Publication] = dataclasses.field(default_factory=dict)
    expiries: dict[int, Expiry] = dataclasses.field(default_factory=dict)
    scores_expired: set[int] = dataclasses.field(default_factory=set)
    all_expired: set[int] = dataclasses.field(default_factory=set)

    def claim_of(self, date: str) -> int | None:
        """Returns the number of the current claim of a date; None for none."""
        return next((number for number, claim in self.claims.items() if claim.date == date), None)

    def released_of(self, date: str) -> Claim | None:
        """Returns the last released claim of a date; None for none."""
        return next(
            (claim for claim in reversed(self.released.values()) if claim.date == date), None
        )

    def unfinished(self) -> list[str]:
        """Returns the dates of batches that are begun but not published, in order of claims."""
        begun = {**self.released, **self.claims}
        published = {self.claims[number].date for number in self.publications}
        return [
            date
            for date in dict.fromkeys(begun[number].date for number in sorted(begun))
            if date not in published
        ]

    def add(self, decision: Decision) -> None:
        """Adds one more decision.

        Raises:
            ValueError: The decision contradicts those before it; the state is unchanged.
        """
        number = self.number + 1

        # Each branch checks the decision before it changes anything.
        if isinstance(decision, Reference):
            self.reference = decision
        elif isinstance(decision, Claim):
            if self.claim_of(decision.date) is not None:
                raise ValueError(f"{decision.date} already has a claim")
            self.claims[number] = decision
        elif isinstance(decision, Release | Publication):
            if decision.claim not in self.claims or decision.claim in self.publications:
                raise ValueError(f"claim {decision.claim} cannot be published or released")
            if isinstance(decision, Release):
                self.released[decision.claim] = self.claims.pop(decision.claim)
            else:
                self.publications[decision.claim] = decision
        elif isinstance(decision, Expiry):
            if (
                not {*decision.scores, *decision.published}
                <= self.publications.keys() | self.released.keys()
            ):
                raise ValueError("an expired batch is neither published nor released")
            self.expiries[number] = decision
            self.scores_expired.update(decision.scores, decision.published)
            self.all_expired.update(decision.published)
        else:
            if decision.expiry not in self.expiries:
                raise ValueError(f"entry {decision.expiry} is not a pending expiry")
            del self.expiries[decision.expiry]

        self.number = number


class Journal:
    """A journal, and the files beside it that are named after the digest of their content.

    Args:
        folder: Path of the state folder.

    Attributes:
        folder: Path of the state folder.
        state: The sum of the entries read so far.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.state = State()

    def path(self, number: int) -> str:
        """Returns the path of an entry."""
        return f"{self.folder}/journal/{number:06d}.json"

    def read(self) -> State:
        """Reads the entries that are new.

        Returns:
            The state after them.

        Raises:
            CountsError: An entry is missing, cannot be read, or contradicts those before it.
        """
        if not self.state.number:
            self._read_listed()
        while (data := commits.read_if_there(self.path(self.state.number + 1))) is not None:
            self._add(data)
        return self.state

    def _read_listed(self) -> None:
        """Reads the entries that a listing shows, many at a time."""
        names = [
            entry.path.rsplit("/", 1)[-1].removesuffix(".json")
            for entry in commits.list_folder(f"{self.folder}/journal")
        ]
        last = max((int(name) for name in names if name.isdigit()), default=0)
        paths = [self.path(number) for number in range(1, last + 1)]
        for data in at_once(commits.read_if_there, paths):
            if data is None:
                raise CountsError(
                    f"{self.path(self.state.number + 1)} is missing, although later entries of the "
                    "journal exist; restore it from a backup: without it nothing can be decided"
                )
            self._add(data)

    def _add(self, data: bytes) -> None:
        """Adds the content of the next entry to the state.

        Raises:
            CountsError: The entry is damaged, of a newer format, or contradicts earlier ones.
        """
        path = self.path(self.state.number + 1)
        try:
            fields = orjson.loads(data)
            if fields["format"] > FORMAT_VERSION:
                raise CountsError(
                    f"{path} has format {fields['format']}; this datarater reads up to "
                    f"{FORMAT_VERSION}"
                )
            entry = from_plain(_Entry, fields)
            self.state.add(from_plain(_KINDS[entry.kind], entry.decision))
        except (ValueError, KeyError, TypeError) as error:
            raise CountsError(
                f"{path} is damaged or contradicts the entries before it: {error!r}"
            ) from error

    def append(self, decision: Decision) -> bool:
        """Makes a decision, given the entries read so far.

        Returns:
            False if another launch made a decision first; `state` then includes that one, and the
            caller must decide again.

        Raises:
            ValueError: The decision contradicts those before it.
            RunFolderError: The file system failed.
        """
        # Refuse a contradiction before it is written.
        dataclasses.replace(self.state, **_copies(self.state)).add(decision)

        path = self.path(self.state.number + 1)
        # The id is there so that two launches never write equal entries.
        data = to_json(_Entry(_NAMES[type(decision)], decision, now(), uuid.uuid4().hex))
        # A success whose reply was lost looks like a file that existed before.
        won = commits.commit_if_absent(path, data) or commits.read_bytes(path) == data
        self.read()
        return won

    def decide(self, decision_upon: Callable[[State], Decision | None]) -> State:
        """Makes a decision, again and again while other launches decide first.

        Args:
            decision_upon: Function that returns the decision for a state, or None if there is
                nothing left to decide.

        Returns:
            The state after the decision.
        """
        self.read()
        while (decision := decision_upon(self.state)) is not None and not self.append(decision):
            pass
        return self.state

    # Files named after the digest of their content.

    def keep(self, kind: str, data: bytes) -> str:
        """Commits a file under the digest of its content.

        Args:
            kind: `inputs`, `notes`, `baselines` or `records`.
            data: Content of the file.

        Returns:
            The digest.
        """
        digest = hashlib.sha256(data).hexdigest()
        commits.commit_if_absent(self.kept(kind, digest), data)
        return digest

    def kept(self, kind: str, digest: str) -> str:
        """Returns the path of a file that `keep` committed."""
        return f"{self.folder}/{kind}/{digest}.json" + ("l" if kind in ("inputs", "notes") else "")

    def read_kept(self, kind: str, digest: str) -> bytes:
        """Returns the content of a file that `keep` committed.

        Raises:
            CountsError: The file is missing or damaged.
        """
        path = self.kept(kind, digest)
        data = commits.read_if_there(path)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise CountsError(
                f"{path} is {'missing' if data is None else 'damaged'}; restore it from a backup"
            )
        return data

    def inputs(self, claim: Claim) -> list[FileInfo]:
        """Returns the files of a batch."""
        path = self.kept("inputs", claim.inputs)
        return decode_lines(path, FileInfo, self.read_kept("inputs", claim.inputs))

    def notes(self, claim: Claim) -> list[Note]:
        """Returns the notes about files that were reported when a batch was claimed."""
        digest = claim.notes.sha256
        if digest is None:
            return []
        return decode_lines(self.kept("notes", digest), Note, self.read_kept("notes", digest))


def _copies(state: State) -> Mapping[str, Any]:
    return {
        field.name: value.copy()
        for field in dataclasses.fields(state)
        if isinstance(value := getattr(state, field.name), dict | set)
    }
