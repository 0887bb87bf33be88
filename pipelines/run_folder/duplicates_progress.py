"""Reports the progress of deduplications, from listings of their folders."""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable
from typing import Any

from datarater.pipelines.run_folder import commits, lease
from datarater.pipelines.run_folder.committed import entries_below
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.selection_progress import RATE_SECONDS, duration
from datarater.rater_model.counted import counted


class DeduplicationPhase(enum.StrEnum):
    """What a deduplication is doing."""

    SIGNING = "signing"
    """It reads the input and commits the signatures of the documents, split by split."""
    COMPARING = "comparing"
    """It compares the documents of all splits."""
    COMMITTING = "committing"
    """It commits the near-duplicates, split by split."""
    COMPLETE = "complete"
    """Its counts and `_SUCCESS` are committed."""


@dataclasses.dataclass(frozen=True)
class DeduplicationStatus:
    """The progress of one deduplication.

    Attributes:
        name: Name of the deduplication.
        phase: What it is doing.
        splits: Number of splits of the plan.
        splits_done: Number of splits that the phase has committed.
        splits_per_second: Recent rate of the launch that holds the lease; 0 if none does.
    """

    name: str
    phase: DeduplicationPhase
    splits: int = 0
    splits_done: int = 0
    splits_per_second: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the deduplication is complete."""
        return self.phase is DeduplicationPhase.COMPLETE

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all splits are signed, or committed; None if there is no rate."""
        if not self.splits_per_second:
            return None
        return max(0, self.splits - self.splits_done) / self.splits_per_second

    def to_json(self) -> dict[str, Any]:
        """Returns the status as JSON fields."""
        return {
            **dataclasses.asdict(self),
            "phase": str(self.phase),
            "seconds_left": self.seconds_left,
        }

    def line(self) -> str:
        """Describes the status in one line."""
        head = f"duplicates {self.name}"
        if self.phase is DeduplicationPhase.COMPLETE:
            return f"{head}: complete"
        if self.phase is DeduplicationPhase.COMPARING:
            return f"{head}: comparing the documents of {counted(self.splits, 'split')}"
        done = "signed" if self.phase is DeduplicationPhase.SIGNING else "committed"
        parts = [f"{head}: {done} {self.splits_done:,} of {counted(self.splits, 'split')}"]
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


def look_at_deduplication(
    folder: RunFolder, name: str, splits: int, clock: Callable[[], float] = time.time
) -> DeduplicationStatus:
    """Returns the present status of a deduplication.

    Args:
        folder: Run folder.
        name: Name of the deduplication.
        splits: Number of splits of the plan.
        clock: Returns the time in seconds since 1970, which rates end at.
    """
    deduplication = folder.duplicates(name)
    if commits.exists(deduplication.success_path):
        return DeduplicationStatus(name, DeduplicationPhase.COMPLETE)

    phase, entries = DeduplicationPhase.COMMITTING, entries_below(deduplication.documents_folder)
    if not entries and not commits.exists(deduplication.summary_path):
        phase, entries = DeduplicationPhase.SIGNING, entries_below(deduplication.signatures_folder)
        if len(entries) >= splits:
            return DeduplicationStatus(name, DeduplicationPhase.COMPARING, splits)

    term = lease.current(folder.duplicates_lease_path(name))
    now, rate = clock(), 0.0
    if term is not None and term.is_held():
        since = max(term.launch.started, now - RATE_SECONDS)
        rate = sum(entry.modified >= since for entry in entries) / max(now - since, 1.0)
    return DeduplicationStatus(name, phase, splits, len(entries), rate)
