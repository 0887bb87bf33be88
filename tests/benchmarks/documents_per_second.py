r"""Documents per second of processor time of scoring and selecting, in turns with another checkout.

    python -m tests.benchmarks.documents_per_second --corpus '../shared/corpora/dev/*' \
        --rater RATER --checkout ../before --rounds 3 --output /tmp/speed

In every round, each checkout of this repository scores the corpus by `datarater score` and selects
half of it by `datarater select`, in one process and a run folder of its own. The processor time is
that of the whole command, start and compilation included; the ratio compares medians. A small rater
and `--max_windows 1` leave most of the time to everything but the model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.benchmark_support import machine


def run(checkout: Path, command: str, *flags: str) -> float:
    """Runs a command of a checkout; returns its processor time in seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "datarater", command, *flags],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise RuntimeError(f"{checkout}: {command} ended with {os.waitstatus_to_exitcode(code)}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, metavar="GLOB", help="files to score")
    parser.add_argument("--rater", required=True, metavar="DIR", help="a rater checkpoint")
    parser.add_argument(
        "--checkout", required=True, type=Path, metavar="DIR", help="another checkout, for `before`"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max_windows", default="1", help="windows of a document to score")
    parser.add_argument("--output", required=True, type=Path, help="folder for the run folders")
    args = parser.parse_args()

    checkouts = {"before": args.checkout.resolve(), "after": Path(__file__).resolve().parents[2]}
    corpus, rater = os.path.abspath(args.corpus), os.path.abspath(args.rater)
    rows: list[dict[str, Any]] = []
    for round_number in range(1, args.rounds + 1):
        for name, checkout in checkouts.items():
            folder = args.output.resolve() / name
            shutil.rmtree(folder, ignore_errors=True)
            flags = ("--input", corpus, "--rater", rater, "--max_windows", args.max_windows)
            seconds = run(checkout, "score", "--output", str(folder), *flags)
            select_seconds = run(
                checkout, "select", "--output", str(folder), "--keep_fraction", "0.5"
            )
            documents = json.loads((folder / "scoring.json").read_bytes())["counts"]["scored"]
            row = {
                "round": round_number,
                "checkout": name,
                "documents": documents,
                "score": documents / seconds,
                "select": documents / select_seconds,
            }
            rows.append(row)
            print(
                f"round {round_number}, {name:<6}: {documents:,} documents, scored "
                f"{row['score']:,.0f} and selected {row['select']:,.0f} a second",
                flush=True,
            )

    for step in ("score", "select"):
        medians = {
            name: statistics.median(row[step] for row in rows if row["checkout"] == name)
            for name in checkouts
        }
        print(f"{step}: after / before = {medians['after'] / medians['before']:.3f}")
    result = {"machine": machine(), "rows": rows}
    (args.output / "documents_per_second.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
