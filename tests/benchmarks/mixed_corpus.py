"""The mixed corpus: does a rater meta-learned on a web-like pool prefer edited prose?

    python -m tests.benchmarks.mixed_corpus --output mixed_corpus_output

The benchmark splits the corpora's `dev_heldout/` in two halves by work (see `held_out_works`),
trains a rater on `dev/` with one half as the outer set (`datarater train --config=mixed_corpus`),
and scores every document of `dev/`. The trained rater is compared with the untrained one (step 0 of
the same run), with byte n-gram models of the outer half, which score a document by its mean
log-probability, and with the document's length.

Figures:

    AUC              AUC of documents from clean sources against those from noisy ones; mixed
                     sources are excluded. The target is 0.85
    within deciles   mean of the AUCs within tenths of the documents by length: what remains if
                     length tells nothing
    Spearman length  rank correlation of score and length in bytes, over all documents
    validation AUC   AUC of the other half of the held-out documents, which training did not see,
                     against noisy sources

The quality labels below are for reading results; training never sees them. The corpora are in
$DATARATER_CORPORA, by default `../shared/corpora`. Writes `mixed_corpus.json` to the output folder.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datarater.meta_training.demo.ranking import auc, spearman
from datarater.meta_training.evaluate.ngram_filters import NgramFilter
from datarater.rater_model.documents.records import Document
from tests.benchmarks.benchmark_support import machine, rate, rater_at_step, read_documents, train
from tests.benchmarks.held_out_works import OUTER, VALIDATION, HeldOutDocument, assign, shared_names
from tests.support import corpora_folder

AUC_TARGET = 0.85
DECILES = 10
MIN_DOCUMENTS = 1000
"""With fewer, a tenth of them by length may contain no clean or no noisy document."""
CLEAN, MIXED, NOISY = "clean", "mixed", "noisy"
QUALITY = {
    "wikitext2_raw": CLEAN,
    "wikitext2_unk": MIXED,
    "gutenberg": CLEAN,
    "gutenberg_tex": NOISY,
    "reuters21578": MIXED,
    "masc_edited": CLEAN,
    "masc_informal": NOISY,
    "brown": CLEAN,
    "us_speeches": CLEAN,
    "elife": CLEAN,
    "digitalgov": MIXED,
    "rust_book": CLEAN,
    "stackexchange": MIXED,
    "movie_reviews": MIXED,
    "newsgroups20": NOISY,
    "spamassassin_spam": NOISY,
    "spamassassin_ham": MIXED,
    "web_cc": NOISY,
    "court_pages": NOISY,
    "wikitext_markup": NOISY,
    "link_lists": NOISY,
    "system_logs": NOISY,
    "latin_library": MIXED,
    "udhr": MIXED,
    "german_law": MIXED,
    "ocr_print": NOISY,
    "code_python": NOISY,
    "json_data": NOISY,
    "csv_tables": NOISY,
}


def split_held_out(
    corpora: Path, output: Path, console: Console
) -> dict[str, list[HeldOutDocument]]:
    """Splits the held-out documents by work, writes both halves and prints the works of each.

    Args:
        corpora: Folder of the corpora.
        output: Folder in which `outer/` and `validation/` are written.
        console: Console to print to.

    Returns:
        The documents of each half, and those of neither half under "".
    """
    halves: dict[str, list[HeldOutDocument]] = {OUTER: [], VALIDATION: [], "": []}
    for document, record in read_documents(f"{corpora}/dev_heldout/*.jsonl.gz"):
        placed = assign(record["id"], document.text, document.source)
        halves[placed.half].append(placed)

    for half in (OUTER, VALIDATION):
        (output / half).mkdir(parents=True, exist_ok=True)
        with gzip.open(output / half / f"{half}.jsonl.gz", "wt", encoding="utf-8") as file:
            for placed in halves[half]:
                file.write(
                    json.dumps({"id": placed.id, "text": placed.text, "source": placed.source})
                    + "\n"
                )
        works = collections.Counter(f"{placed.work} ({placed.source})" for placed in halves[half])
        size = sum(len(placed.text.encode()) for placed in halves[half])
        console.print(
            f"\n{half} half: {len(halves[half])} documents, {size / 1e6:.2f} MB, {len(works)} works"
        )
        console.print(
            "  " + "; ".join(f"{work} {count}" for work, count in sorted(works.items())),
            highlight=False,
        )
    console.print(f"in neither half, because the cues do not tell: {len(halves[''])} documents")

    common = {placed.work for placed in halves[OUTER]} & {
        placed.work for placed in halves[VALIDATION]
    }
    if common:
        raise ValueError(f"works in both halves: {sorted(common)}")
    console.print("pairs of works across the halves with the most rare names in common:")
    for count, outer, validation, names in shared_names([*halves[OUTER], *halves[VALIDATION]])[:3]:
        console.print(
            f"  {count} names  {outer} | {validation}: {', '.join(names[:8])} ...", highlight=False
        )
    return halves


def auc_within_deciles(
    scores_N: NDArray[np.float64], is_clean_N: NDArray[np.bool_], size_N: NDArray[np.int64]
) -> list[float]:
    """Returns the AUC within each tenth of the documents by length.

    Args:
        scores_N: Scores of the documents from clean and noisy sources.
        is_clean_N: Whether each document is from a clean source.
        size_N: Length of each document in bytes.
    """
    order_N = np.argsort(size_N, kind="stable")
    return [auc(scores_N[part], is_clean_N[part]) for part in np.array_split(order_N, DECILES)]


def figures(
    scores_N: NDArray[np.float64],
    validation_scores_V: NDArray[np.float64],
    quality_N: NDArray[np.str_],
    size_N: NDArray[np.int64],
) -> dict[str, Any]:
    """Returns the relation of scores to the sources' quality and to length.

    Args:
        scores_N: Scores of N documents of `dev/`.
        validation_scores_V: Scores of the V documents of the validation half.
        quality_N: Quality of each document's source.
        size_N: Length of each document in bytes.
    """
    judged_N = quality_N != MIXED
    deciles = auc_within_deciles(scores_N[judged_N], quality_N[judged_N] == CLEAN, size_N[judged_N])

    noisy_M = scores_N[quality_N == NOISY]
    kept_N = scores_N >= np.sort(scores_N)[len(scores_N) // 2]
    return {
        "auc": auc(scores_N[judged_N], quality_N[judged_N] == CLEAN),
        "auc_within_length_deciles": deciles,
        "auc_within_length_deciles_mean": float(np.mean(deciles)),
        "spearman_with_length": spearman(scores_N, size_N),
        "validation_auc": auc(
            np.concatenate([validation_scores_V, noisy_M]),
            np.arange(len(validation_scores_V) + len(noisy_M)) < len(validation_scores_V),
        ),
        "kept_at_half": {
            quality: float(kept_N[quality_N == quality].mean())
            for quality in (CLEAN, MIXED, NOISY)
            if (quality_N == quality).any()
        },
    }


def by_source(
    documents: Sequence[Document], scores: dict[str, NDArray[np.float64]]
) -> dict[str, dict[str, float]]:
    """Returns the mean rank of each source's documents, from 0 (worst) to 1 (best), by scorer."""
    sources_N = np.asarray([document.source for document in documents])
    mean_ranks: dict[str, dict[str, float]] = {source: {} for source in QUALITY}
    for name, scores_N in scores.items():
        rank_N = np.argsort(np.argsort(scores_N, kind="stable"), kind="stable") / max(
            1, len(scores_N) - 1
        )
        for source in QUALITY:
            if (sources_N == source).any():
                mean_ranks[source][name] = float(rank_N[sources_N == source].mean())
    return mean_ranks


