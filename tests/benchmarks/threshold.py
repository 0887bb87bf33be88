"""The exact threshold of many scores, compared with np.partition, KLL and ApproximateQuantiles.

    pip install -e '.[benchmark]'
    python -m tests.benchmarks.threshold --output threshold.json
    python -m tests.benchmarks.threshold --before ../before   # another checkout takes turns

The best tenth is kept of scores that are normal, and of which none or a fifth are equal, since a
crawl has many equal scores. They are generated split by split, as a worker would read them. The
descent is ours, as the pipeline runs it: it counts documents and tokens in one histogram per split,
merges them, and then counts what is undecided. Its time includes all passes over the scores.
np.partition has all scores in one array, which it may reorder. KLL is that of datasketches, and
ApproximateQuantiles that of Beam, which gets fewer scores because it is slow.

Methods take turns in one process; the rate is the median of the rounds, in processor time without
that of generating the scores. Memory is measured in a process per method: how far its peak rises
above that after a run over one split. The last column is the share of documents by which the number
kept misses the number requested.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.benchmark_support import machine

SPLIT = 250_000
FRACTION = 0.1
BEAM_DOCUMENTS = 2_000_000
THIS_CHECKOUT = Path(__file__).parents[2]


class Scores(NamedTuple):
    """Scores to select from.

    Attributes:
        documents: Number of scores.
        tied: Whether a fifth of them are equal.
    """

    documents: int
    tied: bool

    def splits(self) -> Iterator[np.ndarray]:
        """Yields the scores of each split, the same ones at every call."""
        for ordinal, first in enumerate(range(0, self.documents, SPLIT)):
            count = min(SPLIT, self.documents - first)
            scores_N = np.random.default_rng(ordinal).standard_normal(count, np.float32)
            if self.tied:
                scores_N[::5] = 1.5
            yield scores_N

    def above(self, threshold: float) -> int:
        """Returns the number of scores that reach a threshold."""
        return sum(int((scores_N >= threshold).sum()) for scores_N in self.splits())


class Clock:
    """Measures processor time, except where it is paused."""

    def __init__(self) -> None:
        self._started = time.process_time()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for as long as the block runs."""
        began = time.process_time()
        yield
        self._started += time.process_time() - began

    def seconds(self) -> float:
        """Returns the processor time so far."""
        return time.process_time() - self._started


class Result(NamedTuple):
    """The processor seconds of a method, and the number of documents that it keeps."""

    seconds: float
    kept: int


Method = Callable[[Scores], Result]


def descent_of(checkout: Path) -> Method:
    """Returns the exact descent of a checkout; several can be imported into one process."""
    imported = {name: sys.modules[name] for name in sys.modules if name.startswith("datarater")}
    for name in imported:
        del sys.modules[name]
    sys.path.insert(0, str(checkout))
    try:
        modules = [
            importlib.import_module(f"datarater.pipelines.selection.{name}")
            for name in ("cutoffs", "histogram", "ranking", "rules")
        ]
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.startswith("datarater")]:
            del sys.modules[name]
        sys.modules.update(imported)

    names = {name: value for module in modules for name, value in vars(module).items()}
    return functools.partial(by_descent, selection=SimpleNamespace(**names))


