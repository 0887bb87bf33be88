"""What do common random numbers save? Interval width against processor seconds, with and without.

    python -m tests.benchmarks.common_random_numbers

Reads the confirmed results of `tests.benchmarks.worth`. With common random numbers, the runs of a
seed share the initialization and the permutation that every arm walks, and an arm is compared with
the whole pool of its own seed. Without them, it is compared with the whole pool of another seed
whose target has the same folds: everything but the random numbers is as before. No model is trained
for this; both comparisons cost the same runs.

For S seeds of two runs each, the half width of the interval is
t(S - 1, 0.975) x deviation / sqrt(S).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from datarater.meta_training.evaluate.arm_names import UNFILTERED
from datarater.meta_training.evaluate.statistics import CONFIDENCE, paired_difference

ROTATIONS = 3
SECONDS_PER_RUN = 40.0
SEEDS = (2, 4, 8, 16)
HALF_WIDTH = 0.02


def half_width(deviation: float, seeds: int) -> float:
    """Returns the half width of the t interval of a mean over seeds.

    Example:
        >>> round(half_width(0.1, 4), 3)
        0.159
    """
    return float(special.stdtrit(seeds - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(seeds)


def seeds_for(deviation: float, wanted: float) -> int:
    """Returns the number of seeds from which on the half width is at most `wanted`.

    Example:
        >>> seeds_for(0.01, 0.02), seeds_for(0.1, 0.02)
        (4, 99)
    """
    seeds = 2
    while half_width(deviation, seeds) > wanted:
        seeds += 1
    return seeds


def of_another_seed(losses_S: Sequence[float], first_seed: int) -> NDArray[np.float64]:
    """Returns for each seed the loss of the next seed whose target has the same folds.

    Example:
        >>> of_another_seed([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 0).tolist()
        [3.0, 4.0, 5.0, 6.0, 7.0, 2.0, 0.0, 1.0]
    """
    rotations_S = (first_seed + np.arange(len(losses_S))) % ROTATIONS
    others_S = np.asarray(losses_S, np.float64)
    for rotation in range(ROTATIONS):
        seeds = np.flatnonzero(rotations_S == rotation)
        others_S[seeds] = others_S[np.roll(seeds, -1)]
    return others_S


def measure(report: Mapping[str, Any], seconds_per_run: float) -> list[dict[str, Any]]:
    """Compares every arm of a report with the whole pool of its own and of another seed.

    Args:
        report: Content of an `evaluation.json`.
        seconds_per_run: Processor seconds of one run.
    """
    arms = {(row["arm"], row["keep"]): row["final_losses"] for row in report["arms"]}
    baseline_S = arms.pop((UNFILTERED, 1.0))
    another_S = of_another_seed(baseline_S, report["options"]["first_seed"])

    rows = []
    for (arm, keep), losses_S in arms.items():
        row: dict[str, Any] = {"arm": arm, "keep": keep}
        for name, compared_S in (("common", baseline_S), ("independent", another_S)):
            deviation = paired_difference(losses_S, compared_S).deviation
            assert deviation is not None
            seeds = seeds_for(deviation, HALF_WIDTH)
            row[name] = {
                "deviation": deviation,
                "half_widths": {count: half_width(deviation, count) for count in SEEDS},
                "seeds": seeds,
                "processor_seconds": seeds * 2 * seconds_per_run,
            }
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table for each report and writes all of them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    results = Path(__file__).parent / "worth_results"
    parser.add_argument(
        "reports", nargs="*", type=Path, default=sorted(results.glob("*_confirm.json"))
    )
    parser.add_argument("--seconds_per_run", type=float, default=SECONDS_PER_RUN)
    parser.add_argument("--output", type=Path, default=Path("common_random_numbers.json"))
    args = parser.parse_args(argv)

    measured = {}
    for path in args.reports:
        rows = measure(json.loads(path.read_text(encoding="utf-8")), args.seconds_per_run)
        measured[path.stem] = rows
        print(f"\n{path.stem}: half width of the 95% interval of the difference from the pool")
        costs = "".join(f"{count * 2 * args.seconds_per_run:>9.0f}s" for count in SEEDS)
        wanted = f"seconds for {HALF_WIDTH:g}"
        print(f"{'arm':24}{'random numbers':>16}{'deviation':>11}{costs}{wanted:>18}")
        for row in rows:
            for name in ("common", "independent"):
                one = row[name]
                widths = "".join(f"{width:>10.4f}" for width in one["half_widths"].values())
                print(
                    f"{row['arm'] + ' ' + format(row['keep'], '.0%'):24}{name:>16}"
                    f"{one['deviation']:>11.4f}{widths}{one['processor_seconds']:>18,.0f}"
                )

    args.output.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
