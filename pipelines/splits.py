"""The plan stage: which inputs there are, how they are cut into splits, whose run it is.

A plan is made once. Its shards lie under a name of their own (a digest of the identity and the splits), and
`identity.json`, committed last and created only if absent, says which plan holds: of two launches at once one
wins, and the other finds that it is the same run or is refused.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from pipelines import commits, errors, ledger
from pipelines.errors import BooksError, NoMatchError
from pipelines.ledger import RunFolder, SplitTask
from rater_model.documents import NoInputError, list_files, plan_file
from rater_model.records import FileInfo, ReadOptions, Split

SPLITS_PER_GROUP = 1000
"""Splits in a plan shard, a summary, a file of rejected records: what keeps resume from opening millions of files."""


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What a plan is made from.

    Attributes:
        inputs: paths and globs.
        output: the run folder.
        read: how records are read.
        split_bytes: about how many stored bytes a split has.
        identity: what else identifies the run: the rater's digest and every option that changes a score.
    """

    inputs: tuple[str, ...]
    output: str
    read: ReadOptions
    split_bytes: int
    identity: Mapping[str, Any]

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    def identity_of(self, files: Sequence[FileInfo]) -> dict[str, Any]:
        """The run's identity, given the input files."""
        return {
            "format": ledger.FORMAT_VERSION,
            "inputs": ledger.inputs_json(files),
            "read": self.read.to_json(),
            "split_bytes": self.split_bytes,
            **self.identity,
        }


def list_inputs(patterns: Sequence[str]) -> list[FileInfo]:
    """The input files, sorted by path.

    Raises:
        NoMatchError: no file matches.
        UnreadableInputError: a file system cannot be reached.
    """
    try:
        return list_files(patterns)
    except NoInputError as error:
        raise NoMatchError(f"--input: {error}") from error
    except OSError as error:
        raise errors.reading_failed(error.filename or "--input", error) from error


def check_committed_plan(request: PlanRequest, files: Sequence[FileInfo]) -> bool:
    """Whether this very run was planned before.

    Raises:
        RunFolderMismatchError: another run was.
    """
    committed = ledger.read_identity(request.folder)
    if committed is None:
        return False
    ledger.check_identity(request.folder, committed, request.identity_of(files), files)
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


class PlanFile(beam.DoFn):
    """Cuts one file into splits: sniffs its format, reads its footer."""

    def __init__(self, request: PlanRequest):
        self._request = request

    def process(self, info: FileInfo) -> Iterator[tuple[FileInfo, list[Split]]]:
        """One file in, one list of splits out."""
        try:
            yield info, plan_file(info, self._request.read, self._request.split_bytes)
        except OSError as error:
            raise errors.reading_failed(info.path, error) from error


def commit_plan(request: PlanRequest, planned: Iterable[tuple[FileInfo, list[Split]]]) -> None:
    """Commits a plan: its shards first, then the identity that names it.

    Args:
        request: what was planned.
        planned: every file with its splits, in any order.

    Raises:
        RunFolderMismatchError: another run committed its plan first.
    """
    by_path = sorted(planned, key=lambda pair: pair[0].path)
    files = [info for info, _ in by_path]
    tasks = [
        SplitTask(dataclasses.replace(split, ordinal=ordinal), fingerprint, ordinal // SPLITS_PER_GROUP)
        for ordinal, (split, fingerprint) in enumerate(
            (split, info.fingerprint) for info, splits in by_path for split in splits
        )
    ]
    identity = request.identity_of(files)
    lines = ledger.json_lines([task.to_json() for task in tasks])
    plan_id = hashlib.sha256(ledger.to_json(identity) + lines).hexdigest()[:16]
    folder = request.folder
    commits.commit_if_absent(folder.inputs_path(plan_id), ledger.json_lines([info.to_json() for info in files]))
    groups = range(0, len(tasks), SPLITS_PER_GROUP)
    for group, first in enumerate(groups):
        shard = ledger.json_lines([task.to_json() for task in tasks[first : first + SPLITS_PER_GROUP]])
        commits.commit_if_absent(folder.plan_shard_path(plan_id, group), shard)
    plan = {"id": plan_id, "splits": len(tasks), "groups": len(groups)}
    if not commits.commit_if_absent(folder.identity_path, ledger.to_json({**identity, "plan": plan})):
        check_committed_plan(request, files)


class CommitPlan(beam.DoFn):
    """Commits the plan if there is none, then gives the number of every group of splits."""

    def __init__(self, request: PlanRequest):
        self._request = request

    def process(self, element: Any, planned: Iterable[tuple[FileInfo, list[Split]]]) -> Iterator[int]:
        """One element starts it; `planned` holds nothing where the plan was committed before."""
        planned = list(planned)
        if planned:
            commit_plan(self._request, planned)
        yield from range(plan_of(self._request.folder)["groups"])


def plan_of(folder: RunFolder) -> dict[str, Any]:
    """The committed plan: its id, how many splits and groups it has.

    Raises:
        BooksError: no plan is committed.
    """
    identity = ledger.read_identity(folder)
    if identity is None:
        raise BooksError(f"{folder.path} holds no plan: it is not a run folder, or its scoring never began")
    plan: dict[str, Any] = identity["plan"]
    return plan


def read_group(folder: RunFolder, group: int) -> list[SplitTask]:
    """The splits of one group of the committed plan."""
    path = folder.plan_shard_path(plan_of(folder)["id"], group)
    return [SplitTask.from_json(row) for row in ledger.read_json_lines(path)]


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
