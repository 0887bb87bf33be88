"""`datarater status`: how far a run is, from its run folder alone.

It works while any runner works on the run, on this machine or elsewhere, and while none does.
Summaries are read first; for groups of splits without one, the score files are listed, and what
each holds is read from its last bytes. Of very many only a sample is read: the number of splits is
always exact, and the other figures say `about`.
"""

import dataclasses
import io
import time
from collections import Counter
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from datarater.pipelines.run_folder import commits, lease, split_marks
from datarater.pipelines.run_folder import plan as run_plan
from datarater.pipelines.run_folder.commits import Entry
from datarater.pipelines.run_folder.committed import at_once, score_entries, selections
from datarater.pipelines.run_folder.identity import read_identity
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import describe_plan, plan_of
from datarater.pipelines.run_folder.score_files import METADATA_KEY
from datarater.pipelines.run_folder.summaries import Counts, read_summary, summarised_groups

_MOST_FOOTERS = 2048
_FOOTER_BYTES = 64 * 2**10
_RATE_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        splits: of the plan.
        splits_done: those with a committed score file.
        counts: of the records in these.
        exact: whether `counts` is exact; else it is scaled up from a sample.
        splits_per_second: of late, by the launch that holds the lease; 0 if none does.
        finished: whether everything is scored.
    """

    splits: int
    splits_done: int
    counts: Counts
    exact: bool
    splits_per_second: float
    finished: bool

    @property
    def rejected(self) -> int:
        """Rejected records so far."""
        return self.counts.rejected.total()

    def _per_second(self, count: int) -> float:
        return self.splits_per_second * count / self.splits_done if self.splits_done else 0.0

    @property
    def documents_per_second(self) -> float:
        """Documents scored a second, of late."""
        return self._per_second(self.counts.scored)

    @property
    def tokens_per_second(self) -> float:
        """Tokens scored a second, of late."""
        return self._per_second(self.counts.tokens)

    @property
    def seconds_left(self) -> float | None:
        """Until everything is scored, if it goes on as of late; None if that cannot be said."""
        if self.finished or not self.splits_per_second:
            return None
        return (self.splits - self.splits_done) / self.splits_per_second

    def to_json(self) -> dict[str, Any]:
        """As JSON fields."""
        return {
            "splits": self.splits,
            "splits_done": self.splits_done,
            "counts": self.counts.to_json(),
            "exact": self.exact,
            "splits_per_second": self.splits_per_second,
            "documents_per_second": self.documents_per_second,
            "tokens_per_second": self.tokens_per_second,
            "seconds_left": self.seconds_left,
            "finished": self.finished,
        }

    def line(self) -> str:
        """All of it in a line."""
        parts = [f"scored {self.splits_done:,} of {self.splits:,} splits"]
        about = "" if self.exact else "about "
        if self.counts.read:
            parts.append(f"{about}{self.counts.scored:,} documents")
        if self.splits_per_second and not self.finished:
            parts.append(
                f"{self.documents_per_second:,.0f} documents/s, {self.tokens_per_second:,.0f} tokens/s"
            )
        if self.rejected:
            parts.append(f"{about}{self.rejected:,} rejected")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A span of time for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _footer_counts(entry: Entry) -> Counts | None:
    """What a score file says of itself in its last bytes; None if it is too old to say so."""
    try:
        tail = commits.read_tail(entry.path, entry.size, _FOOTER_BYTES)
        # Parquet is read from its end: the rest of the file need not be there.
        metadata = pq.read_metadata(io.BytesIO(b"PAR1" + tail)).metadata[METADATA_KEY]
        return Counts.from_json(orjson.loads(metadata)["counts"])
    except (OSError, KeyError, TypeError, pa.ArrowInvalid):
        return None


class Watcher:
    """Looks at a run folder again and again, and reads only what is new.

    Args:
        folder: the run folder.

    Attributes:
        plan: the committed plan; empty until it has been seen.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder
        self.plan: dict[str, Any] = {}
        self._groups: dict[int, tuple[int, Counts]] = {}
        self._files: dict[int, Counts] = {}

    def look(self) -> Status | None:
        """How far the run is now; None before it is planned."""
        if not self.plan:
            identity = read_identity(self._folder)
            if identity is None:
                return None
            self.plan = identity["plan"]
        total = self.plan["splits"]
        scoring = commits.read_if_there(self._folder.scoring_path)
        if scoring is not None:
            counts = Counts.from_json(orjson.loads(scoring)["counts"])
            return Status(total, total, counts, exact=True, splits_per_second=0.0, finished=True)
        self._read_summaries()
        return self._count(total)

    def _read_summaries(self) -> None:
        new = sorted(summarised_groups(self._folder) - self._groups.keys())
        for group, summary in zip(
            new, at_once(lambda group: read_summary(self._folder, group), new), strict=True
        ):
            self._groups[group] = (summary.splits, summary.counts)

    def _count(self, total: int) -> Status:
        counts = Counts()
        done = 0
        for number, group_counts in self._groups.values():
            done += number
            counts.add(group_counts)
        term = lease.current(self._folder.scoring_lease_path)
        held = term is not None and term.is_held()
        now = time.time()
        since = max(term.launch.started if term is not None else 0.0, now - _RATE_SECONDS)
        unread: list[tuple[int, Entry]] = []
        recent = 0
        if len(self._groups) < self.plan["groups"]:
            seen_S = np.zeros(total, bool)
            for entries in score_entries(self._folder):
                for ordinal, entry in entries:
                    if (
                        ordinal >= total
                        or seen_S[ordinal]
                        or ordinal // run_plan.SPLITS_PER_GROUP in self._groups
                    ):
                        continue
                    seen_S[ordinal] = True
                    recent += entry.modified >= since
                    if ordinal not in self._files and len(unread) < _MOST_FOOTERS - len(
                        self._files
                    ):
                        unread.append((ordinal, entry))
            listed = int(seen_S.sum())
            for (ordinal, _), found in zip(
                unread, at_once(_footer_counts, [entry for _, entry in unread]), strict=True
            ):
                if found is not None:
                    self._files[ordinal] = found
            open_files = [
                counts
                for ordinal, counts in self._files.items()
                if ordinal // run_plan.SPLITS_PER_GROUP not in self._groups
            ]
            listed_counts = Counts()
            for file_counts in open_files:
                listed_counts.add(file_counts)
            known = len(open_files)
            if known < listed:
                listed_counts = _scaled(listed_counts, listed / known if known else 0.0)
            counts.add(listed_counts)
            done += listed
            exact = known == listed
        else:
            exact = True
        rate = recent / max(now - since, 1.0) if held else 0.0
        return Status(total, done, counts, exact=exact, splits_per_second=rate, finished=False)


