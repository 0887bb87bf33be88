"""One night: the batches that earlier nights left unfinished or missed, then the date's own.

- A batch that was begun and not published is finished first, unless another launch works in
  it; and, if files have dates, the batches of recent dates that nobody made are made first.
- The failure or alarm of another date's batch does not stop the date's own; it is reported, and
  decides the exit code if the date's own batch has no alarm.
- If the date's batch is already published, it does not change, and the command ends with the
  batch's own exit code.
"""

from __future__ import annotations

import datetime

from datarater.pipelines.batch import dates, frozen_reference, inputs
from datarater.pipelines.batch.batches import Batches, PastLimitError
from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.inputs import describe_patterns
from datarater.pipelines.batch.journal import MANIFEST, Journal
from datarater.pipelines.batch.record import Record, summarize_alarms
from datarater.pipelines.batch.report import report_intake, report_record, warn
from datarater.pipelines.commands.printing import describe_bad_splits, say
from datarater.pipelines.errors import (
    BadSplitsError,
    CurationError,
    JobGoesOnError,
    LeaseHeldError,
    StoppedError,
)
from datarater.rater_model.counted import counted

_MAX_NAMED = 5

_Failures = list[tuple[str, CurationError]]
"""Date and error of each batch of another date that failed or raised an alarm."""


