"""The demo's results: how well two raters tell intact prose from damaged, and what was kept.

The kinds of the documents are known only here. Neither training nor curation sees them.
"""

from __future__ import annotations

import glob
import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datarater.meta_training.demo.corpus import DAMAGED_KINDS, Kind
from datarater.meta_training.demo.errors import DemoError
from datarater.meta_training.demo.ranking import auc

_SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class KindResult:
    """What happened to the documents of one kind, or of several kinds together.

    Attributes:
        documents: Number of documents in the pool.
        kept: Number of documents kept.
        untrained_auc: Probability that the untrained rater scores an intact document above one of
            these, ties counting half; None for the intact documents themselves.
        trained_auc: The same for the trained rater, over the same documents.
        trained_auc_all: The same for the trained rater, over all documents of the pool.
    """

    documents: int
    kept: int
    untrained_auc: float | None
    trained_auc: float | None
    trained_auc_all: float | None

    @property
    def kept_share(self) -> float:
        """Share of the documents that was kept."""
        return self.kept / self.documents if self.documents else 0.0


def measure(
    pool: Sequence[Mapping[str, Any]],
    untrained: Mapping[str, float],
    trained: Mapping[str, float],
    kept: set[str],
) -> dict[str, KindResult]:
    """Returns the AUC of intact prose against each kind, and how much of the kind was kept.

    Args:
        pool: All documents of the pool.
        untrained: The untrained rater's scores by id, of a sample of the documents. The two raters
            are compared over this sample.
        trained: The trained rater's scores by id, of all documents.
        kept: Ids of the documents that were kept.

    Returns:
        One result for each kind in the pool, and one for all damaged kinds together, "damaged".

    Raises:
        DemoError: If a document of the pool has no score from the trained rater.
    """
    missing = [str(document["id"]) for document in pool if str(document["id"]) not in trained]
    if missing:
        raise DemoError(
            f"{len(missing)} of the pool's {len(pool)} documents have no score in the run folder, "
            f"for example {missing[0]}; see its rejected/ folder for the reason"
        )

    by_kind: dict[str, list[str]] = {}
    for document in pool:
        by_kind.setdefault(str(document["kind"]), []).append(str(document["id"]))
    groups = {kind.value: by_kind[kind] for kind in Kind if kind in by_kind}
    groups["damaged"] = [name for kind in DAMAGED_KINDS for name in by_kind.get(kind, [])]

    results = {}
    for group, names in groups.items():
        aucs: list[float | None] = [None, None, None]
        if group != Kind.INTACT:
            sampled = [name for name in names if name in untrained]
            intact = [name for name in by_kind[Kind.INTACT] if name in untrained]
            aucs = [
                _auc_against(intact, sampled, untrained),
                _auc_against(intact, sampled, trained),
                _auc_against(by_kind[Kind.INTACT], names, trained),
            ]
        results[group] = KindResult(len(names), sum(name in kept for name in names), *aucs)
    return results


def sample_by_kind(pool: Sequence[Mapping[str, Any]], per_kind: int) -> list[Mapping[str, Any]]:
    """Returns the same number of documents of each kind, drawn with a fixed seed.

    Args:
        pool: Documents of any kinds.
        per_kind: Number of documents of each kind; a kind with fewer is taken whole.

    Returns:
        The sample, in the pool's order.
    """
    rng = np.random.default_rng(_SAMPLE_SEED)
    left = dict.fromkeys((str(document["kind"]) for document in pool), per_kind)
    chosen = []
    for i in rng.permutation(len(pool)):
        kind = str(pool[int(i)]["kind"])
        if left[kind] > 0:
            left[kind] -= 1
            chosen.append(int(i))
    return [pool[i] for i in sorted(chosen)]


