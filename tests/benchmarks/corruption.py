"""The corruption experiment: does a rater tell clean prose from damaged, and more from less damage?

    python -m tests.benchmarks.corruption --output corruption_output

For each seed, the benchmark writes the corpus (`datarater.meta_training.demo.corruption_corpus`),
trains a rater on it with `datarater train --config=corruption`, and evaluates on sequences from
modules and topics that training did not see. The trained rater is compared with the untrained one
(step 0 of the same run) and with byte n-gram models of the clean target, which score a sequence by
its mean log-probability.

Figures, for each kind of damage and for both together:

    AUC         AUC of clean against damaged sequences, over all noise levels and at each
    Spearman    rank correlation of the negated score with the noise level; positive if noisier
                sequences score lower

The targets are an AUC of 0.99 and a Spearman of 0.85 on every seed. Writes `corruption.json` to the
output folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datarater.meta_training.demo.corruption import NOISE_LEVELS, CorruptionKind
from datarater.meta_training.demo.corruption_corpus import write_corruption_corpus
from datarater.meta_training.demo.ranking import auc, spearman
from datarater.meta_training.evaluate.ngram_filters import NgramFilter
from tests.benchmarks.benchmark_support import machine, rate, rater_at_step, read_documents, train

AUC_TARGET, SPEARMAN_TARGET = 0.99, 0.85
TOGETHER = "together"


def figures(
    scores_N: NDArray[np.float64], level_N: NDArray[np.float64], source_N: NDArray[np.str_]
) -> dict[str, dict[str, float]]:
    """Returns AUC and rank correlation for each kind of damage and for all together.

    Args:
        scores_N: Scores of N sequences.
        level_N: Noise levels of the sequences.
        source_N: Kinds of damage, also of the clean sequences.
    """
    figures_by_kind = {}
    kinds = [str(kind) for kind in CorruptionKind if (source_N == str(kind)).any()]
    for name, of_kinds in [*((kind, [kind]) for kind in kinds), (TOGETHER, kinds)]:
        chosen_N = np.isin(source_N, of_kinds)
        scores, level = scores_N[chosen_N], level_N[chosen_N]
        figures_by_kind[name] = {
            "auc": auc(scores, level == 0),
            "spearman": spearman(-scores, level),
        }
        for noise_level in NOISE_LEVELS[1:]:
            at_level = (level == 0) | (level == noise_level)
            figures_by_kind[name][f"auc_{noise_level}"] = auc(
                scores[at_level], level[at_level] == 0
            )
    return figures_by_kind


def run_seed(
    output: Path, seed: int, kinds: Sequence[CorruptionKind], overrides: Sequence[str]
) -> dict[str, Any]:
    """Makes the corpus of a seed, trains on it and evaluates.

    Args:
        output: Folder of this seed.
        seed: Seed for the corpus and for training.
        kinds: Kinds of damage.
        overrides: Additional flags of `datarater train`.

    Returns:
        Figures by scorer, seconds of training, and the path of the rater.
    """
    counts = write_corruption_corpus(output, kinds, seed)
    workdir = output / "train"
    seconds = train(
        "corruption",
        workdir,
        [
            f"--config.data.inner={output}/pool/*.jsonl.gz",
            f"--config.data.outer={output}/target/*.jsonl.gz",
            f"--config.seed={seed}",
            *overrides,
        ],
    )

    records = [record for _, record in read_documents(f"{output}/evaluation/*.jsonl.gz")]
    texts = [record["text"] for record in records]
    level_N = np.asarray([record["noise_level"] for record in records], np.float64)
    source_N = np.asarray([record["source"] for record in records])
    target = [document.text for document, _ in read_documents(f"{output}/target/*.jsonl.gz")]
    scores = {
        "unigram filter": NgramFilter(1).fit(target).score_all(texts),
        "bigram filter": NgramFilter(2).fit(target).score_all(texts),
        "trigram filter": NgramFilter(3).fit(target).score_all(texts),
        "untrained rater": rate(rater_at_step(workdir, 0), texts),
        "trained rater": rate(workdir / "rater", texts),
    }
    return {
        "seed": seed,
        "sequences": counts,
        "training_seconds": seconds,
        "rater": str(workdir / "rater"),
        "config": json.loads((workdir / "config.json").read_text()),
        "figures": {
            name: figures(scores_N, level_N, source_N) for name, scores_N in scores.items()
        },
    }


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the table of all seeds."""
    table = Table(title="Clean prose against damaged, on sequences that training did not see")
    for column in (
        "seed",
        "scored by",
        "damage",
        "AUC",
        *(f"at {level:g}" for level in NOISE_LEVELS[1:]),
        "Spearman",
    ):
        table.add_column(
            column, justify="left" if column in ("scored by", "damage") else "right", no_wrap=True
        )

    for result in results:
        for scorer, of_kinds in result["figures"].items():
            for kind, values in of_kinds.items():
                per_level = [values[f"auc_{level}"] for level in NOISE_LEVELS[1:]]
                numbers = [
                    f"{value:.3f}" for value in (values["auc"], *per_level, values["spearman"])
                ]
                table.add_row(
                    str(result["seed"]), scorer, kind, *numbers, end_section=kind == TOGETHER
                )
    console.print(table)


def reached(result: dict[str, Any]) -> bool:
    """Returns whether the trained rater met both targets, for each kind and for all together."""
    trained = result["figures"]["trained rater"].values()
    return all(
        values["auc"] >= AUC_TARGET and values["spearman"] >= SPEARMAN_TARGET for values in trained
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 0 if every seed met the targets, otherwise 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        default="corruption_output",
        type=Path,
        help="folder for corpora, raters and figures",
    )
    parser.add_argument("--seeds", nargs="+", default=[0, 1, 2], type=int, help="default: 0 1 2")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=list(CorruptionKind),
        type=CorruptionKind,
        help=f"kinds of damage: {' '.join(CorruptionKind)} (default: all)",
    )
    options, overrides = parser.parse_known_args(argv)
    unknown = [flag for flag in overrides if not flag.startswith("--config.")]
    if unknown:
        parser.error(
            f"unknown flags: {' '.join(unknown)}; a flag of datarater train is --config.seed=1"
        )

    console = Console(width=None if sys.stdout.isatty() else 120)
    results = []
    for seed in options.seeds:
        console.print(f"seed {seed} ...")
        results.append(
            run_seed(options.output.resolve() / f"seed_{seed}", seed, options.kinds, overrides)
        )

    report: dict[str, Any] = {"machine": machine(), "results": results}
    path = options.output / "corruption.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    show(results, console)
    for result in results:
        verdict = "reached" if reached(result) else "NOT reached"
        console.print(
            f"seed {result['seed']}: AUC {AUC_TARGET} and Spearman {SPEARMAN_TARGET} {verdict} "
            f"after {result['config']['meta_steps']} meta-steps, "
            f"{result['training_seconds']:.0f} s; {result['rater']}"
        )
    cores = report["machine"]["cores"]
    console.print(
        f"{report['machine']['platform']}, {cores} cores; all figures: {path}", soft_wrap=True
    )
    return 0 if all(reached(result) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
