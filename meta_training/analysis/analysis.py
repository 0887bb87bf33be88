"""Runs an analysis: reads the documents, scores them, and writes `analysis.json`.

N counts documents.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import datarater
from datarater.meta_training.analysis.disparity import Disparity, disparity
from datarater.meta_training.analysis.documents import (
    DocumentOptions,
    Documents,
    prepare_documents,
)
from datarater.meta_training.analysis.features import FEATURES
from datarater.meta_training.analysis.groups import (
    DISCARDS,
    QUANTILES,
    decile_labels,
    distributions,
    kept_at,
    label_groups,
    rank_correlation,
    rank_correlation_within,
    source_shares,
)
from datarater.meta_training.analysis.parts import (
    FeatureTask,
    LanguageTask,
    Run,
    ScoreTask,
    values_of,
)
from datarater.meta_training.analysis.regression import regress
from datarater.meta_training.analysis.run_scores import read_run_scores
from datarater.meta_training.analysis.stability import agreement, autocorrelation
from datarater.meta_training.analysis.tables import tables_of
from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.workers import Workers
from datarater.rater_model.atomic_files import replacing
from datarater.rater_model.counted import counted

REPORT = "analysis.json"
DOCUMENTS, BYTES = "documents", "bytes"
DEFAULT_KEEP = 0.5
SOURCE, LANGUAGE, LENGTH = "source", "language", "length in bytes"

_DOCUMENTS_PER_FEATURE = 10
# Exports of a training run are compared on this many parts, which are random samples.
_EXPORT_PARTS = 1


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything that is asked of an analysis.

    Attributes:
        documents: Files of the pool, and how they are read.
        raters: Folders of rater checkpoints.
        runs: Run folders whose scores are analyzed.
        workdir: Folder of a training run whose exports are compared; "" for none.
        by: Fields to compare keep rates by, besides source, language and length.
        language_field: Field of the language; "" to identify languages.
        keep: Kept share of the keep rates; None for the one that the first rater recommends.
        keep_unit: Unit of kept shares, `DOCUMENTS` or `BYTES`.
        max_disparity: Limit of the ratio of a group's keep rate to the overall one.
        min_group: Documents of a group below which it is put together with other small ones.
        folds: Folds of a cross-validation.
        repeats: Times that it is repeated.
        processes: Worker processes.
    """

    documents: DocumentOptions
    raters: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    workdir: str = ""
    by: tuple[str, ...] = ()
    language_field: str = ""
    keep: float | None = None
    keep_unit: str = DOCUMENTS
    max_disparity: float = 1.25
    min_group: int = 30
    folds: int = 10
    repeats: int = 5
    processes: int = 2


@dataclasses.dataclass(frozen=True)
class Scored:
    """The documents that every rater scored.

    Attributes:
        scores: Scores by rater or run, finite.
        digests: Digest of the rater behind each of them.
        features_NxF: Features.
        hashes_N: Hashes of the texts.
        bytes_N: UTF-8 bytes.
        fields: Value of each document by field; the source and the language are among the fields.
    """

    scores: dict[str, NDArray[np.float64]]
    digests: dict[str, str]
    features_NxF: NDArray[np.float64]
    hashes_N: NDArray[np.uint64]
    bytes_N: NDArray[np.int64]
    fields: dict[str, list[str]]

    def sizes_in(self, unit: str) -> NDArray[np.int64]:
        """Returns the size of each document in the unit of the kept share."""
        return self.bytes_N if unit == BYTES else np.ones(len(self.bytes_N), np.int64)


