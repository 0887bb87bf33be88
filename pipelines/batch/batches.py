"""`datarater-batch`: scores and selects what came in since the last batch, against a frozen reference, for a date.

The journal (`pipelines.batch_journal`) is the state. A batch is a claim of files, then a run folder that
`datarater-curate` fills, then a publication: the record of the batch, decided in the journal and then committed as
`PUBLISH/DATE/manifest.json`. Every step finds what was done before, so that the same command can be given twice, late,
by two launches at once, or after a kill at any moment:

- A date that is published stays as it is; the command says so and ends with the batch's own exit code.
- A batch that was begun is finished: its own files, in its own run folder. Each run first finishes the unfinished
  batches of other dates, unless another launch is at work in them; and, where files have dates, it first makes the
  batches of the last days that nobody made.
- A batch that cannot be finished as it was begun (a claimed file changed before it was read, or the configuration says
  otherwise now) gives its files back, which is recorded, and begins anew.
"""

import dataclasses
import datetime
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from pipelines import (
    batch_inputs,
    batch_record,
    batch_reference,
    batch_retention,
    command,
    commits,
    curate,
    lease,
    ledger,
    options,
    selecting,
)
from pipelines.batch_config import BatchConfig, read_config
from pipelines.batch_inputs import Found
from pipelines.batch_journal import MANIFEST, SUCCESS, Claim, Journal, Publication, Reference, Release, State, now
from pipelines.errors import (
    CurationError,
    EmptyCorpusError,
    JobGoesOnError,
    LeaseHeldError,
    RunFolderMismatchError,
    StoppedError,
    UsageError,
)
from pipelines.interrupts import Interrupts
from pipelines.ledger import RunFolder
from pipelines.listing import at_once
from pipelines.scoring import ScoringRequest
from pipelines.selecting import SelectionRequest
from pipelines.work import Work
from rater_model import exit_codes

COMMAND = "datarater-batch"

_NAMED = 5
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
        accept_alarm: the date whose batch is published although its alarm would hold it back; None for none.

    Raises:
        CurationError: the configuration, the rater or the reference cannot be used.
    """

    def __init__(self, config: BatchConfig, *, adopt_reference: bool = False, accept_alarm: str | None = None):
        for folder in (config.state, config.runs, config.publish):
            commits.check_file_system(folder)
        self._config = config
        self._accept_alarm = accept_alarm
        self.journal = Journal(config.state)
        self._scoring, self._selection, _ = config.requests(config.runs, "")
        self._reference: Reference = batch_reference.freeze(
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
                command.say(f"batch {day}: begun anew, for {why}")
                self.journal.decide(lambda state, number=number, why=why: _release(state, number, why))  # type: ignore[misc]
            else:
                self._publish(number, self._curate(number, state.claims[number]))

    # --- claiming --------------------------------------------------------------------------------------

    def look(self, date: datetime.date) -> Found:
        """What a batch of a date would take now."""
        self.journal.read()
        return batch_inputs.find(self._config, self.journal, date)

    def _claim(self, date: datetime.date) -> bool:
        """Claims the files of a date, unless another launch makes a decision meanwhile; says whether it did."""
        found = self.look(date)
        inputs = self.journal.keep("inputs", ledger.json_lines(file.to_json() for file in found.files))
        notes: dict[str, Any] = found.counts()
        if notes:
            notes["sha256"] = self.journal.keep("notes", ledger.json_lines(found.notes))
        run = f"{self._config.runs}/{date.isoformat()}-{self.journal.state.number + 1:06d}"
        size = sum(file.size for file in found.files)
        claim = Claim(date.isoformat(), len(found.files), size, inputs, notes, self._terms, run, now())
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
        lines = ledger.differences(self._terms, claim.terms)
        if not lines and not commits.exists(selection.selection.success_path):
            lines = batch_inputs.changed_since(self.journal.inputs(claim))
        if not lines:
            return None
        for folder in Work(scoring=scoring, selection=selection).leases():
            term = lease.current(folder)
            if term is not None and term.is_held():
                raise LeaseHeldError(f"{claim.run}: another launch is at work here: {term.describe()}")
        more = f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
        return "; ".join(lines[:_NAMED]) + more

    # --- curating --------------------------------------------------------------------------------------

    def _curate(self, number: int, claim: Claim) -> dict[str, Any]:
        """Scores and selects the files of a batch, by `datarater-curate` itself; gives the record.

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
                command.say(f"batch {claim.date}: there is no record in any of its {claim.files:,} files")
            else:
                manifest = command.read_manifest(dataclasses.replace(self._selection, output=claim.run))
                if manifest is None:
                    raise JobGoesOnError(
                        f"batch {claim.date}: the job goes on without this command; run the same command again when it "
                        "has ended, to publish the batch"
                    )
                scoring = selecting.read_scoring(RunFolder(claim.run))
        return batch_record.build(
            self.journal,
            number,
            claim,
            self._reference,
            self._config.limits,
            scoring=scoring,
            manifest=manifest,
        )

    # --- publishing ------------------------------------------------------------------------------------

    def _publish(self, number: int, record: dict[str, Any]) -> None:
        """Publishes a batch, unless its alarm holds it back.

        Raises:
            PastLimitError: it is held back.
            RunFolderMismatchError: it has given its files back meanwhile.
        """
        limits = self._config.limits
        if record["alarms"] and limits.on_alarm == "hold" and self._accept_alarm != record["date"]:
            _print(record)
            raise PastLimitError(
                f"batch {record['date']} is held back: {_first(record['alarms'])}. Look at {record['run']}; then "
                "publish it by the same command with --accept_alarm, or correct the configuration, which begins it anew"
            )
        digest = self.journal.keep("records", ledger.to_json(record))
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
                raise RunFolderMismatchError(f"{path} is not what this batch published; another state folder wrote it")
            commits.commit_if_absent(f"{publication.place}/{SUCCESS}", b"")
        record: dict[str, Any] = orjson.loads(data)
        return record

    def _is_shown(self, number: int) -> bool:
        """Whether readers find a published batch, or are not to find it any more."""
        state = self.journal.state
        return number in state.all_expired or commits.exists(f"{state.publications[number].place}/{SUCCESS}")

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
        dates = [datetime.date.fromisoformat(state.claims[number].date) for number in state.publications]
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
        batch_retention.expire(self._config, self.journal, command.say)


