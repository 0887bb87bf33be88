"""Requests: the parameters of a scoring and of a selection."""

import dataclasses
from typing import Any

from datarater.pipelines.errors import (
    CurationError,
    UsageError,
)
from datarater.pipelines.graph import planning
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import FORMAT_VERSION, RunFolder, SelectionFolder
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import Rule
from datarater.rater_model import scorer
from datarater.rater_model.checkpoint import RATER_FILE, CheckpointError, load_rater
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.scoring_options import ScoringOptions


@dataclasses.dataclass(frozen=True)
class ScoringRequest:
    """All that scoring is told.

    Attributes:
        inputs: paths and globs.
        rater: path of the rater checkpoint.
        rater_digest: the digest that the rater has.
        output: the run folder.
        read: how records are read.
        scoring: every option that changes a score.
        split_bytes: about how many stored bytes a split has.
        max_rejected_fraction: the share of records that may be rejected; no part of the run's
            identity.
        max_read_amplification: see `splits.PlanRequest`.
        workers_to_fill: likewise.
        launch: id of the launch that does the work; "" for none, which leaves no marks of attempts.
        slots: worker processes of a supervised local run, which take splits from one row; 0 where
            the runner hands them out.
    """

    inputs: tuple[str, ...]
    rater: str
    rater_digest: str
    output: str
    read: ReadOptions
    scoring: ScoringOptions
    split_bytes: int
    max_rejected_fraction: float = 1.0
    max_read_amplification: float = 4.0
    workers_to_fill: int = 1
    launch: str = ""
    slots: int = 0

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    @property
    def plan(self) -> planning.PlanRequest:
        """What the plan is made from."""
        identity = {
            "rater": self.rater_digest,
            "scoring": self.scoring.to_json(),
            "scorer_version": scorer.SCORER_VERSION,
        }
        return planning.PlanRequest(
            self.inputs,
            self.output,
            self.read,
            self.split_bytes,
            identity,
            self.max_read_amplification,
            self.workers_to_fill,
        )


def rater_digest(path: str) -> str:
    """The digest of a rater checkpoint, which is checked whole.

    Raises:
        UsageError: there is no rater.
        CurationError: it cannot be loaded; the message says why.
    """
    try:
        return load_rater(path).digest
    except (CheckpointError, OSError) as error:
        absent = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
        if absent and not commits.exists(f"{path}/{RATER_FILE}"):
            raise UsageError(f"--rater: {error}") from error
        raise CurationError(f"--rater: {error}") from error


@dataclasses.dataclass(frozen=True)
class SelectionRequest:
    """All that a selection is told.

    Attributes:
        output: the run folder.
        name: of the selection.
        policy: the rule and what it applies to, as `Policy.to_json` gives it.
        seed: of the hash that breaks ties, and of the draw of a batch top-K.
        output_format: `same` as the input's, or one of `writing.OUTPUT_FORMATS`.
        output_shard_bytes: about how many bytes of kept text a file holds.
        reference: a run folder or rater checkpoint whose distribution of scores decides; None: the
            run's own.
    """

    output: str
    name: str
    policy: dict[str, Any]
    seed: int
    output_format: str
    output_shard_bytes: int
    reference: str | None = None

    @classmethod
    def of(
        cls, rule: Rule | Policy, *, output: str, name: str | None = None, **options: Any
    ) -> "SelectionRequest":
        """A request for a rule or policy, named by it unless a name is given."""
        policy = rule if isinstance(rule, Policy) else Policy(rule)
        if not name:
            name = policy.name + ("-by-reference" if options.get("reference") else "")
        return cls(output=output, name=name, policy=policy.to_json(), **options)

    def read_policy(self) -> Policy:
        """The rule and what it applies to."""
        return Policy.from_json(self.policy)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.output)

    @property
    def selection(self) -> SelectionFolder:
        """The selection's folder."""
        return self.folder.selection(self.name)

    def rule_fields(self) -> dict[str, Any]:
        """What `rule.json` holds: every option that changes what is kept or how it is written."""
        return {
            "format": FORMAT_VERSION,
            **self.policy,
            "reference": self.reference,
            "seed": self.seed,
            "output_format": self.output_format,
            "output_shard_bytes": self.output_shard_bytes,
        }
