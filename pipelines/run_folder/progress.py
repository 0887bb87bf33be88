"""Reports the progress of a run from its run folder alone.

This works with any runner, on this machine or elsewhere, and also while nothing runs. Summaries are
read first. For groups of splits without one, the score files are listed and their counts are read
from their last bytes. If there are very many, only a sample is read: the number of splits is always
exact, and the other figures are marked `about`.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from datarater.pipelines.run_folder import commits, lease, split_marks
from datarater.pipelines.run_folder.committed import (
    at_once,
    deduplications,
    score_entries,
    selections,
)
from datarater.pipelines.run_folder.counts import Counts, by_count
from datarater.pipelines.run_folder.duplicates_progress import (
    DeduplicationStatus,
    look_at_deduplication,
)
from datarater.pipelines.run_folder.identity import PlanNumbers
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES
from datarater.pipelines.run_folder.plan import (
    SPLITS_PER_GROUP,
    CommittedPlans,
    find_plans,
    plan_of,
)
from datarater.pipelines.run_folder.scored import find_scoring
from datarater.pipelines.run_folder.selection_progress import (
    RATE_SECONDS,
    Phase,
    SelectionStatus,
    duration,
    look_at_selection,
)
from datarater.pipelines.run_folder.stores import Entry
from datarater.pipelines.run_folder.summaries import read_summary, summarised_groups
from datarater.rater_model.counted import counted
from datarater.rater_model.json_codec import DecodingError, to_plain

_MAX_FOOTERS = 2048
_FOOTER_BYTES = 64 * 2**10


@dataclasses.dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes:
        splits: Number of splits of the plan.
        splits_done: Number of splits with a committed score file.
        counts: Counts of the records in these.
        exact: Whether `counts` is exact; otherwise it is scaled up from a sample.
        splits_per_second: Recent rate of the launch that holds the lease; 0 if none does.
        scored: Whether everything is scored.
        selections: The selections that were started.
        deduplications: The deduplications that were started.
    """

    splits: int
    splits_done: int
    counts: Counts
    exact: bool
    splits_per_second: float
    scored: bool
    selections: tuple[SelectionStatus, ...] = ()
    deduplications: tuple[DeduplicationStatus, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether everything is scored, and all selections and deduplications are complete."""
        published = all(one.phase is Phase.PUBLISHED for one in self.selections)
        return self.scored and published and all(one.finished for one in self.deduplications)

    @property
    def steps(self) -> tuple[Any, ...]:
        """What is done, which is equal in two reports exactly if nothing has moved between them."""
        selected = [(one.name, one.phase, one.steps_done) for one in self.selections]
        deduplicated = [(one.name, one.phase, one.splits_done) for one in self.deduplications]
        return self.splits, self.splits_done, self.scored, *selected, *deduplicated

    @property
    def rejected(self) -> int:
        """Number of rejected records so far."""
        return self.counts.rejected

    def _per_second(self, count: int) -> float:
        return self.splits_per_second * count / self.splits_done if self.splits_done else 0.0

    @property
    def documents_per_second(self) -> float:
        """Recent rate of documents scored."""
        return self._per_second(self.counts.scored)

    @property
    def tokens_per_second(self) -> float:
        """Recent rate of tokens scored."""
        return self._per_second(self.counts.tokens)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until everything is scored at the recent rate; None if there is no rate."""
        if self.scored or not self.splits_per_second:
            return None
        return (self.splits - self.splits_done) / self.splits_per_second

    def to_json(self) -> dict[str, Any]:
        """Returns the status as JSON fields."""
        return {
            "splits": self.splits,
            "splits_done": self.splits_done,
            "counts": to_plain(self.counts),
            "exact": self.exact,
            "splits_per_second": self.splits_per_second,
            "documents_per_second": self.documents_per_second,
            "tokens_per_second": self.tokens_per_second,
            "seconds_left": self.seconds_left,
            "scored": self.scored,
            "selections": [one.to_json() for one in self.selections],
            "duplicates": [one.to_json() for one in self.deduplications],
            "finished": self.finished,
        }

    def line(self) -> str:
        """Describes the status in one line."""
        parts = [f"scored {self.splits_done:,} of {counted(self.splits, 'split')}"]
        about = "" if self.exact else "about "
        if self.counts.read:
            parts.append(f"{about}{counted(self.counts.scored, 'document')}")
        if self.splits_per_second and not self.scored:
            parts.append(
                f"{self.documents_per_second:,.0f} documents/s, "
                f"{self.tokens_per_second:,.0f} tokens/s"
            )
        if self.rejected:
            parts.append(f"{about}{self.rejected:,} rejected")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)


