"""Prints what a batch takes and how it ends."""

from __future__ import annotations

import datetime
import sys

from datarater.pipelines.batch import inputs
from datarater.pipelines.batch import record as batch_record
from datarater.pipelines.batch.record import Record
from datarater.pipelines.commands.printing import say
from datarater.rater_model.command_line import print_line
from datarater.rater_model.counted import counted


def report_intake(date: datetime.date, intake: inputs.Intake) -> None:
    """Prints how many files a batch takes, and the notes about other files."""
    size = sum(file.size for file in intake.files)
    others = (
        f"; {intake.already_taken:,} more belong to earlier batches" if intake.already_taken else ""
    )
    say(
        f"batch {date.isoformat()}: {counted(len(intake.files), 'file')}, "
        f"{counted(size, 'byte')}{others}"
    )
    for line in inputs.lines(intake):
        say(line)


def report_record(record: Record) -> None:
    """Prints the record of a batch on standard output, and its alarms on standard error."""
    for line in batch_record.lines(record):
        say(line)
    for alarm in record.alarms:
        warn(alarm)


def warn(line: str) -> None:
    """Prints a warning on standard error."""
    print_line(f"WARNING: {line}", sys.stderr)
