"""The identity of a run: a folder of another run is refused with a list of the differences."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from datarater.pipelines.errors import RunFolderMismatchError
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    RunFolder,
    json_lines,
    read_json,
)
from datarater.rater_model.counted import counted, is_or_are
from datarater.rater_model.documents.content import may_be_the_same
from datarater.rater_model.documents.records import (
    MAX_ZSTD_WINDOW_BYTES,
    FileInfo,
    ReadOptions,
)
from datarater.rater_model.json_codec import IF_SET, to_plain
from datarater.rater_model.scoring_options import ScoringOptions, differ_by_rounding

_MAX_DIFFERENCES = 5
_MAX_TOUCHED = 100_000
Options = TypeVar("Options", bound="RunOptions")


@dataclasses.dataclass(frozen=True)
class CascadeOptions:
    """The student of a run, and what it leaves to the rater (`datarater.rater_model.cascade`).

    Attributes:
        student: Digest of the student's checkpoint.
        keep: Share of the documents that the run was made to keep, as exact text.
        agreement: Wished share of the rater's own kept documents among those kept.
        surely_kept: Share of the documents, the best ones by the student, that are surely kept.
        surely_dropped: Share of the documents by the student past which all are surely dropped.
        offset: Distance by which scores of the student are moved.
    """

    student: str
    keep: str
    agreement: float
    surely_kept: float
    surely_dropped: float
    offset: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Every option that changes which documents exist or what they score, and how it began.

    The size of a split and of a model call only change the cost of a run and the rounding of its
    scores, and so do some versions of the scorer. They may change when it is resumed
    (`cost_changes`).

    Attributes:
        rater: Digest of the rater checkpoint.
        read: How records are read.
        scoring: Options that change a score.
        scorer_version: Version of the scorer's arithmetic.
        split_bytes: Approximate size of a split in stored bytes.
        format: Version of the run folder's format.
        cascade: The student that scores first; None without one.
        other_raters: Digests of the raters that score beside the first one, by name.
    """

    rater: str
    read: ReadOptions
    scoring: ScoringOptions
    scorer_version: int
    split_bytes: int
    format: int = FORMAT_VERSION
    cascade: CascadeOptions | None = dataclasses.field(default=None, metadata=IF_SET)
    other_raters: dict[str, str] = dataclasses.field(default_factory=dict, metadata=IF_SET)


@dataclasses.dataclass(frozen=True)
class InputsDigest:
    """What identifies the inputs.

    Attributes:
        files: Number of files.
        bytes: Their size.
        sha256: Digest of their paths, sizes and fingerprints.
    """

    files: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, files: Iterable[FileInfo]) -> InputsDigest:
        """Returns what identifies some files."""
        inputs = InputsCounter()
        for file in files:
            inputs.add(file)
        return inputs.digest()


