"""`datarater batch`: scores and selects what came in since the last batch, against a frozen reference, for a date.

The journal (`datarater.pipelines.batch.journal`) is the state. A batch is a claim of files, then a
run folder that `datarater curate` fills, then a publication: the record of the batch, decided in
the journal and then committed as `PUBLISH/DATE/manifest.json`. Every step finds what was done
before, so that the same command can be given twice, late, by two launches at once, or after a kill
at any moment:

- A date that is published stays as it is; the command says so and ends with the batch's own exit
  code.
- A batch that was begun is finished: its own files, in its own run folder. Each run first finishes
  the unfinished batches of other dates, unless another launch is at work in them; and, where files
  have dates, it first makes the batches of the last days that nobody made.
- A batch that cannot be finished as it was begun (a claimed file changed before it was read, or the
  configuration says otherwise now) gives its files back, which is recorded, and begins anew.
"""

import dataclasses
import datetime
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from datarater.pipelines.batch import frozen_reference, retention
from datarater.pipelines.batch import inputs as batch_inputs
from datarater.pipelines.batch import record as batch_record
from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.inputs import Found
from datarater.pipelines.batch.journal import (
    MANIFEST,
    SUCCESS,
    Claim,
    Journal,
    Publication,
    Reference,
    Release,
    State,
    now,
)
from datarater.pipelines.commands import curate, printing
from datarater.pipelines.errors import (
    CurationError,
    EmptyCorpusError,
    JobGoesOnError,
    LeaseHeldError,
    RunFolderMismatchError,
    UsageError,
)
from datarater.pipelines.graph import cutoff_search
from datarater.pipelines.graph.curation import Work
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.run_folder import commits, lease
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import differences
from datarater.pipelines.run_folder.layout import RunFolder, json_lines, to_json
from datarater.rater_model import exit_codes

MAX_NAMED = 5
_LOOKED_AFTER = 32
"""How many of the newest publications are looked after: a kill leaves at most one without its manifest."""


class PastLimitError(CurationError):
    """A batch is published, or held back, whose drift or rejected share is past its limit."""

    exit_code = exit_codes.PAST_LIMIT