def _footer_counts(entry: Entry) -> Counts | None:
    """Reads the counts in the last bytes of a score file; None if it has none."""
    # Where everything is summarized, no score file is read: pyarrow loads with the first one.
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datarater.pipelines.run_folder.score_files import Footer

    try:
        tail = commits.read_tail(entry.path, entry.size, _FOOTER_BYTES)
        # The footer of many packed files is longer. It ends with its length and four more bytes.
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < footer <= entry.size:
            tail = commits.read_tail(entry.path, entry.size, footer)
        # Parquet is read from its end: the rest of the file is not needed.
        metadata = pq.read_metadata(io.BytesIO(b"PAR1" + tail)).metadata
        return Footer.of(metadata).counts
    except (OSError, KeyError, TypeError, DecodingError, pa.ArrowInvalid):
        return None


class Watcher:
    """Watches a run folder and reads only what is new.

    Args:
        folder: Run folder.
        max_footers: Number of score files to read; if there are more, figures are scaled up.
        splits_per_group: Number of splits in a group of a plan of version 0.1.0.
        clock: Returns the time in seconds since 1970, which rates end at.

    Attributes:
        plan: The committed plan in numbers; None until it has been read.
    """

    def __init__(
        self,
        folder: RunFolder,
        max_footers: int = _MAX_FOOTERS,
        splits_per_group: int = SPLITS_PER_GROUP,
        clock: Callable[[], float] = time.time,
    ):
        self._folder = folder
        self._max_footers = max_footers
        self._splits_per_group = splits_per_group
        self._clock = clock
        self.plan: PlanNumbers | None = None
        self._plans: CommittedPlans | None = None
        self.has_other_sources = False
        self._groups: dict[int, tuple[int, Counts]] = {}
        self._files: dict[int, Counts] = {}
        self._published: dict[str, SelectionStatus] = {}
        self._unpublished: dict[str, SelectionStatus] = {}
        self._complete: dict[str, DeduplicationStatus] = {}

    def look(self) -> Status | None:
        """Returns the present status of the run; None before it is planned."""
        plans = self._read_plans()
        if plans is None:
            return None
        self.plan = plans.identity.plan

        # The counts of a finished run are in one file.
        total = self.plan.splits
        scoring = find_scoring(self._folder)
        if scoring is not None:
            return Status(
                total,
                total,
                scoring.counts,
                exact=True,
                splits_per_second=0.0,
                scored=True,
                selections=self._look_at_selections(self.plan),
                deduplications=self._look_at_deduplications(total),
            )

        self._read_summaries()
        return self._count(plans)

    def max_documents(self) -> int | None:
        """Returns an upper bound of the documents of the plan; None if there is no useful one.

        Raises:
            OSError: A file cannot be read.
        """
        from datarater.pipelines.run_folder.upper_bound import max_documents

        plans = self._read_plans()
        return None if plans is None else max_documents(plans, plans.identity.read)

    def _read_plans(self) -> CommittedPlans | None:
        """Reads the committed plans, again after files were appended."""
        known = 0 if self._plans is None else len(self._plans.identities)
        if commits.exists(self._folder.identity_path_of(known)):
            self._plans = find_plans(self._folder, self._splits_per_group)
        return self._plans

    def _look_at_selections(self, plan: PlanNumbers) -> tuple[SelectionStatus, ...]:
        # A launch that scores first holds the lease of its selection from the beginning.
        held = [
            name
            for name in commits.list_subfolders(self._folder.selection_leases_path)
            if (term := lease.current(self._folder.selection_lease_path(name))) and term.is_held()
        ]
        for name in sorted({*selections(self._folder), *held} - self._published.keys()):
            status = look_at_selection(self._folder, name, plan.groups, plan.splits, self._clock)
            if status.phase is Phase.PUBLISHED:
                self._published[name] = status
            else:
                self._unpublished[name] = status
        self._unpublished = {
            name: status
            for name, status in self._unpublished.items()
            if name not in self._published
        }
        seen = {**self._published, **self._unpublished}
        return tuple(seen[name] for name in sorted(seen))

    def _look_at_deduplications(self, splits: int) -> tuple[DeduplicationStatus, ...]:
        seen = {}
        for name in deduplications(self._folder):
            seen[name] = self._complete.get(name) or look_at_deduplication(
                self._folder, name, splits, self._clock
            )
        self._complete = {name: status for name, status in seen.items() if status.finished}
        return tuple(seen[name] for name in sorted(seen))

    def _read_summaries(self) -> None:
        new = sorted(summarised_groups(self._folder) - self._groups.keys())
        for group, summary in zip(
            new, at_once(lambda group: read_summary(self._folder, group), new), strict=True
        ):
            self._groups[group] = (summary.splits, summary.counts)
            self.has_other_sources |= OTHER_SOURCES in summary.sources

    def _count(self, plans: CommittedPlans) -> Status:
        plan = plans.identity.plan
        counts = Counts()
        done = 0
        for splits, group_counts in self._groups.values():
            done += splits
            counts.add(group_counts)

        # The rate covers the running launch: since its start, or the last few minutes.
        term = lease.current(self._folder.scoring_lease_path)
        is_held = term is not None and term.is_held()
        now = self._clock()
        since = max(term.launch.started if term is not None else 0.0, now - RATE_SECONDS)

        # Splits of groups without a summary are counted from their score files.
        exact, recent = True, 0
        if len(self._groups) < plan.groups:
            listed, recent = self._list_score_files(plans, since)
            listed_counts, known = self._known_counts(plans)
            exact = known == listed
            if known < listed:
                listed_counts = _scaled(listed_counts, listed / known if known else 0.0)
            counts.add(listed_counts)
            done += listed

        rate = recent / max(now - since, 1.0) if is_held else 0.0
        return Status(plan.splits, done, counts, exact=exact, splits_per_second=rate, scored=False)

    def _list_score_files(self, plans: CommittedPlans, since: float) -> tuple[int, int]:
        """Lists the score files of groups without a summary; reads the footers of some new ones.

        Args:
            plans: The committed plans.
            since: Time in seconds since 1970.

        Returns:
            The number of splits with a score file, and the number of those committed since `since`.
        """
        seen_S = np.zeros(plans.end, bool)
        unread: list[tuple[int, Entry]] = []
        recent = 0
        for entries in score_entries(self._folder):
            for ordinal, entry in entries:
                if ordinal >= plans.end or seen_S[ordinal] or self._is_summarised(plans, ordinal):
                    continue
                seen_S[ordinal] = True
                recent += entry.modified >= since
                is_new = ordinal not in self._files
                if is_new and len(unread) < self._max_footers - len(self._files):
                    unread.append((ordinal, entry))

        footers = at_once(_footer_counts, [entry for _, entry in unread])
        for (ordinal, _), counts in zip(unread, footers, strict=True):
            if counts is not None:
                self._files[ordinal] = counts
        return int(seen_S.sum()), recent

    def _known_counts(self, plans: CommittedPlans) -> tuple[Counts, int]:
        """Adds up the footers of groups without a summary; also returns their number."""
        counts, known = Counts(), 0
        for ordinal, file_counts in self._files.items():
            if not self._is_summarised(plans, ordinal):
                counts.add(file_counts)
                known += 1
        return counts, known

    def _is_summarised(self, plans: CommittedPlans, ordinal: int) -> bool:
        return plans.group_of(ordinal) in self._groups