class InputsCounter:
    """Counts input files one by one, in the order of their paths."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._files = 0
        self._bytes = 0

    def add(self, file: FileInfo) -> None:
        """Adds a file."""
        self._sha256.update(json_lines([file]))
        self._files += 1
        self._bytes += file.size

    def digest(self) -> InputsDigest:
        """Returns what identifies the files so far."""
        return InputsDigest(self._files, self._bytes, self._sha256.hexdigest())


@dataclasses.dataclass(frozen=True)
class PlanNumbers:
    """A plan in numbers.

    Attributes:
        id: Digest of the identity and of all splits; names the folder of the plan.
        splits: Number of splits.
        groups: Number of groups of splits.
        files_cut_at_members: Number of compressed files that are cut at their members.
        strided_files: Number of compressed streams that several workers share.
        read_amplification: How often a stored byte is read, on average.
    """

    id: str
    splits: int
    groups: int
    files_cut_at_members: int = 0
    strided_files: int = 0
    read_amplification: float = 1.0

    def describe(self) -> str:
        """Describes the plan in one line."""
        line = f"plan: {counted(self.splits, 'split')}"
        if self.files_cut_at_members:
            number = self.files_cut_at_members
            line += (
                f"; {counted(number, 'compressed file')} {is_or_are(number)} cut at gzip members "
                "or zstd frames"
            )
        if self.strided_files:
            line += (
                f"; {counted(self.strided_files, 'large compressed file')} "
                f"{is_or_are(self.strided_files)} strided over several workers, which read "
                f"{self.read_amplification:.2f} times the stored bytes"
            )
        return line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity(RunOptions):
    """The identity of a run: its inputs, and its options."""

    inputs: InputsDigest


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommittedIdentity(Identity):
    """The content of `plan/identity.json`: the identity of a run, and the plan that is valid."""

    plan: PlanNumbers


def differences(requested: Any, committed: Any, where: str = "") -> list[str]:
    """Describes every field in which two JSON values differ, with both values.

    Args:
        requested: JSON value of the requested run.
        committed: JSON value that was committed before.
        where: Name of the field that both are values of.
    """
    if isinstance(requested, Mapping) and isinstance(committed, Mapping):
        lines = []
        for name in sorted(set(requested) | set(committed)):
            inner = f"{where}.{name}" if where else name
            lines += differences(requested.get(name), committed.get(name), inner)
        return lines
    if requested == committed:
        return []
    return [f"{where} is {committed!r} there, but {requested!r} now"]


def joined(
    present: Iterable[FileInfo], planned: Iterable[FileInfo]
) -> Iterator[tuple[FileInfo | None, FileInfo | None]]:
    """Yields each file as it is now and as it was planned; None where it is missing.

    Args:
        present: Files as they are now, sorted by path.
        planned: Files as they were planned, sorted by path.
    """
    left, right = iter(present), iter(planned)
    now, then = next(left, None), next(right, None)
    while now is not None or then is not None:
        if then is None or (now is not None and now.path < then.path):
            yield now, None
            now = next(left, None)
        elif now is None or then.path < now.path:
            yield None, then
            then = next(right, None)
        else:
            yield now, then
            now, then = next(left, None), next(right, None)


@dataclasses.dataclass
class InputDifferences:
    """What input files were added, removed or changed since they were planned.

    Attributes:
        new: Number of new files.
        gone: Number of missing files.
        changed: Number of changed files.
        lines: Descriptions of the first few of each, the most important kind last.
        touched: Files that differ in the time of modification only, by path; a look at their
            content decides whether they have changed (`settle`).
    """

    new: int = 0
    gone: int = 0
    changed: int = 0
    lines: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    touched: dict[str, FileInfo] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, present: Iterable[FileInfo], planned: Iterable[FileInfo]) -> InputDifferences:
        """Compares two lists of files that are sorted by path, in little memory."""
        found = cls()
        for now, then in joined(present, planned):
            if then is None and now is not None:
                found._add("new", f"{now.path} is new")
            elif now is None and then is not None:
                found._add("gone", f"{then.path} is gone")
            elif now is not None and then is not None and now != then:
                is_touched = may_be_the_same(now.fingerprint, then.fingerprint)
                if is_touched and len(found.touched) < _MAX_TOUCHED:
                    found.touched[now.path] = now
                else:
                    found._add("changed", _modified(now, then.size))
        return found

    def settle(self, modified: Collection[str]) -> InputDifferences:
        """Counts those of the touched files as changed whose content is not the same.

        Args:
            modified: Paths of these files.
        """
        for path in sorted(modified):
            file = self.touched[path]
            self._add("changed", _modified(file, file.size))
        self.touched.clear()
        return self

    def _add(self, kind: str, line: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        lines = self.lines.setdefault(kind, [])
        if len(lines) < _MAX_DIFFERENCES:
            lines.append(line)

    def describe(self, *kinds: str) -> list[str]:
        """Describes the files of some kinds, the first few of all."""
        lines = [line for kind in kinds for line in self.lines.get(kind, [])][:_MAX_DIFFERENCES]
        more = sum(getattr(self, kind) for kind in kinds) - len(lines)
        return [*lines, f"and {more} more"] if more else lines


def _modified(file: FileInfo, size: int) -> str:
    return f"{file.path} was modified ({counted(size, 'byte')} then, {file.size} now)"


def input_differences(present: Iterable[FileInfo], planned: Iterable[FileInfo]) -> list[str]:
    """Describes the input files that were added, removed or changed since they were planned."""
    lists = [sorted(files, key=lambda file: file.path) for files in (present, planned)]
    found = InputDifferences.of(*lists)
    return found.settle(found.touched.keys()).describe("new", "gone", "changed")


def read_identities(folder: RunFolder) -> list[CommittedIdentity]:
    """Reads the identities of a run folder: one for its first plan and one for each appended."""
    identities: list[CommittedIdentity] = []
    while True:
        identity = read_json(folder.identity_path_of(len(identities)), CommittedIdentity)
        if identity is None:
            return identities
        identities.append(identity)


def combined(identities: Sequence[CommittedIdentity]) -> CommittedIdentity:
    """Returns the identity of a run with several plans, of which there is at least one.

    Its inputs are those of all plans; its plan is the last one, with the numbers of all together.
    """
    last = identities[-1]
    plans = [identity.plan for identity in identities]
    if len(plans) == 1:
        return last

    files = [identity.inputs.bytes for identity in identities]
    added = [after - before for before, after in itertools.pairwise([0, *files])]
    read = sum(plan.read_amplification * size for plan, size in zip(plans, added, strict=True))
    numbers = dataclasses.replace(
        last.plan,
        splits=sum(plan.splits for plan in plans),
        groups=sum(plan.groups for plan in plans),
        files_cut_at_members=sum(plan.files_cut_at_members for plan in plans),
        strided_files=sum(plan.strided_files for plan in plans),
        read_amplification=round(read / files[-1], 3) if files[-1] else 1.0,
    )
    return dataclasses.replace(last, plan=numbers)


def read_identity(folder: RunFolder) -> CommittedIdentity | None:
    """Reads the identity of a run folder, of all its plans; None if no plan is committed."""
    identities = read_identities(folder)
    return combined(identities) if identities else None


def check_identity(
    folder: RunFolder,
    committed: CommittedIdentity,
    requested: Identity,
    compare_inputs: Callable[[], InputDifferences],
    append: bool = False,
) -> InputDifferences:
    """Refuses a run folder that belongs to another run.

    Args:
        folder: Run folder.
        committed: Identity that was read from it.
        requested: Identity of the requested run.
        compare_inputs: Compares the input files of both, which is done only if they differ.
        append: Whether there may be new files. Planned files may then be left out.

    Returns:
        The files to append; none if it is the same run.

    Raises:
        RunFolderMismatchError: The identities differ; the message names the differences.
    """
    options = differences(_options(as_committed(requested, committed)), _options(committed))
    inputs, files = InputDifferences(), []
    if requested.inputs != committed.inputs:
        inputs = compare_inputs()
        files = inputs.describe(*(("changed",) if append else ("new", "gone", "changed")))
    if options or files:
        advice = "Use another output folder, or the same options" if options else _advice(inputs)
        raise RunFolderMismatchError(
            f"{folder.path} belongs to another run: {'; '.join([*options, *files])}. {advice}"
        )
    return inputs


def _advice(inputs: InputDifferences) -> str:
    """Returns what to do about other input files."""
    if inputs.changed:
        return "Restore the files that were modified, or use another output folder"
    if inputs.gone:
        return (
            "Restore the files that are gone, or use another output folder. If they are there and "
            "only --input does not name them, add --append, which keeps their scores"
        )
    return "Add --append to score the new files into this run folder, or use another output folder"


def as_committed(requested: Options, committed: RunOptions) -> Options:
    """Returns the options of a resumed run, which an earlier version of the package may have begun.

    Runs of version 0.1.0 have no limit of zstd windows, and an earlier version of the scorer is
    kept where only the rounding of scores differs.
    """
    if committed.read.max_zstd_window_bytes >= MAX_ZSTD_WINDOW_BYTES:
        read = dataclasses.replace(requested.read, max_zstd_window_bytes=MAX_ZSTD_WINDOW_BYTES)
        requested = dataclasses.replace(requested, read=read)
    if differ_by_rounding(requested.scorer_version, committed.scorer_version):
        requested = dataclasses.replace(requested, scorer_version=committed.scorer_version)
    return requested


def _options(identity: Identity) -> dict[str, Any]:
    """Returns the options that must not change: those that change more than the cost of a run."""
    options: dict[str, Any] = {
        name: value
        for name, value in to_plain(identity).items()
        if name not in ("inputs", "plan", "split_bytes")
    }
    options["scoring"] = decisive_scoring(identity.scoring)
    return options


def decisive_scoring(scoring: ScoringOptions) -> dict[str, Any]:
    """Returns the options that change a score by more than its rounding."""
    return {name: value for name, value in to_plain(scoring).items() if name != "tokens_per_batch"}


def cost_changes(requested: RunOptions, committed: RunOptions) -> list[str]:
    """Describes the options of a resumed run that differ from those it began with, and may.

    Args:
        requested: Options of the requested run.
        committed: Options that the run began with.
    """
    lines = []
    if requested.split_bytes != committed.split_bytes:
        lines.append(
            f"--split_bytes {requested.split_bytes} changes nothing here: the splits stay as they "
            f"were planned, with {committed.split_bytes}"
        )
    now, then = requested.scoring.tokens_per_batch, committed.scoring.tokens_per_batch
    if now != then:
        lines.append(
            f"--tokens_per_batch {now} from here on; the run began with {then}, and the last digit "
            "of a score can depend on it"
        )
    if requested.scorer_version != committed.scorer_version:
        lines.append(
            f"version {requested.scorer_version} of the scorer from here on; the run began with "
            f"version {committed.scorer_version}, and the last digit of a score can depend on it"
        )
    return lines
