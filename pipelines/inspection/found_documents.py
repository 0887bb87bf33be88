"""Finds documents in score files: first by the columns that rank them, then with all columns."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.score_files import RANK_COLUMNS, RATER_SCORE, ScoreFile
from datarater.pipelines.selection.ranking import RankKeys, key_hash
from datarater.rater_model.documents.jsonl import key_of
from datarater.rater_model.documents.records import Split

_COLUMNS = (*RANK_COLUMNS, "source")
_EXCLUDED_COLUMNS = ("position", "score", RATER_SCORE, "source", "status")
_FILES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where a document is.

    Attributes:
        rank: What the documents of an answer are sorted by.
        ordinal: Ordinal of the split, which names its score file.
        part: Ordinal of the part of a file within the split.
        position: Position in the file.
        rank_key: Rank key of the document with the seed of the selection.
    """

    rank: int
    ordinal: int
    part: int
    position: int
    rank_key: int


@dataclasses.dataclass(frozen=True)
class FoundDocument:
    """A document of the answer.

    Attributes:
        row: All columns of its row in the score file. `score` is the score of the run; in the score
            file of a ranking, `ranked_by` is the number to rank by.
        split: The split of its file.
        place: Where it is.
    """

    row: dict[str, Any]
    split: Split
    place: Place


def find_places(
    folder: RunFolder, ordinals: Sequence[int], question: Question, seed: int
) -> list[Place]:
    """Returns the places of the documents that are asked for, in the order to show them in.

    Args:
        folder: Run folder.
        ordinals: Ordinals of the splits whose score files are read.
        question: Which documents are asked for.
        seed: Seed of the selection, for ties.

    Raises:
        CountsError: A score file is missing or damaged.
    """
    answers = _Answers(question)
    for first in range(0, len(ordinals), _FILES_AT_ONCE):
        some = ordinals[first : first + _FILES_AT_ONCE]
        for ordinal, parts in zip(
            some, at_once(functools.partial(_begun, folder), some), strict=True
        ):
            for file in parts:
                answers.add(ordinal, file, seed)
    return answers.places()


def find_excluded(
    folder: RunFolder, ordinals: Iterable[int], question: Question
) -> tuple[list[Place], list[int]]:
    """Finds documents that a ranking excludes, in the order of the input.

    Args:
        folder: Run folder as the ranking sees it.
        ordinals: Ordinals of the splits whose score files may be read, in order. No more are taken
            than are read.
        question: Which documents are asked for.

    Returns:
        The places, and the ordinals of the splits whose score files were read.

    Raises:
        CountsError: A score file is missing or damaged.
    """
    places: list[Place] = []
    read: list[int] = []
    left = iter(ordinals)
    begin = functools.partial(_begun, folder, columns=_EXCLUDED_COLUMNS)
    while len(places) < question.needed and (some := list(itertools.islice(left, _FILES_AT_ONCE))):
        for ordinal, parts in zip(some, at_once(begin, some), strict=True):
            for file in parts:
                places += _excluded(ordinal, file, question, len(places))
        read += some
    return places[question.skip :][: question.count], read


def _excluded(ordinal: int, file: ScoreFile, question: Question, first: int) -> Iterator[Place]:
    """Yields the places of the excluded documents in a part of a score file.

    Args:
        ordinal: Ordinal of the split.
        file: The part, with `_EXCLUDED_COLUMNS`.
        question: Which documents are asked for.
        first: Rank of the first one.
    """
    wanted_R = file.document_rows() & file.table.column("score").is_null().to_numpy()
    if question.reason is not None:
        statuses_R = np.asarray(file.table.column("status").to_pylist(), object)
        wanted_R &= statuses_R == question.reason
    if question.source is not None:
        names, codes_R = file.sources()
        wanted_R &= np.asarray([name == question.source for name in names], bool)[codes_R]
    positions_R, parts_R = file.column("position"), file.ordinals()
    for rank, row in enumerate(np.flatnonzero(wanted_R).tolist(), first):
        yield Place(rank, ordinal, int(parts_R[row]), int(positions_R[row]), 0)


def _begun(
    folder: RunFolder, ordinal: int, columns: Sequence[str] = _COLUMNS
) -> Iterator[ScoreFile]:
    """Returns the parts of a score file, of which the first is already read."""
    parts = ScoreFile.in_chunks(folder, ordinal, columns)
    return itertools.chain([next(parts)], parts)


