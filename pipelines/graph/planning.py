"""The plan stage: which inputs there are, how they are cut into splits, whose run it is.

A plan is made once. Its shards lie under a name of their own (a digest of the identity and the
splits), and `identity.json`, committed last and created only if absent, says which plan holds: of
two launches at once one wins, and the other finds that it is the same run or is refused.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
from numpy.typing import NDArray

from datarater.pipelines import errors
from datarater.pipelines.errors import NoMatchError, UsageError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder import plan as run_plan
from datarater.pipelines.run_folder.identity import check_identity, read_identity
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    RunFolder,
    json_lines,
    read_json_lines,
    to_json,
)
from datarater.pipelines.run_folder.plan import (
    INPUT_LIST,
    SplitTask,
    inputs_json,
    plan_of,
)
from datarater.rater_model.documents.decompression import unpacked_size
from datarater.rater_model.documents.planning import plan_file
from datarater.rater_model.documents.reading import NoInputError, list_files, open_file
from datarater.rater_model.documents.records import (
    Compression,
    FileInfo,
    Format,
    ReadOptions,
    Split,
)
from datarater.rater_model.documents.store_errors import raising_os_errors


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What a plan is made from.

    Attributes:
        inputs: paths and globs.
        output: the run folder.
        read: how records are read.
        split_bytes: about how many stored bytes a split has.
        identity: what else identifies the run: the rater's digest and every option that changes a
            score.
        max_read_amplification: how many times the bytes of a big compressed stream may be unpacked,
            so that several workers can share it.
        workers_to_fill: how many workers the plan is to keep busy. Neither changes what is kept.
    """

    inputs: tuple[str, ...]
    output: str
    read: ReadOptions
    split_bytes: int
    identity: Mapping[str, Any]
    max_read_amplification: float = 4.0
    workers_to_fill: int = 1

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    def identity_of(self, files: Sequence[FileInfo]) -> dict[str, Any]:
        """The run's identity, given the input files."""
        return {
            "format": FORMAT_VERSION,
            "inputs": inputs_json(files),
            "read": self.read.to_json(),
            "split_bytes": self.split_bytes,
            **self.identity,
        }


def list_inputs(patterns: Sequence[str]) -> list[FileInfo]:
    """The input files, sorted by path.

    Args:
        patterns: paths and globs; or one word alone, `@FILE`, of a file like a plan's
            `inputs.jsonl`: files that were found before, and are taken for what they were then. One
            that has changed since fails when it is read.

    Raises:
        NoMatchError: no file matches.
        UnreadableInputError: a file system cannot be reached.
    """
    try:
        if len(patterns) == 1 and patterns[0].startswith(INPUT_LIST):
            return [
                FileInfo.from_json(row)
                for row in read_json_lines(patterns[0].removeprefix(INPUT_LIST))
            ]
        return list_files(patterns)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            f"--input: {patterns[0]} names no list of input files; to read the inputs from a text "
            f"file, use --input_list {patterns[0].removeprefix(INPUT_LIST)}"
        ) from error
    except NoInputError as error:
        raise NoMatchError(f"--input: {error}") from error
    except OSError as error:
        raise errors.reading_failed(error.filename or "--input", error) from error


def check_committed_plan(request: PlanRequest, files: Sequence[FileInfo]) -> bool:
    """Whether this very run was planned before.

    Raises:
        RunFolderMismatchError: another run was.
    """
    committed = read_identity(request.folder)
    if committed is None:
        return False
    check_identity(request.folder, committed, request.identity_of(files), files)
    return True


class ListInputs(beam.DoFn):
    """Lists the files still to be planned; none if the plan is committed.

    A run folder of another run fails here, naming the difference.
    """

    def __init__(self, request: PlanRequest):
        self._request = request

    def process(self, element: Any) -> Iterator[FileInfo]:
        """One element starts it."""
        files = list_inputs(self._request.inputs)
        if not check_committed_plan(self._request, files):
            yield from files


