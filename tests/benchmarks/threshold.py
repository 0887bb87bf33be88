"""The exact threshold of many scores, compared with Beam's ApproximateQuantiles and with KLL.

    pip install -e '.[benchmark]'
    python -m tests.benchmarks.threshold --documents 100000000 --beam_documents 2000000

Each method runs in a process of its own on the same scores. They are normal, and none or a fifth of
them are tied at one value, since a crawl has many equal scores. They are generated split by split
as a worker would read them; generating them is not timed. The descent is ours, as the pipeline runs
it: one histogram per split, merged, then what is undecided; the time includes all its passes over
the scores. KLL is that of datasketches. The last column is the share of documents by which the
number kept misses the number requested.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SPLIT = 250_000
FRACTION = 0.1


def scores_of(documents: int, tied: bool) -> Iterator[np.ndarray]:
    """Yields the scores of each split, the same ones at every call."""
    for ordinal, first in enumerate(range(0, documents, SPLIT)):
        count = min(SPLIT, documents - first)
        scores_N = np.random.default_rng(ordinal).standard_normal(count, np.float32)
        if tied:
            scores_N[::5] = 1.5
        yield scores_N


def peak_megabytes() -> float:
    """Returns the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def by_descent(documents: int, tied: bool) -> tuple[float, int]:
    """Runs our exact descent; returns seconds and the documents kept."""
    from datarater.pipelines.selection.cutoffs import SORT_LIMIT
    from datarater.pipelines.selection.descent import Boundary
    from datarater.pipelines.selection.histogram import Histogram
    from datarater.pipelines.selection.ranking import RankKeys
    from datarater.pipelines.selection.rules import KeepFraction

    making = 0.0

    def keys_of_splits() -> Iterator[RankKeys]:
        nonlocal making
        began = time.perf_counter()
        for ordinal, scores_N in enumerate(scores_of(documents, tied)):
            count = len(scores_N)
            hashes_N = np.random.default_rng([ordinal, 1]).integers(0, 2**63, count, np.uint64)
            making += time.perf_counter() - began
            yield RankKeys.of(
                scores_N, hashes_N, 0, ordinal, np.arange(count), np.ones(count, np.int64)
            )
            began = time.perf_counter()

    def merged(parts: Iterator[Histogram]) -> Histogram:
        total = Histogram.empty()
        for part in parts:
            total = Histogram.merge([total, part])
        return total

    started = time.perf_counter()
    rule = KeepFraction(str(FRACTION))
    histogram = merged(Histogram.of(keys, 0) for keys in keys_of_splits())
    search = Boundary.begin(rule.unit, rule.target(documents, documents), documents, histogram)
    passes = 1
    while not search.done:
        passes += 1
        undecided = (keys.between(search.low, search.high) for keys in keys_of_splits())
        if search.undecided <= SORT_LIMIT:
            search = search.settle(RankKeys.concatenate(undecided))
        else:
            search = search.descend(merged(map(search.count, undecided)))
    print(f"passes over the scores: {passes}", file=sys.stderr)
    assert search.counted is not None
    return time.perf_counter() - started - making, search.counted[0]


def by_kll(documents: int, tied: bool) -> tuple[float, int]:
    """Runs datasketches' KLL with k = 4000; returns seconds and the documents kept."""
    sketch = importlib.import_module("datasketches").kll_floats_sketch(4000)
    clock = 0.0
    for scores_N in scores_of(documents, tied):
        started = time.perf_counter()
        sketch.update(scores_N)
        clock += time.perf_counter() - started
    return clock, kept_above(documents, tied, sketch.get_quantile(1 - FRACTION))


def by_beam(documents: int, tied: bool) -> tuple[float, int]:
    """Runs Beam's ApproximateQuantiles with 1001 quantiles, batched, on the in-process runner."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.transforms.stats import ApproximateQuantiles

    started = time.perf_counter()
    for _ in scores_of(documents, tied):
        pass
    making = time.perf_counter() - started
    started = time.perf_counter()
    result = Path(tempfile.mkdtemp()) / "quantiles.json"
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        _ = (
            pipeline
            | beam.Create([documents])
            | beam.FlatMap(lambda count: (scores_N.tolist() for scores_N in scores_of(count, tied)))
            | ApproximateQuantiles.Globally(1001, input_batched=True)
            | beam.Map(lambda quantiles: result.write_text(json.dumps(quantiles)))
        )
    seconds = time.perf_counter() - started - making
    quantiles = json.loads(result.read_text())
    return seconds, kept_above(documents, tied, quantiles[-1 - int(1000 * FRACTION)])


def kept_above(documents: int, tied: bool, threshold: float) -> int:
    """Returns the number of documents that a threshold keeps."""
    return sum(int((scores_N >= threshold).sum()) for scores_N in scores_of(documents, tied))


METHODS = {"descent": by_descent, "kll": by_kll, "beam": by_beam}


def run(method: str, documents: int, tied: bool) -> dict[str, Any]:
    """Runs one method in this process."""
    METHODS[method](SPLIT, tied)  # imports and first allocations are not measured
    before = peak_megabytes()
    seconds, kept = METHODS[method](documents, tied)
    return {"seconds": seconds, "kept": kept, "before": before, "peak": peak_megabytes()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=100_000_000, help="number of scores")
    parser.add_argument(
        "--beam_documents",
        type=int,
        default=2_000_000,
        help="number of scores for Beam, which is slow",
    )
    parser.add_argument(
        "--tied", action="store_true", help="with --method: a fifth of the scores are equal"
    )
    parser.add_argument("--method", choices=METHODS, help="run only this method and print JSON")
    args = parser.parse_args()
    if args.method:
        print(json.dumps(run(args.method, args.documents, args.tied)))
        return

    print("| method | tied | documents | million/s | MB over start | kept | miss |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for method, tied in itertools.product(METHODS, (False, True)):
        documents = args.beam_documents if method == "beam" else args.documents
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.threshold",
            "--method",
            method,
            "--documents",
            str(documents),
        ]
        command += ["--tied"] * tied
        row = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
        )
        target = round(FRACTION * documents)
        rate, grown = documents / row["seconds"] / 1e6, row["peak"] - row["before"]
        print(
            f"| {method} | {'a fifth' if tied else 'none'} | {documents:,} | {rate:.2f} | "
            f"{grown:.0f} | {row['kept']:,} | {abs(row['kept'] - target) / documents:.3%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
