"""Reads score files for a report, in memory and time that do not grow with the corpus.

Of a small run all score files are read, so that its figures and its best documents are exact. Of a
larger one as many as the limits allow, drawn with a fixed seed. Nothing but sums and a few
documents stays in memory.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import plans_of
from datarater.pipelines.run_folder.score_files import RANK_COLUMNS, ScoreFile
from datarater.pipelines.selection.ranking import RankKeys
from datarater.rater_model.documents.records import Split
from datarater.report.keeping import Keeping

_COLUMNS = (*RANK_COLUMNS, "key", "source")
_FILES_AT_ONCE = 8
LENGTH_EDGES = 2.0 ** np.arange(0, 30.25, 0.25)
"""Ends of the intervals of document lengths, in tokens."""


Place = tuple[int, int]
"""The ordinal of a part of a file, and a position in it."""


@dataclass(frozen=True)
class Limits:
    """How much is read.

    Attributes:
        files: Maximum number of score files.
        documents: Number of documents after which no further file is read.
        seconds: Time after which no further file is read.
        text_seconds: Time after which no further text is read.
    """

    files: int = 256
    documents: int = 4_000_000
    seconds: float = 60.0
    text_seconds: float = 30.0


@dataclass(frozen=True)
class Candidate:
    """A document that the report may show.

    Attributes:
        rank: Sorts candidates of a list, the first to be shown first.
        split: Its split; its file, if the split has several.
        position: Its position in the split's file.
        key: Its key.
        score: Its score.
        tokens: Its length in tokens.
        source: Its source.
        chance: Its chance to be kept.
    """

    rank: tuple[float, int]
    split: Split
    position: int
    key: str
    score: float
    tokens: int
    source: str
    chance: float

    @property
    def place(self) -> Place:
        """Where the document is: the ordinal of its split, and its position."""
        return self.split.ordinal, self.position


@dataclass
class Sample:
    """Sums over the documents that were read, and the documents to show.

    Attributes:
        score_edges: Ends of the B score intervals.
        documents: Number of scored documents that were read.
        files: Number of score files that were read.
        counts_BL: Number of documents by score and length interval.
        kept_B: Expected number of kept documents by score interval.
        best: The best documents.
        above: The documents nearest to the cutoff that are kept.
        below: The documents nearest to the cutoff that are not.
        worst: The worst documents, the very worst first.
    """

    score_edges: NDArray[np.float64]
    documents: int = 0
    files: int = 0
    counts_BL: NDArray[np.int64] = field(init=False)
    kept_B: NDArray[np.float64] = field(init=False)
    best: list[Candidate] = field(default_factory=list)
    above: list[Candidate] = field(default_factory=list)
    below: list[Candidate] = field(default_factory=list)
    worst: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        bins = len(self.score_edges) - 1
        self.counts_BL = np.zeros((bins, len(LENGTH_EDGES) - 1), np.int64)
        self.kept_B = np.zeros(bins)


def take_sample(
    folder: RunFolder,
    splits: int,
    keeping: Keeping,
    seed: int,
    score_edges: NDArray[np.float64],
    listed: int,
    limits: Limits,
) -> Sample:
    """Reads score files up to the limits.

    Args:
        folder: The run folder.
        splits: Number of its splits.
        keeping: What the selection keeps.
        seed: Seed of the selection.
        score_edges: Ends of the score intervals; outer scores count in the outer intervals.
        listed: Number of documents in each list.
        limits: How much is read.

    Raises:
        CountsError: A score file is missing or damaged.
    """
    rng = random.Random(0)
    drawn = rng.sample(range(splits), min(splits, limits.files))
    ordinals = plans_of(folder).ordinals_of(drawn)
    sample = Sample(score_edges)
    deadline = time.monotonic() + limits.seconds
    for first in range(0, len(ordinals), _FILES_AT_ONCE):
        if sample.documents >= limits.documents or time.monotonic() > deadline:
            break
        some = ordinals[first : first + _FILES_AT_ONCE]
        for parts in at_once(functools.partial(_begun, folder), some):
            sample.files += 1
            for file in parts:
                _add_part(sample, file, keeping, seed, listed)
    return sample


def _begun(folder: RunFolder, ordinal: int) -> Iterator[ScoreFile]:
    """Returns the parts of a score file, of which the first is already read."""
    parts = ScoreFile.in_chunks(folder, ordinal, _COLUMNS, in_one_request=True)
    return itertools.chain([next(parts)], parts)


def _add_part(sample: Sample, file: ScoreFile, keeping: Keeping, seed: int, listed: int) -> None:
    rows_N = file.scored_rows()
    names, codes_R = file.sources()
    codes_N = codes_R[rows_N]
    scores_N = file.table.column("score").to_numpy()[rows_N]
    keys = file.rank_keys(seed)
    chances_N = keeping.chances(keys, scores_N, codes_N, names)
    sample.documents += len(rows_N)

    bins_N = _bins(sample.score_edges, scores_N)
    np.add.at(sample.counts_BL, (bins_N, _bins(LENGTH_EDGES, keys.tokens_N)), 1)
    np.add.at(sample.kept_B, bins_N, chances_N)

    if listed and len(rows_N):
        document_keys_N = file.table.column("key").take(rows_N)
        splits = [section.task.split for section in file.sections()]
        chosen = _Chooser(splits, keys, document_keys_N, scores_N, codes_N, names, chances_N)
        order_N = keys.orders().astype(np.float64)
        near_N = _distances(keeping, scores_N, codes_N, names, chances_N)
        kept_N = chances_N >= 0.5
        half = (listed + 1) // 2
        everyone_N = np.ones(len(rows_N), bool)
        sample.best = chosen.merged(sample.best, order_N, everyone_N, listed)
        sample.worst = chosen.merged(sample.worst, -order_N, everyone_N, listed)
        sample.above = chosen.merged(sample.above, near_N, kept_N, half)
        sample.below = chosen.merged(sample.below, near_N, ~kept_N, listed - half)


def _bins(edges: NDArray[np.float64], values_N: NDArray[Any]) -> NDArray[np.int64]:
    index_N = np.searchsorted(edges, values_N, side="right") - 1
    return np.clip(index_N, 0, len(edges) - 2)


def _distances(
    keeping: Keeping,
    scores_N: NDArray[np.float64],
    codes_N: NDArray[np.int64],
    names: Sequence[str],
    chances_N: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns how far each document is from being decided otherwise; infinite without a cutoff."""
    if keeping.draws:
        return np.abs(chances_N - 0.5)
    cutoffs = [keeping.cutoff(name) for name in names]
    cutoffs_S = np.asarray([np.inf if score is None else score for score in cutoffs])
    return np.abs(scores_N - cutoffs_S[codes_N])


