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
| `alarms`, `exit_code` | one sentence for each limit passed; 4 if there is any, else 0 |
| `run`, `selection`, `cutoff`, `rater`, `reference`, `terms`, `versions`, `claimed`, `finished` |
|         | the origin of the batch |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datarater.pipelines.batch.config import Limits
from datarater.pipelines.batch.frozen_reference import Baseline
from datarater.pipelines.batch.inputs import WAITING, describe_patterns
from datarater.pipelines.batch.journal import Claim, Journal, Reference
from datarater.pipelines.run_folder.layout import RunFolder, now, versions
from datarater.pipelines.run_folder.manifest import Manifest
from datarater.pipelines.run_folder.scored import Scoring
from datarater.pipelines.selection import drift
from datarater.pipelines.selection.drift import ScoreDistribution
from datarater.rater_model import exit_codes
from datarater.rater_model.json_codec import to_plain

FORMAT_VERSION = 1
_MAX_NAMED = 3
_NO_COUNTS = {"read": 0, "kept": 0, "dropped": 0, "rejected": 0, "kept_tokens": 0, "kept_bytes": 0}


def measure_drift(
    baseline: Baseline, limits: Limits, scoring: Scoring, manifest: Manifest
) -> dict[str, Any] | None:
    """Compares a batch with the reference.

    Args:
        baseline: Score distributions of the reference.
        limits: Limits of the measures.
        scoring: Counts of the batch's run folder.
        manifest: Manifest of the batch's selection.

    Returns:
        JSON fields; None if there is nothing to compare.
    """
    scores = ScoreDistribution.of(scoring.histogram)
    if baseline.scores is None or not scores.documents:
        return None
    return {
        "documents": round(scores.documents),
        "reference_documents": round(baseline.scores.documents),
        "psi": drift.describe(
            drift.population_stability_index(scores, baseline.scores), limits.psi
        ),
        "ks": drift.describe(drift.kolmogorov_smirnov(scores, baseline.scores), limits.ks),
        "kept_share": _kept_shares(baseline, limits, manifest),
    }


def _kept_shares(baseline: Baseline, limits: Limits, manifest: Manifest) -> dict[str, Any]:
    """Returns each source's kept share in the batch and in the reference under the same cutoff.

    The reference's share is None for a source that the reference lacks, and for all sources if the
    rule has no cutoff.
    """
    rank_key = manifest.rank_key
    known = baseline.sources if rank_key is not None else {}
    counted = {
        source: (counts.kept, counts.kept + counts.dropped)
        for source, counts in manifest.sources.items()
        if counts.kept + counts.dropped
    }
    # Each comparison is a chance for a false alarm, which the measure accounts for.
    comparisons = max(1, len(counted.keys() & known.keys()))

    shares: dict[str, Any] = {}
    for source, (kept, documents) in counted.items():
        shares[source] = {
            "documents": documents,
            "share": round(kept / documents, 6),
            "reference_share": None,
        }
        if rank_key is not None and source in known:
            expected = known[source].kept_share(rank_key)
            measure = drift.share_difference(
                kept, documents, expected, known[source].documents, comparisons
            )
            shares[source] |= {
                "reference_share": round(expected, 6),
                **drift.describe(measure, limits.kept_share),
            }
    return shares


def _rejected_share(limits: Limits, counts: Mapping[str, Any]) -> dict[str, Any]:
    share = counts["rejected"] / counts["read"] if counts["read"] else 0.0
    limit = limits.rejected_share
    return {"value": round(share, 6), "limit": limit, "past": limit is not None and share > limit}


def _documents(limits: Limits, counts: Mapping[str, Any]) -> dict[str, Any]:
    documents, limit = counts["kept"] + counts["dropped"], limits.min_documents
    return {"value": documents, "limit": limit, "past": limit is not None and documents < limit}