def _release(state: State, number: int, why: str) -> Release | None:
    return Release(number, why) if number in state.claims and number not in state.publications else None


def terms(scoring: ScoringRequest, selection: SelectionRequest, reference: Reference) -> dict[str, Any]:
    """All that decides what is kept of a batch's files."""
    identity = scoring.plan.identity_of(())
    del identity["inputs"]
    found = {
        "scoring": identity,
        "selection": {"name": selection.name, **selection.rule_fields()},
        "reference": reference.digest,
    }
    plain: dict[str, Any] = orjson.loads(orjson.dumps(found))  # to be compared with what was read from the journal
    return plain


def tell(date: datetime.date, found: Found) -> None:
    """Says what a batch takes, and what there is to know of other files."""
    size = sum(file.size for file in found.files)
    before = f"; {found.before:,} more belong to earlier batches" if found.before else ""
    command.say(f"batch {date.isoformat()}: {len(found.files):,} files, {size:,} bytes{before}")
    for line in batch_inputs.lines(found):
        command.say(line)


def warn(line: str) -> None:
    """Prints a warning on standard error."""
    print(f"WARNING: {line}", file=sys.stderr, flush=True)


# --- the command ---------------------------------------------------------------------------------------


def date_of(text: str) -> datetime.date:
    """A date: `2026-01-31`.

    Raises:
        ValueError: anything else.
    """
    date = datetime.date.fromisoformat(text)
    if date.isoformat() != text:
        raise ValueError(text)
    return date