class _Answers:
    """The best answers so far, of which no more are remembered than are needed."""

    def __init__(self, question: Question):
        self._question = question
        self._first: list[Place] = []  # the lowest ranks
        self._after: list[Place] = []  # of the documents after the cutoff
        self._rng = np.random.default_rng(question.seed)
        self._hashes = np.asarray(
            sorted({key_hash(key) for given in question.keys for key in key_forms(given)}),
            np.uint64,
        )

    def add(self, ordinal: int, file: ScoreFile, seed: int) -> None:
        """Adds the documents of a part of a score file."""
        names, codes_R = file.sources()
        rows_N = file.scored_rows()
        keys = file.rank_keys(seed)
        chosen_N = np.ones(len(rows_N), bool)
        if self._question.source is not None:
            wanted = [name == self._question.source for name in names]
            chosen_N = np.asarray(wanted, bool)[codes_R[rows_N]] if names else chosen_N
        if self._question.show is Show.KEY:
            chosen_N &= np.isin(file.column("key_hash")[rows_N], self._hashes)
        keys = keys.take(np.flatnonzero(chosen_N))
        if not len(keys):
            return

        needed, show = self._question.needed, self._question.show
        if show is Show.RANDOM:
            drawn_N = self._rng.integers(2**62, size=len(keys))
            rows = np.argsort(drawn_N, kind="stable")[:needed].tolist()
            ranks = {row: int(drawn_N[row]) for row in rows}
            self._first = _merged(self._first, _places(ordinal, keys, rows, ranks), needed)
            return

        order_N = _rank_order(keys)
        if show in (Show.KEY, Show.BEST):
            self._first = _merged(self._first, _places(ordinal, keys, order_N[:needed]), needed)
        elif show is Show.WORST:
            self._first = _merged(
                self._first, _places(ordinal, keys, order_N[::-1][:needed], sign=-1), needed
            )
        else:
            self._add_near(ordinal, keys, order_N)

    def _add_near(self, ordinal: int, keys: RankKeys, order_N: NDArray[np.int64]) -> None:
        """Adds the documents nearest to the cutoff on both of its sides."""
        end, needed = self._question.end, self._question.needed
        assert end is not None
        low, high = 0, len(order_N)
        while low < high:  # the number of documents before the cutoff
            middle = (low + high) // 2
            if keys.key(int(order_N[middle])) < end:
                low = middle + 1
            else:
                high = middle
        before, after = order_N[max(0, low - needed) : low][::-1], order_N[low : low + needed]
        self._first = _merged(self._first, _places(ordinal, keys, before, sign=-1), needed)
        self._after = _merged(self._after, _places(ordinal, keys, after), needed)

    def places(self) -> list[Place]:
        """Returns the places to show, in order."""
        question = self._question
        if question.show is not Show.CUTOFF:
            return self._first[question.skip :][: question.count]
        # Half of them from each side, and more from one if the other has too few.
        half = (question.count + 1) // 2
        before, after = self._first[question.skip :], self._after[question.skip :]
        first = max(half, question.count - len(after))
        before = before[:first]
        return [*before[::-1], *after[: question.count - len(before)]]


def _rank_order(keys: RankKeys) -> NDArray[np.int64]:
    """Returns the indices of the keys, the best first."""
    return np.lexsort((keys.positions_N, keys.ordinals_N, keys.hashes(), keys.orders()))


def _places(
    ordinal: int,
    keys: RankKeys,
    rows: Iterable[int],
    ranks: dict[int, int] | None = None,
    sign: int = 1,
) -> list[Place]:
    """Returns the places of some documents; without ranks they are sorted by rank key."""
    places = []
    for row in map(int, rows):
        rank_key = keys.key(row)
        rank = sign * rank_key if ranks is None else ranks.get(row, rank_key)
        places.append(
            Place(rank, ordinal, int(keys.ordinals_N[row]), int(keys.positions_N[row]), rank_key)
        )
    return places


def _merged(known: list[Place], new: list[Place], needed: int) -> list[Place]:
    return heapq.nsmallest(needed, [*known, *new])


def key_forms(given: str) -> list[str]:
    """Returns the keys that a text may mean: an id that is a string, any other id, or a key.

    Example:
        >>> key_forms("7")
        ['"7"', '7']
    """
    return list(dict.fromkeys([key_of(given, ""), given]))


def read_rows(folder: RunFolder, places: Sequence[Place]) -> list[FoundDocument]:
    """Returns documents with all columns of their rows, in the order of their places.

    Raises:
        CountsError: A score file is missing or damaged.
    """
    wanted: dict[int, dict[tuple[int, int], Place]] = {}
    for place in places:
        wanted.setdefault(place.ordinal, {})[place.part, place.position] = place

    found: dict[Place, FoundDocument] = {}
    for one in at_once(lambda item: _rows_of(folder, *item), list(wanted.items())):
        found |= one
    return [found[place] for place in places if place in found]


def _rows_of(
    folder: RunFolder, ordinal: int, wanted: dict[tuple[int, int], Place]
) -> dict[Place, FoundDocument]:
    found = {}
    for file in ScoreFile.in_chunks(folder, ordinal):
        for section in file.with_own_scores().sections():
            split = section.task.split
            positions = {position for part, position in wanted if part == split.ordinal}
            if not positions:
                continue
            rows_M = np.flatnonzero(np.isin(section.column("position"), list(positions)))
            for row in section.table.take(rows_M).to_pylist():
                place = wanted[split.ordinal, row["position"]]
                if row["score"] is not None:
                    found[place] = FoundDocument(row, split, place)
    return found
