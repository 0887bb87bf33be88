"""The journal of scheduled batches: every decision, in order, each made by the commit of one file.

    STATE/
      journal/000001.json ...       the decisions
      inputs/SHA256.jsonl           the files of a batch: path, size, fingerprint
      notes/SHA256.jsonl            what was told of files: late, changed, waiting
      baselines/SHA256.json         what a frozen reference holds
      records/SHA256.json           the record of a published batch

A decision is built upon all before it: entry n + 1 is created only if it is absent, by a launch
that has read all n. Of two launches that decide at once one wins; the other reads on and decides
anew. So there is one order of decisions, whoever made them and wherever they were killed, and what
the journal says is the state: all other files either lie under the digest of their content, or can
be made again from it.

The kinds of entries:

- `reference`: scores are held against this reference from here on.
- `claim`: these files belong to the batch of a date. No other batch takes them.
- `release`: a batch that is not published gives its files back.
- `publish`: the batch is published, with this record; for ever.
- `expire`: some batches' scores, or all their documents, may be removed now; `expired`: they are.
"""

import dataclasses
import datetime
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.layout import to_json
from datarater.rater_model.documents.records import FileInfo

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
"""The record of a batch, in the folder of its date: what readers trust."""
SUCCESS = "_SUCCESS"
"""Empty, beside it, committed after it."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A frozen reference.

    Attributes:
        kind: `run` or `rater`.
        path: where it lay when it was frozen; for people.
        digest: of its scores: of a run's `scoring.json`, or the rater's own.
        rater: digest of the rater whose scores they are.
        baseline: digest of the file in `baselines/`.
    """

    kind: str
    path: str
    digest: str
    rater: str
    baseline: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """The files of a batch.

    Attributes:
        date: of the batch, as 2026-01-31.
        files: how many.
        bytes: of the files.
        inputs: digest of the file in `inputs/`.
        notes: how many files were told of, by kind; and `sha256`, of the file in `notes/`, if there
            are any.
        terms: all that decides what is kept of them.
        run: the run folder.
        claimed: when, in UTC.
    """

    date: str
    files: int
    bytes: int
    inputs: str
    notes: dict[str, Any]
    terms: dict[str, Any]
    run: str
    claimed: str


@dataclasses.dataclass(frozen=True)
class Release:
    """A batch gives its files back.

    Attributes:
        claim: number of the entry.
        why: for people.
    """

    claim: int
    why: str


@dataclasses.dataclass(frozen=True)
class Publication:
    """A batch is published.

    Attributes:
        claim: number of the entry.
        record: digest of the file in `records/`.
        place: the folder of the date, where readers find it.
    """

    claim: int
    record: str
    place: str


