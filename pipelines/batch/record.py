"""The record of a batch: what it took, what it kept, how far it lies from the reference. Readers trust it alone.

`PUBLISH/DATE/manifest.json` is a copy of it. Format 1:

| field | what |
|---|---|
| `date`, `batch` | of the batch; the number of its claim in the journal |
| `inputs` | `files`, `bytes`, `list` (the file that lists them); how many files were told of as `late`, `changed`, |
|          | `version` or `waiting`, and `notes` (the file that tells which) |
| `counts`, `sources` | as in a selection's manifest: read, kept, dropped, rejected, in total and by source |
| `files` | the kept documents: `path`, `format`, `documents`, `bytes`, `sha256` |
| `drift` | `psi`, `ks`, and `kept_share` by source, each with `value`, `limit`, `by_chance`, `past`; null where |
|         | nothing was scored or there is nothing to hold scores against |
| `rejected_share` | `value`, `limit`, `past` |
| `alarms`, `exit_code` | what is past its limit, in words; 4 if anything is, else 0 |
| `run`, `selection`, `cutoff`, `rater`, `reference`, `terms`, `versions`, `claimed`, `finished` | where it comes from |
"""

from collections.abc import Mapping
from typing import Any

from datarater.pipelines.batch.config import Limits
from datarater.pipelines.batch.frozen_reference import Baseline
from datarater.pipelines.batch.journal import Claim, Journal, Reference, now
from datarater.pipelines.run_folder.layout import RunFolder, versions
from datarater.pipelines.selection import drift
from datarater.pipelines.selection.descent import Histogram
from datarater.pipelines.selection.drift import ScoreDistribution
from datarater.rater_model import exit_codes

FORMAT_VERSION = 1
_NAMED_SOURCES = 3
_NOTHING = {"read": 0, "kept": 0, "dropped": 0, "rejected": 0, "kept_tokens": 0, "kept_bytes": 0}


def measure_drift(
    baseline: Baseline, limits: Limits, scoring: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Holds a batch against the reference.

    Args:
        baseline: of the reference.
        limits: of the measures.
        scoring: `scoring.json` of the batch's run folder.
        manifest: of its selection.

    Returns:
        JSON fields; None where there is nothing to compare.
    """
    scores = ScoreDistribution.of(Histogram.from_json(scoring["histogram"]))
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


def _kept_shares(baseline: Baseline, limits: Limits, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """By source, the kept share of the batch and of the reference under the same cutoff, as far as there is one."""
    rank_key = manifest["cutoff"].get("rank_key")
    known = baseline.sources if rank_key is not None else {}
    counted = {
        source: (counts["kept"], counts["kept"] + counts["dropped"])
        for source, counts in manifest["sources"].items()
        if counts["kept"] + counts["dropped"]
    }
    comparisons = max(1, len(counted.keys() & known.keys()))
    shares: dict[str, Any] = {}
    for source, (kept, documents) in counted.items():
        shares[source] = {
            "documents": documents,
            "share": round(kept / documents, 6),
            "reference_share": None,
        }
        if source in known:
            expected = known[source].kept_share(int(rank_key, 16))
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


def alarms(record: Mapping[str, Any]) -> list[str]:
    """What is past its limit, in words."""
    found = []
    moved = record["drift"] or {"psi": {}, "ks": {}, "kept_share": {}}
    for name, what in (
        ("psi", "the population stability index"),
        ("ks", "the Kolmogorov-Smirnov distance"),
    ):
        measure = moved[name]
        if measure.get("past"):
            found.append(
                f"{what} of the scores against the reference's is {measure['value']:.3f}, past the limit of "
                f"{measure['limit']:g}"
            )
    past = {source: share for source, share in moved["kept_share"].items() if share.get("past")}
    for source, share in sorted(past.items(), key=lambda item: -abs(item[1]["value"]))[
        :_NAMED_SOURCES
    ]:
        found.append(
            f"source {source!r} keeps {share['share']:.1%} of its documents, and {share['reference_share']:.1%} in the "
            f"reference: a difference past the limit of {share['limit']:g}"
        )
    if len(past) > _NAMED_SOURCES:
        found.append(f"so do {len(past) - _NAMED_SOURCES:,} more sources")
    rejected = record["rejected_share"]
    if rejected["past"]:
        reasons = sorted(
            record["counts"]["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0])
        )
        found.append(
            f"{rejected['value']:.1%} of the records are rejected "
            f"({', '.join(f'{reason} {count:,}' for reason, count in reasons[:_NAMED_SOURCES])}), past the limit of "
            f"{rejected['limit']:g}"
        )
    return found


def build(
    journal: Journal,
    number: int,
    claim: Claim,
    reference: Reference,
    limits: Limits,
    *,
    scoring: Mapping[str, Any] | None,
    manifest: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The record of a batch.

    Args:
        journal: of the state folder.
        number: of the claim.
        claim: what the batch took.
        reference: what it is held against.
        limits: what raises the alarm.
        scoring: `scoring.json` of the run folder; None where there was no record in any file.
        manifest: of the selection; None likewise.
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
            **notes,
            "notes": journal.kept("notes", claim.notes["sha256"]) if notes else None,
        },
        "run": claim.run,
        "selection": None,
        "cutoff": None,
        "counts": {**_NOTHING, "rejected_by_reason": {}},
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
    if scoring is not None and manifest is not None:
        folder = RunFolder(claim.run).selection(manifest["name"]).path
        baseline = Baseline.from_json(journal.read_kept("baselines", reference.baseline))
        record |= {
            "selection": manifest["name"],
            "cutoff": manifest["cutoff"],
            "counts": manifest["counts"],
            "sources": manifest["sources"],
            "files": [{**file, "path": f"{folder}/{file['path']}"} for file in manifest["files"]],
            "drift": measure_drift(baseline, limits, scoring, manifest),
        }
    record["rejected_share"] = _rejected_share(limits, record["counts"])
    record["alarms"] = alarms(record)
    record["exit_code"] = exit_codes.PAST_LIMIT if record["alarms"] else exit_codes.DONE
    return record


def lines(record: Mapping[str, Any]) -> list[str]:
    """A record for a person, without its alarms."""
    counts, inputs, moved = record["counts"], record["inputs"], record["drift"]
    told = [
        f"batch {record['date']}: {inputs['files']:,} files, {counts['read']:,} records; kept {counts['kept']:,}, "
        f"dropped {counts['dropped']:,}, rejected {counts['rejected']:,}"
    ]
    if moved is not None:
        told.append(
            f"drift: PSI {_said(moved['psi'])}, Kolmogorov-Smirnov {_said(moved['ks'])}, against "
            f"{moved['reference_documents']:,} documents of the reference"
        )
    return told


def _said(measure: Mapping[str, Any]) -> str:
    limit = "no limit" if measure["limit"] is None else f"limit {measure['limit']:g}"
    return f"{measure['value']:.3f} ({limit}, by chance up to {measure['by_chance']:.3f})"
