"""Comparison with datatrove: both use the same cheap scorer, so that the engines are measured.

    pip install -e '.[benchmark]'
    python -m tests.benchmarks.side_by_side --documents 20000 --rounds 3

Both read the same gzip JSONL, score every document by the variance of its bytes (NumPy), keep the
best tenth and write gzip JSONL, in one process. Ours keeps exactly a tenth, reconciles the counts
and can resume. datatrove has no selection over a corpus: it scores in one pass into its own files,
then the quantile is computed and a second pass filters, as its users do. Rounds alternate between
the two. Each run is a process of its own, and its start is included. The processor time is that of
the process and its children; making the dummy rater is not part of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from datarater.pipelines.runners import beam_import
from tests.benchmarks.benchmark_support import machine

SHARE = 0.1
FILES = 8


def score_of(text: str) -> float:
    """Returns the score of a text, the same in both engines."""
    return float(np.frombuffer(text.encode(), np.uint8).var())


def write_corpus(folder: Path, documents: int) -> None:
    """Writes gzip JSONL of random words, in a few files."""
    words = [f"word{i}" for i in range(5000)]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for file in range(FILES):
        with gzip.open(folder / f"{file}.jsonl.gz", "wt", compresslevel=1) as out:
            for index in range(file, documents, FILES):
                text = " ".join(
                    words[i] for i in rng.integers(0, len(words), int(rng.integers(20, 500)))
                )
                out.write(json.dumps({"id": str(index), "text": text}) + "\n")


def write_rater(folder: Path) -> None:
    """Writes a rater, which the command needs although the cheap scorer takes its place."""
    import jax

    from datarater.rater_model.checkpoint import RaterCheckpoint, save_rater
    from datarater.rater_model.rater import RaterConfig, initialise_rater
    from datarater.rater_model.tokenizer import ByteTokenizer
    from datarater.rater_model.transformer import TransformerConfig

    config = RaterConfig(
        window=64, transformer=TransformerConfig(width=8, heads=1, mlp_width=16, layers=1)
    )
    params = initialise_rater(config, jax.random.key(0))
    save_rater(folder, RaterCheckpoint(config, params, ByteTokenizer()))


def ours(corpus: Path, rater: Path, output: Path) -> int:
    """Curates by the command with the cheap scorer; returns the number of documents kept."""
    # The command does this first, in a process of its own.
    beam_import.import_beam()
    from datarater.pipelines.commands import curate
    from datarater.rater_model import scorer
    from datarater.rater_model.checkpoint import RaterCheckpoint
    from datarater.rater_model.text_scorer import ScoredTexts, TextScorer

    class CheapScorer(TextScorer):
        def __init__(self, checkpoint: RaterCheckpoint, *_: object, **options: object) -> None:
            self.digest = checkpoint.digest

        def score(self, texts: Sequence[str]) -> ScoredTexts:
            scores = [score_of(text) for text in texts]
            return ScoredTexts(
                np.asarray(scores, np.float32), np.asarray([len(text) for text in texts], np.int64)
            )

    flags = ["--input", f"{corpus}/*", "--rater", str(rater), "--output", str(output / "run")]
    with mock.patch.object(scorer, "Scorer", CheapScorer):
        if curate.main([*flags, "--keep_fraction", str(SHARE)]):
            raise RuntimeError("datarater curate failed")
    manifest = json.loads((output / f"run/selections/keep-{SHARE}/manifest.json").read_bytes())
    kept: int = manifest["counts"]["kept"]
    return kept


def datatroves(corpus: Path, rater: Path, output: Path) -> int:
    """Scores, computes the quantile and filters; returns the number of documents kept."""
    import importlib

    base = importlib.import_module("datatrove.pipeline.base")
    readers = importlib.import_module("datatrove.pipeline.readers")
    writers = importlib.import_module("datatrove.pipeline.writers")
    filters = importlib.import_module("datatrove.pipeline.filters")
    executor = importlib.import_module("datatrove.executor").LocalPipelineExecutor

    class Score(base.PipelineStep):  # type: ignore[name-defined]
        name = "score"

        def run(self, data, rank=0, world_size=1):  # type: ignore[no-untyped-def]
            for document in data:
                document.metadata["score"] = score_of(document.text)
                yield document

    def run(steps: list[object], name: str) -> None:
        executor(
            pipeline=steps, tasks=FILES, workers=1, logging_dir=str(output / f"log_{name}")
        ).run()

    scored = output / "scored"
    run([readers.JsonlReader(str(corpus)), Score(), writers.JsonlWriter(str(scored))], "score")
    scores = []
    for path in scored.glob("*.jsonl.gz"):
        with gzip.open(path) as file:
            scores += [json.loads(line)["metadata"]["score"] for line in file]
    threshold = float(np.quantile(scores, 1 - SHARE))
    keep = filters.LambdaFilter(lambda document: document.metadata["score"] >= threshold)
    run([readers.JsonlReader(str(scored)), keep, writers.JsonlWriter(str(output / "kept"))], "keep")
    return sum(sum(1 for _ in gzip.open(path)) for path in (output / "kept").glob("*.jsonl.gz"))


def _of_children() -> float:
    """Returns the processor seconds of all processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


ENGINES = {"ours": ours, "datatrove": datatroves}


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20_000, help="size of the corpus")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each engine")
    parser.add_argument("--engine", choices=ENGINES, help="run only this engine, on --corpus")
    parser.add_argument("--corpus", type=Path, help="folder to read, with --engine")
    parser.add_argument("--rater", type=Path, help="rater checkpoint, with --engine")
    parser.add_argument("--output", type=Path, help="folder to write to, with --engine")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    if args.engine:
        kept = ENGINES[args.engine](args.corpus, args.rater, args.output)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
        print(json.dumps({"kept": kept, "peak": peak / 1024}))
        return

    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        write_corpus(corpus, args.documents)
        rater = Path(name) / "rater"
        # In another process, whose memory no engine inherits.
        maker = multiprocessing.get_context("spawn").Process(target=write_rater, args=(rater,))
        maker.start()
        maker.join()
        rows: list[dict[str, Any]] = []
        print("| round | engine | seconds | processor seconds | peak MB | kept |")
        print("|---|---|---:|---:|---:|---:|")
        for number in range(1, args.rounds + 1):
            for engine in list(ENGINES)[:: 1 if number % 2 else -1]:
                output = Path(name) / "output"
                shutil.rmtree(output, ignore_errors=True)
                output.mkdir()
                command = [
                    sys.executable,
                    "-m",
                    "tests.benchmarks.side_by_side",
                    "--engine",
                    engine,
                ]
                command += ["--corpus", str(corpus), "--rater", str(rater)]
                command += ["--output", str(output)]
                started, before = time.perf_counter(), _of_children()
                printed = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                ).stdout
                row: dict[str, Any] = {
                    "round": number,
                    "engine": engine,
                    "seconds": time.perf_counter() - started,
                    "processor": _of_children() - before,
                    **json.loads(printed.splitlines()[-1]),
                }
                figures = f"{row['seconds']:.1f} | {row['processor']:.1f} | {row['peak']:.0f}"
                print(f"| {number} | {engine} | {figures} | {row['kept']:,} |", flush=True)
                rows.append(row)
    medians = [
        statistics.median(row["processor"] for row in rows if row["engine"] == engine)
        for engine in ENGINES
    ]
    print(f"processor time: ours / datatrove = {medians[0] / medians[1]:.3f}")
    if args.json:
        result = {"machine": machine(), "documents": args.documents, "rows": rows}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
