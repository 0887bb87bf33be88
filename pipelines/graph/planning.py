"""Planning: lists the inputs, cuts them into splits and commits the plan of a run.

The list of inputs is a stream, which is stored in chunks of a thousand files. Each chunk is planned
by itself, on any worker, and its splits are stored with ordinals that count from 0. The index of
the plan says where each chunk begins: a sum over as many small numbers as there are chunks. So no
process ever has all files or all splits in memory.

A plan is made once. Its files are named by digests of what they are made from, so a plan that was
interrupted continues where it stopped, and is the same whatever the workers. `identity.json` is
committed last, create-if-absent, and names the plan that is valid. Of two launches at once, one
wins; the other finds that it belongs to the same run, or is refused.

With `--append`, new files become a further plan of the same run folder, whose identity is
`identity-0001.json`. Its ordinals and groups follow those before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from datarater.pipelines import errors
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits, same_content
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    InputDifferences,
    InputsCounter,
    InputsDigest,
    PlanNumbers,
    check_identity,
    joined,
)
from datarater.pipelines.run_folder.layout import (
    RunFolder,
    json_lines,
    read_json,
    read_json_lines,
    to_json,
)
from datarater.pipelines.run_folder.plan import (
    SMALL_FILE_BYTES,
    CommittedPlans,
    PlanIndex,
    SplitTask,
    find_plans,
    is_small,
    plan_of,
    plans_of,
)
from datarater.rater_model.documents.decompression import unpacked_size
from datarater.rater_model.documents.files import local_path, open_file
from datarater.rater_model.documents.formats import format_named
from datarater.rater_model.documents.reading import plan_file
from datarater.rater_model.documents.records import (
    UNKNOWN_FORMAT,
    Compression,
    FileInfo,
    ReadOptions,
    Split,
)
from datarater.rater_model.documents.store_errors import raising_os_errors
from datarater.rater_model.documents.unreadable import Unreadable

PLANNER_VERSION = 2
"""Version of the rules by which files are cut, part of the names of stored splits."""

_KEY_CHARACTERS = 16
_SAMPLE_BYTES = 2**15
"""Bytes by which the unpacked size of a stream is estimated that does not state it.

