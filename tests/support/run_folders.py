"""Values that run folders store, for tests that need one of a kind."""

from __future__ import annotations

from typing import Any

from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.identity import (
    CommittedIdentity,
    InputsDigest,
    PlanNumbers,
    RunOptions,
)
from datarater.pipelines.run_folder.scored import Scoring
from datarater.pipelines.selection.histogram import Histogram
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.scoring_options import ScoringOptions


def run_options(**changes: Any) -> RunOptions:
    """Returns the options of a run."""
    fields = {
        "rater": "digest",
        "read": ReadOptions(),
        "scoring": ScoringOptions(),
        "scorer_version": 1,
        "split_bytes": 2**24,
    }
    return RunOptions(**{**fields, **changes})


def committed_identity(splits: int = 1, groups: int = 1, **changes: Any) -> CommittedIdentity:
    """Returns the identity of a run with a plan `p`."""
    return CommittedIdentity(
        **vars(run_options(**changes)),
        inputs=InputsDigest(1, 1, "digest"),
        plan=PlanNumbers("p", splits, groups),
    )


def scoring(counts: Counts, **changes: Any) -> Scoring:
    """Returns the content of a `scoring.json`."""
    fields = {
        "identity": committed_identity(),
        "splits": 1,
        "groups": 1,
        "counts": counts,
        "sources": {},
        "histogram": Histogram.empty(),
    }
    return Scoring(**{**fields, **changes})
