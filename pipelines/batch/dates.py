"""Dates that have files but no batch: missed, missed too long ago, or before the first batch."""

from __future__ import annotations

import datetime

from datarater.pipelines.batch import inputs
from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import State


def missed(config: BatchConfig, state: State, date: datetime.date) -> list[datetime.date]:
    """Returns the recent dates that need a batch of their own before the one of `date`.

    These are the dates of the last `late_days` days that have files and no batch, though an earlier
    date has one. Without `{date}` in the globs there are none: any batch takes all new files.

    Args:
        config: The configuration.
        state: State of the journal.
        date: Date of the batch.
    """
    begun = _begun(state)
    return [
        day
        for day in _late_days(config, date)
        if begun and min(begun) < day and day not in begun
        if inputs.list_matching(config.patterns(day))
    ]


def too_old(config: BatchConfig, state: State, date: datetime.date) -> list[datetime.date]:
    """Returns the dates since the last batch that are too long ago for `missed`.

    Args:
        config: The configuration.
        state: State of the journal.
        date: Date of the batch.
    """
    earlier = [day for day in _begun(state) if day < date]
    if not config.is_dated or not earlier:
        return []
    count = (date - max(earlier)).days - 1 - config.late_days
    return [max(earlier) + datetime.timedelta(day + 1) for day in range(count)]


def before_first(config: BatchConfig, state: State, date: datetime.date) -> list[datetime.date]:
    """Returns the recent dates that have files and lie before the first batch ever.

    No batch takes their files unless somebody asks for it: a crawl may have years of history, and
    the operator decides where the batches start. Empty unless the batch of `date` is the first.

    Args:
        config: The configuration.
        state: State of the journal before the batch is published.
        date: Date of the batch.
    """
    # The first batch itself may have been begun by a launch that was killed.
    if state.publications or _begun(state) - {date}:
        return []
    return [day for day in _late_days(config, date) if inputs.list_matching(config.patterns(day))]


def _late_days(config: BatchConfig, date: datetime.date) -> list[datetime.date]:
    """Returns the dates whose files may come late, oldest first."""
    days = range(config.late_days, 0, -1) if config.is_dated else ()
    return [date - datetime.timedelta(day) for day in days]


def _begun(state: State) -> set[datetime.date]:
    claims = [*state.claims.values(), *state.released.values()]
    return {datetime.date.fromisoformat(claim.date) for claim in claims}