The splits of a stream are shares of the estimate, so a wrong one makes them uneven and no more.
"""


@dataclasses.dataclass(frozen=True)
class InputChunk:
    """Files that are planned together.

    Attributes:
        number: Number of the chunk in the list of new files.
        key: Key of the stored part of the list (`RunFolder.inputs_path`).
        new_bytes: Stored bytes of all new files, of all chunks.
        plan: Number of the plan, from 0.
        inputs: What identifies all files of the run, the new ones included.
    """

    number: int
    key: str
    new_bytes: int
    plan: int
    inputs: InputsDigest


def check_committed_plan(
    request: ScoringRequest, inputs: InputsDigest, plans: CommittedPlans
) -> InputDifferences:
    """Compares a request with what is planned.

    Args:
        request: The scoring.
        inputs: What identifies its input files.
        plans: The committed plans.

    Returns:
        The differences of the input files: only new and missing ones, and only with `--append`.

    Raises:
        RunFolderMismatchError: The plan in the folder belongs to another run.
    """

    def compare() -> InputDifferences:
        found = InputDifferences.of(request.inputs.files(), plans.inputs())
        return found.settle(same_content.modified(plans, found.touched))

    return check_identity(
        request.folder, plans.identity, request.identity(inputs), compare, request.append
    )


def list_inputs(request: ScoringRequest) -> list[InputChunk]:
    """Stores the list of the files that still need a plan.

    Returns:
        The chunks of the list; none if all files are planned.

    Raises:
        CurationError: There is no file, or a file system cannot be reached.
        RunFolderMismatchError: The folder belongs to another run; the message names the difference.
    """
    plans = find_plans(request.folder)
    planned: Iterable[FileInfo] = ()
    if plans is not None:
        inputs = InputsDigest.of(request.inputs.files())
        if not check_committed_plan(request, inputs, plans).new:
            return []
        planned = plans.inputs()

    # Files that were planned before and are not listed now belong to the run all the same.
    keys: list[str] = []
    chunk: list[FileInfo] = []
    new_bytes, counter = 0, InputsCounter()
    for now, then in joined(request.inputs.files(), planned):
        file = then or now
        assert file is not None
        counter.add(file)
        if then is None:
            chunk.append(file)
            new_bytes += file.size
            if len(chunk) == request.files_per_chunk:
                keys.append(_store_inputs(request.folder, chunk))
                chunk = []
    if chunk:
        keys.append(_store_inputs(request.folder, chunk))

    number = 0 if plans is None else len(plans.identities)
    total = counter.digest()
    return [InputChunk(index, key, new_bytes, number, total) for index, key in enumerate(keys)]


def _store_inputs(folder: RunFolder, files: Sequence[FileInfo]) -> str:
    """Stores a part of the list of inputs; returns its key."""
    content = json_lines(files)
    key = hashlib.sha256(content).hexdigest()[:_KEY_CHARACTERS]
    commits.commit_if_absent(folder.inputs_path(key), content)
    return key


@beam.typehints.with_output_types(InputChunk)
class ListInputs(Step[ScoringRequest]):
    """Lists the files that still need a plan, in chunks (`list_inputs`)."""

    def process(self, element: Any) -> Iterator[InputChunk]:
        """Lists the files; any element starts the step."""
        yield from list_inputs(self._request)


@dataclasses.dataclass(frozen=True, slots=True)
class FilePlan:
    """The splits of one file, in little memory: millions of splits are gathered in one place.

    Attributes:
        info: The file.
        format: Name of its format.
        compression: Compression of the whole file.
        cuts_Sx3: Start, end (-1 for the end of the file) and stored bytes of every split.
        unpacked: Approximate unpacked size in bytes of a stream that may be strided; 0 for all
            other files.
        virtual: Whether its cuts are virtual offsets, such as those of a stream that is cut at
            members.
    """

    info: FileInfo
    format: str
    compression: Compression
    cuts_Sx3: NDArray[np.int64]
    unpacked: int = 0
    virtual: bool = False

    @classmethod
    def of(
        cls,
        info: FileInfo,
        read: ReadOptions,
        split_bytes: int,
        small_bytes: int = SMALL_FILE_BYTES,
    ) -> FilePlan:
        """Cuts a file into splits.

        Sniffs the format, reads the footer if there is a small one, and samples the beginning of a
        big compressed stream. A small file is not looked at before it is scored.

        Raises:
            OSError: The file cannot be read.
        """
        if is_small(info, split_bytes, small_bytes):
            cut_1x3 = np.asarray([(0, -1, info.size)], np.int64)
            return cls(info, UNKNOWN_FORMAT, Compression.NONE, cut_1x3)

        splits = plan_file(info, read, split_bytes)
        first = splits[0]

        # Only a compressed stream of one split may be strided, for which its size is estimated.
        unpacked = 0
        is_stream = first.compression is not Compression.NONE
        may_be_cut = is_stream and format_named(first.format).cuts_streams
        if may_be_cut and len(splits) == 1 and info.size >= 2 * split_bytes:
            with open_file(info.path) as file:
                unpacked = unpacked_size(file, first.compression, info.size, _SAMPLE_BYTES)

        cuts = [
            (split.start, -1 if split.end is None else split.end, split.size) for split in splits
        ]
        return cls(
            info,
            first.format,
            first.compression,
            np.asarray(cuts, np.int64),
            unpacked,
            first.virtual,
        )

    @property
    def is_small(self) -> bool:
        """Whether the file can be packed with others into one split."""
        return self.format == UNKNOWN_FORMAT

    @classmethod
    def unreadable(cls, info: FileInfo) -> FilePlan:
        """Returns the plan of a file that cannot be read: one split, which will be rejected."""
        cuts_1x3 = np.asarray([(0, -1, info.size)], np.int64)
        return cls(info, Unreadable.name, Compression.NONE, cuts_1x3)

    def strided(self, parts: int) -> FilePlan:
        """Returns the same stream in parts of about equal size.

        A part is read by streaming past the parts before it.
        """
        bounds = [self.unpacked * part // parts for part in range(parts)]
        size = self.info.size // parts
        cuts = [(start, end, size) for start, end in itertools.pairwise([*bounds, -1])]
        return dataclasses.replace(self, cuts_Sx3=np.asarray(cuts, np.int64))

    @property
    def bytes_read(self) -> float:
        """The stored bytes read for all splits, including those streamed past."""
        if not self.unpacked or len(self.cuts_Sx3) == 1:
            return float(self.info.size)
        ends_S = np.where(self.cuts_Sx3[:, 1] < 0, self.unpacked, self.cuts_Sx3[:, 1])
        return float(ends_S.sum()) / self.unpacked * self.info.size

    def tasks(self, first: int) -> Iterator[SplitTask]:
        """Yields the splits with ordinals from `first`, in a group 0."""
        for ordinal, (start, end, size) in enumerate(self.cuts_Sx3.tolist(), first):
            split = Split(
                self.info.path,
                self.format,
                self.compression,
                start,
                None if end < 0 else end,
                ordinal,
                size,
                self.virtual,
            )
            yield SplitTask(split, self.info.fingerprint, 0)


def stride(plans: Iterable[FilePlan], request: ScoringRequest, total: int) -> Iterator[FilePlan]:
    """Cuts big compressed streams into strides if whole files cannot keep all workers busy.

    A stream can only be read from its beginning. The splits of a stream in K equal parts therefore
    unpack (K + 1) / 2 times its bytes, which `max_read_amplification` bounds for every file. Within
    that bound, each part is at most half of a worker's fair share of the corpus.

    Args:
        plans: Plans of some files.
        request: The scoring.
        total: Stored bytes of all files.
    """
    max_parts = max(1, int(2 * request.max_read_amplification - 1))

    for plan in plans:
        by_share = -(-2 * request.workers_to_fill * plan.info.size // total) if total else 1
        parts = min(by_share, max_parts, -(-plan.info.size // request.options.split_bytes))
        # Whole rounds of all workers: the last round is as full as the first.
        if parts > request.workers_to_fill:
            parts -= parts % request.workers_to_fill
        yield plan.strided(parts) if plan.unpacked and parts > 1 else plan


def pack(plans: Iterable[FilePlan], max_bytes: int, max_files: int) -> Iterator[SplitTask]:
    """Turns the plans of files into splits; consecutive small files share one.

    Every part of a file has the same ordinal as it has without packing.

    Args:
        plans: Plans of files, in order.
        max_bytes: Stored bytes of small files that share a split.
        max_files: Maximum number of files in a split.
    """
    first = 0  # ordinal of the next part
    open_task: SplitTask | None = None
    packed: list[FileInfo] = []
    filled = 0

    def closed() -> Iterator[SplitTask]:
        if open_task is not None:
            yield dataclasses.replace(open_task, packed=tuple(packed))

    for plan in plans:
        size = plan.info.size
        fits = filled + size <= max_bytes and len(packed) + 1 < max_files
        if plan.is_small and open_task is not None and fits:
            packed.append(plan.info)
            filled += size
            first += 1
            continue

        yield from closed()
        open_task, packed = None, []
        tasks = plan.tasks(first)
        if plan.is_small:
            open_task, filled = next(tasks), size
        yield from tasks
        first += len(plan.cuts_Sx3)
    yield from closed()


# The splits of a chunk.


@dataclasses.dataclass(frozen=True)
class ChunkNumbers:
    """The plan of a chunk in numbers, committed once its splits are.

    Attributes:
        groups: Number of splits and of ordinals of each group.
        files_cut_at_members: Number of compressed files that are cut at their members.
        strided_files: Number of compressed streams that several workers share.
        bytes_read: Stored bytes that are read for all splits.
    """

    groups: tuple[tuple[int, int], ...]
    files_cut_at_members: int
    strided_files: int
    bytes_read: float


@dataclasses.dataclass(frozen=True)
class PlannedChunk:
    """A chunk whose splits are stored.

    Attributes:
        chunk: The chunk.
        key: Key of its stored splits (`RunFolder.splits_path`).
        numbers: Its plan in numbers.
    """

    chunk: InputChunk
    key: str
    numbers: ChunkNumbers


PlanFile = Callable[[FileInfo, ReadOptions, int], FilePlan]
"""Plans a file, as `FilePlan.of` does."""


def plan_chunk(
    request: ScoringRequest, chunk: InputChunk, plan_file: PlanFile = FilePlan.of
) -> PlannedChunk:
    """Cuts the files of a chunk into splits and stores them, unless they are stored already.

    Args:
        request: The scoring.
        chunk: The chunk.
        plan_file: Cuts one file.

    Raises:
        UnreadableInputError: A file cannot be read.
    """
    folder, total = request.folder, chunk.new_bytes
    cost = (
        request.options.split_bytes,
        request.max_read_amplification,
        request.workers_to_fill,
        request.splits_per_group,
        request.parts_per_group,
        request.files_per_split,
        request.on_bad_split,
    )
    made_from = (PLANNER_VERSION, chunk.key, total, request.options.read, *cost)
    key = hashlib.sha256(to_json(made_from)).hexdigest()[:_KEY_CHARACTERS]
    numbers = read_json(folder.chunk_plan_path(key), ChunkNumbers)
    if numbers is not None:
        return PlannedChunk(chunk, key, numbers)

    def planned(info: FileInfo) -> FilePlan:
        try:
            with raising_os_errors(info.path):
                return plan_file(info, request.options.read, request.options.split_bytes)
        except OSError as error:
            if not request.rejects_bad_splits:
                raise errors.reading_failed(info.path, error) from error
            return FilePlan.unreadable(info)

    files = read_json_lines(folder.inputs_path(chunk.key), FileInfo)
    is_remote = any(local_path(info.path) is None for info in files)
    cut = at_once(planned, files) if is_remote else map(planned, files)
    plans = list(stride(cut, request, total))

    groups = []
    for part, shard in enumerate(_shards(plans, request, total)):
        first = shard[0].split.ordinal
        content = json_lines(task.moved(-first, 0) for task in shard)
        commits.commit_if_absent(folder.splits_path(key, part), content)
        groups.append((len(shard), sum(task.parts for task in shard)))

    numbers = ChunkNumbers(
        tuple(groups),
        sum(plan.virtual and plan.compression is not Compression.NONE for plan in plans),
        sum(bool(plan.unpacked) and len(plan.cuts_Sx3) > 1 for plan in plans),
        sum(plan.bytes_read for plan in plans),
    )
    commits.commit_if_absent(folder.chunk_plan_path(key), to_json(numbers))
    return PlannedChunk(chunk, key, numbers)


def _shards(
    plans: Iterable[FilePlan], request: ScoringRequest, total: int
) -> Iterator[list[SplitTask]]:
    """Yields the splits of one group after another."""
    shard: list[SplitTask] = []
    parts = 0
    for task in pack(plans, request.pack_bytes(total), request.files_per_split):
        is_full = len(shard) == request.splits_per_group
        if is_full or (shard and parts + task.parts > request.parts_per_group):
            yield shard
            shard, parts = [], 0
        shard.append(task)
        parts += task.parts
    if shard:
        yield shard


@beam.typehints.with_output_types(PlannedChunk)
class PlanChunk(Step[ScoringRequest]):
    """Cuts the files of a chunk into splits and stores them (`plan_chunk`)."""

    def process(self, chunk: InputChunk) -> Iterator[PlannedChunk]:
        """Plans one chunk."""
        yield plan_chunk(self._request, chunk)


# The plan.


def commit_plan(request: ScoringRequest, planned: Iterable[PlannedChunk]) -> None:
    """Commits a plan: its index first, then the identity that names it.

    Args:
        request: The scoring that is planned.
        planned: All chunks of the plan, at least one, in any order.

    Raises:
        RunFolderMismatchError: Another run committed its plan first.
    """
    folder = request.folder
    chunks = sorted(planned, key=lambda one: one.chunk.number)
    chunk = chunks[0].chunk
    before = find_plans(folder) if chunk.plan else None

    # Ordinals follow those of the plans before.
    ordinal = 0 if before is None else before.end
    shards, firsts, splits = [], [], []
    for one in chunks:
        for part, (count, parts) in enumerate(one.numbers.groups):
            shards.append((one.key, part))
            firsts.append(ordinal)
            splits.append(count)
            ordinal += parts
    inputs = tuple(one.chunk.key for one in chunks)
    index = PlanIndex(inputs, tuple(shards), tuple(firsts), tuple(splits), ordinal)

    # Nothing refers to the index yet.
    identity = request.identity(chunk.inputs)
    content = to_json(index)
    plan_id = hashlib.sha256(to_json(identity) + content).hexdigest()[:_KEY_CHARACTERS]
    commits.commit_if_absent(folder.plan_index_path(plan_id), content)

    # The identity names the plan; the first launch to commit it wins.
    read = sum(one.numbers.bytes_read for one in chunks)
    numbers = PlanNumbers(
        id=plan_id,
        splits=sum(splits),
        groups=len(splits),
        files_cut_at_members=sum(one.numbers.files_cut_at_members for one in chunks),
        strided_files=sum(one.numbers.strided_files for one in chunks),
        read_amplification=round(read / chunk.new_bytes, 3) if chunk.new_bytes else 1.0,
    )
    committed = CommittedIdentity(plan=numbers, **vars(identity))
    if not commits.commit_if_absent(folder.identity_path_of(chunk.plan), to_json(committed)):
        check_committed_plan(request, chunk.inputs, plans_of(folder))


def plan_now(request: ScoringRequest, plan_file: PlanFile = FilePlan.of) -> None:
    """Plans in this process what the graph plans on all workers; see `plan_chunk`."""
    chunks = list_inputs(request)
    if chunks:
        commit_plan(request, (plan_chunk(request, chunk, plan_file) for chunk in chunks))


@beam.typehints.with_output_types(int)
class CommitPlan(Step[ScoringRequest]):
    """Commits the plan if there is a new one, then emits the number of every group of splits."""

    def process(self, element: Any, planned: Iterable[PlannedChunk]) -> Iterator[int]:
        """Commits the plan; any element starts the step.

        Args:
            element: Any element.
            planned: All chunks of the plan; empty if the plan was committed before.
        """
        chunks = list(planned)
        if chunks:
            commit_plan(self._request, chunks)
        yield from range(plan_of(self._request.folder).groups)


@beam.typehints.with_output_types(int)
class Plan(beam.PTransform):
    """Plans the files in parallel and commits the plan; emits the numbers of its groups."""

    def __init__(self, request: ScoringRequest):
        super().__init__()
        self._request = request

    def expand(self, start: beam.PCollection) -> beam.PCollection:
        """Adds the steps to a collection of one element."""
        planned = (
            start
            | "List inputs" >> beam.ParDo(ListInputs(self._request))
            | "Spread chunks" >> beam.Reshuffle()
            | "Plan chunk" >> beam.ParDo(PlanChunk(self._request))
        )
        return (
            start
            | "Commit plan" >> beam.ParDo(CommitPlan(self._request), beam.pvalue.AsIter(planned))
            | "Spread groups" >> beam.Reshuffle()
        )
