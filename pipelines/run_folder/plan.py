"""The committed plan: the splits of a run and the tasks that score them."""

from __future__ import annotations

import dataclasses

from datarater.pipelines.errors import CountsError, InputChangedError
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    PlanNumbers,
    read_identity,
)
from datarater.pipelines.run_folder.layout import RunFolder, read_json_lines
from datarater.rater_model.documents.files import file_info
from datarater.rater_model.documents.records import Split

SPLITS_PER_GROUP = 1000
"""Number of splits in a plan shard, a summary and a file of rejected records.

A resumed run opens one file per group instead of one per split.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class SplitTask:
    """A split of the plan, with the fingerprint of its file at that time.

    Attributes:
        split: The part of a file to read.
        fingerprint: Fingerprint of the whole file.
        group: Number of the group of splits that are summarized together.
    """

    split: Split
    fingerprint: str
    group: int


def identity_of(folder: RunFolder) -> CommittedIdentity:
    """Reads the committed identity of a run folder.

    Raises:
        CountsError: No plan is committed.
    """
    identity = read_identity(folder)
    if identity is None:
        raise CountsError(
            f"{folder.path} has no plan: it is not a run folder, or its scoring never started"
        )
    return identity


def plan_of(folder: RunFolder) -> PlanNumbers:
    """Reads the committed plan in numbers; raises as `identity_of` does."""
    return identity_of(folder).plan


def read_group(folder: RunFolder, group: int) -> list[SplitTask]:
    """Reads the splits of one group of the committed plan."""
    return read_json_lines(folder.plan_shard_path(plan_of(folder).id, group), SplitTask)


def check_fingerprint(task: SplitTask) -> None:
    """Refuses a file that has changed since the plan was made.

    Raises:
        InputChangedError: The file changed or disappeared; the message names it.
    """
    path = task.split.path
    try:
        now = file_info(path)
    except OSError as error:
        raise InputChangedError(f"the input {path} can no longer be read: {error}") from error
    if now.fingerprint != task.fingerprint:
        raise InputChangedError(
            f"the input {path} has changed since the plan was made (fingerprint {task.fingerprint} "
            f"then, {now.fingerprint} now); curate it into a new run folder"
        )
