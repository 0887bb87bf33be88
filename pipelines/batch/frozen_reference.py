"""The frozen reference of scheduled batches: the scores that every night is compared with.

The first batch records the digest of its reference in the journal, and copies what drift is
measured against into the state folder. A later batch with another reference is refused: its cutoff
would differ, and nobody would know since which night. `--adopt_reference` records the change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from datarater.pipelines.batch.config import BatchConfig
from datarater.pipelines.batch.journal import Journal, Reference, State
from datarater.pipelines.errors import CurationError, RunFolderMismatchError
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder import reference as references
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.identity import differences
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.reference import RunReference
from datarater.pipelines.run_folder.scored import last_scoring_path
from datarater.pipelines.run_folder.summaries import read_summary
from datarater.pipelines.selection.drift import ScoreDistribution
from datarater.pipelines.selection.histogram import Histogram
from datarater.rater_model.checkpoint import RATER_FILE

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Baseline:
    """The score distributions that drift is measured against.

    Attributes:
        scores: Scores of the reference; None for a threshold rule without a reference whose rater
            has no quantiles.
        sources: Scores by source; empty if the reference is a rater's sample.
    """

    scores: ScoreDistribution | None
    sources: dict[str, ScoreDistribution]

    def to_json(self) -> bytes:
        """Returns the content of its file, which is the same for equal baselines."""
        return orjson.dumps(
            {
                "format": FORMAT_VERSION,
                "scores": None if self.scores is None else _fields(self.scores),
                "sources": {source: _fields(scores) for source, scores in self.sources.items()},
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def from_json(cls, data: bytes) -> Baseline:
        """Returns the baseline that `to_json` wrote."""
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
    """Freezes the reference at the first batch, and checks it at every later one.

    Args:
        config: The configuration, which names the reference.
        journal: Journal of the state folder.
        scoring: Scoring options of the batches, with the rater's digest.
        selection: Selection options of the batches.
        adopt: Whether another reference may replace the frozen one.

    Raises:
        RunFolderMismatchError: Another reference is frozen, or the reference's scores are those of
            another rater.
        CurationError: The reference cannot be used.
    """
    kind, digest = identify(config, scoring)

    def is_same(reference: Reference) -> bool:
        frozen = (reference.kind, reference.digest, reference.rater)
        return frozen == (kind, digest, scoring.options.rater)

    def decision(state: State) -> Reference | None:
        if state.reference is not None and is_same(state.reference):
            return None
        if state.reference is not None and not adopt:
            raise RunFolderMismatchError(
                _describe_difference(config, state.reference, kind, digest, scoring.options.rater)
            )
        baseline = journal.keep("baselines", _baseline(config, scoring, selection).to_json())
        return Reference(kind, config.reference, digest, scoring.options.rater, baseline)

    state = journal.decide(decision)
    assert state.reference is not None
    return state.reference


def _describe_difference(
    config: BatchConfig, frozen: Reference, kind: str, digest: str, rater: str
) -> str:
    lines = differences(
        {"reference": f"{kind} {digest}", "rater": rater},
        {"reference": f"{frozen.kind} {frozen.digest}", "rater": frozen.rater},
    )
    return (
        f"{config.path}: the reference {config.reference} is not the one that the batches of "
        f"{config.state} are compared with ({frozen.path}): {'; '.join(lines)}. Restore the old "
        "one, use a new state folder, or give --adopt_reference once to continue with this one"
    )


def identify(config: BatchConfig, scoring: ScoringRequest) -> tuple[str, str]:
    """Returns the kind and digest of the reference as it is now.

    Args:
        config: The configuration, which names the reference.
        scoring: Scoring options of the batches, with the rater's digest.

    Raises:
        CurationError: It is neither a scored run folder nor a rater; the message says how to make
            it.
    """
    if config.reference == config.rater:
        return "rater", scoring.options.rater

    if commits.exists(scoring_path := last_scoring_path(RunFolder(config.reference))):
        return "run", hashlib.sha256(commits.read_bytes(scoring_path)).hexdigest()

    if not commits.exists(f"{config.reference.rstrip('/')}/{RATER_FILE}"):
        raise CurationError(
            f"{config.path}: reference: {config.reference} is neither a scored run folder nor a "
            "rater checkpoint; to make it, score a sample of documents that is typical of a "
            f"normal night: {config.score_command()}"
        )
    return "rater", references.rater_statistics(config.reference)[0]


def _baseline(
    config: BatchConfig, scoring: ScoringRequest, selection: SelectionRequest
) -> Baseline:
    """Returns the score distributions of the reference.

    Raises:
        RunFolderMismatchError: Its scores cannot be compared with those of a batch.
        CurationError: It has no score distribution, but the rule needs one.
    """
    # A threshold works without any reference; drift is then not measured.
    needs_nothing = not selection.policy.rule.uses_reference and config.reference == config.rater
    if needs_nothing and not references.rater_statistics(config.rater)[1].quantiles:
        return Baseline(None, {})

    reference = references.read_reference(config.reference, scoring.options)
    if not isinstance(reference, RunReference):
        return Baseline(
            ScoreDistribution.by_quantiles(reference.quantiles, reference.sample_size), {}
        )
    scores = ScoreDistribution.of(reference.scoring.histogram)
    if not scores.documents:
        raise CurationError(f"{config.path}: reference: {config.reference} has no scored document")

    # Merge the histograms of each source over the summaries of the run.
    sources: dict[str, Histogram] = {}
    groups = range(reference.scoring.groups)
    for summary in at_once(lambda group: read_summary(reference.folder, group), groups):
        for source, histogram in summary.histograms.items():
            known = sources.get(source)
            sources[source] = histogram if known is None else Histogram.merge([known, histogram])
    return Baseline(
        scores, {source: ScoreDistribution.of(histogram) for source, histogram in sources.items()}
    )