def run_analysis(
    analysis: Analysis, output: Path, say: Callable[[str], None], run: Run | None = None
) -> dict[str, Any]:
    """Computes what is not cached and writes `analysis.json`.

    Args:
        analysis: What is asked.
        output: Output folder.
        say: Prints a line of progress.
        run: Runs tasks; worker processes if None.

    Returns:
        The content of `analysis.json`.

    Raises:
        EvaluationError: If documents, scores or options do not fit together.
        CheckpointError: If a rater cannot be loaded.
        OSError: If a file cannot be read or written.
    """
    from threadpoolctl import threadpool_limits

    from datarater.rater_model.checkpoint import load_rater

    # Bad raters are refused before the pool is read.
    checkpoints = {rater: load_rater(rater) for rater in analysis.raters}
    exports = _exports_of(analysis.workdir) if analysis.workdir else {}
    recommended = next(
        (
            1 - each.recommended_discard_fraction
            for each in checkpoints.values()
            if each.recommended_discard_fraction
        ),
        DEFAULT_KEEP,
    )
    keep = recommended if analysis.keep is None else analysis.keep

    documents = prepare_documents(analysis.documents, output, say)
    for line in document_lines(documents):
        say(line)
    warnings: list[str] = []
    with Workers(analysis.processes, output / "compiled") as workers:
        computed = _Computed(documents, run or workers.run, say)
        digests = {rater: each.digest for rater, each in checkpoints.items()}
        scored = _scored(analysis, computed, digests, warnings)
        autocorrelated = _autocorrelated(exports, computed)

    say(f"analyzing {len(scored.bytes_N):,} documents")
    # The regressions are many and small: threads would wait for one another.
    with threadpool_limits(1):
        raters = [_section(analysis, scored, name, keep, warnings) for name in scored.scores]
    report: dict[str, Any] = {
        "version": 1,
        "datarater": datarater.__version__,
        "options": dataclasses.asdict(analysis),
        "documents": {**documents.counts, "analyzed": len(scored.bytes_N)},
        "keep": keep,
        "features": FEATURES,
        "discards": list(DISCARDS),
        "quantiles": list(QUANTILES),
        "raters": raters,
        "agreement": agreement(
            scored.scores,
            scored.sizes_in(analysis.keep_unit),
            scored.hashes_N,
            scored.fields[SOURCE],
            keep,
            analysis.min_group,
        ),
        "autocorrelation": autocorrelated,
        "warnings": warnings,
    }
    report["tables"] = tables_of(report)
    content = json.dumps(report, indent=1)
    with replacing(output / REPORT) as new:
        new.write_text(content + "\n", encoding="utf-8")
    plain: dict[str, Any] = json.loads(content)
    return plain


def document_lines(documents: Documents) -> list[str]:
    """Returns what there is to say of the documents."""
    counts = documents.counts
    line = f"pool: {counts['documents_read']:,} documents, {counts['bytes_read'] / 1e6:,.1f} MB"
    if counts["documents"] < counts["documents_read"]:
        line += f"; a random sample of {counts['documents']:,} is analyzed (--max_documents)"
    lines = [line]
    if counts["rejected"]:
        lines.append(f"skipped records that cannot be read: {counts['rejected']}")
    return lines


class _Computed:
    """What is computed of the documents, or comes from the cache."""

    def __init__(self, documents: Documents, run: Run, say: Callable[[str], None]) -> None:
        self.documents = documents
        self._run = run
        self._say = say

    def features(self) -> NDArray[np.float64]:
        tasks = [FeatureTask(self._folder, part) for part in self._parts]
        return self._values("computing features", tasks)

    def languages(self) -> list[str]:
        tasks = [LanguageTask(self._folder, part) for part in self._parts]
        languages: list[str] = self._values("identifying languages", tasks).tolist()
        return languages

    def scores(self, rater: str, digest: str, parts: int | None = None) -> NDArray[np.float64]:
        """Returns the scores of the first parts, or of all."""
        return self._values(
            f"scoring with {rater}",
            [ScoreTask(self._folder, part, rater, digest) for part in self._parts[:parts]],
        )

    @property
    def _folder(self) -> str:
        return str(self.documents.folder)

    @property
    def _parts(self) -> range:
        return range(self.documents.parts)

    def _values(self, what: str, tasks: Sequence[Any]) -> NDArray[Any]:
        return values_of(self.documents, what, tasks, self._run, self._say)


def _scored(
    analysis: Analysis, computed: _Computed, digests: dict[str, str], warnings: list[str]
) -> Scored:
    """Returns the documents with scores by every rater and run."""
    documents = computed.documents
    scores: dict[str, NDArray[np.float64]] = {}
    for name in analysis.runs:
        of_run = read_run_scores(name, documents.keys)
        scores[name], digests[name] = of_run.scores_N, of_run.rater
        if of_run.ambiguous:
            warnings.append(
                f"{name}: left out: {counted(of_run.ambiguous, 'document')} with the key of "
                "another document that has another score"
            )
    for name in analysis.raters:
        scores[name] = computed.scores(name, digests[name])

    finite_N = np.isfinite(np.stack(list(scores.values()))).min(axis=0)
    left_out = int((~finite_N).sum())
    if left_out:
        warnings.append(
            f"left out of {counted(len(finite_N), 'document')}: {left_out:,} without a finite "
            "score by a rater or run"
        )
    count = int(finite_N.sum())
    if count < analysis.folds:
        raise FlagError(
            f"--folds {analysis.folds} needs at least {analysis.folds} documents with scores, not "
            f"{count}; give more documents, or fewer --folds"
        )
    if count < _DOCUMENTS_PER_FEATURE * len(FEATURES):
        warnings.append(
            f"{count:,} documents are few for {len(FEATURES)} features: read the cross-validated "
            "R^2 and not the coefficients"
        )

    def kept(values: Sequence[str]) -> list[str]:
        return [value for value, finite in zip(values, finite_N, strict=True) if finite]

    language = documents.fields.get(analysis.language_field) or computed.languages()
    return Scored(
        scores={name: scores_N[finite_N] for name, scores_N in scores.items()},
        digests=digests,
        features_NxF=computed.features()[finite_N],
        hashes_N=documents.hashes_N[finite_N],
        bytes_N=documents.bytes_N[finite_N],
        fields={
            SOURCE: kept(documents.sources),
            LANGUAGE: kept(language),
            **{field: kept(documents.fields[field]) for field in analysis.by},
        },
    )


