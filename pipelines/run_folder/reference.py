"""References: the distribution of scores of another scored run, or a rater checkpoint's quantiles.

Scores can be compared only under the same rater and with the same windows. Any other reference is
refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from datarater.pipelines.errors import CurationError, RunFolderMismatchError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.identity import (
    RunOptions,
    as_committed,
    decisive_scoring,
    differences,
)
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.scored import Scoring, last_scoring_path, read_scoring
from datarater.rater_model.checkpoint import (
    RATER_FILE,
    CheckpointError,
    ScoreStatistics,
    load_statistics,
)
from datarater.rater_model.json_codec import to_plain


@dataclasses.dataclass(frozen=True)
class RunReference:
    """Another scored corpus.

    Attributes:
        folder: Run folder of the corpus.
        scoring: Content of its `scoring.json`.
    """

    folder: RunFolder
    scoring: Scoring


@dataclasses.dataclass(frozen=True)
class RaterReference:
    """The sample of documents that a rater was centered on when it was exported.

    Attributes:
        quantiles: Quantiles of the sample's scores, at equal steps from 0 to 1.
        sample_size: Number of documents in the sample.
    """

    quantiles: tuple[float, ...]
    sample_size: int


def is_run(path: str) -> bool:
    """Returns whether a reference is a run folder (True) or a rater checkpoint (False).

    Raises:
        CurationError: It is neither.
    """
    if commits.exists(last_scoring_path(RunFolder(path))):
        return True
    if commits.exists(f"{path.rstrip('/')}/{RATER_FILE}"):
        return False
    raise CurationError(
        f"--reference: {path} is neither a completely scored run folder (it has no scoring.json) "
        f"nor a rater checkpoint (it has no {RATER_FILE})"
    )


def rater_statistics(path: str) -> tuple[str, ScoreStatistics]:
    """Returns the digest and the statistics of a rater checkpoint that serves as a reference.

    Raises:
        CurationError: The checkpoint cannot be read.
    """
    try:
        return load_statistics(path)
    except (CheckpointError, OSError) as error:
        raise CurationError(f"--reference: {error}") from error


def read_reference(path: str, options: RunOptions) -> RunReference | RaterReference:
    """Reads a reference for a run.

    Args:
        path: Path of a run folder or of a rater checkpoint.
        options: Options of the run that is selected from.

    Raises:
        CurationError: There is no reference, or it has no quantiles.
        RunFolderMismatchError: Its scores cannot be compared with the run's; the message names the
            differences.
    """
    # Another run must have been scored by the same rater in the same way.
    if is_run(path):
        folder = RunFolder(path)
        scoring = read_scoring(folder)
        options = as_committed(options, scoring.identity)
        _refuse(path, differences(_decisive(options), _decisive(scoring.identity)))
        return RunReference(folder, scoring)

    # A checkpoint must be the run's rater, and its sample must have had the same window limit.
    digest, statistics = rater_statistics(path)
    expected: dict[str, Any] = {"rater": options.rater}
    actual: dict[str, Any] = {"rater": digest}
    if statistics.max_windows is not None:
        expected["max_windows"] = options.scoring.max_windows
        actual["max_windows"] = statistics.max_windows
    _refuse(path, differences(expected, actual))

    if len(statistics.quantiles) < 2:
        raise CurationError(
            f"--reference: the rater {path} was exported without the quantiles of a reference "
            "sample; use a scored run folder as the reference"
        )
    return RaterReference(statistics.quantiles, statistics.sample_size)


def _decisive(options: RunOptions) -> dict[str, Any]:
    """Returns the options that two runs must share for their scores to be comparable."""
    return {
        "rater": options.rater,
        "scoring": decisive_scoring(options.scoring),
        "scorer_version": options.scorer_version,
        "cascade": to_plain(options.cascade),
    }


def _refuse(path: str, lines: list[str]) -> None:
    if lines:
        raise RunFolderMismatchError(
            f"--reference: the scores of {path} cannot be compared with this run's: "
            f"{'; '.join(lines)}"
        )
