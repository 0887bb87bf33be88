"""The committed plan: the splits of a run and the tasks that score them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from datarater.pipelines.errors import CountsError, InputChangedError
from datarater.pipelines.run_folder.identity import read_identity
from datarater.pipelines.run_folder.layout import (
    RunFolder,
    json_lines,
    read_json_lines,
)
from datarater.rater_model.documents.reading import file_info
from datarater.rater_model.documents.records import (
    FileInfo,
    Split,
)

SPLITS_PER_GROUP = 1000
"""Number of splits in a plan shard, a summary and a file of rejected records.

A resumed run opens one file per group instead of one per split.
"""

INPUT_LIST = "@"
"""Prefix of the name of a file that lists the inputs, given instead of globs."""


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

    def to_json(self) -> dict[str, Any]:
        """Returns the task as JSON fields."""
        return {"split": self.split.to_json(), "fingerprint": self.fingerprint, "group": self.group}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SplitTask:
        """Returns the task that `to_json` wrote."""
        return cls(Split.from_json(fields["split"]), fields["fingerprint"], fields["group"])


def inputs_json(files: Sequence[FileInfo]) -> dict[str, Any]:
    """Returns what identifies the inputs.

    That is their number, their bytes, and a digest over paths, sizes and fingerprints.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(json_lines([file.to_json()]))
    return {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "sha256": digest.hexdigest(),
    }


def describe_plan(plan: Mapping[str, Any]) -> str:
    """Describes a plan in one line.

    Args:
        plan: Plan as `plan_of` returns it.
    """
    line = f"plan: {plan['splits']:,} splits"
    if plan.get("files_cut_at_members"):
        line += (
            f"; {plan['files_cut_at_members']:,} compressed files are cut at their gzip members or "
            "zstd frames"
        )
    if plan.get("strided_files"):
        line += (
            f"; {plan['strided_files']:,} large compressed files are strided over several workers, "
            f"which read {plan['read_amplification']:.2f} times the stored bytes"
        )
    return line


def plan_of(folder: RunFolder) -> dict[str, Any]:
    """Reads the committed plan: its id, and its numbers of splits and groups.

    Raises:
        CountsError: No plan is committed.
    """
    identity = read_identity(folder)
    if identity is None:
        raise CountsError(
            f"{folder.path} has no plan: it is not a run folder, or its scoring never started"
        )
    plan: dict[str, Any] = identity["plan"]
    return plan


def read_group(folder: RunFolder, group: int) -> list[SplitTask]:
    """Reads the splits of one group of the committed plan."""
    path = folder.plan_shard_path(plan_of(folder)["id"], group)
    return [SplitTask.from_json(row) for row in read_json_lines(path)]


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
