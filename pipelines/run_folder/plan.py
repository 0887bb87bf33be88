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
import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

from datarater.pipelines.errors import CountsError, InputChangedError
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    PlanNumbers,
    combined,
    read_identities,
    read_identity,
)
from datarater.pipelines.run_folder.layout import (
    RunFolder,
    read_json,
    read_json_lines,
    stream_json_lines,
)
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.content import content_digest, may_be_the_same
from datarater.rater_model.documents.files import file_info, held, local_path
from datarater.rater_model.documents.records import UNKNOWN_FORMAT, FileInfo, Split
from datarater.rater_model.documents.whole_files import read_whole
from datarater.rater_model.json_codec import IF_SET

T = TypeVar("T")

SPLITS_PER_GROUP = 1000
"""Number of splits in a plan shard, a summary and a file of rejected records.

A resumed run opens one file per group instead of one per split.
"""


SMALL_FILE_BYTES = 4 * 2**20
"""Size up to which a file is read in one piece, and packed with others into one split."""


def is_small(file: FileInfo, split_bytes: int, small_bytes: int = SMALL_FILE_BYTES) -> bool:
    """Returns whether a file can share a split with others.

    Args:
        file: The file.
        split_bytes: Stored bytes per split.
        small_bytes: Size up to which a file is read in one piece.
    """
    return file.size <= min(small_bytes, split_bytes)


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

    @property
    def paths(self) -> list[str]:
        """Paths of its files, in order."""
        return [self.split.path, *(info.path for info in self.packed)]

    def moved(self, first: int, group: int) -> SplitTask:
        """Returns the split with its ordinal counted from another one, and in another group."""
        split = dataclasses.replace(self.split, ordinal=self.split.ordinal + first)
        return SplitTask(split, self.fingerprint, group, self.packed)

    def each(self) -> Iterator[SplitTask]:
        """Yields the parts of files as splits of their own, in order."""
        yield dataclasses.replace(self, packed=()) if self.packed else self
        for ordinal, info in enumerate(self.packed, self.split.ordinal + 1):
            split = Split(info.path, UNKNOWN_FORMAT, ordinal=ordinal, size=info.size)
            yield SplitTask(split, info.fingerprint, self.group)


@dataclasses.dataclass(frozen=True)
class PlanIndex:
    """Where the inputs and the splits of a plan are.

    Attributes:
        inputs: Keys of the chunks of its list of inputs, in order.
        shards: Key and part of the splits of each group; none in a plan of version 0.1.0, whose
            files are named by their groups.
        first_ordinals: Ordinal of the first split of each group, increasing.
        splits: Number of splits of each group.
        end: Ordinal after the last one.
    """

    inputs: tuple[str, ...]
    shards: tuple[tuple[str, int], ...]
    first_ordinals: tuple[int, ...]
    splits: tuple[int, ...]
    end: int

    @classmethod
    def old(cls, splits: int, splits_per_group: int = SPLITS_PER_GROUP) -> PlanIndex:
        """Returns the index of a plan of version 0.1.0, which has none."""
        firsts = range(0, splits, splits_per_group)
        counts = (min(splits_per_group, splits - first) for first in firsts)
        return cls((), (), tuple(firsts), tuple(counts), splits)


@dataclasses.dataclass(frozen=True)
class CommittedPlans:
    """All plans of a run folder: the first one, and one for each time that files were appended.

    Attributes:
        folder: Run folder.
        identities: Identities of the plans, at least one.
        indices: Indices of the plans.
    """

    folder: RunFolder
    identities: tuple[CommittedIdentity, ...]
    indices: tuple[PlanIndex, ...]

    @property
    def identity(self) -> CommittedIdentity:
        """The identity of the run, of all plans together."""
        return combined(self.identities)

    @property
    def end(self) -> int:
        """Ordinal after the last one of all plans."""
        return self.indices[-1].end

    @property
    def groups(self) -> int:
        """Number of groups of all plans."""
        return sum(len(index.splits) for index in self.indices)

    def group_of(self, ordinal: int) -> int:
        """Returns the group of the split with an ordinal."""
        return bisect.bisect_right(self._first_ordinals, ordinal) - 1

    @functools.cached_property
    def _first_ordinals(self) -> list[int]:
        return [first for index in self.indices for first in index.first_ordinals]

    @functools.cached_property
    def _splits(self) -> list[int]:
        return [count for index in self.indices for count in index.splits]

    def read_group(self, group: int) -> list[SplitTask]:
        """Reads the splits of one group."""
        within = group
        for identity, index in zip(self.identities, self.indices, strict=True):
            if within < len(index.splits):
                return self._read(identity.plan.id, index, within, group)
            within -= len(index.splits)
        raise CountsError(
            f"{self.folder.path} has {counted(self.groups, 'group')} of splits, no {group}"
        )

    def _read(self, plan: str, index: PlanIndex, within: int, group: int) -> list[SplitTask]:
        if not index.shards:
            return read_json_lines(self.folder.old_splits_path(plan, within), SplitTask)

        # Shards count from 0, so that they can be written before the sizes of others are known.
        first = index.first_ordinals[within]
        tasks = read_json_lines(self.folder.splits_path(*index.shards[within]), SplitTask)
        return [task.moved(first, group) for task in tasks]

    def ordinals_of(self, numbers: Sequence[int]) -> list[int]:
        """Returns the ordinals of splits by their numbers, counted from 0 without gaps."""
        if self.end == sum(self._splits):
            return list(numbers)

        starts = [0, *itertools.accumulate(self._splits)]
        read = functools.lru_cache(maxsize=1)(self.read_group)
        ordinals = {}
        for number in sorted(numbers):
            group = bisect.bisect_right(starts, number) - 1
            ordinals[number] = read(group)[number - starts[group]].split.ordinal
        return [ordinals[number] for number in numbers]

    def outermost_inputs(self, plans: int) -> list[str]:
        """Returns the least and the greatest path of the inputs of each of the first plans."""
        paths = []
        for identity, index in zip(self.identities[:plans], self.indices, strict=False):
            lists = self._lists_of(identity.plan.id, index)
            paths.append(next(stream_json_lines(lists[0], FileInfo)).path)
            paths.append(list(stream_json_lines(lists[-1], FileInfo))[-1].path)
        return paths

    def inputs(self) -> Iterator[FileInfo]:
        """Yields the input files of all plans, sorted by path."""
        lists = [
            self._inputs_of(identity.plan.id, index)
            for identity, index in zip(self.identities, self.indices, strict=True)
        ]
        yield from heapq.merge(*lists, key=lambda info: info.path)

    def _inputs_of(self, plan: str, index: PlanIndex) -> Iterator[FileInfo]:
        for path in self._lists_of(plan, index):
            yield from stream_json_lines(path, FileInfo)

    def _lists_of(self, plan: str, index: PlanIndex) -> list[str]:
        paths = [self.folder.inputs_path(key) for key in index.inputs]
        return paths or [self.folder.old_inputs_path(plan)]


