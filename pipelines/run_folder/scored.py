"""`scoring.json`: the counts of a scored corpus, committed once everything is scored.

After more files were appended and scored, the counts of all files are in `scoring-0001.json`.
"""

from __future__ import annotations

import dataclasses

from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.identity import CommittedIdentity, read_identities
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    RunFolder,
    now,
    read_json,
    versions,
)
from datarater.pipelines.selection.histogram import Histogram
from datarater.rater_model.json_codec import IF_SET


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
        joined: In the counts of a ranking, the number of documents that each joined table has a row
            of, by name.
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
    joined: dict[str, int] = dataclasses.field(default_factory=dict, metadata=IF_SET)
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    finished: str = dataclasses.field(default_factory=now)
    format: int = FORMAT_VERSION


def count_plans(folder: RunFolder) -> int:
    """Returns the number of committed plans."""
    return len(read_identities(folder))


def last_scoring_path(folder: RunFolder) -> str:
    """Returns the path of the counts of all committed plans."""
    return folder.scoring_path_of(max(0, count_plans(folder) - 1))


def find_scoring(folder: RunFolder) -> Scoring | None:
    """Reads the counts of all committed plans; None if the scoring is not complete."""
    return read_json(last_scoring_path(folder), Scoring)


def read_scoring(folder: RunFolder, plans: int | None = None) -> Scoring:
    """Reads the counts of a scored corpus.

    Args:
        folder: Run folder.
        plans: Number of plans to count, the first ones; None for all committed plans.

    Raises:
        CountsError: The scoring is not complete.
    """
    path = last_scoring_path(folder) if plans is None else folder.scoring_path_of(plans - 1)
    scoring = read_json(path, Scoring)
    if scoring is None:
        raise CountsError(
            f"{path} is missing: the scoring is not complete; first run datarater score, or "
            "datarater curate, with this output folder"
        )
    return scoring
