r"""Whether workers stay busy to the end: 4 on one big gzip file, and 4 on 16 files of uneven size.

    python -m tests.benchmarks.worker_timeline --corpus '../shared/corpora/dev/*' --rater RATER \
        --output /tmp/timeline

Each corpus consists of repeated documents of `--corpus`. `datarater score` scores it with
`--workers` processes, while the benchmark watches the marks in the run folder, which tell which
process has been scoring which split since when. It prints the timeline (one row per worker, one
column per hundredth of the scoring time, one letter per split), each worker's share of that time
spent scoring, and the read amplification of the plan. On a machine with fewer cores than workers
all of them are slower, but none should be idle.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from datarater.pipelines.run_folder import split_marks
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import plan_of
from datarater.rater_model.documents.decompression import decompressed_chunks
from datarater.rater_model.documents.files import list_files, open_file
from datarater.rater_model.documents.records import Compression
from tests.benchmarks.benchmark_support import machine

COLUMNS = 100
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WATCH_SECONDS = 0.05


def read_lines(pattern: str) -> list[bytes]:
    """Reads the lines of gzip JSONL files."""
    lines: list[bytes] = []
    for info in list_files([pattern]):
        with open_file(info.path) as file:
            lines += b"".join(decompressed_chunks(file, Compression.GZIP)).splitlines(keepends=True)
    return lines


def write_gzip(path: Path, lines: list[bytes], stored_bytes: int) -> None:
    """Writes lines repeatedly until a file has about the given number of stored bytes."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        number = 0
        while number % 1000 or path.stat().st_size < stored_bytes:
            file.write(lines[number % len(lines)])
            number += 1


def watch(
    process: subprocess.Popen[bytes], folder: RunFolder
) -> list[tuple[int, int, float, float]]:
    """Watches the marks while a command runs; returns (process, split, begin, end) of each."""
    begun: dict[tuple[int, int], tuple[float, float]] = {}
    while process.poll() is None:
        for _, mark in split_marks.unfinished(folder):
            key = (mark.process.pid, mark.ordinal)
            begun[key] = (mark.started, time.time())
        time.sleep(WATCH_SECONDS)
    return [(pid, ordinal, begin, end) for (pid, ordinal), (begin, end) in begun.items()]


def timeline(spans: list[tuple[int, int, float, float]]) -> tuple[list[str], dict[int, float]]:
    """Draws the spans; returns the rows and each process's busy share."""
    first, last = min(begin for _, _, begin, _ in spans), max(end for *_, end in spans)
    rows, busy = [], {}
    for pid in sorted({pid for pid, *_ in spans}):
        row = [" "] * COLUMNS
        own = sorted((begin, end, ordinal) for other, ordinal, begin, end in spans if other == pid)
        for begin, end, ordinal in own:
            left = int((begin - first) / (last - first) * COLUMNS)
            right = max(left + 1, int((end - first) / (last - first) * COLUMNS))
            row[left:right] = LETTERS[ordinal % len(LETTERS)] * (right - left)
        busy[pid] = sum(end - begin for begin, end, _ in own) / (last - first)
        rows.append(f"{pid:>8} |{''.join(row[:COLUMNS])}| {busy[pid]:.0%}")
    return rows, busy


def run(
    name: str, corpus: Path, rater: str, output: Path, workers: int, more: list[str]
) -> dict[str, Any]:
    """Scores a corpus and draws the timeline."""
    shutil.rmtree(output, ignore_errors=True)
    arguments = [
        "--input",
        f"{corpus}/*",
        "--rater",
        rater,
        "--output",
        str(output),
        "--local_workers",
        str(workers),
    ]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "datarater", "score", *arguments, *more],
        stdout=subprocess.DEVNULL,
    )
    spans = watch(process, RunFolder(str(output)))
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"datarater score ended with {process.returncode}")

    plan = plan_of(RunFolder(str(output)))
    rows, busy = timeline(spans)
    scoring = max(end for *_, end in spans) - min(begin for _, _, begin, _ in spans)
    print(f"\n{name}: {plan.describe()}; {scoring:.0f} s of scoring, {seconds:.0f} s in all")
    print("\n".join(rows), flush=True)
    return {
        "name": name,
        "splits": plan.splits,
        "read_amplification": plan.read_amplification,
        "seconds": seconds,
        "scoring_seconds": scoring,
        "busy": sorted(busy.values()),
    }


def main() -> None:
    """Makes both corpora and scores both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="gzip JSONL files to take documents from")
    parser.add_argument(
        "--rater", required=True, help="a rater checkpoint; a small one makes reading visible"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for runs and figures")
    parser.add_argument("--workers", type=int, default=4, help="worker processes")
    parser.add_argument("--megabytes", type=int, default=100, help="stored size of each corpus")
    args, more = parser.parse_known_args()

    lines = read_lines(args.corpus)
    total = args.megabytes * 10**6
    shapes = {
        "one file": [1.0],
        # The first file is about half of the corpus.
        "16 uneven files": [2.0 ** -min(number, 6) for number in range(16)],
    }
    rows = []
    for name, sizes in shapes.items():
        corpus = args.output / name.replace(" ", "_")
        if not corpus.exists():
            corpus.mkdir(parents=True)
            for number, size in enumerate(sizes):
                write_gzip(corpus / f"{number:02d}.jsonl.gz", lines, int(total * size / sum(sizes)))
        rows.append(run(name, corpus, args.rater, corpus.with_suffix(".run"), args.workers, more))

    result = {
        "machine": machine(),
        "workers": args.workers,
        "megabytes": args.megabytes,
        "rows": rows,
    }
    (args.output / "timeline.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