def find_plans(
    folder: RunFolder, splits_per_group: int = SPLITS_PER_GROUP
) -> CommittedPlans | None:
    """Reads the committed plans of a run folder; None if there is none.

    Args:
        folder: Run folder.
        splits_per_group: Number of splits in a group of a plan of version 0.1.0.
    """
    identities = read_identities(folder)
    if not identities:
        return None
    indices = []
    for identity in identities:
        plan = identity.plan
        index = read_json(folder.plan_index_path(plan.id), PlanIndex)
        indices.append(PlanIndex.old(plan.splits, splits_per_group) if index is None else index)
    return CommittedPlans(folder, tuple(identities), tuple(indices))


def plans_of(folder: RunFolder) -> CommittedPlans:
    """Reads the committed plans of a run folder; raises as `identity_of` does."""
    return _some(folder, find_plans(folder))


def identity_of(folder: RunFolder) -> CommittedIdentity:
    """Reads the identity of a run folder, of all its plans.

    Raises:
        CountsError: No plan is committed.
    """
    return _some(folder, read_identity(folder))


def _some(folder: RunFolder, found: T | None) -> T:
    if found is None:
        raise CountsError(
            f"{folder.path} has no plan: it is not a run folder, or its scoring never started"
        )
    return found


def plan_of(folder: RunFolder) -> PlanNumbers:
    """Reads the plan in numbers, of all plans together; raises as `identity_of` does."""
    return identity_of(folder).plan


def read_group(folder: RunFolder, group: int) -> list[SplitTask]:
    """Reads the splits of one group of the committed plans."""
    return plans_of(folder).read_group(group)


@contextlib.contextmanager
def unchanged(
    task: SplitTask, content: str | None = None, small_bytes: int = SMALL_FILE_BYTES
) -> Iterator[str]:
    """Refuses a file that was modified since the plan was made, before or during the block.

    A small file in an object store is read here, in one request whose answer has the fingerprint
    too. Opening it in the block costs nothing. A local file of the same size but with another time
    is looked at again: where it has been scored, its content must be the same; before, it only must
    not change during the block.

    Args:
        task: Part of a file.
        content: Digest of the content that was scored, "" if unknown; None before the scoring.
        small_bytes: Size up to which a file is read in one piece.

    Yields:
        The fingerprint of the file.

    Raises:
        InputChangedError: The file was modified or is gone; the message names it.
    """
    split = task.split
    is_whole = split.start == 0 and split.end is None
    if is_whole and split.size <= small_bytes and local_path(split.path) is None:
        with _still_there(split.path):
            info, data = read_whole(split.path)
        _check(task, info.fingerprint, content)
        with held(split.path, data):
            yield info.fingerprint
        return

    fingerprint = _fingerprint(split.path)
    _check(task, fingerprint, content)
    yield fingerprint
    # A file that changed while it was read has mixed contents.
    if _fingerprint(split.path) != fingerprint:
        raise InputChangedError(
            f"the input {split.path} was modified while it was read; run the same command again, "
            "and curate it into a new run folder if that is refused"
        )


def _fingerprint(path: str) -> str:
    with _still_there(path):
        return file_info(path).fingerprint


@contextlib.contextmanager
def _still_there(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputChangedError(f"the input {path} is gone: {error}") from error


def _check(task: SplitTask, now: str, content: str | None) -> None:
    """Compares the fingerprint of a file with the planned one; see `unchanged`."""
    if now == task.fingerprint:
        return
    if may_be_the_same(now, task.fingerprint) and (
        content is None or (content and content_digest(task.split, now) == content)
    ):
        return
    raise InputChangedError(
        f"the input {task.split.path} was modified since the plan was made (fingerprint "
        f"{task.fingerprint} then, {now} now); restore it, or curate it into a new run folder"
    )
