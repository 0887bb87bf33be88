"""The run folder: where everything lies, and whose run it is.

    OUTPUT/
      plan/identity.json           what the run is: inputs, rater, every option that changes a score
      plan/ID/inputs.jsonl         the input files with their fingerprints
      plan/ID/splits-00000.jsonl   the splits of one group, in order
      scores/3f/00000017.parquet   the score file of one split
      scores/summaries/000000.json the counts of one group of splits
      rejected/000000.jsonl        the rejected records of one group
      scoring.json                 the counts of the whole, once everything is scored
      selections/NAME/rule.json    what the selection keeps
      selections/NAME/counts/      what it keeps of every split, by group
      selections/NAME/kept/        the kept documents
      selections/NAME/manifest.json, _SUCCESS

Every file is created once and never replaced (`pipelines.commits`). Nothing else is state: what is there is
done, what is not there is still to do. Beside them lie `lease/`, which says who is at work, and `attempts/`, the
marks of splits that are being scored; nothing is read from these that would change a result.
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from pipelines import commits
from pipelines.errors import RunFolderMismatchError
from rater_model.records import FileInfo, Split

FORMAT_VERSION = 1

_NAMED_DIFFERENCES = 5


def to_json(value: Any) -> bytes:
    """JSON for people and programs: indented, keys in order, a newline at the end."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def versions() -> dict[str, str]:
    """The versions of what computes: ours, Beam's, JAX's."""
    found = {}
    for name, distribution in (("datarater", "datarater"), ("beam", "apache-beam"), ("jax", "jax")):
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


@dataclasses.dataclass(frozen=True)
class SelectionFolder:
    """Where the files of one selection lie.

    Attributes:
        path: OUTPUT/selections/NAME.
    """

    path: str

    @property
    def rule_path(self) -> str:
        """The rule and its options, committed first."""
        return f"{self.path}/rule.json"

    @property
    def manifest_path(self) -> str:
        """The manifest: the list of kept files that readers trust."""
        return f"{self.path}/manifest.json"

    @property
    def success_path(self) -> str:
        """Empty; there once all else is."""
        return f"{self.path}/_SUCCESS"

    def counts_path(self, group: int) -> str:
        """What is kept of each split of a group."""
        return f"{self.path}/counts/{group:06d}.json"

    def kept_path(self, name: str) -> str:
        """One file of kept documents."""
        return f"{self.path}/kept/{name}"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie.

    Attributes:
        path: the folder, local or on any file system of fsspec that can create a file only if it is absent.
    """

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.rstrip("/") or "/")

    @property
    def identity_path(self) -> str:
        """What the run is; the plan is valid once this file is there."""
        return f"{self.path}/plan/identity.json"

    def inputs_path(self, plan: str) -> str:
        """The input files of a plan."""
        return f"{self.path}/plan/{plan}/inputs.jsonl"

    def plan_shard_path(self, plan: str, group: int) -> str:
        """The splits of one group of a plan."""
        return f"{self.path}/plan/{plan}/splits-{group:05d}.jsonl"

    def score_path(self, ordinal: int) -> str:
        """The score file of a split, under a hashed prefix: object stores share load by prefix."""
        prefix = hashlib.blake2b(b"%d" % ordinal, digest_size=1).hexdigest()
        return f"{self.path}/scores/{prefix}/{ordinal:08d}.parquet"

    @property
    def scoring_lease_path(self) -> str:
        """The lease of scoring (`pipelines.lease`)."""
        return f"{self.path}/lease/scoring"

    def selection_lease_path(self, name: str) -> str:
        """The lease of a selection."""
        return f"{self.path}/lease/selections/{name}"

    @property
    def attempts_path(self) -> str:
        """The folder of the marks of splits that are being scored (`pipelines.attempts`)."""
        return f"{self.path}/attempts"

    @property
    def scoring_folders(self) -> list[str]:
        """The folders that scoring alone writes into."""
        return [f"{self.path}/{name}" for name in ("plan", "scores", "rejected", "attempts")]

    @property
    def summaries_path(self) -> str:
        """The folder of the summaries."""
        return f"{self.path}/scores/summaries"

    def summary_path(self, group: int) -> str:
        """The summary of a group of splits."""
        return f"{self.summaries_path}/{group:06d}.json"

    def rejected_path(self, group: int) -> str:
        """The rejected records of a group of splits."""
        return f"{self.path}/rejected/{group:06d}.jsonl"

    @property
    def scoring_path(self) -> str:
        """The counts of the whole corpus; there once everything is scored."""
        return f"{self.path}/scoring.json"

    def selection(self, name: str) -> SelectionFolder:
        """The folder of a selection."""
        return SelectionFolder(f"{self.path}/selections/{name}")


# --- identity ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class SplitTask:
    """A split of the plan with what its file was like then.

    Attributes:
        split: what to read.
        fingerprint: of the whole file.
        group: the number of the group of splits that are summarised together.
    """

    split: Split
    fingerprint: str
    group: int

    def to_json(self) -> dict[str, Any]:
        """As JSON fields."""
        return {"split": self.split.to_json(), "fingerprint": self.fingerprint, "group": self.group}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "SplitTask":
        """What `to_json` wrote."""
        return cls(Split.from_json(fields["split"]), fields["fingerprint"], fields["group"])


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSONL."""
    lines = bytearray()  # not a list: each result of orjson keeps kilobytes beyond its length
    for row in rows:
        lines += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    return bytes(lines)


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [orjson.loads(line) for line in commits.read_bytes(path).split(b"\n") if line]


