"""The paper's toy experiment: does the softmax weight fall with the noise fraction?

    python -m tests.benchmarks.toy_r2 --output toy_output

The paper (arXiv 2505.17895) corrupts the inner data at random noise fractions, keeps the outer data
clean, and reports the R^2 of the softmax weight against the noise fraction over meta-steps. For
each seed, the benchmark trains a rater with `datarater train --config=corruption` and exports it on
the way. Each export rates sequences from modules and topics that training did not see. They are
dealt into batches of the size that training uses, weights are the softmax of the scores within a
batch, and R^2 is that of the least-squares line through all pairs of weight and noise fraction.

Writes `toy_r2.json` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table

from datarater.meta_training.demo.corruption import CorruptionKind
from datarater.meta_training.demo.corruption_corpus import write_corruption_corpus
from tests.benchmarks.benchmark_support import machine, rate, rater_at_step, read_documents, train

PAPER = {0: 0.163, 10: 0.561, 30: 0.693, 70: 0.813}


def batch_weights(
    scores_N: ArrayLike, batch: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Deals sequences into batches and returns the softmax weights within them.

    Args:
        scores_N: Scores of the sequences.
        batch: Sequences of a batch; those that do not fill one are left out.
        rng: Deals the sequences.

    Returns:
        The weights of the dealt sequences, and the indices of these sequences.
    """
    order = rng.permutation(len(np.asarray(scores_N)))
    dealt = order[: len(order) - len(order) % batch]
    scores_MxB = np.asarray(scores_N, np.float64)[dealt].reshape(-1, batch)
    weights_MxB = np.exp(scores_MxB - scores_MxB.max(axis=1, keepdims=True))
    return (weights_MxB / weights_MxB.sum(axis=1, keepdims=True)).reshape(-1), dealt


def r_squared(x_N: ArrayLike, y_N: ArrayLike) -> float:
    """Returns the R^2 of the least-squares line of y on x: the squared correlation of the two.

    0 if either is constant: no line explains anything then.
    """
    first_N, second_N = np.asarray(x_N, np.float64), np.asarray(y_N, np.float64)
    first_N, second_N = first_N - first_N.mean(), second_N - second_N.mean()
    scale = float((first_N @ first_N) * (second_N @ second_N))
    return float((first_N @ second_N) ** 2) / scale if scale else 0.0


def run_seed(output: Path, seed: int, kinds: Sequence[CorruptionKind]) -> dict[str, Any]:
    """Makes the corpus of a seed, trains on it, and returns the R^2 of each export."""
    write_corruption_corpus(output, kinds, seed)
    workdir = output / "train"
    seconds = train(
        "corruption",
        workdir,
        [
            f"--config.data.inner={output}/pool/*.jsonl.gz",
            f"--config.data.outer={output}/target/*.jsonl.gz",
            f"--config.seed={seed}",
            f"--config.meta_steps={max(PAPER)}",
            "--config.export_every=10",
        ],
    )
    batch = json.loads((workdir / "config.json").read_text())["inner_batch"]

    records = [record for _, record in read_documents(f"{output}/evaluation/*.jsonl.gz")]
    level_N = np.array([record["noise_level"] for record in records], np.float64)
    figures = {}
    for step in PAPER:
        scores_N = rate(rater_at_step(workdir, step), [record["text"] for record in records])
        # The same batches at every step.
        weights, dealt = batch_weights(scores_N, batch, np.random.default_rng(seed))
        figures[step] = {
            "r_squared": r_squared(level_N[dealt], weights),
            "correlation": float(np.corrcoef(level_N[dealt], weights)[0, 1]),
            "weight_times_batch": {
                str(level): float(weights[level_N[dealt] == level].mean() * batch)
                for level in sorted(set(level_N.tolist()))
            },
        }
    return {"seed": seed, "sequences": len(records), "seconds": seconds, "figures": figures}


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints R^2 of all seeds beside the paper's."""
    table = Table(title="R^2 of the softmax weight against the noise fraction")
    for column in ("meta-step", "paper", *(f"seed {result['seed']}" for result in results), "mean"):
        table.add_column(column, justify="right", no_wrap=True)
    for step, paper in PAPER.items():
        values = [result["figures"][step]["r_squared"] for result in results]
        numbers = [f"{value:.3f}" for value in (paper, *values, np.mean(values))]
        table.add_row(str(step), *numbers)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", default="toy_output", type=Path, help="folder for corpora, raters and figures"
    )
    parser.add_argument("--seeds", nargs="+", default=[0, 1, 2], type=int, help="default: 0 1 2")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=[CorruptionKind.REDRAWN],
        type=CorruptionKind,
        help=f"kinds of damage: {' '.join(CorruptionKind)} (default: redrawn, as in the paper)",
    )
    options = parser.parse_args(argv)

    console = Console(width=None if sys.stdout.isatty() else 120)
    results = []
    for seed in options.seeds:
        console.print(f"seed {seed} ...")
        results.append(run_seed(options.output.resolve() / f"seed_{seed}", seed, options.kinds))
    report: dict[str, Any] = {"machine": machine(), "paper": PAPER, "results": results}
    path = options.output / "toy_r2.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    show(results, console)
    console.print(f"all figures: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
