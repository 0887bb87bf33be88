"""Values that run folders store, for tests that need one of a kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def write_run(
    folder: Path, scores: dict[str, float | None], inputs: Sequence[str] = (), **identity: Any
) -> str:
    """Writes the parts of a run folder that docs/run-folder.md documents and that are read."""
    (folder / "scores" / "3f").mkdir(parents=True)
    table = pa.table(
        {"key": list(scores), "score": pa.array(list(scores.values()), pa.float32())},
        metadata={b"datarater": b'{"rater": "d1ge57"}'},
    )
    pq.write_table(table, folder / "scores" / "3f" / "00000000.parquet")
    plan = folder / "plan" / "p1"
    plan.mkdir(parents=True)
    read = {"text_field": "text", "source_field": "source"}
    values = {"plan": {"id": "p1"}, "read": read, **identity}
    (folder / "plan" / "identity.json").write_text(json.dumps(values))
    (plan / "inputs.jsonl").write_text(
        "".join(json.dumps({"path": path, "size": 1, "fingerprint": "f"}) + "\n" for path in inputs)
    )
    return str(folder)