def _scaled(counts: Counts, factor: float) -> Counts:
    return Counts(
        read=round(counts.read * factor),
        scored=round(counts.scored * factor),
        tokens=round(counts.tokens * factor),
        bytes=round(counts.bytes * factor),
        rejected_by_reason=Counter(
            {reason: round(number * factor) for reason, number in counts.rejected_by_reason.items()}
        ),
    )


def report(folder: RunFolder, status: Status | None) -> list[str]:
    """Describes a run in lines: its plan, progress, rejects, launches and selections."""
    if status is None:
        lines = [f"{folder.path}: not planned yet, or not a run folder"]
    else:
        lines = [plan_of(folder).describe(), status.line(), *_rejects(status)]

    at_work = launches(folder)
    lines += at_work
    if not at_work and (status is None or not status.finished):
        lines.append("no launch is working here; run the same command again to continue")

    for _, mark in split_marks.unfinished(folder):
        age = duration(time.time() - mark.started)
        ended = ", its worker has ended" if lease.is_gone(mark.process) else ""
        lines.append(f"being scored for {age}{ended}: {mark.split}")

    for deduplication in () if status is None else status.deduplications:
        where = folder.duplicates(deduplication.name).summary_path
        lines.append(
            f"{deduplication.line()}, {where}" if deduplication.finished else deduplication.line()
        )
    for selection in () if status is None else status.selections:
        where = folder.selection(selection.name).manifest_path
        lines.append(
            f"{selection.line()}, {where}"
            if selection.phase is Phase.PUBLISHED
            else selection.line()
        )
    return lines


def launches(folder: RunFolder) -> list[str]:
    """Describes the launches that are working in a run folder, a line for each.

    Scoring, each deduplication and each selection has a lease of its own.
    """
    work = {"scoring": folder.scoring_lease_path}
    work |= {
        f"finding duplicates {name}": folder.duplicates_lease_path(name)
        for name in deduplications(folder)
    }
    names = selections(folder)
    work |= {f"selecting {name}": folder.selection_lease_path(name) for name in names}
    return [line for what, path in work.items() for line in _launch(what, path)]


def _rejects(status: Status) -> list[str]:
    """Describes the reasons for rejections, the most frequent first."""
    about = "" if status.exact else "about "
    reasons = by_count(status.counts.rejected_by_reason)
    return [f"  rejected {reason:<20} {about}{count:,}" for reason, count in reasons]


def _launch(what: str, path: str) -> list[str]:
    """Describes the launch that holds a lease; no line if none does."""
    term = lease.current(path)
    if term is None or not term.is_held():
        return []
    age = duration(time.time() - term.renewed)
    return [f"working, {what}: {term.describe()}, renewed {age} ago"]
