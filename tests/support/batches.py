"""Batches without Beam and without a rater's arithmetic, so that a night takes milliseconds.

All state is real. A document's text is its score. `curate` commits the files of a run folder that
batches read, in the order of the real command, and takes the same leases.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml  # type: ignore[import-untyped]

from datarater.pipelines.bad_splits import SPLIT_UNREADABLE
from datarater.pipelines.batch.journal import Claim, ClaimNotes, NamedSelection, Terms
from datarater.pipelines.errors import (
    CurationError,
    EmptyCorpusError,
    InputChangedError,
    UnreadableInputError,
)
from datarater.pipelines.graph import scoring
from datarater.pipelines.graph.requests import SelectionRequest, Work
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.counts import Counts
from datarater.pipelines.run_folder.identity import CommittedIdentity, InputsDigest, PlanNumbers
from datarater.pipelines.run_folder.kept_counts import KeptCounts
from datarater.pipelines.run_folder.layout import json_lines, to_json
from datarater.pipelines.run_folder.lease import Launch, Lease
from datarater.pipelines.run_folder.manifest import (
    KeptFile,
    Manifest,
    ManifestCounts,
    check_rule,
)
from datarater.pipelines.run_folder.scored import Scoring
from datarater.pipelines.runners.execution import Execution
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.quantiles import score_at
from datarater.pipelines.selection.ranking import RankKeys, key_hash
from datarater.pipelines.selection.rules import KeepCount, Threshold
from datarater.rater_model.checkpoint import ScoreStatistics
from datarater.rater_model.documents.files import file_info
from tests.support.raters import save_tiny_rater
from tests.support.run_folders import run_options

QUANTILES = tuple(
    float(value)
    for value in np.quantile(np.random.default_rng(0).normal(size=4000), np.linspace(0, 1, 101))
)
CUTOFF = score_at(QUANTILES, 0.5)
UNREADABLE = b"unreadable"
"""Content of a file that cannot be read."""


def save_plain_rater(path: Path, seed: int = 0, quantiles: Sequence[float] = QUANTILES) -> Path:
    """Saves a rater with the quantiles of a reference sample; no test computes with it."""
    statistics = ScoreStatistics(quantiles=tuple(quantiles), sample_size=4000, max_windows=256)
    return save_tiny_rater(path, seed, statistics)


def documents(rng: random.Random, name: str, count: int, mean: float = 0.0) -> list[dict[str, str]]:
    """Returns documents whose scores are normally distributed."""
    return [
        {"id": f"{name}-{index}", "text": f"{rng.gauss(mean, 1):.4f}", "source": f"s{index % 3}"}
        for index in range(count)
    ]


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Writes a file of documents atomically, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.rename(path)


def write_config(folder: Path, **changes: Any) -> Path:
    """Writes a configuration with all folders in one place; a change to None removes a key."""
    fields: dict[str, Any] = {
        "input": "in/{date}/*.jsonl",
        "rater": "rater",
        "state": "state",
        "publish": "published",
        "quiet_minutes": 0,
        "curate": {"keep_fraction": 0.5},
    }
    fields = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    path = folder / "batch.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def claim(date: str, inputs: str, files: int = 1) -> Claim:
    """Returns the claim of a batch whose options do not matter.

    Args:
        date: Date of the batch.
        inputs: Digest of the list of its files.
        files: Number of its files.
    """
    selection = SelectionRequest(
        "", Policy(KeepCount(1)), seed=1, output_format="same", output_shard_bytes=5
    )
    terms = Terms(run_options(), NamedSelection(**vars(selection.options), name="keep"), "digest")
    return Claim(date, files, 10 * files, inputs, ClaimNotes(), terms, f"runs/{date}", "now")


def curate(work: Work, execution: Execution) -> None:
    """Commits the files that `running.run` commits for JSONL input, one after another."""
    request, selection = work.scoring, work.selection
    assert request is not None
    assert selection is not None
    scoring.preflight(request)
    files = list(request.inputs.files())
    check_rule(selection.selection, selection.options)
    if commits.exists(selection.selection.success_path):
        return

    folder = request.folder
    with Lease(work.leases(), Launch.new("plain", local=True), _lost):
        # The plan.
        committed = CommittedIdentity(
            **vars(request.identity(InputsDigest.of(files))),
            plan=PlanNumbers("plan", len(files), 1),
        )
        commits.commit_if_absent(folder.old_inputs_path("plan"), json_lines(files))
        commits.commit_if_absent(folder.identity_path, to_json(committed))

        # The scores of each split, which is a file.
        rows = []
        reasons: Counter[str] = Counter()
        for ordinal, file in enumerate(files):
            lines = Path(file.path).read_bytes().splitlines()
            if file_info(file.path) != file:
                raise InputChangedError(
                    f"the input {file.path} has changed since the plan was made"
                )
            if lines == [UNREADABLE]:
                if not request.rejects_bad_splits:
                    raise UnreadableInputError(f"the input {file.path} cannot be read")
                reasons[SPLIT_UNREADABLE] += 1
                continue
            rows += [(ordinal, line) for line in lines]
            commits.commit_if_absent(folder.score_path(ordinal), b"\n".join(lines))
        if not rows:
            raise EmptyCorpusError("there is no record")

        # The counts and the histogram of the corpus.
        read = [(ordinal, line, _row(line)) for ordinal, line in rows]
        scored = [(ordinal, line, row) for ordinal, line, row in read if row is not None]
        keys = RankKeys.of(
            [float(row["text"]) for _, _, row in scored],
            [key_hash(row["id"]) for _, _, row in scored],
            0,
            [ordinal for ordinal, _, _ in scored],
            range(len(scored)),
            [1] * len(scored),
        )
        reasons += Counter({"not_json": len(read) - len(scored)})
        content = Scoring(
            identity=committed,
            splits=len(files),
            groups=1,
            counts=Counts(
                len(scored) + reasons.total(), len(scored), len(scored), len(scored), reasons
            ),
            sources={},
            histogram=Histogram.of(keys, 0),
        )
        commits.commit_if_absent(folder.scoring_path, to_json(content))
        scoring.preflight(request)  # fails if too many records are rejected
        commits.commit_if_absent(selection.selection.rule_path, to_json(selection.options))
        _publish(selection, committed, keys, scored, reasons)


def _publish(
    selection: SelectionRequest,
    identity: CommittedIdentity,
    keys: RankKeys,
    scored: Sequence[Any],
    reasons: Counter[str],
) -> None:
    """Commits the kept documents and the manifest of a selection."""
    rule = selection.policy.rule
    end = (rule if isinstance(rule, Threshold) else Threshold(repr(CUTOFF))).end
    mask = keys.below(end).tolist()
    kept = [line for keep, (_, line, _) in zip(mask, scored, strict=True) if keep]

    files = []
    if kept:
        data = b"\n".join(kept) + b"\n"
        commits.commit_if_absent(selection.selection.kept_path("part-00000-of-00001.jsonl"), data)
        digest = hashlib.sha256(data).hexdigest()
        files.append(
            KeptFile("kept/part-00000-of-00001.jsonl", "jsonl", len(kept), len(data), digest)
        )

    sources: dict[str, KeptCounts] = {}
    total = KeptCounts(read=len(scored) + reasons.total(), rejected=reasons.total())
    for keep, (_, _, row) in zip(mask, scored, strict=True):
        one = KeptCounts(kept=int(keep), dropped=int(not keep))
        total.add(one)
        sources.setdefault(row["source"], KeptCounts()).add(one)
    manifest = Manifest(
        **vars(selection.options),
        name=selection.name,
        cutoff={"rank_key": f"{end:x}"},
        counts=ManifestCounts(**vars(total), rejected_by_reason=dict(reasons)),
        scored=len(scored),
        sources=sources,
        files=tuple(files),
        identity=identity,
        rater=identity.rater,
    )
    commits.commit_if_absent(selection.selection.manifest_path, to_json(manifest))
    commits.replace(selection.selection.report_path, b"<!DOCTYPE html>")
    commits.commit_if_absent(selection.selection.success_path, b"")


def _row(line: bytes) -> dict[str, str] | None:
    try:
        row: dict[str, str] = json.loads(line)
        return row
    except ValueError:
        return None


def _lost(error: CurationError) -> None:
    raise AssertionError(error)


def record_of(folder: Path, date: str) -> dict[str, Any]:
    """Returns the record that readers find for a date."""
    record: dict[str, Any] = orjson.loads(
        (folder / "published" / date / "manifest.json").read_bytes()
    )
    return record


def dates_from(first: str, count: int) -> list[str]:
    """Returns consecutive dates."""
    start = datetime.date.fromisoformat(first)
    return [(start + datetime.timedelta(days)).isoformat() for days in range(count)]


def check_published(folder: Path) -> dict[str, dict[str, Any]]:
    """Compares the files of every published date with its manifest; returns records by date."""
    records = {}
    for place in sorted((folder / "published").iterdir()):
        record = record_of(folder, place.name)
        assert (place / "_SUCCESS").exists()
        assert record["date"] == place.name
        for file in record["files"]:
            data = Path(file["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            text = gzip.decompress(data) if file["path"].endswith(".gz") else data
            assert text.count(b"\n") == file["documents"]
        assert sum(file["documents"] for file in record["files"]) == record["counts"]["kept"]
        records[place.name] = record
    return records
