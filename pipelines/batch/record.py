"""The record of a batch: what it took, what it kept, and how far it is from the reference.

`PUBLISH/DATE/manifest.json` is a copy of it, and the only file that readers need. Format 1:

| field | content |
|---|---|
| `date`, `batch` | the date of the batch; the number of its claim in the journal |
| `inputs` | `files`, `bytes`, `list` (the file that lists them), `patterns` (the date's globs); |
|          | the number of files reported as `late`, `changed`, `version` or `waiting`, |
|          | and `notes` (the file that lists those) |
| `counts`, `sources` | as in a selection's manifest: read, kept, dropped and rejected records, |
|                     | in total and by source |
| `files` | the kept documents: `path`, `format`, `documents`, `bytes`, `sha256` |
| `drift` | `psi`, `ks`, and `kept_share` by source, each with `value`, `limit`, `by_chance` and |
|         | `past`; null if nothing was scored or there is no reference to compare with |
| `rejected_share`, `documents` | `value`, `limit`, `past` |
| `alarms`, `exit_code` | one sentence for each limit passed; 4 if there is any, else 5 if files |
|                       | or splits were rejected whole, else 0 |
| `run`, `selection`, `cutoff`, `rater`, `reference`, `terms`, `versions`, `claimed`, `finished` |
|         | the origin of the batch |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from datarater.pipelines import bad_splits
from datarater.pipelines.batch.config import Limits
from datarater.pipelines.batch.frozen_reference import Baseline
from datarater.pipelines.batch.inputs import describe_patterns
from datarater.pipelines.batch.journal import (
    Claim,
    Journal,
    NoteCounts,
    Publication,
    Reference,
    Terms,
)
from datarater.pipelines.run_folder.counts import main_reasons
from datarater.pipelines.run_folder.kept_counts import KeptCounts
from datarater.pipelines.run_folder.layout import RunFolder, decode_file, now, versions
from datarater.pipelines.run_folder.manifest import KeptFile, Manifest, ManifestCounts
from datarater.pipelines.run_folder.scored import Scoring
from datarater.pipelines.selection import drift
from datarater.pipelines.selection.drift import Measure, ScoreDistribution
from datarater.rater_model import exit_codes
from datarater.rater_model.counted import counted
from datarater.rater_model.json_codec import IF_SET

FORMAT_VERSION = 1
_MAX_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Limited:
    """A value, its limit (None for no limit), and whether it is past the limit."""

    value: float
    limit: float | None
    past: bool


@dataclasses.dataclass(frozen=True)
class LimitedMeasure(Limited):
    """A measure of drift; two samples of one population exceed `by_chance` once in 1,000 times."""

    by_chance: float

    @classmethod
    def of(cls, measure: Measure, limit: float | None) -> LimitedMeasure:
        """Returns a measure with its limit, rounded for people."""
        past = limit is not None and measure.is_past(limit)
        return cls(round(measure.value, 6), limit, past, round(measure.by_chance, 6))

    def __str__(self) -> str:
        limit = "no limit" if self.limit is None else f"limit {self.limit:g}"
        return f"{self.value:.3f} ({limit}, by chance up to {self.by_chance:.3f})"


@dataclasses.dataclass(frozen=True)
class SourceShare:
    """The kept share of a source's documents, in the batch and in the reference if it is known."""

    documents: int
    share: float
    reference_share: float | None


@dataclasses.dataclass(frozen=True)
class ComparedShare(LimitedMeasure, SourceShare):
    """The kept share of a source, compared with that in the reference under the same cutoff."""


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far the scores and the kept shares of a batch are from the reference's."""

    documents: int
    reference_documents: int
    psi: LimitedMeasure
    ks: LimitedMeasure
    kept_share: dict[str, ComparedShare | SourceShare]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordInputs(NoteCounts):
    """The input files of a batch, and the numbers of files that were reported.

    Version 0.1.0 did not write the patterns.
    """

    files: int
    bytes: int
    list: str
    patterns: tuple[str, ...] | None = dataclasses.field(default=None, metadata=IF_SET)
    notes: str | None