def show(
    results: dict[str, dict[str, Any]], ranks: dict[str, dict[str, float]], console: Console
) -> None:
    """Prints the figures, and the sources in the trained rater's order."""
    table = Table(title="Documents of clean against noisy sources")
    for column in (
        "scored by",
        "AUC",
        "within deciles",
        "validation AUC",
        "Spearman length",
        "kept clean/mixed/noisy",
    ):
        table.add_column(column, justify="left" if column == "scored by" else "right")
    for name, values in results.items():
        table.add_row(
            name,
            f"{values['auc']:.3f}",
            f"{values['auc_within_length_deciles_mean']:.3f}",
            f"{values['validation_auc']:.3f}" if name != "length" else "",
            f"{values['spearman_with_length']:+.2f}",
            " ".join(f"{share:.0%}" for share in values["kept_at_half"].values()),
        )
    console.print(table)

    table = Table(title="AUC within tenths of the documents by length, shortest first")
    table.add_column("scored by")
    for decile in range(1, DECILES + 1):
        table.add_column(str(decile), justify="right")
    for name, values in results.items():
        table.add_row(name, *(f"{value:.2f}" for value in values["auc_within_length_deciles"]))
    console.print(table)

    table = Table(title="Mean rank of a source's documents, from 0 (worst) to 1 (best)")
    names = [name for name in results if name != "length"]
    for column in ("source", "quality", *names):
        table.add_column(column, justify="left" if column in ("source", "quality") else "right")
    present = [source for source, values in ranks.items() if values]
    for source in sorted(present, key=lambda source: -ranks[source]["trained rater"]):
        table.add_row(source, QUALITY[source], *(f"{ranks[source][name]:.2f}" for name in names))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 0 if the trained rater met the target, otherwise 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        default="mixed_corpus_output",
        type=Path,
        help="folder for the rater and the figures",
    )
    parser.add_argument(
        "--documents",
        default=0,
        type=int,
        help=f"documents of dev/ to score, at least {MIN_DOCUMENTS:,}, spread evenly; default: all",
    )
    options, overrides = parser.parse_known_args(argv)
    unknown = [flag for flag in overrides if not flag.startswith("--config.")]
    if unknown:
        parser.error(
            f"unknown flags: {' '.join(unknown)}; a flag of datarater train is --config.seed=1"
        )
    if options.documents and options.documents < MIN_DOCUMENTS:
        parser.error(f"--documents must be at least {MIN_DOCUMENTS}, not {options.documents}")
    corpora = corpora_folder()
    if not (corpora / "dev").is_dir():
        parser.error(
            f"there are no corpora in {corpora}; set DATARATER_CORPORA to a folder with dev/ and "
            "dev_heldout/"
        )

    console = Console(width=None if sys.stdout.isatty() else 120)
    output = options.output.resolve()
    halves = split_held_out(corpora, output, console)

    workdir = output / "train"
    seconds = train(
        "mixed_corpus",
        workdir,
        [
            f"--config.data.inner={corpora}/dev/*.jsonl.gz",
            f"--config.data.outer={output}/{OUTER}/*.jsonl.gz",
            *overrides,
        ],
    )
    console.print(f"\ntrained in {seconds:.0f} s: {workdir / 'rater'}", soft_wrap=True)

    documents = [document for document, _ in read_documents(f"{corpora}/dev/*.jsonl.gz")]
    if 0 < options.documents < len(documents):
        documents = [
            documents[i * len(documents) // options.documents] for i in range(options.documents)
        ]
    texts = [document.text for document in documents]
    validation = [placed.text for placed in halves[VALIDATION]]
    outer = [placed.text for placed in halves[OUTER]]
    quality_N = np.asarray([QUALITY[document.source] for document in documents])
    size_N = np.asarray([document.size for document in documents], np.int64)

    both = [*texts, *validation]
    scores = {
        "length": np.asarray([len(text.encode()) for text in both], np.float64),
        "bigram filter": NgramFilter(2).fit(outer).score_all(both),
        "trigram filter": NgramFilter(3).fit(outer).score_all(both),
        "untrained rater": rate(rater_at_step(workdir, 0), both),
        "trained rater": rate(workdir / "rater", both),
    }
    results = {
        name: figures(scores_N[: len(texts)], scores_N[len(texts) :], quality_N, size_N)
        for name, scores_N in scores.items()
    }
    ranks = by_source(
        documents, {name: scores_N[: len(texts)] for name, scores_N in scores.items()}
    )
    show(results, ranks, console)

    report: dict[str, Any] = {
        "machine": machine(),
        "config": json.loads((workdir / "config.json").read_text()),
        "training_seconds": seconds,
        "rater": str(workdir / "rater"),
        "documents": len(documents),
        "figures": results,
        "mean_rank_by_source": ranks,
    }
    (output / "mixed_corpus.json").write_text(json.dumps(report, indent=2) + "\n")
    reached = results["trained rater"]["auc"] >= AUC_TARGET
    console.print(
        f"AUC {AUC_TARGET} {'reached' if reached else 'NOT reached'} on {len(documents):,} "
        f"documents after {report['config']['meta_steps']} meta-steps, {seconds:.0f} s",
    )
    console.print(
        f"{report['machine']['platform']}, {report['machine']['cores']} cores; "
        f"all figures: {output / 'mixed_corpus.json'}",
        soft_wrap=True,
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
