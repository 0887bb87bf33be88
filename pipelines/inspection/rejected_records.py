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
) -> list[dict[str, Any]]:
    """Returns rejected records in the order of the input, and reads no more lists than it must.

    Args:
        folder: Run folder.
        plans: Its plans.
        scoring: Counts of the whole corpus; None while it is still being scored.
        question: Which records are asked for.

    Raises:
        CountsError: A list or a score file is damaged.
    """
    found: list[dict[str, Any]] = []
    passed = 0
    for row in _all(folder, plans, scoring, question):
        if question.reason is not None and row["reason"] != question.reason:
            continue
        passed += 1
        if passed > question.skip:
            found.append(row)
        if len(found) == question.count:
            break
    return found


def _all(
    folder: RunFolder, plans: CommittedPlans, scoring: Scoring | None, question: Question
) -> Iterator[dict[str, Any]]:
    for entry in commits.list_folder(folder.rejected_folder):
        if _LIST.search(entry.path):
            yield from _listed(entry.path)
    if scoring is not None:
        return

    # A list is committed with the summary of its group.
    done = summarised_groups(folder)
    unlisted = (
        ordinal
        for ordinal in scored_ordinals(folder).tolist()
        if plans.group_of(ordinal) not in done
    )
    for number, ordinal in enumerate(unlisted):
        if not question.fits(number + 1):
            return
        for file in ScoreFile.in_chunks(folder, ordinal):
            yield from rejected_rows(file)


def _listed(path: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a list, one in memory at a time."""
    with raising_os_errors(path), commits.open_committed(path) as file:
        for line in file:
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise CountsError(f"{path} is damaged: {error}") from error
