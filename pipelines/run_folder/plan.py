"""The committed plan: the splits of a run and the tasks that score them.

A split is a part of a file, or several small files. Ordinals number the parts of files, in the
order of (path, start). The ordinal of a split is that of its first part, so a split of N files is
followed by a gap of N - 1. Documents therefore rank alike however files are packed.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

from datarater.pipelines.errors import CountsError, InputChangedError
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    PlanNumbers,
    read_identity,
)
from datarater.pipelines.run_folder.layout import RunFolder, read_json, read_json_lines
from datarater.rater_model.documents.files import file_info, held, local_path
from datarater.rater_model.documents.records import UNKNOWN_FORMAT, FileInfo, Split
from datarater.rater_model.documents.whole_files import read_whole
from datarater.rater_model.json_codec import IF_SET

SPLITS_PER_GROUP = 1000
"""Number of splits in a plan shard, a summary and a file of rejected records.

A resumed run opens one file per group instead of one per split.
"""


SMALL_FILE_BYTES = 4 * 2**20
"""Size up to which a file is read in one piece, and packed with others into one split."""


@dataclasses.dataclass(frozen=True, slots=True)
class SplitTask:
    """A split of the plan, with the fingerprints of its files at that time.

    Attributes:
        split: The part of a file to read; the first file if there are several.
        fingerprint: Fingerprint of that whole file.
        group: Number of the group of splits that are summarized together.
        packed: Small files that follow it in the same split, whole. Their ordinals follow too.
    """

    split: Split
    fingerprint: str
    group: int
    packed: tuple[FileInfo, ...] = dataclasses.field(default=(), metadata=IF_SET)

    @property
    def size(self) -> int:
        """Stored bytes of the split, approximately."""
        return self.split.size + sum(info.size for info in self.packed)

    @property
    def parts(self) -> int:
        """Number of parts of files, each of which has an ordinal."""
        return 1 + len(self.packed)

    def each(self) -> Iterator[SplitTask]:
        """Yields the parts of files as splits of their own, in order."""
        yield dataclasses.replace(self, packed=()) if self.packed else self
        for ordinal, info in enumerate(self.packed, self.split.ordinal + 1):
            split = Split(info.path, UNKNOWN_FORMAT, ordinal=ordinal, size=info.size)
            yield SplitTask(split, info.fingerprint, self.group)


@dataclasses.dataclass(frozen=True)
class PlanIndex:
    """Where the splits of a plan are, by group.

    Attributes:
        first_ordinals: Ordinal of the first split of each group, increasing.
        splits: Number of splits of each group.
        end: Number of ordinals.
    """

    first_ordinals: tuple[int, ...]
    splits: tuple[int, ...]
    end: int

    @classmethod
    def dense(cls, splits: int, splits_per_group: int = SPLITS_PER_GROUP) -> PlanIndex:
        """Returns the index of a plan without packed files and without an index of its own."""
        firsts = range(0, splits, splits_per_group)
        counts = (min(splits_per_group, splits - first) for first in firsts)
        return cls(tuple(firsts), tuple(counts), splits)

    def group_of(self, ordinal: int) -> int:
        """Returns the group of the split with an ordinal."""
        return bisect.bisect_right(self.first_ordinals, ordinal) - 1


def identity_of(folder: RunFolder) -> CommittedIdentity:
    """Reads the committed identity of a run folder.

    Raises:
        CountsError: No plan is committed.
    """
    identity = read_identity(folder)
    if identity is None:
        raise CountsError(
            f"{folder.path} has no plan: it is not a run folder, or its scoring never started"
        )
    return identity


def plan_of(folder: RunFolder) -> PlanNumbers:
    """Reads the committed plan in numbers; raises as `identity_of` does."""
    return identity_of(folder).plan


def index_of(
    folder: RunFolder, plan: PlanNumbers, splits_per_group: int = SPLITS_PER_GROUP
) -> PlanIndex:
    """Reads the index of the committed plan.

    Args:
        folder: Run folder.
        plan: The plan in numbers.
        splits_per_group: Number of splits in a group of a plan without an index.
    """
    index = read_json(folder.plan_index_path(plan.id), PlanIndex)
    return PlanIndex.dense(plan.splits, splits_per_group) if index is None else index


def read_group(folder: RunFolder, group: int) -> list[SplitTask]:
    """Reads the splits of one group of the committed plan."""
    return read_json_lines(folder.plan_shard_path(plan_of(folder).id, group), SplitTask)


def ordinals_of(folder: RunFolder, numbers: Sequence[int]) -> list[int]:
    """Returns the ordinals of splits by their numbers, counted from 0 without gaps.

    Args:
        folder: Run folder.
        numbers: Numbers of splits.
    """
    plan = plan_of(folder)
    index = index_of(folder, plan)
    if index.end == plan.splits:
        return list(numbers)

    starts = [0, *itertools.accumulate(index.splits)]
    read = functools.lru_cache(maxsize=1)(functools.partial(read_group, folder))
    ordinals = {}
    for number in sorted(numbers):
        group = bisect.bisect_right(starts, number) - 1
        ordinals[number] = read(group)[number - starts[group]].split.ordinal
    return [ordinals[number] for number in numbers]


@contextlib.contextmanager
def unchanged(task: SplitTask, small_bytes: int = SMALL_FILE_BYTES) -> Iterator[None]:
    """Refuses a file that has changed since the plan was made, before or during the block.

    A small file in an object store is read here, in one request whose answer has the fingerprint
    too. Opening it in the block costs nothing.

    Args:
        task: Part of a file.
        small_bytes: Size up to which a file is read in one piece.

    Raises:
        InputChangedError: The file changed or disappeared; the message names it.
    """
    split = task.split
    is_whole = split.start == 0 and split.end is None
    if is_whole and split.size <= small_bytes and local_path(split.path) is None:
        with _still_there(split.path):
            info, content = read_whole(split.path)
        _check(task, info)
        with held(split.path, content):
            yield
        return

    check_fingerprint(task)
    yield
    # A file that changed while it was read has mixed contents.
    check_fingerprint(task)


def check_fingerprint(task: SplitTask) -> None:
    """Refuses a file that has changed since the plan was made.

    Raises:
        InputChangedError: The file changed or disappeared; the message names it.
    """
    with _still_there(task.split.path):
        info = file_info(task.split.path)
    _check(task, info)


@contextlib.contextmanager
def _still_there(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputChangedError(f"the input {path} is gone: {error}") from error


def _check(task: SplitTask, now: FileInfo) -> None:
    if now.fingerprint != task.fingerprint:
        raise InputChangedError(
            f"the input {task.split.path} has changed since the plan was made (fingerprint "
            f"{task.fingerprint} then, {now.fingerprint} now); curate it into a new run folder"
        )
