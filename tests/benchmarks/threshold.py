"""The exact threshold of many scores, compared with np.partition, KLL and ApproximateQuantiles.

    pip install -e '.[benchmark]'
    python -m tests.benchmarks.threshold --output threshold.json
    python -m tests.benchmarks.threshold --before ../before   # another checkout takes turns

The best tenth is kept of scores that are normal, and of which none or a fifth are equal, since a
crawl has many equal scores. All documents are in memory (20 bytes each). The descent is ours, as
the pipeline runs it over splits: it counts documents and tokens in one histogram per split, merges
them, and then counts what is undecided. Its time includes all passes. np.partition may reorder a
copy of the scores, whose time does not count. KLL is that of datasketches. ApproximateQuantiles is
that of Beam; it gets fewer scores because it is slow.

Methods take turns in one process; the rate is the median of the rounds, in processor time. Memory
is measured in a process per method: how far its peak rises above that after a run over one split,
so the documents do not count, but np.partition's copy does. The last column is the share of
documents by which the number kept misses the number requested.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
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

SPLIT = 250_000
FRACTION = 0.1
MAX_DOCUMENTS = {"beam": 2_000_000}
THIS_CHECKOUT = Path(__file__).parents[2]


class Scores(NamedTuple):
    """Documents to select from.

    Attributes:
        scores_N: Scores, float32.
        hashes_N: Hashes of the keys, uint64.
        tokens_N: Token counts, int64.
    """

    scores_N: np.ndarray
    hashes_N: np.ndarray
    tokens_N: np.ndarray

    @classmethod
    def make(cls, documents: int, tied: bool) -> Scores:
        """Returns random documents, the same ones at every call.

        Args:
            documents: Number of documents.
            tied: Whether a fifth of the scores are equal.
        """
        columns = [np.empty(documents, dtype) for dtype in (np.float32, np.uint64, np.int64)]
        for first in range(0, documents, SPLIT):
            rng = np.random.default_rng(first)
            scores_N, hashes_N, tokens_N = (column_N[first : first + SPLIT] for column_N in columns)
            scores_N[:] = rng.standard_normal(len(scores_N), np.float32)
            hashes_N[:] = rng.integers(0, 2**63, len(scores_N), np.uint64)
            tokens_N[:] = rng.integers(1, 2048, len(scores_N))
        if tied:
            columns[0][::5] = 1.5
        return cls(*columns)

    def splits(self) -> Iterator[Scores]:
        """Yields the documents of each split."""
        for first in range(0, len(self.scores_N), SPLIT):
            yield Scores(*(column_N[first : first + SPLIT] for column_N in self))

    def above(self, threshold: float) -> int:
        """Returns the number of scores that reach a threshold."""
        return sum(int((split.scores_N >= threshold).sum()) for split in self.splits())


class Result(NamedTuple):
    """What a run of a method gave.

    Attributes:
        seconds: Processor seconds.
        kept: Number of documents kept.
        passes: Number of passes over the scores.
    """

    seconds: float
    kept: int
    passes: int = 1


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
    documents = len(scores.scores_N)
    positions_N = np.arange(SPLIT)
    started = time.process_time()

    def keys_of_splits() -> Iterator[Any]:
        for ordinal, split in enumerate(scores.splits()):
            positions_M = positions_N[: len(split.scores_N)]
            yield RankKeys.of(
                split.scores_N, split.hashes_N, 0, ordinal, positions_M, split.tokens_N
            )

    rule = selection.KeepFraction(str(FRACTION))
    histogram = Histogram.merge(Histogram.of(keys, 0) for keys in keys_of_splits())
    search = rule.begin(rule.target(documents, 0), documents, histogram)
    passes = 1
    while not search.done:
        passes += 1
        undecided = (keys.between(search.low, search.high) for keys in keys_of_splits())
        if search.undecided <= selection.SORT_LIMIT:
            search = search.settle(RankKeys.concatenate(undecided))
        else:
            search = search.descend(Histogram.merge(map(search.count, undecided)))
    return Result(time.process_time() - started, search.counted[0], passes)


def by_partition(scores: Scores) -> Result:
    """Runs NumPy's partition in place on all scores."""
    scores_N = scores.scores_N.copy()
    bound = len(scores_N) - round(FRACTION * len(scores_N))
    started = time.process_time()
    scores_N.partition(bound)
    return Result(time.process_time() - started, scores.above(scores_N[bound]))