def inputs_json(files: Sequence[FileInfo]) -> dict[str, Any]:
    """What identifies the inputs: their number, bytes, and a digest over paths, sizes and fingerprints."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(json_lines([file.to_json()]))
    return {
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "sha256": digest.hexdigest(),
    }


def differences(wanted: Any, found: Any, where: str = "") -> list[str]:
    """Names every field in which two JSON values differ, with both values."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        lines = []
        for name in sorted(set(wanted) | set(found)):
            inner = f"{where}.{name}" if where else name
            lines += differences(wanted.get(name), found.get(name), inner)
        return lines
    if wanted == found:
        return []
    return [f"{where} is {found!r} there, but {wanted!r} now"]


def input_differences(wanted: Sequence[FileInfo], found: Sequence[FileInfo]) -> list[str]:
    """Names the input files that came, went or changed."""
    now, then = {file.path: file for file in wanted}, {file.path: file for file in found}
    lines = [f"{path} is new" for path in sorted(now.keys() - then.keys())]
    lines += [f"{path} is gone" for path in sorted(then.keys() - now.keys())]
    lines += [
        f"{path} has changed ({then[path].size} bytes then, {now[path].size} now)"
        for path in sorted(now.keys() & then.keys())
        if now[path] != then[path]
    ]
    if len(lines) > _NAMED_DIFFERENCES:
        lines[_NAMED_DIFFERENCES:] = [f"and {len(lines) - _NAMED_DIFFERENCES} more"]
    return lines


def read_identity(folder: RunFolder) -> dict[str, Any] | None:
    """The committed identity of a run folder, None where no plan was committed."""
    data = commits.read_if_there(folder.identity_path)
    return None if data is None else orjson.loads(data)


def check_identity(
    folder: RunFolder, committed: Mapping[str, Any], wanted: Mapping[str, Any], files: Sequence[FileInfo]
) -> None:
    """Refuses a run folder that belongs to another run.

    Args:
        folder: the run folder.
        committed: the identity that was read from it.
        wanted: the identity asked for now.
        files: the input files now.

    Raises:
        RunFolderMismatchError: naming what differs.
    """
    lines = differences(
        {name: value for name, value in wanted.items() if name != "inputs"},
        {name: value for name, value in committed.items() if name not in ("inputs", "plan")},
    )
    if wanted["inputs"] != committed["inputs"]:
        rows = read_json_lines(folder.inputs_path(committed["plan"]["id"]))
        lines += input_differences(files, [FileInfo.from_json(row) for row in rows])
    if lines:
        raise RunFolderMismatchError(
            f"{folder.path} holds another run: {'; '.join(lines)}. Take another output folder, or the same options"
        )


def check_rule(selection: SelectionFolder, wanted: Mapping[str, Any]) -> bool:
    """Refuses a selection's name under which another rule is kept.

    Returns:
        True if the very same rule is there already.

    Raises:
        RunFolderMismatchError: naming what differs.
    """
    data = commits.read_if_there(selection.rule_path)
    if data is None:
        return False
    lines = differences(wanted, orjson.loads(data))
    if lines:
        raise RunFolderMismatchError(
            f"{selection.path} holds another selection: {'; '.join(lines)}. Give this one a name of its own with --name"
        )
    return True
