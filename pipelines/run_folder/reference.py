"""References: the distribution of scores taken from another scored run, or from the rater checkpoint's quantiles.

A score means something under its own rater only, and with the same windows: a reference made
otherwise is refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import orjson

from datarater.pipelines.errors import CurationError, RunFolderMismatchError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.identity import differences
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.rater_model.checkpoint import RATER_FILE, CheckpointError, load_rater

_MUST_MATCH = ("rater", "scoring", "scorer_version")


@dataclasses.dataclass(frozen=True)
class RunReference:
    """Another scored corpus.

    Attributes:
        folder: its run folder.
        scoring: its `scoring.json`.
    """

    folder: RunFolder
    scoring: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RaterReference:
    """The sample of documents that a rater was centred on when it was exported.

    Attributes:
        quantiles: of the sample's scores, at equal steps from 0 to 1.
        sample_size: documents in it.
    """

    quantiles: tuple[float, ...]
    sample_size: int


def is_run(path: str) -> bool:
    """Whether a reference is a run folder, and not a rater checkpoint.

    Raises:
        CurationError: it is neither.
    """
    if commits.exists(RunFolder(path).scoring_path):
        return True
    if commits.exists(f"{path.rstrip('/')}/{RATER_FILE}"):
        return False
    raise CurationError(
        f"--reference: {path} is neither a run folder that is scored to its end (it has no scoring.json) nor a rater "
        f"checkpoint (it has no {RATER_FILE})"
    )


def read_reference(path: str, identity: Mapping[str, Any]) -> RunReference | RaterReference:
    """Reads a reference for a run.

    Args:
        path: a run folder or a rater checkpoint.
        identity: of the run selected from: its rater's digest, scoring options and scorer version.

    Raises:
        CurationError: there is no reference, or it has no quantiles.
        RunFolderMismatchError: its scores cannot be compared with the run's; naming the difference.
    """
    if is_run(path):
        folder = RunFolder(path)
        scoring: dict[str, Any] = orjson.loads(commits.read_bytes(folder.scoring_path))
        found = {name: scoring["identity"].get(name) for name in _MUST_MATCH}
        _refuse(path, differences({name: identity[name] for name in _MUST_MATCH}, found))
        return RunReference(folder, scoring)
    try:
        checkpoint = load_rater(path)
    except (CheckpointError, OSError) as error:
        raise CurationError(f"--reference: {error}") from error
    statistics = checkpoint.statistics
    wanted: dict[str, Any] = {"rater": identity["rater"]}
    has: dict[str, Any] = {"rater": checkpoint.digest}
    if statistics.max_windows is not None:
        wanted["max_windows"] = identity["scoring"]["max_windows"]
        has["max_windows"] = statistics.max_windows
    _refuse(path, differences(wanted, has))
    if len(statistics.quantiles) < 2:
        raise CurationError(
            f"--reference: the rater {path} was exported without the quantiles of a reference sample; take a scored "
            "run folder as the reference"
        )
    return RaterReference(statistics.quantiles, statistics.sample_size)


def _refuse(path: str, lines: list[str]) -> None:
    if lines:
        raise RunFolderMismatchError(
            f"--reference: the scores of {path} cannot be compared with this run's: {'; '.join(lines)}"
        )
