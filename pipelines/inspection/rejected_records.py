"""Finds rejected records: in the lists of groups, or in score files where there is no list yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from datarater.pipelines.errors import CountsError
from datarater.pipelines.inspection.question import Question
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import scored_ordinals
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import CommittedPlans
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.run_folder.scored import Scoring
from datarater.pipelines.run_folder.summaries import rejected_rows, summarised_groups
from datarater.rater_model.documents.store_errors import raising_os_errors

_LIST = re.compile(r"(\d+)\.jsonl$")


def find_rejected(
    folder: RunFolder, plans: CommittedPlans, scoring: Scoring | None, question: Question
) -> tuple[list[dict[str, Any]], bool]:
    """Finds rejected records in the order of the input, and reads no more lists than it must.

    Args:
        folder: Run folder.
        plans: Its plans.
        scoring: Counts of the whole corpus; None while it is still being scored.
        question: Which records are asked for.

    Returns:
        The records, and whether no list that was left unread can have more that belong to them.

    Raises:
        CountsError: A list or a score file is damaged.
    """
    found: list[dict[str, Any]] = []
    passed = 0
    for number, rows in enumerate(_lists(folder, plans, scoring)):
        if not question.fits(number + 1):
            return found, False
        for row in rows:
            if question.reason is not None and row["reason"] != question.reason:
                continue
            passed += 1
            if passed > question.skip:
                found.append(row)
            if len(found) == question.count:
                return found, True
    return found, True


def _lists(
    folder: RunFolder, plans: CommittedPlans, scoring: Scoring | None
) -> Iterator[Iterator[dict[str, Any]]]:
    """Yields the records of each list, or of a score file, none of which is read before."""
    for entry in commits.list_folder(folder.rejected_folder):
        if _LIST.search(entry.path):
            yield _listed(entry.path)
    if scoring is not None:
        return

    # A list is committed with the summary of its group.
    done = summarised_groups(folder)
    for ordinal in scored_ordinals(folder).tolist():
        if plans.group_of(ordinal) not in done:
            yield _of_score_file(folder, ordinal)


def _of_score_file(folder: RunFolder, ordinal: int) -> Iterator[dict[str, Any]]:
    for file in ScoreFile.in_chunks(folder, ordinal):
        yield from rejected_rows(file)


def _listed(path: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a list, one in memory at a time.

    In lists of version 0.1.0 every line is one record, and does not say so.
    """
    with raising_os_errors(path), commits.open_committed(path) as file:
        for line in file:
            try:
                yield {"records": 1, **orjson.loads(line)}
            except orjson.JSONDecodeError as error:
                raise CountsError(f"{path} is damaged: {error}") from error
