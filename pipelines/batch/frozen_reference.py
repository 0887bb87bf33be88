"""The frozen reference of scheduled batches: what scores are held against, the same every night.

The first batch records in the journal which reference it was, by digest, and keeps in the state
folder what drift is measured against. A later batch with another reference is refused: its cutoff
would be another one, and nobody would know from which night on. `--adopt_reference` records the
change.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import Journal, Reference, State
from datarater.pipelines.errors import CurationError, RunFolderMismatchError
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest, rater_digest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder import reference as references
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import differences
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.reference import RunReference
from datarater.pipelines.run_folder.summaries import read_summary
from datarater.pipelines.selection.descent import Histogram
from datarater.pipelines.selection.drift import ScoreDistribution
from datarater.pipelines.selection.rules import Threshold
from datarater.rater_model.checkpoint import load_rater

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Baseline:
    """What drift is measured against.

    Attributes:
        scores: of the reference; None where it has none (a threshold without a reference, and a
            rater without quantiles).
        sources: by source; empty where the reference is a rater's sample.
    """

    scores: ScoreDistribution | None
    sources: dict[str, ScoreDistribution]

    def to_json(self) -> bytes:
        """The content of its file; of equal baselines it is equal."""
        return orjson.dumps(
            {
                "format": FORMAT_VERSION,
                "scores": None if self.scores is None else _fields(self.scores),
                "sources": {source: _fields(scores) for source, scores in self.sources.items()},
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Baseline":
        """What `to_json` wrote."""
        fields = orjson.loads(data)
        scores = (
            None if fields["scores"] is None else ScoreDistribution.from_counts(**fields["scores"])
        )
        sources = {
            source: ScoreDistribution.from_counts(**counts)
            for source, counts in fields["sources"].items()
        }
        return cls(scores, sources)


def _fields(scores: ScoreDistribution) -> dict[str, list[Any]]:
    return {"bins": scores.bins_K.tolist(), "counts": scores.counts_K.tolist()}


def freeze(
    config: BatchConfig,
    journal: Journal,
    scoring: ScoringRequest,
    selection: SelectionRequest,
    *,
    adopt: bool,
) -> Reference:
    """Freezes the reference at the first batch, and holds every later batch to it.

    Args:
        config: names it.
        journal: of the state folder.
        scoring: of a batch, with the rater's digest.
        selection: of a batch.
        adopt: whether another reference may take the place of the frozen one.

    Raises:
        RunFolderMismatchError: another reference is frozen, or the reference's scores are another
            rater's.
        CurationError: the reference cannot be used.
    """
    kind, digest = _identify(config, scoring)

    def holds(reference: Reference | None) -> bool:
        found = None if reference is None else (reference.kind, reference.digest, reference.rater)
        return found == (kind, digest, scoring.rater_digest)

    def decision(state: State) -> Reference | None:
        if holds(state.reference):
            return None
        if state.reference is not None and not adopt:
            raise RunFolderMismatchError(
                _differs(config, state.reference, kind, digest, scoring.rater_digest)
            )
        baseline = journal.keep("baselines", _baseline(config, scoring, selection).to_json())
        return Reference(kind, config.reference, digest, scoring.rater_digest, baseline)

    state = journal.decide(decision)
    assert state.reference is not None
    return state.reference


def _differs(config: BatchConfig, frozen: Reference, kind: str, digest: str, rater: str) -> str:
    lines = differences(
        {"reference": f"{kind} {digest}", "rater": rater},
        {"reference": f"{frozen.kind} {frozen.digest}", "rater": frozen.rater},
    )
    return (
        f"{config.path}: the reference {config.reference} is not the one that the batches of {config.state} are held "
        f"against ({frozen.path}): {'; '.join(lines)}. Put the old one back, or take a new state folder, or give "
        "--adopt_reference once to go on with this one"
    )


def _identify(config: BatchConfig, scoring: ScoringRequest) -> tuple[str, str]:
    """The kind and digest of the reference as it is now.

    Raises:
        CurationError: it is neither a scored run folder nor a rater.
    """
    if config.reference == config.rater:
        return "rater", scoring.rater_digest
    if references.is_run(config.reference):
        data = commits.read_bytes(RunFolder(config.reference).scoring_path)
        return "run", hashlib.sha256(data).hexdigest()
    return "rater", rater_digest(config.reference)


def _baseline(
    config: BatchConfig, scoring: ScoringRequest, selection: SelectionRequest
) -> Baseline:
    """What is kept of the reference.

    Raises:
        RunFolderMismatchError: its scores cannot be compared with a batch's.
        CurationError: it has no distribution of scores, but the rule needs one.
    """
    is_threshold = isinstance(selection.read_policy().rule, Threshold)
    if (
        is_threshold
        and config.reference == config.rater
        and not load_rater(config.rater).statistics.quantiles
    ):
        return Baseline(None, {})
    reference = references.read_reference(config.reference, scoring.plan.identity)
    if not isinstance(reference, RunReference):
        return Baseline(
            ScoreDistribution.by_quantiles(reference.quantiles, reference.sample_size), {}
        )
    scores = ScoreDistribution.of(Histogram.from_json(reference.scoring["histogram"]))
    if not scores.documents:
        raise CurationError(
            f"{config.path}: reference: {config.reference} holds no scored document"
        )
    sources: dict[str, Histogram] = {}
    groups = range(reference.scoring["groups"])
    for summary in at_once(lambda group: read_summary(reference.folder, group), groups):
        for source, histogram in summary.histograms.items():
            known = sources.get(source)
            sources[source] = histogram if known is None else Histogram.merge([known, histogram])
    return Baseline(
        scores, {source: ScoreDistribution.of(histogram) for source, histogram in sources.items()}
    )
