"""Reports the progress of selections: the counts of what is kept, then the second read.

Everything follows from listings of the selection's folder, so it holds for every runner.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import time
from collections.abc import Callable
from typing import Any

from datarater.pipelines.run_folder import commits, lease
from datarater.pipelines.run_folder.committed import entries_below, score_entries
from datarater.pipelines.run_folder.layout import RankingFolder, RunFolder, read_json
from datarater.pipelines.run_folder.scored import last_scoring_path
from datarater.rater_model.counted import counted

RATE_SECONDS = 600.0
"""Span of time before now that rates cover, at most."""
_PIECE = re.compile(r"\.\d+-of-\d+$")


@dataclasses.dataclass(frozen=True)
class SecondRead:
    """The content of `second_read.json`: the size of a second read, for its progress.

    Attributes:
        steps: Number of files to commit: output files, and pieces of them.
        documents: Number of documents to write.
        input_bytes: Stored bytes of the input to read, approximately; 0 if unknown.
    """

    steps: int
    documents: int
    input_bytes: int


class Phase(enum.StrEnum):
    """What a selection is doing."""

    RANKING = "ranking"
    """It joins, filters and ranks the documents, split by split."""
    SEARCHING = "searching"
    """It looks for the cutoff."""
    COUNTING = "counting"
    """It counts what is kept, group by group."""
    WRITING = "writing"
    """It reads the input a second time and writes the kept documents."""
    PUBLISHED = "published"
    """Its manifest and `_SUCCESS` are committed."""


@dataclasses.dataclass(frozen=True)
class SelectionStatus:
    """The progress of one selection.

    Attributes:
        name: Name of the selection.
        phase: What it is doing.
        steps: Number of steps of the phase: splits to rank, groups of splits to count, or files to
            write.
        steps_done: Number of steps that are committed.
        steps_per_second: Recent rate of the launch that holds the lease; 0 if none does.
        documents: Number of documents to write; 0 before that is known.
        input_bytes: Stored bytes of the input to read; 0 before that is known.
    """

    name: str
    phase: Phase
    steps: int = 0
    steps_done: int = 0
    steps_per_second: float = 0.0
    documents: int = 0
    input_bytes: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the phase ends at the recent rate; None if there is no rate."""
        if not self.steps_per_second or self.phase is Phase.PUBLISHED:
            return None
        return max(0, self.steps - self.steps_done) / self.steps_per_second

    @property
    def bytes_per_second(self) -> float:
        """Recent rate of input bytes of the second read; 0 if it is not known."""
        if self.phase is not Phase.WRITING or not self.steps:
            return 0.0
        return self.steps_per_second * self.input_bytes / self.steps

    def to_json(self) -> dict[str, Any]:
        """Returns the status as JSON fields."""
        return {
            **dataclasses.asdict(self),
            "phase": str(self.phase),
            "bytes_per_second": self.bytes_per_second,
            "seconds_left": self.seconds_left,
        }

    def line(self) -> str:
        """Describes the status in one line."""
        head = f"selection {self.name}"
        if self.phase is Phase.PUBLISHED:
            return f"{head}: published"
        if self.phase is Phase.SEARCHING:
            return f"{head}: finding the cutoff"
        if self.phase is Phase.RANKING:
            done = f"ranked {self.steps_done:,} of {counted(self.steps, 'split')}"
            left = self.seconds_left
            return f"{head}: {done}" + ("" if left is None else f", {duration(left)} left")
        what = f"counted {self.steps_done:,} of {counted(self.steps, 'group')} of splits"
        if self.phase is Phase.WRITING:
            steps = counted(self.steps, "file", "files and pieces")
            what = f"wrote {self.steps_done:,} of {steps} of kept documents"
        parts = [f"{head}: {what}"]
        if self.bytes_per_second:
            parts.append(f"reads about {self.bytes_per_second / 1e6:,.1f} MB/s")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


def is_ranking(ranking: RankingFolder) -> bool:
    """Returns whether a selection has begun to rank and has not ended."""
    begun = commits.list_subfolders(ranking.ranking_path)
    return bool(begun) and not commits.exists(last_scoring_path(ranking))


def duration(seconds: float) -> str:
    """Formats a span of time for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def look_at_selection(
    folder: RunFolder,
    name: str,
    groups: int,
    splits: int = 0,
    clock: Callable[[], float] = time.time,
) -> SelectionStatus:
    """Returns the present status of a selection.

    Args:
        folder: Run folder.
        name: Name of the selection.
        groups: Number of groups of splits of the plan.
        splits: Number of splits of the plan.
        clock: Returns the time in seconds since 1970, which rates end at.
    """
    selection = folder.selection(name)
    top = {entry.path.rsplit("/", 1)[-1]: entry for entry in commits.list_folder(selection.path)}
    if "_SUCCESS" in top:
        return SelectionStatus(name, Phase.PUBLISHED)

    term = lease.current(folder.selection_lease_path(name))
    now = clock()
    is_held = term is not None and term.is_held()
    since = max(term.launch.started if term is not None else 0.0, now - RATE_SECONDS)

    ranking = folder.ranking(name)
    if is_ranking(ranking):
        listed = [entry for part in score_entries(ranking) for _, entry in part]
        recent = sum(entry.modified >= since for entry in listed)
        rate = recent / max(now - since, 1.0) if is_held else 0.0
        return SelectionStatus(name, Phase.RANKING, splits, len(listed), rate)

    planned = top.get("second_read.json")
    if planned is None:
        entries = commits.list_folder(selection.counts_folder)
        recent = sum(entry.modified >= since for entry in entries)
        return SelectionStatus(
            name,
            Phase.COUNTING if entries else Phase.SEARCHING,
            groups,
            len(entries),
            recent / max(now - since, 1.0) if is_held else 0.0,
        )

    # The rate of this phase begins with its plan.
    since = max(since, planned.modified)
    read = read_json(selection.second_read_path, SecondRead) or SecondRead(0, 0, 0)
    pieces = [
        entry for entry in commits.list_folder(selection.pieces_folder) if _PIECE.search(entry.path)
    ]
    entries = [*entries_below(f"{selection.path}/kept"), *pieces]
    recent = sum(entry.modified >= since for entry in entries)
    return SelectionStatus(
        name,
        Phase.WRITING,
        read.steps,
        # Once all is joined, the pieces are removed; files about all others precede the manifest.
        read.steps if "manifest.json" in top else min(read.steps, len(entries)),
        recent / max(now - since, 1.0) if is_held else 0.0,
        read.documents,
        read.input_bytes,
    )