@dataclass(frozen=True)
class _Chooser:
    splits: Sequence[Split]
    keys: RankKeys
    document_keys_N: pa.ChunkedArray
    scores_N: NDArray[np.float64]
    codes_N: NDArray[np.int64]
    names: Sequence[str]
    chances_N: NDArray[np.float64]

    def merged(
        self,
        known: list[Candidate],
        ranks_N: NDArray[np.float64],
        allowed_N: NDArray[np.bool_],
        count: int,
    ) -> list[Candidate]:
        """Returns the `count` candidates of the lowest rank, of those known and of this file."""
        rows_M = np.flatnonzero(allowed_N & np.isfinite(ranks_N))
        hashes_M = self.keys.take(rows_M).hashes()
        order_M = np.lexsort((hashes_M, ranks_N[rows_M]))[:count]
        new = [
            Candidate(
                (float(ranks_N[row]), hash_),
                self.splits[int(self.keys.ordinals_N[row]) - self.splits[0].ordinal],
                int(self.keys.positions_N[row]),
                self.document_keys_N[row].as_py(),
                float(self.scores_N[row]),
                int(self.keys.tokens_N[row]),
                self.names[self.codes_N[row]],
                float(self.chances_N[row]),
            )
            for row, hash_ in zip(rows_M[order_M].tolist(), hashes_M[order_M].tolist(), strict=True)
        ]
        return sorted([*known, *new], key=lambda one: (one.rank, one.place))[:count]