def alarms(record: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each limit that a batch has passed."""
    return [*_drift_alarms(record), *_rejected_alarms(record), *_documents_alarms(record)]


def _drift_alarms(record: Mapping[str, Any]) -> list[str]:
    if record["drift"] is None:
        return []
    sentences = []
    for name, what in (
        ("psi", "the population stability index"),
        ("ks", "the Kolmogorov-Smirnov distance"),
    ):
        measure = record["drift"][name]
        if measure["past"]:
            sentences.append(
                f"{what} between the scores and the reference's is {measure['value']:.3f}, past "
                f"the limit of {measure['limit']:g}"
            )

    shares = record["drift"]["kept_share"]
    past = {source: share for source, share in shares.items() if share.get("past")}
    by_size = sorted(past.items(), key=lambda item: -abs(item[1]["value"]))
    for source, share in by_size[:_MAX_NAMED]:
        sentences.append(
            f"source {source!r} keeps {share['share']:.1%} of its documents, compared with "
            f"{share['reference_share']:.1%} in the reference: a difference past the limit of "
            f"{share['limit']:g}"
        )
    if len(past) > _MAX_NAMED:
        sentences.append(f"the same holds for {len(past) - _MAX_NAMED:,} more sources")
    return sentences


def _rejected_alarms(record: Mapping[str, Any]) -> list[str]:
    share = record["rejected_share"]
    if not share["past"]:
        return []
    reasons = sorted(
        record["counts"]["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0])
    )
    named = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:_MAX_NAMED])
    return [
        f"{share['value']:.1%} of the records are rejected ({named}), past the limit of "
        f"{share['limit']:g}"
    ]


def _documents_alarms(record: Mapping[str, Any]) -> list[str]:
    documents, inputs = record["documents"], record["inputs"]
    if not documents["past"]:
        return []
    if inputs["files"]:
        why = f"in {inputs['files']:,} files"
    else:
        why = f"no new file matches {describe_patterns(inputs['patterns'])}"
        if waiting := inputs.get(WAITING):
            why += f" ({waiting:,} files modified too recently wait for the next batch)"
    return [
        f"the batch has {documents['value']:,} scored documents, fewer than "
        f"limits.min_documents: {documents['limit']:,}; {why}"
    ]


def summarize_alarms(record: Mapping[str, Any]) -> str:
    """Returns the first alarm of a record, and how many more there are."""
    sentences = record["alarms"]
    more = f" (and {len(sentences) - 1} more alarms)" if len(sentences) > 1 else ""
    return f"{sentences[0]}{more}"


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
) -> dict[str, Any]:
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
    notes = {name: value for name, value in claim.notes.items() if name != "sha256"}
    record: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "date": claim.date,
        "batch": number,
        "inputs": {
            "files": claim.files,
            "bytes": claim.bytes,
            "list": journal.kept("inputs", claim.inputs),
            "patterns": list(patterns),
            **notes,
            "notes": journal.kept("notes", claim.notes["sha256"]) if notes else None,
        },
        "run": claim.run,
        "selection": None,
        "cutoff": None,
        "counts": {**_NO_COUNTS, "rejected_by_reason": {}},
        "sources": {},
        "files": [],
        "drift": None,
        "rater": reference.rater,
        "reference": {"kind": reference.kind, "path": reference.path, "digest": reference.digest},
        "terms": claim.terms,
        "versions": versions(),
        "claimed": claim.claimed,
        "finished": now(),
    }

    # What a run folder adds, unless there was nothing to score.
    if scoring is not None and manifest is not None:
        folder = RunFolder(claim.run).selection(manifest.name).path
        baseline = Baseline.from_json(journal.read_kept("baselines", reference.baseline))
        record |= {
            "selection": manifest.name,
            "cutoff": manifest.cutoff,
            "counts": to_plain(manifest.counts),
            "sources": to_plain(manifest.sources),
            "files": [
                {**to_plain(file), "path": f"{folder}/{file.path}"} for file in manifest.files
            ],
            "drift": measure_drift(baseline, limits, scoring, manifest),
        }

    record["rejected_share"] = _rejected_share(limits, record["counts"])
    record["documents"] = _documents(limits, record["counts"])
    record["alarms"] = alarms(record)
    record["exit_code"] = exit_codes.PAST_LIMIT if record["alarms"] else exit_codes.DONE
    return record


def lines(record: Mapping[str, Any]) -> list[str]:
    """Returns a record as lines for people, without its alarms."""
    counts, inputs, measures = record["counts"], record["inputs"], record["drift"]
    described = [
        f"batch {record['date']}: {inputs['files']:,} files, {counts['read']:,} records; "
        f"kept {counts['kept']:,}, dropped {counts['dropped']:,}, rejected {counts['rejected']:,}"
    ]
    if measures is not None:
        described.append(
            f"drift: PSI {_describe(measures['psi'])}, Kolmogorov-Smirnov "
            f"{_describe(measures['ks'])}, compared with {measures['reference_documents']:,} "
            "documents of the reference"
        )
    return described


def _describe(measure: Mapping[str, Any]) -> str:
    limit = "no limit" if measure["limit"] is None else f"limit {measure['limit']:g}"
    return f"{measure['value']:.3f} ({limit}, by chance up to {measure['by_chance']:.3f})"