class UnfinishedError(CurationError):
    """The batch of another date failed or is incomplete; the date's own batch is published."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run(batches: Batches, config: BatchConfig, date: datetime.date) -> Record:
    """Makes the batch of a date, after the unfinished ones, and removes what has expired.

    Args:
        batches: The batches of the state folder.
        config: The configuration.
        date: Date of the batch.

    Returns:
        The record of the batch.

    Raises:
        PastLimitError: The batch has passed a limit.
        BadSplitsError: The batch is published, but files or splits were rejected whole.
        UnfinishedError: The batch of another date failed, raised an alarm or is incomplete.
        CurationError: The batch failed.
    """
    batches.check_retention(date)

    # Collect the notes about other dates before this batch begins.
    state = batches.journal.read()
    too_old = dates.too_old(config, state, date)
    before_first = dates.before_first(config, state, date)

    failures = [*_show_newest(batches, date), *_finish_others(batches, config, date)]
    publications = batches.journal.state.publications
    was_published = batches.journal.state.claim_of(date.isoformat()) in publications
    record = batches.finish(date)

    if was_published:
        say(f"batch {record.date} was already published and does not change")
    _report(config, record, publications[record.batch].place)
    for old in too_old[-_MAX_NAMED:]:
        say(f"note: there is no batch of {old}; to make it: {config.batch_command(old)}")
    if before_first:
        warn(_describe_before_first(config, date, before_first))

    # An alarm of this batch matters more than the trouble of another one.
    ending = _trouble_of(record)
    if failures and not record.alarms:
        day, error = failures[0]
        ending = UnfinishedError(
            f"batch {record.date} is published; {_with_date(day, error)}", error.exit_code
        )
    try:
        batches.expire()
    except CurationError as error:
        if ending is None or isinstance(error, StoppedError):
            raise
        warn(str(error))  # the ending must not be lost
    if ending is not None:
        raise ending
    return record


def _show_newest(batches: Batches, date: datetime.date) -> _Failures:
    """Shows readers what a killed launch published; returns the errors it could not raise."""
    failures: _Failures = []
    for record in batches.show_newest():
        day = record.date
        say(f"batch {day} was published by a launch that was killed: readers can find it now")
        if day != date.isoformat():
            report_record(record)
            if (trouble := _trouble_of(record)) is not None:
                failures.append((day, trouble))
    return failures


def _trouble_of(record: Record) -> CurationError | None:
    """Returns the error that a published batch ends the command with; None if there is none."""
    if record.alarms:
        return PastLimitError(_describe_published(record))
    described = describe_bad_splits(record.counts.rejected_by_reason, record.run)
    if described:
        return BadSplitsError(f"batch {record.date} is published, but {described}")
    return None


def _finish_others(batches: Batches, config: BatchConfig, date: datetime.date) -> _Failures:
    """Makes the batches of other dates that were begun or missed.

    Returns:
        Those that failed, raised an alarm or lack files that were rejected whole.

    Raises:
        StoppedError: A signal stopped the command.
    """
    state = batches.journal.read()
    unfinished = [day for day in state.unfinished() if day != date.isoformat()]
    missed = [day.isoformat() for day in dates.missed(config, state, date)]

    failures: _Failures = []
    for day in [*unfinished, *missed]:
        if day in unfinished:
            say(f"batch {day} was begun but not published: it is finished first")
        else:
            say(f"batch {day} was missed: it is made first")
        try:
            record = batches.finish(datetime.date.fromisoformat(day))
            report_record(record)
            if (trouble := _trouble_of(record)) is not None:
                raise trouble
        except CurationError as error:
            if isinstance(error, StoppedError) and not isinstance(error, JobGoesOnError):
                raise
            if isinstance(error, LeaseHeldError | JobGoesOnError):
                say(f"skipped: {_with_date(day, error)}")
                continue
            warn(_with_date(day, error))
            failures.append((day, error))
    return failures


def _with_date(day: str, error: CurationError) -> str:
    return str(error) if str(error).startswith(f"batch {day}") else f"batch {day}: {error}"


def _describe_published(record: Record) -> str:
    return f"batch {record.date} is published, but {summarize_alarms(record)}"


def _describe_before_first(
    config: BatchConfig, date: datetime.date, days: list[datetime.date]
) -> str:
    """Returns a line about dates before the first batch, with the command that takes them."""
    names = [day.isoformat() for day in days]
    command = config.batch_command(names[0])
    if len(names) > 1:
        command = f"for day in {' '.join(names)}; do {config.batch_command('$day')}; done"
    return (
        f"the first batch is that of {date}, and no batch takes the files of earlier dates "
        f"({', '.join(names)}); to take them: {command}"
    )


def _report(config: BatchConfig, record: Record, place: str) -> None:
    """Prints a record, what could not be measured, and where the batch is published."""
    report_record(record)
    if record.drift is None and record.counts.scored:
        say("drift: not measured: neither the reference nor the rater has a score distribution")

    shares = {} if record.drift is None else record.drift.kept_share
    none_compared = all(share.reference_share is None for share in shares.values())
    if shares and none_compared and config.limits.kept_share is not None:
        say(
            "drift: the kept shares of sources are not compared: that needs a scored run folder "
            "as the reference, sources of the same names, and a rule with a cutoff"
        )

    if not record.inputs.files and not record.alarms:
        patterns = config.patterns(datetime.date.fromisoformat(record.date))
        warn(f"batch {record.date}: no new file matches {describe_patterns(patterns)}")
    say(f"published: {place}/{MANIFEST}")


def dry_run(config: BatchConfig, date: datetime.date) -> None:
    """Prints what a batch would take; writes nothing.

    Args:
        config: The configuration.
        date: Date of the batch.

    Raises:
        CurationError: The configuration, the rater or the reference cannot be used.
    """
    scoring, _ = config.requests()
    frozen_reference.identify(config, scoring)
    journal = Journal(config.state)
    state = journal.read()

    # Other dates come first, as in a run.
    for day in state.unfinished():
        if day != date.isoformat():
            say(f"batch {day} was begun but not published: it would be finished first")
    for missed in dates.missed(config, state, date):
        say(f"batch {missed} was missed: it would be made first")
    if before_first := dates.before_first(config, state, date):
        warn(_describe_before_first(config, date, before_first))

    number = state.claim_of(date.isoformat())
    if number is None:
        intake = inputs.find(config, journal, date)
        report_intake(date, intake)
        for file in intake.files:
            say(f"  {file.path}  {counted(file.size, 'byte')}")
    elif number in state.publications:
        say(f"batch {date} is published: {state.publications[number].place}/{MANIFEST}")
    else:
        claim = state.claims[number]
        say(
            f"batch {date} was begun: {counted(claim.files, 'file')} in {claim.run}; it would be "
            "finished"
        )