class UnfinishedError(CurationError):
    """Another date's batch could not be finished; this one's own is."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Batches:
    """The batches of one state folder, worked on by one launch.

    Args:
        config: of the batches.
        adopt_reference: whether another reference may take the place of the frozen one.
        accept_alarm: the date whose batch is published although its alarm would hold it back; None
            for none.

    Raises:
        CurationError: the configuration, the rater or the reference cannot be used.
    """

    def __init__(
        self, config: BatchConfig, *, adopt_reference: bool = False, accept_alarm: str | None = None
    ):
        for folder in (config.state, config.runs, config.publish):
            commits.check_file_system(folder)
        self._config = config
        self._accept_alarm = accept_alarm
        self.journal = Journal(config.state)
        self._scoring, self._selection, _ = config.requests(config.runs, "")
        self._reference: Reference = frozen_reference.freeze(
            config, self.journal, self._scoring, self._selection, adopt=adopt_reference
        )
        self._terms = terms(self._scoring, self._selection, self._reference)

    def finish(self, date: datetime.date) -> dict[str, Any]:
        """Brings the batch of a date to its end: claims its files, curates them, publishes.

        Returns:
            The record of the batch, which is published.

        Raises:
            PastLimitError: the batch is held back.
            LeaseHeldError: another launch is at work in it.
            CurationError: what stopped it; the same again goes on where it stopped.
        """
        day = date.isoformat()
        is_new = False
        while True:
            state = self.journal.read()
            number = state.claim_of(day)
            if number is None:
                self._check_place(day)
                is_new = self._claim(date)
            elif number in state.publications:
                return self._show(number)
            elif not is_new and (why := self._stale(state.claims[number])) is not None:
                printing.say(f"batch {day}: begun anew, for {why}")
                self.journal.decide(
                    lambda state, number=number, why=why: _release(  # type: ignore[misc]
                        state, number, why
                    )
                )
            else:
                self._publish(number, self._curate(number, state.claims[number]))

    # --- claiming
    # --------------------------------------------------------------------------------------

    def look(self, date: datetime.date) -> Found:
        """What a batch of a date would take now."""
        self.journal.read()
        return batch_inputs.find(self._config, self.journal, date)

    def _claim(self, date: datetime.date) -> bool:
        """Claims the files of a date, unless another launch makes a decision meanwhile; says whether it did."""
        found = self.look(date)
        inputs = self.journal.keep("inputs", json_lines(file.to_json() for file in found.files))
        notes: dict[str, Any] = found.counts()
        if notes:
            notes["sha256"] = self.journal.keep("notes", json_lines(found.notes))
        run = f"{self._config.runs}/{date.isoformat()}-{self.journal.state.number + 1:06d}"
        size = sum(file.size for file in found.files)
        claim = Claim(
            date.isoformat(), len(found.files), size, inputs, notes, self._terms, run, now()
        )
        won = self.journal.append(claim)
        if won:
            tell(date, found)
        return won

    def _check_place(self, day: str) -> None:
        """Refuses a date under which something is published that the journal does not know.

        Raises:
            RunFolderMismatchError: naming it.
        """
        manifest = f"{self._config.publish}/{day}/{MANIFEST}"
        # Another launch of the same state folder may have published since the journal was read.
        if commits.exists(manifest) and self.journal.read().claim_of(day) is None:
            raise RunFolderMismatchError(
                f"{manifest} is there, but {self._config.state} knows of no batch of {day}: another state folder "
                "publishes here. Take another publish folder, or the state folder that belongs to it"
            )

    def _stale(self, claim: Claim) -> str | None:
        """Why a batch cannot be finished as it was begun; None if it can.

        Raises:
            LeaseHeldError: it cannot, but another launch is at work in it.
        """
        scoring = dataclasses.replace(self._scoring, output=claim.run)
        selection = dataclasses.replace(self._selection, output=claim.run)
        lines = differences(self._terms, claim.terms)
        if not lines and not commits.exists(selection.selection.success_path):
            lines = batch_inputs.changed_since(self.journal.inputs(claim))
        if not lines:
            return None
        for folder in Work(scoring=scoring, selection=selection).leases():
            term = lease.current(folder)
            if term is not None and term.is_held():
                raise LeaseHeldError(
                    f"{claim.run}: another launch is at work here: {term.describe()}"
                )
        more = f"; and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
        return "; ".join(lines[:MAX_NAMED]) + more

    # --- curating
    # --------------------------------------------------------------------------------------

    def _curate(self, number: int, claim: Claim) -> dict[str, Any]:
        """Scores and selects the files of a batch, by `datarater curate` itself; gives the record.

        Raises:
            JobGoesOnError: the job goes on without this command.
            CurationError: what stopped it.
        """
        manifest = scoring = None
        if claim.files:
            inputs = self.journal.kept("inputs", claim.inputs)
            try:
                curate.run(self._config.argv(claim.run, inputs))
            except EmptyCorpusError:
                printing.say(
                    f"batch {claim.date}: there is no record in any of its {claim.files:,} files"
                )
            else:
                manifest = printing.read_manifest(
                    dataclasses.replace(self._selection, output=claim.run)
                )
                if manifest is None:
                    raise JobGoesOnError(
                        f"batch {claim.date}: the job goes on without this command; run the same command again when it "
                        "has ended, to publish the batch"
                    )
                scoring = cutoff_search.read_scoring(RunFolder(claim.run))
        return batch_record.build(
            self.journal,
            number,
            claim,
            self._reference,
            self._config.limits,
            scoring=scoring,
            manifest=manifest,
        )

    # --- publishing
    # ------------------------------------------------------------------------------------

    def _publish(self, number: int, record: dict[str, Any]) -> None:
        """Publishes a batch, unless its alarm holds it back.

        Raises:
            PastLimitError: it is held back.
            RunFolderMismatchError: it has given its files back meanwhile.
        """
        limits = self._config.limits
        if record["alarms"] and limits.on_alarm == "hold" and self._accept_alarm != record["date"]:
            print_record(record)
            raise PastLimitError(
                f"batch {record['date']} is held back: {first_line(record['alarms'])}. Look at {record['run']}; then "
                "publish it by the same command with --accept_alarm, or correct the configuration, which begins it anew"
            )
        digest = self.journal.keep("records", to_json(record))
        place = f"{self._config.publish}/{record['date']}"

        def decision(state: State) -> Publication | None:
            if number in state.publications:
                return None
            if number not in state.claims:
                raise RunFolderMismatchError(
                    f"batch {record['date']}: another launch has begun it anew, with other files or options; run the "
                    "same command again"
                )
            return Publication(number, digest, place)

        self.journal.decide(decision)

    def _show(self, number: int) -> dict[str, Any]:
        """Sees to it that readers find a published batch; gives its record."""
        publication = self.journal.state.publications[number]
        data = self.journal.read_kept("records", publication.record)
        self.journal.read()  # another launch may have let it expire since
        if not self._is_shown(number):
            path = f"{publication.place}/{MANIFEST}"
            if not commits.commit_if_absent(path, data) and commits.read_bytes(path) != data:
                raise RunFolderMismatchError(
                    f"{path} is not what this batch published; another state folder wrote it"
                )
            commits.commit_if_absent(f"{publication.place}/{SUCCESS}", b"")
        record: dict[str, Any] = orjson.loads(data)
        return record

    def _is_shown(self, number: int) -> bool:
        """Whether readers find a published batch, or are not to find it any more."""
        state = self.journal.state
        return number in state.all_expired or commits.exists(
            f"{state.publications[number].place}/{SUCCESS}"
        )

    def show_newest(self) -> list[dict[str, Any]]:
        """Does for the newest publications what a killed launch may have left undone; gives their records."""
        newest = list(self.journal.read().publications)[-_LOOKED_AFTER:]
        shown = list(zip(newest, at_once(self._is_shown, newest), strict=True))
        return [self._show(number) for number, is_shown in shown if not is_shown]

    def check_kept_for_a_while(self, date: datetime.date) -> None:
        """Refuses to make a batch that the retention rule would remove at once.

        Raises:
            UsageError: naming the newest batch.
        """
        days, state = self._config.retention.published_days, self.journal.read()
        dates = [
            datetime.date.fromisoformat(state.claims[number].date) for number in state.publications
        ]
        if days is None or date in dates or not dates or (max(dates) - date).days <= days:
            return
        raise UsageError(
            f"--as_of {date}: a batch is published for {max(dates)}, and retention.published_days: {days} would remove "
            "this one at once; raise that, or leave the date out"
        )

    def missed(self, date: datetime.date) -> list[str]:
        """The dates before one that have no batch, though batches before them have, and files that nobody else takes.

        Only with `{date}` in the globs, and only those of the last `late_days` days.
        """
        begun = self._begun()
        days = range(self._config.late_days, 0, -1) if self._config.is_dated else ()
        earlier = (date - datetime.timedelta(day) for day in days)
        return [
            day.isoformat()
            for day in earlier
            if begun and min(begun) < day and day not in begun
            if batch_inputs.list_matching(self._config.patterns(day))
        ]

    def given_up(self, date: datetime.date) -> list[str]:
        """The dates that `missed` does not look at any more, between a batch and the one before it."""
        before = [day for day in self._begun() if day < date]
        if not self._config.is_dated or not before:
            return []
        days = (date - max(before)).days - 1 - self._config.late_days
        return [(max(before) + datetime.timedelta(day + 1)).isoformat() for day in range(days)]

    def _begun(self) -> set[datetime.date]:
        state = self.journal.read()
        claims = [*state.claims.values(), *state.released.values()]
        return {datetime.date.fromisoformat(claim.date) for claim in claims}

    def expire(self) -> None:
        """Removes what the retention rule lets go."""
        retention.expire(self._config, self.journal, printing.say)


def _release(state: State, number: int, why: str) -> Release | None:
    return (
        Release(number, why)
        if number in state.claims and number not in state.publications
        else None
    )


def terms(
    scoring: ScoringRequest, selection: SelectionRequest, reference: Reference
) -> dict[str, Any]:
    """All that decides what is kept of a batch's files."""
    identity = scoring.plan.identity_of(())
    del identity["inputs"]
    found = {
        "scoring": identity,
        "selection": {"name": selection.name, **selection.rule_fields()},
        "reference": reference.digest,
    }
    plain: dict[str, Any] = orjson.loads(
        orjson.dumps(found)
    )  # to be compared with what was read from the journal
    return plain


def tell(date: datetime.date, found: Found) -> None:
    """Says what a batch takes, and what there is to know of other files."""
    size = sum(file.size for file in found.files)
    before = f"; {found.before:,} more belong to earlier batches" if found.before else ""
    printing.say(f"batch {date.isoformat()}: {len(found.files):,} files, {size:,} bytes{before}")
    for line in batch_inputs.lines(found):
        printing.say(line)


def warn(line: str) -> None:
    """Prints a warning on standard error."""
    print(f"WARNING: {line}", file=sys.stderr, flush=True)


# --- the command
# ---------------------------------------------------------------------------------------


def date_of(text: str) -> datetime.date:
    """A date: `2026-01-31`.

    Raises:
        ValueError: anything else.
    """
    date = datetime.date.fromisoformat(text)
    if date.isoformat() != text:
        raise ValueError(text)
    return date


def first_line(alarms: Sequence[str]) -> str:
    return alarms[0] + (f" (and {len(alarms) - 1} more alarms)" if len(alarms) > 1 else "")


def print_record(record: dict[str, Any]) -> None:
    """Prints a record, and its alarms as warnings."""
    for line in batch_record.lines(record):
        printing.say(line)
    for alarm in record["alarms"]:
        warn(alarm)