def _section(
    analysis: Analysis, scored: Scored, name: str, keep: float, warnings: list[str]
) -> dict[str, Any]:
    """Returns what there is to know of one rater, and adds to the warnings."""
    scores_N = scored.scores[name]
    sizes_N = scored.sizes_in(analysis.keep_unit)
    groups = {
        field: label_groups(values, analysis.min_group) for field, values in scored.fields.items()
    }
    regression = regress(
        scored.features_NxF,
        scores_N,
        list(FEATURES),
        groups[SOURCE],
        analysis.folds,
        analysis.repeats,
    )
    if regression is None:
        warnings.append(f"{name}: all scores are equal, so there is nothing to explain")

    lengths = decile_labels(scored.bytes_N)
    kept_N = kept_at(scores_N, sizes_N, scored.hashes_N, keep)
    disparities = [
        disparity(field, kept_N, labels, analysis.max_disparity)
        for field, labels in {**groups, LENGTH: lengths}.items()
        if len(set(labels)) > 1
    ]
    prefix = f"{name}: " if len(scored.scores) > 1 else ""
    warnings.extend(prefix + line for line in map(Disparity.warning, disparities) if line)
    return {
        "name": name,
        "digest": scored.digests[name],
        "regression": None if regression is None else dataclasses.asdict(regression),
        "source_shares": source_shares(scores_N, sizes_N, scored.hashes_N, groups[SOURCE]),
        "distributions": distributions(scores_N, groups[SOURCE]),
        "length": {
            "spearman": rank_correlation(scored.bytes_N, scores_N),
            "spearman_within_sources": rank_correlation_within(
                scored.bytes_N.astype(np.float64), scores_N, groups[SOURCE], analysis.min_group
            ),
            "deciles": _by_length(scored.bytes_N, scores_N, lengths),
        },
        "disparity": [dataclasses.asdict(each) for each in disparities],
    }


def _by_length(
    bytes_N: NDArray[np.int64], scores_N: NDArray[np.float64], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the scores, in standard deviations from the mean, by decile of length."""
    z_N = (scores_N - scores_N.mean()) / (scores_N.std() or 1.0)
    owners = np.asarray(labels)
    rows = []
    for label in dict.fromkeys(owners[np.argsort(bytes_N, kind="stable")].tolist()):
        inside = owners == label
        rows.append(
            {
                "bytes": label,
                "documents": int(inside.sum()),
                "mean_score": float(z_N[inside].mean()),
                "deviation": float(z_N[inside].std()),
            }
        )
    return rows


def _exports_of(workdir: str) -> dict[int, tuple[str, str]]:
    """Returns the folder and the digest of each rater that a training run exported, by step."""
    from datarater.meta_training.run.workdir import Workdir
    from datarater.rater_model.checkpoint import load_statistics

    folder = Workdir(workdir).raters
    found = {}
    for path in sorted(folder.glob("step_*")):
        digest, _ = load_statistics(path)
        found[int(path.name.removeprefix("step_"))] = (str(path), digest)
    if len(found) < 2:
        raise FlagError(
            f"--workdir {workdir}: {folder} has {len(found)} exported raters, and two are the "
            "least to compare; give the folder of a training run, and train with a smaller "
            "--config.export_every"
        )
    return found


def _autocorrelated(
    exports: dict[int, tuple[str, str]], computed: _Computed
) -> list[dict[str, Any]]:
    if not exports:
        return []
    return autocorrelation(
        {
            step: computed.scores(rater, digest, _EXPORT_PARTS)
            for step, (rater, digest) in exports.items()
        }
    )
