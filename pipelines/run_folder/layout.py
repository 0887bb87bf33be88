"""The run folder: where everything lies, and whose run it is.

    OUTPUT/
      plan/identity.json           what the run is: inputs, rater, every option that changes a score
      plan/ID/inputs.jsonl         the input files with their fingerprints
      plan/ID/splits-00000.jsonl   the splits of one group, in order
      scores/3f/00000017.parquet   the score file of one split
      summaries/000000.json        the counts of one group of splits
      rejected/000000.jsonl        the rejected records of one group
      scoring.json                 the counts of the whole, once everything is scored
      selections/NAME/rule.json    what the selection keeps
      selections/NAME/counts/      what it keeps of every split, by group
      selections/NAME/kept/        the kept documents
      selections/NAME/manifest.json, _SUCCESS

Every file is created once and never replaced (`datarater.pipelines.run_folder.commits`). Nothing
else is state: what is there is done, what is not there is still to do. Beside them lie `lease/`,
which says who is at work, and `attempts/`, the marks of splits that are being scored; nothing is
read from these that would change a result.
"""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from datarater.pipelines.run_folder import commits

FORMAT_VERSION = 1


def to_json(value: Any) -> bytes:
    """JSON for people and programs: indented, keys in order, a newline at the end."""
    return orjson.dumps(
        value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    )


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
        path: the folder, local or on any file system of fsspec that can create a file only if it is
            absent.
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
        """The lease of scoring (`datarater.pipelines.run_folder.lease`)."""
        return f"{self.path}/lease/scoring"

    def selection_lease_path(self, name: str) -> str:
        """The lease of a selection."""
        return f"{self.path}/lease/selections/{name}"

    @property
    def attempts_path(self) -> str:
        """The folder of the marks of splits that are being scored (`datarater.pipelines.run_folder.split_marks`)."""
        return f"{self.path}/attempts"

    @property
    def scoring_folders(self) -> list[str]:
        """The folders that scoring alone writes into."""
        return [
            f"{self.path}/{name}"
            for name in ("plan", "scores", "summaries", "rejected", "attempts")
        ]

    @property
    def summaries_path(self) -> str:
        """The folder of the summaries."""
        return f"{self.path}/summaries"

    @property
    def old_summaries_path(self) -> str:
        """The folder of the summaries that version 0.1.0 wrote; they are read where they are."""
        return f"{self.path}/scores/summaries"

    def summary_path(self, group: int) -> str:
        """The summary of a group of splits."""
        return f"{self.summaries_path}/{group:06d}.json"

    def old_summary_path(self, group: int) -> str:
        """The summary of a group of splits that version 0.1.0 wrote."""
        return f"{self.old_summaries_path}/{group:06d}.json"

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


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSONL."""
    lines = bytearray()  # not a list: each result of orjson keeps kilobytes beyond its length
    for row in rows:
        lines += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    return bytes(lines)


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [orjson.loads(line) for line in commits.read_bytes(path).split(b"\n") if line]
