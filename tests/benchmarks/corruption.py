"""The corruption experiment: does a rater tell clean prose from damaged, and more from less damaged?

    python tests/benchmarks/corruption.py --output corruption_output

For each seed: writes the corpus (`python -m datarater.meta_training.demo.corruption_corpus`),
trains a rater on it by `datarater train --config=meta_training/configs/corruption.py`, and
evaluates on sequences out of modules and topics that training did not see. Beside the trained rater
stand the untrained one (step 0 of the same run) and byte n-gram models of the clean target, which
score a sequence by its mean log-probability.

Figures, for each kind of damage and for both together:

    AUC         of clean against damaged sequences, over all noise levels and for each
    Spearman    rank correlation of the negated score with the noise level: positive where noise is rated low

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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, from any folder

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datarater.meta_training.demo.corruption import NOISE_LEVELS, CorruptionKind
from datarater.meta_training.demo.corruption_corpus import write_corruption_corpus
from datarater.meta_training.demo.ranking import auc, spearman
from datarater.meta_training.evaluate.ngram_filters import NgramFilter
from tests.benchmarks.benchmark_support import machine, rate, rater_at_step, read_documents, train
from tests.support import ROOT

AUC_TARGET, SPEARMAN_TARGET = 0.99, 0.85
TOGETHER = "together"


def figures(
    scores_N: NDArray[np.float64], level_N: NDArray[np.float64], source_N: NDArray[np.str_]
) -> dict[str, dict[str, float]]:
    """Returns AUC and rank correlation, of each kind of damage and of all together.

    Args:
        scores_N: scores of N sequences.
        level_N: their noise levels.
        source_N: their kinds of damage, also of the clean ones.
    """
    found = {}
    kinds = [str(kind) for kind in CorruptionKind if (source_N == str(kind)).any()]
    for name, of_kinds in [*((kind, [kind]) for kind in kinds), (TOGETHER, kinds)]:
        chosen_N = np.isin(source_N, of_kinds)
        scores, level = scores_N[chosen_N], level_N[chosen_N]
        found[name] = {"auc": auc(scores, level == 0), "spearman": spearman(-scores, level)}
        for noise_level in NOISE_LEVELS[1:]:
            at_level = (level == 0) | (level == noise_level)
            found[name][f"auc_{noise_level}"] = auc(scores[at_level], level[at_level] == 0)
    return found


def run_seed(
    output: Path, seed: int, kinds: Sequence[CorruptionKind], overrides: Sequence[str]
) -> dict[str, Any]:
    """Makes the corpus of a seed, trains on it and evaluates.

    Args:
        output: a folder of this seed.
        seed: of the corpus and of training.
        kinds: kinds of damage.
        overrides: more flags of `datarater train`.

    Returns:
        Figures by what scored, seconds of training, and where the rater is.
    """
    counts = write_corruption_corpus(output, kinds, seed)
    workdir = output / "train"
    seconds = train(
        ROOT / "meta_training/configs/corruption.py",
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
    table = Table(title="Clean prose against damaged, on sequences apart from training")
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
    """Returns whether the trained rater met both targets for every kind and for all together."""
    trained = result["figures"]["trained rater"].values()
    return all(
        values["auc"] >= AUC_TARGET and values["spearman"] >= SPEARMAN_TARGET for values in trained
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0 where every seed met the targets, else 1."""
    parser = argparse.ArgumentParser(
        description="Does a rater tell clean prose from damaged, and more from less damaged?",
        epilog="example: python tests/benchmarks/corruption.py --output corruption_output",
    )
    parser.add_argument(
        "--output",
        default="corruption_output",
        type=Path,
        help="folder for corpora, raters, figures",
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
            f"unknown: {' '.join(unknown)} (flags of datarater train look like --config.seed=1)"
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
            f"seed {result['seed']}: AUC {AUC_TARGET} and Spearman {SPEARMAN_TARGET} {verdict} after "
            f"{result['config']['meta_steps']} meta-steps, {result['training_seconds']:.0f} s; {result['rater']}"
        )
    cores = report["machine"]["cores"]
    console.print(
        f"{report['machine']['platform']}, {cores} cores; all figures: {path}", soft_wrap=True
    )
    return 0 if all(reached(result) for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