def score_with(rater: Path, documents: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores documents with a rater checkpoint.

    Args:
        rater: Folder of the rater checkpoint.
        documents: Documents with the fields `id` and `text`.

    Returns:
        The score of each document, by id.

    Raises:
        DemoError: If the checkpoint cannot be loaded, or a score is not finite.
    """
    # JAX takes seconds to import, and the corpus and the commands do without it here.
    from datarater.rater_model.checkpoint import CheckpointError, load_rater
    from datarater.rater_model.scorer import Scorer

    try:
        checkpoint = load_rater(str(rater))
    except (CheckpointError, OSError) as error:
        raise DemoError(f"the rater in {rater} cannot be loaded: {error}") from error

    scores_N = Scorer(checkpoint).score([str(document["text"]) for document in documents]).scores_N
    if not np.isfinite(scores_N).all():
        raise DemoError(f"the rater in {rater} returned scores that are not finite")
    return {
        str(document["id"]): float(score)
        for document, score in zip(documents, scores_N, strict=True)
    }


def read_pool(output: Path) -> list[dict[str, Any]]:
    """Reads the pool's documents as they were written.

    Args:
        output: Output folder of the demo.

    Returns:
        One dict for each document, with the keys `id`, `text`, `source` and `kind`.
    """
    return list(_read_jsonl(sorted(glob.glob(str(output / "corpus" / "*.jsonl.gz")))))


def read_scores(curated: Path) -> dict[str, float]:
    """Reads the scores of a run folder.

    Args:
        curated: Path of the run folder.

    Returns:
        The score of each scored document, by id.
    """
    from pyarrow import parquet

    scores: dict[str, float] = {}
    for path in sorted(curated.glob("scores/**/*.parquet")):
        if {"key", "score", "status"} <= set(parquet.read_schema(path).names):
            columns = parquet.read_table(path, columns=["key", "score", "status"]).to_pydict()
            for key, score, status in zip(
                columns["key"], columns["score"], columns["status"], strict=True
            ):
                if status == "scored":
                    scores[str(json.loads(key))] = float(score)
    return scores


def read_kept(curated: Path) -> set[str]:
    """Reads the ids of the documents that the run folder's only selection kept.

    Args:
        curated: Path of the run folder.

    Raises:
        DemoError: If the folder does not contain exactly one finished selection.
    """
    finished = [path.parent for path in sorted(curated.glob("selections/*/_SUCCESS"))]
    if len(finished) != 1:
        raise DemoError(
            f"{curated}/selections contains {len(finished)} finished selections; expected one"
        )
    return {
        str(record["id"])
        for record in _read_jsonl(sorted(glob.glob(str(finished[0] / "kept" / "*.jsonl*"))))
    }


def print_table(results: Mapping[str, KindResult]) -> None:
    """Prints the results as a table.

    Args:
        results: Results by kind, as `measure` returns them.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Does the rater tell intact prose from the rest?")
    for heading in ("documents", "number", "untrained AUC", "trained AUC", "kept"):
        table.add_column(
            heading, justify="left" if heading == "documents" else "right", no_wrap=True
        )

    labels = {
        Kind.INTACT.value: "intact prose",
        Kind.SHUFFLED.value: "bytes shuffled",
        Kind.REDRAWN.value: "bytes redrawn",
        Kind.BOILERPLATE.value: "boilerplate repeated",
        "damaged": "all damaged",
        Kind.CODE.value: "source code (intact)",
    }
    for group, label in labels.items():
        if group in results:
            result = results[group]
            table.add_row(
                label,
                f"{result.documents:,}",
                _format_auc(result.untrained_auc),
                _format_auc(result.trained_auc),
                f"{result.kept_share:.1%}",
                end_section=group in (Kind.INTACT.value, "damaged"),
            )

    # A fixed width where there is no terminal, so that a log contains the whole table.
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print()
    console.print(table)


def _auc_against(
    intact: Sequence[str], others: Sequence[str], scores: Mapping[str, float]
) -> float | None:
    """Returns the AUC of intact documents against others, or None if either side is empty."""
    if not intact or not others:
        return None
    scores_N = [scores[name] for name in (*intact, *others)]
    return auc(scores_N, [True] * len(intact) + [False] * len(others))


def _format_auc(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _read_jsonl(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            for line in file:
                yield json.loads(line)
