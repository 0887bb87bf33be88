"""The identity of a run: a folder of another run is refused with a list of the differences."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from datarater.pipelines.errors import RunFolderMismatchError
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    RunFolder,
    json_lines,
    read_json,
    read_json_lines,
)
from datarater.rater_model.documents.records import FileInfo, ReadOptions
from datarater.rater_model.json_codec import to_plain
from datarater.rater_model.scoring_options import ScoringOptions

_MAX_DIFFERENCES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Every option that changes which documents exist or what they score, and how it began.

    The size of a split and of a model call only change the cost of a run and the rounding of its
    scores. They may change when it is resumed (`cost_changes`).

    Attributes:
        rater: Digest of the rater checkpoint.
        read: How records are read.
        scoring: Options that change a score.
        scorer_version: Version of the scorer's arithmetic.
        split_bytes: Approximate size of a split in stored bytes.
        format: Version of the run folder's format.
    """

    rater: str
    read: ReadOptions
    scoring: ScoringOptions
    scorer_version: int
    split_bytes: int
    format: int = FORMAT_VERSION


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
    def of(cls, files: Sequence[FileInfo]) -> InputsDigest:
        """Returns what identifies some files."""
        digest = hashlib.sha256()
        for file in files:
            digest.update(json_lines([file]))
        return cls(len(files), sum(file.size for file in files), digest.hexdigest())


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
        line = f"plan: {self.splits:,} splits"
        if self.files_cut_at_members:
            line += (
                f"; {self.files_cut_at_members:,} compressed files are cut at their gzip members "
                "or zstd frames"
            )
        if self.strided_files:
            line += (
                f"; {self.strided_files:,} large compressed files are strided over several "
                f"workers, which read {self.read_amplification:.2f} times the stored bytes"
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


def input_differences(present: Sequence[FileInfo], planned: Sequence[FileInfo]) -> list[str]:
    """Describes the input files that were added, removed or changed since the plan was made."""
    now, then = {file.path: file for file in present}, {file.path: file for file in planned}

    lines = [f"{path} is new" for path in sorted(now.keys() - then.keys())]
    lines += [f"{path} is gone" for path in sorted(then.keys() - now.keys())]
    lines += [
        f"{path} has changed ({then[path].size} bytes then, {now[path].size} now)"
        for path in sorted(now.keys() & then.keys())
        if now[path] != then[path]
    ]

    if len(lines) > _MAX_DIFFERENCES:
        lines[_MAX_DIFFERENCES:] = [f"and {len(lines) - _MAX_DIFFERENCES} more"]
    return lines


def read_identity(folder: RunFolder) -> CommittedIdentity | None:
    """Reads the committed identity of a run folder; None if no plan is committed."""
    return read_json(folder.identity_path, CommittedIdentity)


def check_identity(
    folder: RunFolder,
    committed: CommittedIdentity,
    requested: Identity,
    files: Sequence[FileInfo],
) -> None:
    """Refuses a run folder that belongs to another run.

    Args:
        folder: Run folder.
        committed: Identity that was read from it.
        requested: Identity of the requested run.
        files: Input files as they are now.

    Raises:
        RunFolderMismatchError: The identities differ; the message names the differences.
    """
    lines = differences(_options(requested), _options(committed))
    if requested.inputs != committed.inputs:
        planned = read_json_lines(folder.inputs_path(committed.plan.id), FileInfo)
        lines += input_differences(files, planned)
    if lines:
        raise RunFolderMismatchError(
            f"{folder.path} belongs to another run: {'; '.join(lines)}. Use another output "
            "folder, or the same options"
        )


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
    return lines