def _scaled(counts: Counts, factor: float) -> Counts:
    return Counts(
        read=round(counts.read * factor),
        scored=round(counts.scored * factor),
        rejected=Counter(
            {reason: round(number * factor) for reason, number in counts.rejected.items()}
        ),
        tokens=round(counts.tokens * factor),
        bytes=round(counts.bytes * factor),
    )


def report(folder: RunFolder, status: Status | None) -> list[str]:
    """All that is to be said of a run, in lines."""
    lines = []
    if status is None:
        lines.append(f"{folder.path}: not planned yet, or not a run folder")
    else:
        lines += [describe_plan(plan_of(folder)), status.line()]
        about = "" if status.exact else "about "
        lines += [
            f"  rejected {reason:<20} {about}{count:,}"
            for reason, count in sorted(
                status.counts.rejected.items(), key=lambda item: (-item[1], item[0])
            )
        ]
    names = selections(folder)
    at_work = {"scoring": folder.scoring_lease_path}
    at_work |= {f"selecting {name}": folder.selection_lease_path(name) for name in names}
    for what, path in at_work.items():
        term = lease.current(path)
        if term is not None and term.is_held():
            lines.append(
                f"at work, {what}: {term.describe()}, renewed {duration(time.time() - term.renewed)} ago"
            )
    if not any(line.startswith("at work") for line in lines) and (
        status is None or not status.finished
    ):
        lines.append("no launch is at work; run the same command again to go on")
    for _, mark in split_marks.unfinished(folder):
        age = duration(time.time() - mark["started"])
        gone = ", its worker has ended" if lease.is_gone(mark["process"]) else ""
        lines.append(f"being scored for {age}{gone}: {mark['split']}")
    for name in names:
        selection = folder.selection(name)
        if commits.exists(selection.success_path):
            lines.append(f"selection {name}: done, {selection.manifest_path}")
        else:
            files = len(commits.list_folder(f"{selection.path}/kept"))
            lines.append(
                f"selection {name}: not finished, {files:,} files of kept documents so far"
            )
    return lines
