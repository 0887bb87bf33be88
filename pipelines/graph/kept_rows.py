"""Kept rows: which rows of a score file the cutoffs keep, and how many of each split and source.

The writers of output files and the counts of a selection both use `copies_of_rows`, so they agree
on every document. The counts of a group are committed before anything is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import orjson

from datarater.pipelines.graph import output_formats, record_writers
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.kept_counts import GroupCounts, KeptCounts, KeptSplits
from datarater.pipelines.run_folder.layout import read_json
from datarater.pipelines.run_folder.many_sources import folded
from datarater.pipelines.run_folder.plan import read_group
from datarater.pipelines.run_folder.score_files import (
    RANK_COLUMNS,
    RATER_SCORE,
    RECORDS,
    ScoreFile,
)
from datarater.pipelines.run_folder.scored import read_scoring
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.pipelines.selection.ranking import RankKeys
from datarater.rater_model.documents.records import Split
from datarater.rater_model.json_codec import to_plain

KEEP_COLUMNS = (*RANK_COLUMNS, "source")
_SCORE_ROW_BYTES = 64
COUNT_COLUMNS = (*KEEP_COLUMNS, "bytes", RECORDS, RATER_SCORE)
"""The columns that counts are made of; only the score files of a ranking have the last one."""


def copies_of_rows(file: ScoreFile, cutoffs: Cutoffs, seed: int) -> np.ndarray:
    """Returns how many copies of each row of a score file to keep, int64."""
    copies_R = np.zeros(file.table.num_rows, np.int64)
    copies_R[file.scored_rows()] = cutoffs.copies(*keys_by_source(file, seed), seed)
    return copies_R


def keys_by_source(file: ScoreFile, seed: int) -> tuple[RankKeys, np.ndarray, list[str]]:
    """Returns the rank keys and sources of a score file's scored documents.

    Args:
        file: The score file, at least `KEEP_COLUMNS`.
        seed: Seed of the selection.

    Returns:
        The rank keys, the source of each as a code, and the names of the sources.
    """
    names, codes_R = file.sources()
    return file.rank_keys(seed), codes_R[file.scored_rows()], names


def count_group(
    request: SelectionRequest,
    group: int,
    cutoffs: Cutoffs,
    sources_apart: Collection[str] | None = None,
) -> GroupCounts:
    """Counts what is kept of every split of a group.

    Args:
        request: The selection.
        group: Number of the group.
        cutoffs: Final cutoffs of the rule.
        sources_apart: Names of the sources that the scoring counts apart; None for all.

    Raises:
        CountsError: The counts contradict each other.
    """
    rows: list[tuple[int, str, KeptCounts]] = []
    input_bytes: list[int] = []
    before: Split | None = None
    passed = 0
    sources: dict[str, KeptCounts] = {}
    for task in read_group(request.folder, group):
        split = task.split
        counted = _SplitCount(request, sources_apart)
        for file in ScoreFile.in_chunks(request.ranked, split.ordinal, COUNT_COLUMNS):
            counted.add(file, copies_of_rows(file, cutoffs, request.seed), sources)

        # A part of a stream is read by unpacking the parts before it too.
        continues = split.continues_stream and before is not None and before.path == split.path
        passed = passed + before.size if continues and before is not None else 0
        before = split

        # A row for each class of output files that the split's files need, most often just one.
        for layout, counts, size in counted.classes():
            counts.check(f"{split.path}, split {split.ordinal}")
            rows.append((split.ordinal, layout, counts))
            input_bytes.append(size + passed if size else 0)
    return GroupCounts(group, KeptSplits.of(rows, input_bytes), sources)


class _SplitCount:
    """Adds up what is kept of a split, by class of output files.

    Args:
        request: The selection.
        sources_apart: Names of the sources that the scoring counts apart; None for all.
    """

    def __init__(self, request: SelectionRequest, sources_apart: Collection[str] | None):
        self._format = request.output_format
        self._apart = sources_apart
        self._layouts: list[str] = []
        self._counts: list[KeptCounts] = []
        # By file of the split: the class, the bytes that reading it takes, and whether it is read.
        self._classes: list[int] = []
        self._sizes: list[int] = []
        self._is_read: list[bool] = []

    def add(self, file: ScoreFile, copies_R: np.ndarray, sources: dict[str, KeptCounts]) -> None:
        """Counts rows of the score file; adds their counts by source to those given."""
        kept_R = copies_R > 0
        document_R = file.document_rows()
        records_R = file.column(RECORDS)

        # In the order of the fields of KeptCounts.
        numbers = (
            records_R,
            kept_R,
            document_R & ~kept_R,
            np.where(document_R, 0, records_R),
            np.where(kept_R, file.column("tokens"), 0),
            np.where(kept_R, file.column("bytes"), 0),
            copies_R - kept_R,
            (copies_R - kept_R) * file.column("tokens"),
        )
        names, codes_R = file.sources()
        if self._apart is not None:
            names, codes_R = folded(names, codes_R, self._apart)
        for source, counts in zip(names, _counts_by(codes_R, len(names), numbers), strict=True):
            sources.setdefault(source, KeptCounts()).add(counts)

        sections = list(file.sections())
        if not self._counts:
            self._layouts, self._classes = _layouts(sections, self._format)
            self._counts = [KeptCounts() for _ in self._layouts]
            self._sizes, self._is_read = [0] * len(sections), [False] * len(sections)
        rows_P = np.asarray([section.table.num_rows for section in sections], np.int64)
        codes_R = np.repeat(np.asarray(self._classes, np.int64), rows_P)
        by_class = _counts_by(codes_R, len(self._layouts), numbers)
        for total, counts in zip(self._counts, by_class, strict=True):
            total.add(counts)

        first = 0
        for part, (section, rows) in enumerate(zip(sections, rows_P.tolist(), strict=True)):
            self._is_read[part] |= bool(kept_R[first : first + rows].any())
            # Scores are written without a look at the input.
            if self._format == "scores":
                self._sizes[part] += rows * _SCORE_ROW_BYTES
            else:
                self._sizes[part] = max(1, section.task.split.size)
            first += rows

    def classes(self) -> Iterator[tuple[str, KeptCounts, int]]:
        """Yields each class: a layout, its counts, and the stored bytes of the files to read."""
        sizes = [0] * len(self._layouts)
        for code, size, is_read in zip(self._classes, self._sizes, self._is_read, strict=True):
            sizes[code] += size if is_read else 0
        yield from zip(self._layouts, self._counts, sizes, strict=True)


def _layouts(sections: Iterable[ScoreFile], output_format: str) -> tuple[list[str], list[int]]:
    """Returns a layout of each class of output files, and the class of each section as an index."""
    layouts: list[str] = []
    codes: dict[str, int] = {}
    classes = []
    for section in sections:
        layout = record_writers.layout_for(section.layout, section.task.split.path, output_format)
        file_class = output_formats.file_class(layout, output_format)
        if file_class not in codes:
            codes[file_class] = len(codes)
            layouts.append(layout)
        classes.append(codes[file_class])
    return layouts, classes


def _counts_by(codes_R: np.ndarray, groups: int, numbers: Sequence[np.ndarray]) -> list[KeptCounts]:
    """Adds up the fields of `KeptCounts`, given for each row, by the code of the row."""
    columns = [_sum_by(codes_R, groups, values_R) for values_R in numbers]
    return [KeptCounts(*row) for row in zip(*columns, strict=True)]


def _sum_by(codes_R: np.ndarray, groups: int, values_R: np.ndarray) -> list[int]:
    sums_G = np.zeros(groups, np.int64)
    np.add.at(sums_G, codes_R, values_R.astype(np.int64))
    sums: list[int] = sums_G.tolist()
    return sums


@beam.typehints.with_output_types(GroupCounts)
class CountKept(Step[SelectionRequest]):
    """Commits the kept counts of every split of a group."""

    def __init__(self, request: SelectionRequest):
        super().__init__(request)
        self._apart: Collection[str] | None = None

    def _sources_apart(self) -> Collection[str]:
        if self._apart is None:
            self._apart = read_scoring(self._request.folder).sources.keys()
        return self._apart

    def process(self, group: int, cutoffs: Cutoffs) -> Iterator[GroupCounts]:
        """Counts one group; emits its committed counts."""
        path = self._request.selection.counts_path(group)
        counts = read_json(path, GroupCounts)
        if counts is None:
            counts = count_group(self._request, group, cutoffs, self._sources_apart())
            if not commits.commit_if_absent(path, orjson.dumps(to_plain(counts))):
                counts = read_json(path, GroupCounts) or counts
        yield counts