@dataclasses.dataclass(frozen=True)
class RecordReference:
    """The frozen reference that a batch is compared with."""

    kind: str
    path: str
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a batch; the table above describes the fields.

    Version 0.1.0 did not write the number of documents.
    """

    date: str
    batch: int
    inputs: RecordInputs
    run: str
    selection: str | None = None
    cutoff: dict[str, Any] | None = None
    counts: ManifestCounts
    sources: dict[str, KeptCounts]
    files: tuple[KeptFile, ...] = ()
    drift: Drift | None = None
    rejected_share: Limited
    documents: Limited | None = dataclasses.field(default=None, metadata=IF_SET)
    alarms: tuple[str, ...] = ()
    exit_code: int = exit_codes.DONE
    rater: str
    reference: RecordReference
    terms: Terms
    claimed: str
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    finished: str = dataclasses.field(default_factory=now)
    format: int = FORMAT_VERSION


def measure_drift(
    baseline: Baseline, limits: Limits, scoring: Scoring, manifest: Manifest
) -> Drift | None:
    """Compares a batch with the reference.

    Args:
        baseline: Score distributions of the reference.
        limits: Limits of the measures.
        scoring: Counts of the batch's run folder.
        manifest: Manifest of the batch's selection.

    Returns:
        The drift; None if there is nothing to compare.
    """
    scores = ScoreDistribution.of(scoring.histogram)
    if baseline.scores is None or not scores.documents:
        return None
    return Drift(
        documents=round(scores.documents),
        reference_documents=round(baseline.scores.documents),
        psi=LimitedMeasure.of(
            drift.population_stability_index(scores, baseline.scores), limits.psi
        ),
        ks=LimitedMeasure.of(drift.kolmogorov_smirnov(scores, baseline.scores), limits.ks),
        kept_share=_kept_shares(baseline, limits, manifest),
    )


def _kept_shares(
    baseline: Baseline, limits: Limits, manifest: Manifest
) -> dict[str, ComparedShare | SourceShare]:
    """Returns each source's kept share in the batch and in the reference under the same cutoff.

    The reference's share is None for a source that the reference lacks, and for all sources if the
    rule has no cutoff.
    """
    rank_key = manifest.rank_key
    known = baseline.sources if rank_key is not None else {}
    scored = {source: counts for source, counts in manifest.sources.items() if counts.scored}
    # Each comparison is a chance for a false alarm, which the measure accounts for.
    comparisons = max(1, len(scored.keys() & known.keys()))

    shares: dict[str, ComparedShare | SourceShare] = {}
    for source, counts in scored.items():
        share = SourceShare(counts.scored, round(counts.kept / counts.scored, 6), None)
        shares[source] = share
        if rank_key is not None and source in known:
            expected = known[source].kept_share(rank_key)
            measure = drift.share_difference(
                counts.kept, counts.scored, expected, known[source].documents, comparisons
            )
            compared = LimitedMeasure.of(measure, limits.kept_share)
            shares[source] = ComparedShare(
                **{**vars(share), "reference_share": round(expected, 6)}, **vars(compared)
            )
    return shares


def _alarms(record: Record) -> list[str]:
    """Returns a sentence for each limit that a batch has passed."""
    return [*_drift_alarms(record), *_rejected_alarms(record), *_documents_alarms(record)]


def _drift_alarms(record: Record) -> list[str]:
    if record.drift is None:
        return []
    sentences = [
        f"{what} between the scores and the reference's is {measure.value:.3f}, past the limit of "
        f"{measure.limit:g}"
        for what, measure in (
            ("the population stability index", record.drift.psi),
            ("the Kolmogorov-Smirnov distance", record.drift.ks),
        )
        if measure.past
    ]

    past = {
        source: share
        for source, share in record.drift.kept_share.items()
        if isinstance(share, ComparedShare) and share.past
    }
    by_size = sorted(past.items(), key=lambda item: -abs(item[1].value))
    for source, share in by_size[:_MAX_NAMED]:
        sentences.append(
            f"source {source!r} keeps {share.share:.1%} of its documents, compared with "
            f"{share.reference_share:.1%} in the reference: a difference past the limit of "
            f"{share.limit:g}"
        )
    if len(past) > _MAX_NAMED:
        sentences.append(f"the same holds for {counted(len(past) - _MAX_NAMED, 'more source')}")
    return sentences


def _rejected_alarms(record: Record) -> list[str]:
    share = record.rejected_share
    if not share.past:
        return []
    return [
        f"{share.value:.1%} of the records are rejected "
        f"({main_reasons(record.counts.rejected_by_reason)}), past the limit of {share.limit:g}"
    ]


def _documents_alarms(record: Record) -> list[str]:
    documents, inputs = record.documents, record.inputs
    if documents is None or not documents.past:
        return []
    if inputs.files:
        why = f"in {counted(inputs.files, 'file')}"
    else:
        why = f"no new file matches {describe_patterns(inputs.patterns or ())}"
        if inputs.waiting:
            waiting = counted(inputs.waiting, "file")
            waits = "waits" if inputs.waiting == 1 else "wait"
            why += f" ({waiting} modified too recently {waits} for the next batch)"
    return [
        f"the batch has {counted(int(documents.value), 'scored document')}, fewer than "
        f"limits.min_documents: {documents.limit:,}; {why}"
    ]


def summarize_alarms(record: Record) -> str:
    """Returns the first alarm of a record, and how many more there are."""
    others = len(record.alarms) - 1
    more = f" (and {counted(others, 'more alarm')})" if others else ""
    return f"{record.alarms[0]}{more}"


def build(
    journal: Journal,
    number: int,
    claim: Claim,
    reference: Reference,
    limits: Limits,
    patterns: Sequence[str],
    *,
    scoring: Scoring | None,
    manifest: Manifest | None,
) -> Record:
    """Builds the record of a batch.

    Args:
        journal: Journal of the state folder.
        number: Number of the claim.
        claim: The files of the batch.
        reference: The frozen reference, which the batch is compared with.
        limits: Limits that raise an alarm.
        patterns: Globs of the batch's date.
        scoring: Counts of the run folder; None if the files have no records.
        manifest: Manifest of the selection; None if the files have no records.
    """
    noted = {name: count for name, count in vars(claim.notes).items() if name != "sha256"}
    inputs = RecordInputs(
        files=claim.files,
        bytes=claim.bytes,
        list=journal.kept("inputs", claim.inputs),
        patterns=tuple(patterns),
        notes=None if claim.notes.sha256 is None else journal.kept("notes", claim.notes.sha256),
        **noted,
    )

    # A batch without records has no run folder.
    counts = ManifestCounts() if manifest is None else manifest.counts
    share = counts.rejected / counts.read if counts.read else 0.0
    too_many = limits.rejected_share is not None and share > limits.rejected_share
    too_few = limits.min_documents is not None and counts.scored < limits.min_documents
    record = Record(
        date=claim.date,
        batch=number,
        inputs=inputs,
        run=claim.run,
        counts=counts,
        sources={} if manifest is None else manifest.sources,
        rejected_share=Limited(round(share, 6), limits.rejected_share, too_many),
        documents=Limited(counts.scored, limits.min_documents, too_few),
        rater=reference.rater,
        reference=RecordReference(reference.kind, reference.path, reference.digest),
        terms=claim.terms,
        claimed=claim.claimed,
    )
    if scoring is not None and manifest is not None:
        folder = RunFolder(claim.run).selection(manifest.name).path
        baseline = Baseline.from_json(journal.read_kept("baselines", reference.baseline))
        record = dataclasses.replace(
            record,
            selection=manifest.name,
            cutoff=manifest.cutoff,
            files=tuple(
                dataclasses.replace(file, path=f"{folder}/{file.path}") for file in manifest.files
            ),
            drift=measure_drift(baseline, limits, scoring, manifest),
        )

    alarms = tuple(_alarms(record))
    exit_code = exit_codes.PAST_LIMIT if alarms else exit_codes.DONE
    if not alarms and bad_splits.among(counts.rejected_by_reason):
        exit_code = exit_codes.BAD_SPLITS
    return dataclasses.replace(record, alarms=alarms, exit_code=exit_code)


def read_record(journal: Journal, publication: Publication) -> Record:
    """Reads the record of a published batch; raises as `Journal.read_kept` does."""
    path = journal.kept("records", publication.record)
    return decode_file(path, Record, journal.read_kept("records", publication.record))


def lines(record: Record) -> list[str]:
    """Returns a record as lines for people, without its alarms."""
    counts = record.counts
    described = [
        f"batch {record.date}: {counted(record.inputs.files, 'file')}, "
        f"{counted(counts.read, 'record')}; "
        f"kept {counts.kept:,}, dropped {counts.dropped:,}, rejected {counts.rejected:,}"
    ]
    if record.drift is not None:
        described.append(
            f"drift: PSI {record.drift.psi}, Kolmogorov-Smirnov {record.drift.ks}, compared with "
            f"{counted(record.drift.reference_documents, 'document')} of the reference"
        )
    return described