def run(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Makes the batch of a date, once.

    Args:
        argv: flags; those of the command line if None.

    Returns:
        The record of the batch; None for a dry run.

    Raises:
        PastLimitError: the batch's drift or rejected share is past its limit; it is published unless it is to be held.
        CurationError: what is wrong, and what to do.
        SystemExit: wrong usage.
    """
    parser = options.parser(
        COMMAND,
        "Scores and selects the files that no earlier batch has taken, against a frozen reference, and publishes what "
        "is kept under a date: once, whatever happens. Unfinished batches of other dates are finished first.",
        f"{COMMAND} --config batch.yaml --as_of 2026-01-31",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="the batch's YAML file, local or on any file system"
    )
    parser.add_argument(
        "--as_of",
        required=True,
        type=date_of,
        metavar="DATE",
        help="the date of the batch, past or present: 2026-01-31",
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be taken, and change nothing")
    parser.add_argument(
        "--adopt_reference",
        action="store_true",
        help="go on with another rater or reference than the batches before; needed once, when it has changed",
    )
    parser.add_argument(
        "--accept_alarm",
        action="store_true",
        help="publish a batch that limits.on_alarm: hold would hold back; somebody has looked at it",
    )
    args, beam_args = options.parse(parser, argv)
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    if args.as_of > tomorrow:
        parser.error(f"--as_of: {args.as_of} is in the future")
    config = read_config(args.config, beam_args)
    with Interrupts():
        if args.dry_run:
            _dry_run(config, args.as_of)
            return None
        accept = args.as_of.isoformat() if args.accept_alarm else None
        batches = Batches(config, adopt_reference=args.adopt_reference, accept_alarm=accept)
        return _make(batches, config, args.as_of)


def _make(batches: Batches, config: BatchConfig, date: datetime.date) -> dict[str, Any]:
    """Makes the batch of a date, after those that were left unfinished, and removes what has expired.

    Raises:
        PastLimitError: see `run`.
        UnfinishedError: another date's batch is not finished.
        CurationError: what stopped it.
    """
    batches.check_kept_for_a_while(date)
    given_up = batches.given_up(date)
    failures = [*_tell_of_shown(batches, date), *_finish_others(batches, date)]
    published = batches.journal.state.publications
    is_old = batches.journal.state.claim_of(date.isoformat()) in published
    record = batches.finish(date)
    if is_old:
        command.say(f"batch {record['date']} was published before, and stays as it is")
    _report(config, record, published[record["batch"]].place)
    for day in given_up[-_NAMED:]:
        command.say(f"note: there is no batch of {day}; to make it: {COMMAND} --config {config.path} --as_of {day}")
    ending: CurationError | None = None
    if record["alarms"]:
        ending = PastLimitError(f"batch {record['date']} is published, but {_first(record['alarms'])}")
    elif failures:
        day, error = failures[0]
        ending = UnfinishedError(f"batch {record['date']} is published; {_named(day, error)}", error.exit_code)
    try:
        batches.expire()
    except CurationError as error:
        if ending is None or isinstance(error, StoppedError):
            raise
        warn(str(error))  # an alarm is not to be lost over it
    if ending is not None:
        raise ending
    return record


def _tell_of_shown(batches: Batches, date: datetime.date) -> list[tuple[str, CurationError]]:
    """Shows readers what a killed launch had published, and gives the alarms that it had no time to raise."""
    failures: list[tuple[str, CurationError]] = []
    for record in batches.show_newest():
        day = record["date"]
        command.say(f"batch {day} was published by a launch that was killed: readers find it now")
        if day != date.isoformat():
            _print(record)
            if record["alarms"]:
                failures.append((day, PastLimitError(f"batch {day} is published, but {_first(record['alarms'])}")))
    return failures


def _finish_others(batches: Batches, date: datetime.date) -> list[tuple[str, CurationError]]:
    """Makes the batches of other dates that were begun or missed; gives those that are not as they should be."""
    failures: list[tuple[str, CurationError]] = []
    unfinished = [day for day in batches.journal.read().unfinished() if day != date.isoformat()]
    for day in [*unfinished, *batches.missed(date)]:
        what = "begun and not published: it is finished" if day in unfinished else "missed: it is made"
        command.say(f"batch {day} was {what} first")
        try:
            record = batches.finish(datetime.date.fromisoformat(day))
            _print(record)
            if record["alarms"]:
                raise PastLimitError(f"batch {day} is published, but {_first(record['alarms'])}")
        except CurationError as error:
            if isinstance(error, StoppedError) and not isinstance(error, JobGoesOnError):
                raise
            if isinstance(error, LeaseHeldError | JobGoesOnError):
                command.say(f"left alone: {_named(day, error)}")
                continue
            warn(_named(day, error))
            failures.append((day, error))
    return failures


def _named(day: str, error: CurationError) -> str:
    return str(error) if str(error).startswith(f"batch {day}") else f"batch {day}: {error}"


def _first(alarms: Sequence[str]) -> str:
    return alarms[0] + (f" (and {len(alarms) - 1} more alarms)" if len(alarms) > 1 else "")


def _print(record: dict[str, Any]) -> None:
    """Prints a record, and its alarms as warnings."""
    for line in batch_record.lines(record):
        command.say(line)
    for alarm in record["alarms"]:
        warn(alarm)


def _report(config: BatchConfig, record: dict[str, Any], place: str) -> None:
    _print(record)
    if record["drift"] is None and record["counts"]["kept"] + record["counts"]["dropped"]:
        command.say("drift: not measured: neither the reference nor the rater has a distribution of scores")
    shares = (record["drift"] or {}).get("kept_share", {})
    none_known = all(share["reference_share"] is None for share in shares.values())
    if shares and none_known and config.limits.kept_share is not None:
        command.say(
            "drift: the kept shares of sources are not compared: that takes a scored run folder as the reference, with "
            "sources of the same names, and a rule with a cutoff"
        )
    if not record["inputs"]["files"]:
        warn(f"no file was taken for {record['date']}; the globs are {', '.join(config.input)}")
    command.say(f"published: {place}/{MANIFEST}")


def _dry_run(config: BatchConfig, date: datetime.date) -> None:
    """Says what a batch would take; nothing is written."""
    config.requests(config.runs, "")
    journal = Journal(config.state)
    state = journal.read()
    number = state.claim_of(date.isoformat())
    for day in state.unfinished():
        if day != date.isoformat():
            command.say(f"batch {day} was begun and not published: it would be finished first")
    if number is None:
        found = batch_inputs.find(config, journal, date)
        tell(date, found)
        for file in found.files:
            command.say(f"  {file.path}  {file.size:,} bytes")
    elif number in state.publications:
        command.say(f"batch {date} is published: {state.publications[number].place}/{MANIFEST}")
    else:
        claim = state.claims[number]
        command.say(f"batch {date} was begun: {claim.files:,} files in {claim.run}; it would be finished")


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit code."""
    return command.run_command(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