@dataclasses.dataclass(frozen=True, slots=True)
class FilePlan:
    """How a file is cut, in little memory: millions of splits are gathered in one place.

    Attributes:
        info: the file.
        format: how records stand in it.
        compression: what the whole file is wrapped in.
        cuts_Sx3: start, end (-1: to the end of the file) and stored bytes of every split.
        unpacked: about how many bytes a stream that may be strided unpacks to; 0 for all other
            files.
        virtual: whether it is cut at members, and its cuts are virtual offsets.
    """

    info: FileInfo
    format: Format
    compression: Compression
    cuts_Sx3: NDArray[np.int64]
    unpacked: int = 0
    virtual: bool = False

    @classmethod
    def of(cls, info: FileInfo, read: ReadOptions, split_bytes: int) -> "FilePlan":
        """Cuts a file: sniffs its format, reads its footer, samples a big compressed stream.

        Raises:
            OSError: the file cannot be read.
        """
        found = plan_file(info, read, split_bytes)
        first = found[0]
        unpacked = 0
        is_stream = first.format is Format.JSONL and first.compression is not Compression.NONE
        if is_stream and len(found) == 1 and info.size >= 2 * split_bytes:
            with open_file(info.path) as file:
                unpacked = unpacked_size(file, first.compression, info.size)
        cuts = [
            (split.start, -1 if split.end is None else split.end, split.size) for split in found
        ]
        return cls(
            info,
            first.format,
            first.compression,
            np.asarray(cuts, np.int64),
            unpacked,
            first.virtual,
        )

    def strided(self, parts: int) -> "FilePlan":
        """The same stream cut into parts of about equal size, each read by streaming past those before it."""
        bounds = [self.unpacked * part // parts for part in range(parts)]
        size = self.info.size // parts
        cuts = [(start, end, size) for start, end in itertools.pairwise([*bounds, -1])]
        return dataclasses.replace(self, cuts_Sx3=np.asarray(cuts, np.int64))

    @property
    def bytes_read(self) -> float:
        """Stored bytes that are read for all its splits, streaming past included."""
        if not self.unpacked or len(self.cuts_Sx3) == 1:
            return float(self.info.size)
        ends_S = np.where(self.cuts_Sx3[:, 1] < 0, self.unpacked, self.cuts_Sx3[:, 1])
        return float(ends_S.sum()) / self.unpacked * self.info.size

    def tasks(self, first: int) -> Iterator[SplitTask]:
        """Its splits, numbered from `first`."""
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
            yield SplitTask(split, self.info.fingerprint, ordinal // run_plan.SPLITS_PER_GROUP)


def stride(plans: Iterable[FilePlan], request: PlanRequest) -> list[FilePlan]:
    """Cuts big compressed streams into strides where whole files cannot keep the workers busy to the end.

    A stream can only be read from its beginning, so that the splits of one that is cut into K equal
    parts unpack (K + 1) / 2 times its bytes; that is held under `max_read_amplification` for every
    file. A file is cut into as many parts as make each at most half of a worker's fair share of the
    corpus.
    """
    plans = list(plans)
    total = sum(plan.info.size for plan in plans)
    most = max(1, int(2 * request.max_read_amplification - 1))
    found = []
    for plan in plans:
        wanted = -(-2 * request.workers_to_fill * plan.info.size // total) if total else 1
        parts = min(wanted, most, -(-plan.info.size // request.split_bytes))
        if parts > request.workers_to_fill:  # so many rounds, the last as full as the first
            parts -= parts % request.workers_to_fill
        found.append(plan.strided(parts) if plan.unpacked and parts > 1 else plan)
    return found


class PlanFile(beam.DoFn):
    """Cuts one file into splits."""

    def __init__(self, request: PlanRequest):
        self._request = request

    def process(self, info: FileInfo) -> Iterator[FilePlan]:
        """One file in, its plan out."""
        try:
            with raising_os_errors(info.path):
                plan = FilePlan.of(info, self._request.read, self._request.split_bytes)
        except OSError as error:
            raise errors.reading_failed(info.path, error) from error
        yield plan


def commit_plan(request: PlanRequest, planned: Iterable[FilePlan]) -> None:
    """Commits a plan: its shards first, then the identity that names it.

    Args:
        request: what was planned.
        planned: every file's plan, in any order.

    Raises:
        RunFolderMismatchError: another run committed its plan first.
    """
    plans = stride(sorted(planned, key=lambda plan: plan.info.path), request)
    files = [plan.info for plan in plans]
    identity = request.identity_of(files)
    count = sum(len(plan.cuts_Sx3) for plan in plans)
    digest = hashlib.sha256(to_json(identity))
    for shard in _plan_shards(plans):
        digest.update(shard)
    plan_id = digest.hexdigest()[:16]
    folder = request.folder
    commits.commit_if_absent(
        folder.inputs_path(plan_id), json_lines(info.to_json() for info in files)
    )
    groups = 0
    for shard in _plan_shards(plans):
        commits.commit_if_absent(folder.plan_shard_path(plan_id, groups), shard)
        groups += 1
    stored = sum(info.size for info in files)
    plan = {
        "id": plan_id,
        "splits": count,
        "groups": groups,
        "files_cut_at_members": sum(plan.virtual for plan in plans),
        "strided_files": sum(bool(plan.unpacked) and len(plan.cuts_Sx3) > 1 for plan in plans),
        "read_amplification": round(sum(plan.bytes_read for plan in plans) / stored, 3)
        if stored
        else 1.0,
    }
    if not commits.commit_if_absent(folder.identity_path, to_json({**identity, "plan": plan})):
        check_committed_plan(request, files)


def _plan_shards(plans: Iterable[FilePlan]) -> Iterator[bytes]:
    """The content of one plan shard after another; never more than one is held."""
    rows: list[dict[str, Any]] = []
    ordinal = 0
    for plan in plans:
        for task in plan.tasks(ordinal):
            rows.append(task.to_json())
            ordinal += 1
            if len(rows) == run_plan.SPLITS_PER_GROUP:
                yield json_lines(rows)
                rows = []
    if rows:
        yield json_lines(rows)


class CommitPlan(beam.DoFn):
    """Commits the plan if there is none, then gives the number of every group of splits."""

    def __init__(self, request: PlanRequest):
        self._request = request

    def process(self, element: Any, planned: Iterable[FilePlan]) -> Iterator[int]:
        """One element starts it; `planned` holds nothing where the plan was committed before."""
        plans = list(planned)
        if plans:
            commit_plan(self._request, plans)
        yield from range(plan_of(self._request.folder)["groups"])


@beam.typehints.with_output_types(int)
class Plan(beam.PTransform):
    """Makes and commits the plan, in parallel over files; gives the numbers of its groups of splits."""

    def __init__(self, request: PlanRequest):
        super().__init__()
        self._request = request

    def expand(self, start: beam.PCollection) -> beam.PCollection:
        """A collection of one element in."""
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
