"""Planning: lists the inputs, cuts them into splits and commits the plan of a run.

A plan is made once. Its shards are stored under a digest of the identity and the splits.
`identity.json` is committed last, create-if-absent, and names the plan that is valid. Of two
launches at once, one wins; the other finds that it belongs to the same run, or is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from datarater.pipelines import errors
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    PlanNumbers,
    check_identity,
    read_identity,
)
from datarater.pipelines.run_folder.layout import (
    json_lines,
    to_json,
)
from datarater.pipelines.run_folder.plan import (
    SMALL_FILE_BYTES,
    PlanIndex,
    SplitTask,
    plan_of,
)
from datarater.rater_model.documents.decompression import unpacked_size
from datarater.rater_model.documents.files import open_file
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


def check_committed_plan(request: ScoringRequest, files: Sequence[FileInfo]) -> bool:
    """Returns whether this run was planned before.

    Raises:
        RunFolderMismatchError: The plan in the folder belongs to another run.
    """
    committed = read_identity(request.folder)
    if committed is None:
        return False
    check_identity(request.folder, committed, request.identity_of(files), files)
    return True


@beam.typehints.with_output_types(FileInfo)
class ListInputs(Step[ScoringRequest]):
    """Lists the files that still need a plan: none if the plan is committed.

    The folder of another run fails here, with a message that names the difference.
    """

    def process(self, element: Any) -> Iterator[FileInfo]:
        """Lists the files; any element starts the step."""
        files = self._request.inputs.files()
        if not check_committed_plan(self._request, files):
            yield from files


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
        virtual: Whether it is cut at members, so that its cuts are virtual offsets.
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

        Sniffs the format, reads the footer if there is one, and samples a big compressed stream. A
        small file is not looked at before it is scored.

        Raises:
            OSError: The file cannot be read.
        """
        if info.size <= min(small_bytes, split_bytes):
            cut_1x3 = np.asarray([(0, -1, info.size)], np.int64)
            return cls(info, UNKNOWN_FORMAT, Compression.NONE, cut_1x3)

        splits = plan_file(info, read, split_bytes)
        first = splits[0]

        # Only a compressed stream of one split may be strided, for which its size is estimated.
        unpacked = 0
        is_stream = first.compression is not Compression.NONE
        may_be_cut = is_stream and format_named(first.format).cuts_streams
        if may_be_cut and len(splits) == 1 and info.size >= 2 * split_bytes:
            with open_file(info.path, in_order_to=0) as file:
                unpacked = unpacked_size(file, first.compression, info.size)

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


def stride(plans: Iterable[FilePlan], request: ScoringRequest) -> list[FilePlan]:
    """Cuts big compressed streams into strides if whole files cannot keep all workers busy.

    A stream can only be read from its beginning. The splits of a stream in K equal parts therefore
    unpack (K + 1) / 2 times its bytes, which `max_read_amplification` bounds for every file. Within
    that bound, each part is at most half of a worker's fair share of the corpus.
    """
    plans = list(plans)
    total = sum(plan.info.size for plan in plans)
    max_parts = max(1, int(2 * request.max_read_amplification - 1))

    strided = []
    for plan in plans:
        by_share = -(-2 * request.workers_to_fill * plan.info.size // total) if total else 1
        parts = min(by_share, max_parts, -(-plan.info.size // request.options.split_bytes))
        # Whole rounds of all workers: the last round is as full as the first.
        if parts > request.workers_to_fill:
            parts -= parts % request.workers_to_fill
        strided.append(plan.strided(parts) if plan.unpacked and parts > 1 else plan)
    return strided


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


@beam.typehints.with_output_types(FilePlan)
class PlanFile(Step[ScoringRequest]):
    """Cuts one file into splits."""

    def process(self, info: FileInfo) -> Iterator[FilePlan]:
        """Plans one file."""
        options = self._request.options
        try:
            with raising_os_errors(info.path):
                plan = FilePlan.of(info, options.read, options.split_bytes)
        except OSError as error:
            if not self._request.rejects_bad_splits:
                raise errors.reading_failed(info.path, error) from error
            plan = FilePlan.unreadable(info)
        yield plan


def commit_plan(request: ScoringRequest, planned: Iterable[FilePlan]) -> None:
    """Commits a plan: its shards first, then the identity that names it.

    Args:
        request: The scoring that is planned.
        planned: Plans of all files, in any order.

    Raises:
        RunFolderMismatchError: Another run committed its plan first.
    """
    # The id of the plan: a digest of the identity and all splits.
    plans = stride(sorted(planned, key=lambda plan: plan.info.path), request)
    files = [plan.info for plan in plans]
    identity = request.identity_of(files)
    digest = hashlib.sha256(to_json(identity))
    for shard in _plan_shards(plans, request):
        digest.update(json_lines(shard))
    plan_id = digest.hexdigest()[:16]

    # The inputs and shards, which nothing refers to yet.
    folder = request.folder
    commits.commit_if_absent(folder.inputs_path(plan_id), json_lines(files))
    firsts, counts = [], []
    for group, shard in enumerate(_plan_shards(plans, request)):
        commits.commit_if_absent(folder.plan_shard_path(plan_id, group), json_lines(shard))
        firsts.append(shard[0].split.ordinal)
        counts.append(len(shard))
    end = sum(len(plan.cuts_Sx3) for plan in plans)
    index = PlanIndex(tuple(firsts), tuple(counts), end)
    commits.commit_if_absent(folder.plan_index_path(plan_id), to_json(index))

    # The identity names the plan; the first launch to commit it wins.
    stored = sum(info.size for info in files)
    numbers = PlanNumbers(
        id=plan_id,
        splits=sum(counts),
        groups=len(counts),
        files_cut_at_members=sum(plan.virtual for plan in plans),
        strided_files=sum(bool(plan.unpacked) and len(plan.cuts_Sx3) > 1 for plan in plans),
        read_amplification=round(sum(plan.bytes_read for plan in plans) / stored, 3)
        if stored
        else 1.0,
    )
    committed = CommittedIdentity(plan=numbers, **vars(identity))
    if not commits.commit_if_absent(folder.identity_path, to_json(committed)):
        check_committed_plan(request, files)


def _plan_shards(plans: Sequence[FilePlan], request: ScoringRequest) -> Iterator[list[SplitTask]]:
    """Yields the splits of one group after another, with only one in memory."""
    shard: list[SplitTask] = []
    parts, group = 0, 0
    total = sum(plan.info.size for plan in plans)
    for task in pack(plans, request.pack_bytes(total), request.files_per_split):
        is_full = len(shard) == request.splits_per_group
        if is_full or (shard and parts + task.parts > request.parts_per_group):
            yield shard
            shard, parts, group = [], 0, group + 1
        shard.append(dataclasses.replace(task, group=group))
        parts += task.parts
    if shard:
        yield shard


@beam.typehints.with_output_types(int)
class CommitPlan(Step[ScoringRequest]):
    """Commits the plan if there is none, then emits the number of every group of splits."""

    def process(self, element: Any, planned: Iterable[FilePlan]) -> Iterator[int]:
        """Commits the plan; any element starts the step.

        Args:
            element: Any element.
            planned: Plans of all files; empty if the plan was committed before.
        """
        plans = list(planned)
        if plans:
            commit_plan(self._request, plans)
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
            | "Spread files" >> beam.Reshuffle()
            | "Plan file" >> beam.ParDo(PlanFile(self._request))
        )
        return (
            start
            | "Commit plan" >> beam.ParDo(CommitPlan(self._request), beam.pvalue.AsIter(planned))
            | "Spread groups" >> beam.Reshuffle()
        )