def by_kll(scores: Scores) -> Result:
    """Runs datasketches' KLL with k = 4000."""
    sketch = importlib.import_module("datasketches").kll_floats_sketch(4000)
    started = time.process_time()
    for split in scores.splits():
        sketch.update(split.scores_N)
    seconds = time.process_time() - started
    return Result(seconds, scores.above(sketch.get_quantile(1 - FRACTION)))


def by_beam(scores: Scores) -> Result:
    """Runs Beam's ApproximateQuantiles with 1001 quantiles, batched, on the in-process runner."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.transforms.stats import ApproximateQuantiles

    splits = [split.scores_N for split in scores.splits()]
    result = Path(tempfile.mkdtemp()) / "quantiles.json"
    started = time.process_time()
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        _ = (
            pipeline
            | beam.Create(splits)
            | beam.Map(np.ndarray.tolist)
            | ApproximateQuantiles.Globally(1001, input_batched=True)
            | beam.Map(lambda quantiles: result.write_text(json.dumps(quantiles)))
        )
    seconds = time.process_time() - started
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
        status = Path("/proc/self/status").read_text()  # getrusage counts the parent's peak too
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    method(next(scores.splits()))
    before = peak_megabytes()
    method(scores)
    return peak_megabytes() - before


def memory_in_a_process(name: str, documents: int, tied: bool, arguments: list[str]) -> float:
    """Runs `measured_memory` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.threshold", *arguments, "--memory_of", name]
    command += ["--documents", str(documents)] + ["--tied"] * tied
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
    counts = {name: min(documents, MAX_DOCUMENTS.get(name, documents)) for name in methods}
    scores = Scores.make(documents, tied)
    given = {
        name: Scores(*(column_N[:count] for column_N in scores)) for name, count in counts.items()
    }
    results: dict[str, list[Result]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            result = method(given[name] if number else next(scores.splits()))
            if number:  # the first round only imports and allocates
                results[name].append(result)

    for name, count in counts.items():
        rates = [count / result.seconds / 1e6 for result in results[name]]
        ratios = [
            rate * partition.seconds * 1e6 / documents
            for rate, partition in zip(rates, results["partition"], strict=True)
        ]
        kept = results[name][0].kept
        yield {
            "method": name,
            "tied": tied,
            "documents": count,
            "millions_per_second": statistics.median(rates),
            "rounds": rates,
            "of_partition": statistics.median(ratios),
            "passes": results[name][0].passes,
            "megabytes": memory_in_a_process(name, count, tied, arguments),
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
    parser.add_argument("--methods", nargs="+", help="methods to run; default: all")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    parser.add_argument("--memory_of", help="only print the megabytes of this method")
    parser.add_argument(
        "--tied", action="store_true", help="with --memory_of: a fifth of the scores are equal"
    )
    args = parser.parse_args()
    methods = methods_of(args.before)
    if args.memory_of:
        print(measured_memory(methods[args.memory_of], Scores.make(args.documents, args.tied)))
        return

    if unknown := set(args.methods or ()) - set(methods):
        parser.error(f"--methods: {sorted(unknown)} are unknown; known are {list(methods)}")
    wanted = {"partition", *(args.methods or methods)}  # rates are compared with np.partition's
    chosen = {name: method for name, method in methods.items() if name in wanted}
    arguments = ["--before", str(args.before)] if args.before else []
    rows = []
    print("| method | ties | scores | million/s | of np.partition | passes | MB | kept | miss |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for tied in (False, True):
        for row in compare(chosen, args.documents, tied, args.rounds, arguments):
            rows.append(row)
            print(
                f"| {row['method']} | {'a fifth' if tied else 'none'} | {row['documents']:,} | "
                f"{row['millions_per_second']:.1f} | {row['of_partition']:.2f} | "
                f"{row['passes']} | {row['megabytes']:.0f} | {row['kept']:,} | {row['miss']:.3%} |",
                flush=True,
            )
    if args.output:
        # It imports JAX, whose many objects would slow down garbage collection meanwhile.
        from tests.benchmarks.benchmark_support import machine

        content = {"machine": machine(), "command": sys.argv[1:], "rows": rows}
        args.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