@dataclasses.dataclass(frozen=True)
class Expiry:
    """Files of batches that may be removed.

    Attributes:
        scores: the claims of batches whose plans, scores and rejected records go; of a claim that
            was released, all of its run folder.
        published: of batches of which everything goes but the record in the state folder.
    """

    scores: tuple[int, ...]
    published: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Expired:
    """The files of an `Expiry` are removed.

    Attributes:
        expiry: number of the entry.
    """

    expiry: int


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
    """What a journal says, up to one of its entries.

    Attributes:
        number: of the last entry; 0 for none.
        reference: the one that holds; None before the first.
        claims: by number, those that were not released.
        released: likewise those that were; the files of the last one of a date are waiting for it
            to be begun anew.
        publications: by number of the claim.
        expiries: those whose files may not all be removed yet, by number.
        scores_expired: the claims whose scores were removed or may be.
        all_expired: the claims of which everything was removed or may be.
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
        """The number of the claim that holds for a date; None for none."""
        return next((number for number, claim in self.claims.items() if claim.date == date), None)

    def released_of(self, date: str) -> Claim | None:
        """The last claim of a date that was released; None for none."""
        return next(
            (claim for claim in reversed(self.released.values()) if claim.date == date), None
        )

    def unfinished(self) -> list[str]:
        """The dates of batches that were begun and are not published, in the order of their claims."""
        begun = {**self.released, **self.claims}
        published = {self.claims[number].date for number in self.publications}
        return [
            date
            for date in dict.fromkeys(begun[number].date for number in sorted(begun))
            if date not in published
        ]

    def add(self, decision: Decision) -> None:
        """The state after one more decision.

        Raises:
            ValueError: the decision contradicts those before it; the state is as it was.
        """
        number = self.number + 1
        if isinstance(decision, Reference):
            self.reference = decision
        elif isinstance(decision, Claim):
            if self.claim_of(decision.date) is not None:
                raise ValueError(f"{decision.date} has a claim already")
            self.claims[number] = decision
        elif isinstance(decision, Release | Publication):
            if decision.claim not in self.claims or decision.claim in self.publications:
                raise ValueError(
                    f"claim {decision.claim} is not one that can be published or released"
                )
            if isinstance(decision, Release):
                self.released[decision.claim] = self.claims.pop(decision.claim)
            else:
                self.publications[decision.claim] = decision
        elif isinstance(decision, Expiry):
            if (
                not {*decision.scores, *decision.published}
                <= self.publications.keys() | self.released.keys()
            ):
                raise ValueError("a batch expires that is neither published nor given up")
            self.expiries[number] = decision
            self.scores_expired.update(decision.scores, decision.published)
            self.all_expired.update(decision.published)
        else:
            if decision.expiry not in self.expiries:
                raise ValueError(f"entry {decision.expiry} removes nothing that is left")
            del self.expiries[decision.expiry]
        self.number = number


class Journal:
    """A journal, read as far as it goes; and the files beside it that lie under the digest of their content.

    Args:
        folder: the state folder.

    Attributes:
        state: what the entries read so far say.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.state = State()

    def path(self, number: int) -> str:
        """Where an entry lies."""
        return f"{self.folder}/journal/{number:06d}.json"

    def read(self) -> State:
        """Reads what is new.

        Returns:
            `state`.

        Raises:
            CountsError: an entry is missing, cannot be read, or contradicts those before it.
        """
        if not self.state.number:
            self._read_listed()
        while (data := commits.read_if_there(self.path(self.state.number + 1))) is not None:
            self._add(data)
        return self.state

    def _read_listed(self) -> None:
        names = [
            entry.path.rsplit("/", 1)[-1] for entry in commits.list_folder(f"{self.folder}/journal")
        ]
        numbers = [
            int(name.removesuffix(".json"))
            for name in names
            if name.removesuffix(".json").isdigit()
        ]
        paths = [self.path(number) for number in range(1, max(numbers, default=0) + 1)]
        for data in at_once(commits.read_if_there, paths):
            if data is None:
                raise CountsError(
                    f"{self.path(self.state.number + 1)} is missing, although later entries of the journal are there; "
                    "restore it from a backup: nothing can be decided without it"
                )
            self._add(data)

    def _add(self, data: bytes) -> None:
        path = self.path(self.state.number + 1)
        try:
            fields = orjson.loads(data)
            version = fields["format"]
            if version > FORMAT_VERSION:
                raise CountsError(
                    f"{path} has format {version}; this datarater reads up to {FORMAT_VERSION}"
                )
            kind = _KINDS[fields["kind"]]
            given = fields["decision"]
            if kind is Expiry:
                given = {name: tuple(value) for name, value in given.items()}
            self.state.add(kind(**given))
        except (ValueError, KeyError, TypeError) as error:
            raise CountsError(
                f"{path} is damaged or contradicts the entries before it: {error!r}"
            ) from error

    def append(self, decision: Decision) -> bool:
        """Makes a decision upon what was read so far.

        Returns:
            True if it holds. False if another launch made one first: `state` then knows of that,
            and the decision has to be taken anew.

        Raises:
            ValueError: the decision contradicts those before it.
            RunFolderError: the file system failed.
        """
        dataclasses.replace(self.state, **_copies(self.state)).add(decision)
        path = self.path(self.state.number + 1)
        data = to_json(
            {
                "format": FORMAT_VERSION,
                "kind": _NAMES[type(decision)],
                "decision": dataclasses.asdict(decision),
                "written": now(),
                "id": uuid.uuid4().hex,  # tells this entry from an equal one of another launch
            }
        )
        # A success whose reply was lost looks like a file that was there.
        won = commits.commit_if_absent(path, data) or commits.read_bytes(path) == data
        self.read()
        return won

    def decide(self, decision_upon: Callable[[State], Decision | None]) -> State:
        """Makes a decision, anew as long as other launches come first.

        Args:
            decision_upon: the decision upon a state, or None where there is nothing to decide any
                more.
        """
        self.read()
        while (decision := decision_upon(self.state)) is not None and not self.append(decision):
            pass
        return self.state

    # --- files under the digest of their content
    # ------------------------------------------------------

    def keep(self, kind: str, data: bytes) -> str:
        """Commits a file under its digest, which is returned.

        Args:
            kind: `inputs`, `notes`, `baselines` or `records`.
            data: the content.
        """
        digest = hashlib.sha256(data).hexdigest()
        commits.commit_if_absent(self.kept(kind, digest), data)
        return digest

    def kept(self, kind: str, digest: str) -> str:
        """Where such a file lies."""
        return f"{self.folder}/{kind}/{digest}.json" + ("l" if kind in ("inputs", "notes") else "")

    def read_kept(self, kind: str, digest: str) -> bytes:
        """The content of such a file.

        Raises:
            CountsError: it is missing, or not what it was.
        """
        path = self.kept(kind, digest)
        data = commits.read_if_there(path)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise CountsError(
                f"{path} is {'missing' if data is None else 'damaged'}; restore it from a backup"
            )
        return data

    def inputs(self, claim: Claim) -> list[FileInfo]:
        """The files of a batch."""
        return [FileInfo.from_json(row) for row in _rows(self.read_kept("inputs", claim.inputs))]

    def notes(self, claim: Claim) -> list[dict[str, Any]]:
        """What was told of files when a batch was claimed."""
        return (
            _rows(self.read_kept("notes", claim.notes["sha256"]))
            if claim.notes.get("sha256")
            else []
        )

    def each_inputs(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[FileInfo]]]:
        """The files of several batches; never those of many at one time."""
        claims = self.state.claims
        for first in range(0, len(numbers), _LISTS_AT_ONCE):
            some = numbers[first : first + _LISTS_AT_ONCE]
            yield from zip(
                some, at_once(lambda number: self.inputs(claims[number]), some), strict=True
            )


_LISTS_AT_ONCE = 32


def now() -> str:
    """The time in UTC, for people."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _rows(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in data.split(b"\n") if line]


def _copies(state: State) -> Mapping[str, Any]:
    return {
        field.name: value.copy()
        for field in dataclasses.fields(state)
        if isinstance(value := getattr(state, field.name), dict | set)
    }
