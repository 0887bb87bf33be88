"""`scoring.json`: the counts of a scored corpus, committed once everything is scored."""

from __future__ import annotations

import dataclasses

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.identity import CommittedIdentity
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    RunFolder,
    now,
    read_json,
    versions,
)
from datarater.pipelines.selection.histogram import Histogram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """The content of `scoring.json`.

    Attributes:
        identity: Identity of the run.
        splits: Number of splits.
        groups: Number of groups of splits.
        counts: Counts of all records.
        sources: Counts by source. Records that could not be read count under "".
        histogram: First level of the selection's descent over all scored documents.
        versions: Versions of datarater, Beam and JAX.
        finished: Time in UTC, for people.
        format: Version of the format.
    """

    identity: CommittedIdentity
    splits: int
    groups: int
    counts: Counts
    sources: dict[str, Counts]
    histogram: Histogram
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    finished: str = dataclasses.field(default_factory=now)
    format: int = FORMAT_VERSION


def find_scoring(folder: RunFolder) -> Scoring | None:
    """Reads `scoring.json`; None if the scoring is not complete."""
    return read_json(folder.scoring_path, Scoring)


def read_scoring(folder: RunFolder) -> Scoring:
    """Reads `scoring.json`.

    Raises:
        CountsError: The scoring is not complete.
    """
    scoring = find_scoring(folder)
    if scoring is None:
        raise CountsError(
            f"{folder.scoring_path} is missing: the scoring is not complete; first run datarater "
            "score, or datarater curate, with this output folder"
        )
    return scoring