def by_descent(scores: Scores, selection: Any) -> Result:
    """Runs an exact descent.

    Args:
        scores: The scores.
        selection: `Histogram`, `RankKeys`, `KeepFraction` and `SORT_LIMIT`.
    """
    Histogram, RankKeys = selection.Histogram, selection.RankKeys
    clock = Clock()

    def keys_of_splits() -> Iterator[Any]:
        splits = scores.splits()
        for ordinal in range(-(-scores.documents // SPLIT)):
            with clock.paused():
                scores_N = next(splits)
                rng = np.random.default_rng([ordinal, 1])
                hashes_N = rng.integers(0, 2**63, len(scores_N), np.uint64)
                tokens_N = rng.integers(1, 2048, len(scores_N))
                positions_N = np.arange(len(scores_N))
            yield RankKeys.of(scores_N, hashes_N, 0, ordinal, positions_N, tokens_N)

    rule = selection.KeepFraction(str(FRACTION))
    histogram = Histogram.merge(Histogram.of(keys, 0) for keys in keys_of_splits())
    search = rule.begin(rule.target(scores.documents, 0), scores.documents, histogram)
    passes = 1
    while not search.done:
        passes += 1
        undecided = (keys.between(search.low, search.high) for keys in keys_of_splits())
        if search.undecided <= selection.SORT_LIMIT:
            search = search.settle(RankKeys.concatenate(undecided))
        else:
            search = search.descend(Histogram.merge(map(search.count, undecided)))
    seconds = clock.seconds()
    print(f"passes over the scores: {passes}", file=sys.stderr)
    return Result(seconds, search.counted[0])


def by_partition(scores: Scores) -> Result:
    """Runs NumPy's partition in place on all scores."""
    scores_N = np.empty(scores.documents, np.float32)
    for number, split_N in enumerate(scores.splits()):
        scores_N[number * SPLIT :][: len(split_N)] = split_N
    kept = round(FRACTION * scores.documents)
    clock = Clock()
    scores_N.partition(scores.documents - kept)
    threshold = scores_N[scores.documents - kept]
    return Result(clock.seconds(), scores.above(threshold))


def by_kll(scores: Scores) -> Result:
    """Runs datasketches' KLL with k = 4000."""
    sketch = importlib.import_module("datasketches").kll_floats_sketch(4000)
    clock = Clock()
    splits = scores.splits()
    for _ in range(-(-scores.documents // SPLIT)):
        with clock.paused():
            scores_N = next(splits)
        sketch.update(scores_N)
    return Result(clock.seconds(), scores.above(sketch.get_quantile(1 - FRACTION)))


def by_beam(scores: Scores) -> Result:
    """Runs Beam's ApproximateQuantiles with 1001 quantiles, batched, on the in-process runner."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.transforms.stats import ApproximateQuantiles

    def splits_of(scores: Scores) -> Iterator[list[float]]:
        for scores_N in scores.splits():
            yield scores_N.tolist()

    # Elements are generated inside the pipeline, so their time is measured apart.
    clock = Clock()
    for _ in splits_of(scores):
        pass
    generating = clock.seconds()

    clock = Clock()
    result = Path(tempfile.mkdtemp()) / "quantiles.json"
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        _ = (
            pipeline
            | beam.Create([scores])
            | beam.FlatMap(splits_of)
            | ApproximateQuantiles.Globally(1001, input_batched=True)
            | beam.Map(lambda quantiles: result.write_text(json.dumps(quantiles)))
        )
    seconds = clock.seconds() - generating
    quantiles = json.loads(result.read_text())
    return Result(seconds, scores.above(quantiles[-1 - int(1000 * FRACTION)]))


def methods_of(before: Path | None) -> dict[str, Method]:
    """Returns the methods by name.

    Args:
        before: Another checkout whose descent takes part.
    """
    methods: dict[str, Method] = {"descent": descent_of(THIS_CHECKOUT)}
    if before is not None:
        methods["descent before"] = descent_of(before)
    return methods | {"partition": by_partition, "kll": by_kll, "beam": by_beam}


def measured_memory(method: Method, scores: Scores) -> float:
    """Returns how many megabytes a run adds to this process's peak after a run over one split."""

    def peak_megabytes() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    method(scores._replace(documents=SPLIT))
    before = peak_megabytes()
    method(scores)
    return peak_megabytes() - before


def memory_in_a_process(name: str, scores: Scores, arguments: list[str]) -> float:
    """Runs `measured_memory` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.threshold", *arguments, "--memory_of", name]
    command += ["--documents", str(scores.documents)] + ["--tied"] * scores.tied
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return float(output.splitlines()[-1])


def compare(
    methods: dict[str, Method], documents: int, tied: bool, rounds: int, arguments: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields the figures of every method over the same scores.

    Args:
        methods: The methods, by name.
        documents: Number of scores.
        tied: Whether a fifth of the scores are equal.
        rounds: Number of rounds in which methods take turns.
        arguments: Arguments of this command with which a process has the same methods.
    """
    scores = {
        name: Scores(min(documents, BEAM_DOCUMENTS) if name == "beam" else documents, tied)
        for name in methods
    }
    for name, method in methods.items():
        method(scores[name]._replace(documents=SPLIT))  # imports and first allocations
    results: dict[str, list[Result]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            results[name].append(method(scores[name]))

    for name in methods:
        count, kept = scores[name].documents, results[name][0].kept
        rates = [count / result.seconds / 1e6 for result in results[name]]
        ratios = [
            rate / (documents / partition.seconds / 1e6)
            for rate, partition in zip(rates, results["partition"], strict=True)
        ]
        yield {
            "method": name,
            "tied": tied,
            "documents": count,
            "millions_per_second": statistics.median(rates),
            "rounds": rates,
            "of_partition": statistics.median(ratios),
            "megabytes": memory_in_a_process(name, scores[name], arguments),
            "kept": kept,
            "miss": abs(kept - round(FRACTION * count)) / count,
        }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=100_000_000, help="number of scores")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which methods take turns")
    parser.add_argument("--before", type=Path, help="another checkout whose descent takes part")
    parser.add_argument("--methods", nargs="+", help="names of the methods; default: all")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    parser.add_argument("--memory_of", help="only print the megabytes of this method")
    parser.add_argument(
        "--tied", action="store_true", help="with --memory_of: a fifth of the scores are equal"
    )
    args = parser.parse_args()
    methods = methods_of(args.before)
    if args.memory_of:
        print(measured_memory(methods[args.memory_of], Scores(args.documents, args.tied)))
        return

    chosen = {name: methods[name] for name in args.methods or methods}
    arguments = ["--before", str(args.before)] if args.before else []
    rows = []
    print("| method | ties | scores | million/s | of np.partition | MB | kept | miss |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for tied in (False, True):
        for row in compare(chosen, args.documents, tied, args.rounds, arguments):
            rows.append(row)
            print(
                f"| {row['method']} | {'a fifth' if tied else 'none'} | {row['documents']:,} | "
                f"{row['millions_per_second']:.1f} | {row['of_partition']:.2f} | "
                f"{row['megabytes']:.0f} | {row['kept']:,} | {row['miss']:.3%} |",
                flush=True,
            )
    if args.output:
        content = {"machine": machine(), "command": sys.argv[1:], "rows": rows}
        args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
