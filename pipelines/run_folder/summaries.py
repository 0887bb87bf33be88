"""Summaries: the counts of a group of splits, made from its committed score files.

Status, a resumed run and the first pass of a selection read one summary instead of a thousand score
files. The rejected records of a group are written from the same files, before its summary, so that
they agree with the counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    RunFolder,
    json_lines,
    read_json,
)
from datarater.pipelines.run_folder.many_sources import (
    MAX_SOURCES,
    OTHER_SOURCES,
    folded,
    sources_apart,
)
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.pipelines.run_folder.score_files import JOINED, RECORDS, SCORED, ScoreFile
from datarater.pipelines.run_folder.stores import failing_by_name
from datarater.pipelines.selection.histogram import Histogram
from datarater.rater_model.counted import counted
from datarater.rater_model.json_codec import IF_SET, to_plain


@dataclasses.dataclass
class Summary:
    """The counts of several splits: of a group or, merged, of the corpus.

    Attributes:
        groups: Number of groups that are counted.
        splits: Number of splits that are counted.
        counts: Counts of all records.
        sources: Counts by source. Records that could not be read count under "".
        histograms: First level of the selection's descent over the scored documents, by source.
        max_sources: Maximum number of sources that are counted apart
            (`datarater.pipelines.run_folder.many_sources`).
        joined: In a ranking, the number of documents that each joined table has a row of, by name.
    """

    groups: int = 0
    splits: int = 0
    counts: Counts = dataclasses.field(default_factory=Counts)
    sources: dict[str, Counts] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Histogram] = dataclasses.field(default_factory=dict)
    max_sources: int = dataclasses.field(default=sys.maxsize, metadata=IF_SET)
    joined: Counter[str] = dataclasses.field(default_factory=Counter, metadata=IF_SET)

    def add(self, other: Summary) -> None:
        """Adds other counts to these."""
        self.groups += other.groups
        self.splits += other.splits
        self.counts.add(other.counts)
        for source, counts in other.sources.items():
            self.sources.setdefault(source, Counts()).add(counts)
        for source, histogram in other.histograms.items():
            known = self.histograms.get(source)
            self.histograms[source] = (
                histogram if known is None else Histogram.merge([known, histogram])
            )
        self.max_sources = min(self.max_sources, other.max_sources)
        self.joined.update(other.joined)
        self._fold()

    def _fold(self) -> None:
        """Counts the sources past the maximum as one."""
        apart = sources_apart(self.sources, self.max_sources)
        rest = [source for source in self.sources if source not in apart]
        if not rest:
            return
        total = self.sources.setdefault(OTHER_SOURCES, Counts())
        for source in rest:
            total.add(self.sources.pop(source))
        histograms = [
            self.histograms.pop(source)
            for source in (OTHER_SOURCES, *rest)
            if source in self.histograms
        ]
        if histograms:
            self.histograms[OTHER_SOURCES] = Histogram.merge(histograms)

    def histogram(self) -> Histogram:
        """Returns the histogram of all sources together."""
        return Histogram.merge(self.histograms.values())


@dataclasses.dataclass(kw_only=True)
class SplitCounts(Counts):
    """The counts of one split; `path` is that of its first file."""

    ordinal: int
    path: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryFile:
    """The content of a group's summary.

    Attributes:
        group: Number of the group.
        summary: Counts of the group.
        by_split: Counts of every split.
        format: Version of the format.
    """

    group: int
    summary: Summary
    by_split: tuple[SplitCounts, ...]
    format: int = FORMAT_VERSION


def _split_summary(file: ScoreFile, max_sources: int) -> Summary:
    """Counts the rows of one split, with array operations on all columns."""
    keys = file.rank_keys(seed=0)  # the first level does not depend on the hash
    scored_N = file.scored_rows()
    names, codes_R = file.sources()
    names, codes_R = folded(names, codes_R, sources_apart(names, max_sources))
    codes_N = codes_R[scored_N]
    records_R = file.column(RECORDS)

    # R: rows; N: scored documents; S: sources. A row may stand for several records.
    read_S = np.zeros(len(names), np.int64)
    np.add.at(read_S, codes_R, records_R)
    scored_S = np.bincount(codes_N, minlength=len(names))
    tokens_S, bytes_S = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    np.add.at(tokens_S, codes_N, file.column("tokens")[scored_N])
    np.add.at(bytes_S, codes_N, file.column("bytes")[scored_N])

    summary = Summary(splits=1, max_sources=max_sources)
    for code, name in enumerate(names):
        summary.sources[name] = Counts(
            int(read_S[code]), int(scored_S[code]), int(tokens_S[code]), int(bytes_S[code])
        )

    statuses = file.table.column("status").to_pylist()
    for code, status, number in zip(codes_R.tolist(), statuses, records_R.tolist(), strict=True):
        if status != SCORED:
            summary.sources[names[code]].rejected_by_reason[status] += number
    for counts in summary.sources.values():
        summary.counts.add(counts)

    summary.histograms = Histogram.by_source(keys, codes_N, names)
    for name in file.table.schema.names:
        if name.startswith(JOINED):
            has_R = file.column(name) & file.document_rows()
            summary.joined[name.removeprefix(JOINED)] = int(has_R.sum())
    return summary


def rejected_rows(file: ScoreFile) -> Iterable[dict[str, Any]]:
    """Yields the rejected records of a part of a score file, as `rejected/` lists them."""
    rejected_R = np.flatnonzero(np.asarray(file.table.column("score").is_null()))
    for row in file.table.take(rejected_R).to_pylist():
        yield {
            "file": row.get("file", file.task.split.path),
            "position": row["position"],
            "records": row[RECORDS],
            "reason": row["status"],
            "detail": row["detail"],
            "key": row["key"],
            "excerpt": (row["excerpt"] or b"").decode("utf-8", "backslashreplace"),
        }


@contextlib.contextmanager
def _list_of_rejects(path: str) -> Iterator[Callable[[ScoreFile], None]]:
    """Yields a function that adds a split's rejected records to a list, committed at the end.

    The list is written to a local file, since it may be larger than memory. Without rejected
    records there is none.
    """
    with contextlib.ExitStack() as stack:
        staged, file = "", None

        def add(scored: ScoreFile) -> None:
            nonlocal staged, file
            lines = json_lines(rejected_rows(scored))
            if not lines:
                return
            with failing_by_name(path):
                if file is None:
                    staged = stack.enter_context(commits.staged(path))
                    file = stack.enter_context(open(staged, "xb"))
                file.write(lines)

        yield add
        if file is not None:
            with failing_by_name(path):
                file.close()
            commits.commit_staged(path, staged)


def _list_nothing(scored: ScoreFile) -> None:
    """Leaves the rejected records of a split out."""


def summarise_group(
    folder: RunFolder,
    group: int,
    ordinals: Sequence[int],
    max_sources: int = MAX_SOURCES,
    *,
    lists_rejects: bool = True,
) -> None:
    """Writes the rejected records and the summary of a group of scored splits.

    Args:
        folder: Run folder.
        group: Number of the group.
        ordinals: Ordinals of all its splits.
        max_sources: Maximum number of sources that are counted apart.
        lists_rejects: Whether to write the rejected records; a ranking leaves those of the run.

    Raises:
        CountsError: A score file is missing, or the counts do not add up.
    """
    # The rejected records come first: a committed summary means that its group is done.
    splits: list[SplitCounts] = []
    with contextlib.ExitStack() as stack:
        list_rejects: Callable[[ScoreFile], None] = _list_nothing
        if lists_rejects:
            list_rejects = stack.enter_context(_list_of_rejects(folder.rejected_path(group)))
        summary = _summarise(folder, ordinals, splits, list_rejects, max_sources)
    summary.counts.check(f"group {group}")

    content = to_plain(SummaryFile(group=group, summary=summary, by_split=tuple(splits)))
    commits.commit_if_absent(
        folder.summary_path(group), orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    )


def _counted(
    folder: RunFolder, ordinal: int, list_rejects: Callable[[ScoreFile], None], max_sources: int
) -> tuple[SplitTask, Summary]:
    """Counts one split, a part of its score file at a time, and lists its rejected records."""
    total: Summary | None = None
    read = 0
    for file in ScoreFile.in_chunks(folder, ordinal):
        one = _split_summary(file, max_sources)
        read += int(file.column(RECORDS).sum())
        list_rejects(file)
        if total is None:
            total = one
        else:
            total.add(one)

    assert total is not None
    total.splits = 1
    where = f"{file.task.split.path}, split {ordinal}"
    total.counts.check(where)
    if total.counts.read != read:
        raise CountsError(
            f"{where}: {counted(read, 'record')} read, but {total.counts.read} counted"
        )
    return file.task, total


def _summarise(
    folder: RunFolder,
    ordinals: Sequence[int],
    splits: list[SplitCounts],
    list_rejects: Callable[[ScoreFile], None],
    max_sources: int,
) -> Summary:
    summary = Summary(groups=1, max_sources=max_sources)
    for ordinal in sorted(ordinals):
        task, one = _counted(folder, ordinal, list_rejects, max_sources)
        summary.add(one)
        splits.append(SplitCounts(**vars(one.counts), ordinal=ordinal, path=task.split.path))
    return summary


def is_summarised(folder: RunFolder, group: int) -> bool:
    """Returns whether the summary of a group is committed."""
    return commits.exists(folder.summary_path(group)) or commits.exists(
        folder.old_summary_path(group)
    )


def summarised_groups(folder: RunFolder) -> set[int]:
    """Returns the numbers of the groups whose summaries are committed, from listings."""
    entries = [
        *commits.list_folder(folder.summaries_path),
        *commits.list_folder(folder.old_summaries_path),
    ]
    return {int(entry.path.rsplit("/", 1)[-1].split(".")[0]) for entry in entries}


def read_summary(folder: RunFolder, group: int) -> Summary:
    """Reads the committed summary of a group.

    Raises:
        FileNotFoundError: There is none.
    """
    return read_summary_file(folder, group).summary


def read_summary_file(folder: RunFolder, group: int) -> SummaryFile:
    """Reads the committed summary of a group with the counts of its splits.

    Raises:
        FileNotFoundError: There is none.
    """
    for path in (folder.summary_path(group), folder.old_summary_path(group)):
        content = read_json(path, SummaryFile)
        if content is not None:
            return content
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder.summary_path(group))
