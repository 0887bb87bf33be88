"""`datarater batch`: scores and selects the files that arrived since the last batch."""

import datetime
import sys
from collections.abc import Sequence
from typing import Any

from datarater.pipelines.batch import inputs
from datarater.pipelines.batch.batches import (
    MAX_NAMED,
    Batches,
    PastLimitError,
    UnfinishedError,
    date_of,
    first_line,
    print_record,
    tell,
    warn,
)
from datarater.pipelines.batch.config import BatchConfig, read_config
from datarater.pipelines.batch.journal import (
    MANIFEST,
    Journal,
)
from datarater.pipelines.commands import flags, printing, running
from datarater.pipelines.errors import (
    CurationError,
    JobGoesOnError,
    LeaseHeldError,
    StoppedError,
)
from datarater.pipelines.runners.interrupts import Interrupts

COMMAND = "datarater batch"


def run(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Makes the batch of a date, once.

    Args:
        argv: flags; those of the command line if None.

    Returns:
        The record of the batch; None for a dry run.

    Raises:
        PastLimitError: the batch's drift or rejected share is past its limit; it is published
            unless it is to be held.
        CurationError: what is wrong, and what to do.
        SystemExit: wrong usage.
    """
    parser = flags.parser(
        COMMAND,
        "Scores and selects the files that no earlier batch has taken, against a frozen reference, and publishes what "
        "is kept under a date: once, whatever happens. Unfinished batches of other dates are finished first.",
        f"{COMMAND} --config batch.yaml --as_of 2026-01-31",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the batch's YAML file, local or on any file system",
    )
    parser.add_argument(
        "--as_of",
        required=True,
        type=date_of,
        metavar="DATE",
        help="the date of the batch, past or present: 2026-01-31",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="say what would be taken, and change nothing"
    )
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
    args, beam_args = flags.parse(parser, argv)
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
        printing.say(f"batch {record['date']} was published before, and stays as it is")
    _report(config, record, published[record["batch"]].place)
    for day in given_up[-MAX_NAMED:]:
        printing.say(
            f"note: there is no batch of {day}; to make it: {COMMAND} --config {config.path} --as_of {day}"
        )
    ending: CurationError | None = None
    if record["alarms"]:
        ending = PastLimitError(
            f"batch {record['date']} is published, but {first_line(record['alarms'])}"
        )
    elif failures:
        day, error = failures[0]
        ending = UnfinishedError(
            f"batch {record['date']} is published; {_named(day, error)}", error.exit_code
        )
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
        printing.say(f"batch {day} was published by a launch that was killed: readers find it now")
        if day != date.isoformat():
            print_record(record)
            if record["alarms"]:
                failures.append(
                    (
                        day,
                        PastLimitError(
                            f"batch {day} is published, but {first_line(record['alarms'])}"
                        ),
                    )
                )
    return failures


def _finish_others(batches: Batches, date: datetime.date) -> list[tuple[str, CurationError]]:
    """Makes the batches of other dates that were begun or missed; gives those that are not as they should be."""
    failures: list[tuple[str, CurationError]] = []
    unfinished = [day for day in batches.journal.read().unfinished() if day != date.isoformat()]
    for day in [*unfinished, *batches.missed(date)]:
        what = (
            "begun and not published: it is finished" if day in unfinished else "missed: it is made"
        )
        printing.say(f"batch {day} was {what} first")
        try:
            record = batches.finish(datetime.date.fromisoformat(day))
            print_record(record)
            if record["alarms"]:
                raise PastLimitError(
                    f"batch {day} is published, but {first_line(record['alarms'])}"
                )
        except CurationError as error:
            if isinstance(error, StoppedError) and not isinstance(error, JobGoesOnError):
                raise
            if isinstance(error, LeaseHeldError | JobGoesOnError):
                printing.say(f"left alone: {_named(day, error)}")
                continue
            warn(_named(day, error))
            failures.append((day, error))
    return failures


def _named(day: str, error: CurationError) -> str:
    return str(error) if str(error).startswith(f"batch {day}") else f"batch {day}: {error}"


def _report(config: BatchConfig, record: dict[str, Any], place: str) -> None:
    print_record(record)
    if record["drift"] is None and record["counts"]["kept"] + record["counts"]["dropped"]:
        printing.say(
            "drift: not measured: neither the reference nor the rater has a distribution of scores"
        )
    shares = (record["drift"] or {}).get("kept_share", {})
    none_known = all(share["reference_share"] is None for share in shares.values())
    if shares and none_known and config.limits.kept_share is not None:
        printing.say(
            "drift: the kept shares of sources are not compared: that takes a scored run folder as the reference, with "
            "sources of the same names, and a rule with a cutoff"
        )
    if not record["inputs"]["files"]:
        warn(f"no file was taken for {record['date']}; the globs are {', '.join(config.input)}")
    printing.say(f"published: {place}/{MANIFEST}")


def _dry_run(config: BatchConfig, date: datetime.date) -> None:
    """Says what a batch would take; nothing is written."""
    config.requests(config.runs, "")
    journal = Journal(config.state)
    state = journal.read()
    number = state.claim_of(date.isoformat())
    for day in state.unfinished():
        if day != date.isoformat():
            printing.say(f"batch {day} was begun and not published: it would be finished first")
    if number is None:
        found = inputs.find(config, journal, date)
        tell(date, found)
        for file in found.files:
            printing.say(f"  {file.path}  {file.size:,} bytes")
    elif number in state.publications:
        printing.say(f"batch {date} is published: {state.publications[number].place}/{MANIFEST}")
    else:
        claim = state.claims[number]
        printing.say(
            f"batch {date} was begun: {claim.files:,} files in {claim.run}; it would be finished"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit code."""
    return running.run_command(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
