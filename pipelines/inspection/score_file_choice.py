"""Chooses the score files in which the documents that are asked for can be.

Of a run with few score files all are read. In a larger one the summaries of groups of a thousand
splits tell where to look: their histograms count the documents by the first 16 bits of their rank.
The best documents of the corpus are in the first bins, so only groups with documents in these bins
can have them. If their score files are still too many, as many as may be read are drawn from these
groups in turn, with a seed; the answer then says that it is from a sample.

A random choice draws score files without any summary, about four for each document.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.run_folder.committed import at_once, scored_ordinals
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.many_sources import OTHER_SOURCES
from datarater.pipelines.run_folder.plan import CommittedPlans
from datarater.pipelines.run_folder.ranking_options import EXCLUSIONS
from datarater.pipelines.run_folder.scored import Scoring
from datarater.pipelines.run_folder.summaries import (
    SummaryFile,
    read_summary_file,
    summarised_groups,
)
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import SHIFTS

_FILES_PER_RANDOM_DOCUMENT = 4


@dataclasses.dataclass(frozen=True)
class ScoreFileChoice:
    """Score files to read.

    Attributes:
        ordinals: Ordinals of their splits, in the order in which they are read.
        committed: Number of committed score files of the run.
        is_complete: Whether no other score file can have a document that belongs to the answer.
    """

    ordinals: Sequence[int]
    committed: int
    is_complete: bool


def choose_score_files(
    folder: RunFolder, plans: CommittedPlans, scoring: Scoring | None, question: Question
) -> ScoreFileChoice:
    """Returns the score files to read.

    Args:
        folder: Run folder.
        plans: Its plans.
        scoring: Counts of the whole corpus; None while it is still being scored.
        question: Which documents are asked for.
    """
    rng = random.Random(question.seed)
    listed = None if scoring is not None else scored_ordinals(folder)
    committed = len(listed) if listed is not None else count_splits(plans)
    if question.fits(committed) and question.show is not Show.RANDOM:
        return ScoreFileChoice(_numbered(plans, listed, range(committed)), committed, True)

    if question.show is Show.RANDOM:
        count = _FILES_PER_RANDOM_DOCUMENT * question.needed
        if question.max_score_files:
            count = min(count, question.max_score_files)
        drawn = rng.sample(range(committed), min(count, committed))
        return ScoreFileChoice(_numbered(plans, listed, drawn), committed, True)
    if question.show is Show.KEY:
        first = range(min(committed, question.max_score_files))
        return ScoreFileChoice(_numbered(plans, listed, first), committed, False)

    # By score: only groups with documents in the bins that are asked for.
    groups = sorted(summarised_groups(folder))
    all_read = question.fits(len(groups))
    if not all_read:
        groups = sorted(rng.sample(groups, question.max_score_files))
    summaries = list(at_once(lambda group: read_summary_file(folder, group), groups))
    candidates = _with_wanted_bins(summaries, question)

    # What is not summarized yet can have any document.
    if listed is not None:
        known = {split.ordinal for summary in summaries for split in summary.by_split}
        candidates.append([ordinal for ordinal in listed.tolist() if ordinal not in known])
    total = sum(map(len, candidates))
    for ordinals in candidates:
        rng.shuffle(ordinals)
    taken = list(_in_turn(candidates))
    if question.max_score_files:
        taken = taken[: question.max_score_files]
    return ScoreFileChoice(taken, committed, all_read and len(taken) == total)


def splits_with_excluded(folder: RunFolder, question: Question) -> Iterator[int]:
    """Yields the ordinals of the splits with documents that a ranking excludes, from its summaries.

    Args:
        folder: Run folder as the ranking sees it.
        question: Which documents are asked for.
    """
    reasons = EXCLUSIONS if question.reason is None else (question.reason,)
    for number, group in enumerate(sorted(summarised_groups(folder)), 1):
        if not question.fits(number):
            return
        for split in read_summary_file(folder, group).by_split:
            if any(split.rejected_by_reason[reason] for reason in reasons):
                yield split.ordinal


def count_splits(plans: CommittedPlans) -> int:
    """Returns the number of splits of all plans."""
    return sum(sum(index.splits) for index in plans.indices)


def _numbered(
    plans: CommittedPlans, listed: NDArray[np.int64] | None, numbers: Sequence[int]
) -> list[int]:
    """Returns the ordinals of splits by their numbers among those that are scored."""
    if listed is not None:
        return [int(listed[number]) for number in numbers]
    return plans.ordinals_of(numbers)


def _with_wanted_bins(summaries: Sequence[SummaryFile], question: Question) -> list[list[int]]:
    """Returns the ordinals of the splits of each group that can have the documents.

    The groups with the most documents in the wanted bins come first.
    """
    histograms = [_histogram(summary, question.source) for summary in summaries]
    low, high = wanted_bins(Histogram.merge(histograms), question)
    counts = [_documents_between(histogram, low, high) for histogram in histograms]
    order = sorted(range(len(summaries)), key=lambda at: -counts[at])
    return [
        [split.ordinal for split in summaries[at].by_split if split.scored]
        for at in order
        if counts[at]
    ]


def _histogram(summary: SummaryFile, source: str | None) -> Histogram:
    if source is None:
        return summary.summary.histogram()
    histograms = summary.summary.histograms
    rest = histograms.get(OTHER_SOURCES, Histogram.empty())
    return histograms.get(source, rest)


def wanted_bins(histogram: Histogram, question: Question) -> tuple[int, int]:
    """Returns the first and the last bin that can have the documents of a question by score."""
    bins_K, counts_K = histogram.bins_K, histogram.counts_K
    if not len(bins_K):
        return 0, -1
    needed = question.needed
    if question.show is Show.BEST:
        return 0, int(bins_K[_reaching(counts_K, needed)])
    if question.show is Show.WORST:
        return int(bins_K[::-1][_reaching(counts_K[::-1], needed)]), int(bins_K[-1])

    assert question.end is not None
    middle = question.end >> SHIFTS[0]
    below_K, above_K = bins_K < middle, bins_K > middle
    low, high = middle, middle
    if below_K.any():
        low = int(bins_K[below_K][::-1][_reaching(counts_K[below_K][::-1], needed)])
    if above_K.any():
        high = int(bins_K[above_K][_reaching(counts_K[above_K], needed)])
    return low, high


def _reaching(counts_K: NDArray[np.int64], needed: int) -> int:
    """Returns the index at which the sum reaches a number; the last one if it never does."""
    return min(int(np.searchsorted(np.cumsum(counts_K), needed)), len(counts_K) - 1)


def _documents_between(histogram: Histogram, low: int, high: int) -> int:
    inside_K = (histogram.bins_K >= max(low, 0)) & (histogram.bins_K <= max(high, 0))
    return int(histogram.counts_K[inside_K].sum()) if high >= low else 0


def _in_turn(lists: Sequence[Sequence[int]]) -> Iterable[int]:
    """Yields the first of each list, then the second of each, and so on."""
    for row in itertools.zip_longest(*lists):
        yield from (ordinal for ordinal in row if ordinal is not None)
