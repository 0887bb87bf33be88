"""What every way to select and to write costs: processor seconds per 1,000 documents of a corpus.

    python -m tests.benchmarks.signals --corpus ../shared/corpora/dev --output signals

Every selection keeps half of the documents, or as many copies, and writes them, in this process and
without a report of texts. The score is that of a rater without a meaning: a linear function of
byte n-grams with random weights, as fast as a student. So the cost of several raters is that of
reading plus the least that scoring can cost. The joined table has a row of every document. The
tokenizer is a byte-level BPE of 8,000 tokens, trained on the first file. The row that finds
near-duplicates includes finding them. The first scoring and the first selection warm up.

The last rows are looks of `datarater inspect` at ten documents.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import datarater
from datarater.pipelines.inspection.inspection import inspect_run
from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.rater_model.checkpoint import save_rater
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.json_lines import id_text
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from datarater.rater_model.plain_tokenizer import BYTES
from datarater.rater_model.tokenizer import train_bpe
from tests.benchmarks.benchmark_support import machine
from tests.support.raters import random_student

VOCABULARY = 8_000
FORMATS = ("jsonl", "parquet", "scores", "array_record", "huggingface", "mds")
MAX_UNPACKED = 2**28
WARM_UP = "warm-up"

Step = Callable[[], Any]


def texts_of(corpus: Path) -> list[list[str]]:
    """Returns the texts of each file of a corpus."""
    return [
        [record.text for record in read_file(file.path) if isinstance(record, Document)]
        for file in list_files([str(corpus)])
    ]


def write_labels(run: Path, path: Path) -> None:
    """Writes a table with a label and a number for every document of a scored run."""
    keys = datarater.read_scores(run, ["key"])["key"].drop_null().to_pylist()
    rng = np.random.default_rng(0)
    labels = {
        "id": [id_text(key) for key in keys],
        "language": rng.choice(["en", "de"], len(keys)),
        "quality": rng.random(len(keys)),
    }
    pq.write_table(pa.table(labels), path)


def scorings(corpus: Path, folder: Path) -> Iterator[tuple[str, Step]]:
    """Yields what scores the corpus, by name; the run of one rater is `run`."""
    for name in ("rater", "second"):
        save_rater(folder / name, random_student())

    def score(run: str, **options: Any) -> Step:
        return lambda: datarater.score(corpus, folder / "rater", folder / run, **options)

    yield WARM_UP, score("warm")
    yield "score with one rater", score("run")
    others = {"second": folder / "second"}
    yield "score with two raters in one read", score("two", other_raters=others)


def selections(folder: Path, documents: int) -> Iterator[tuple[str, Step]]:
    """Yields what selects from a scored run, by name."""
    half: dict[str, Any] = {"keep_fraction": 0.5}
    join = {"labels": str(folder / "labels.parquet")}
    where = "labels.language == 'en' or labels.quality >= 0"
    tokenizer = str(folder / "tokenizer.json")
    numbers = itertools.count()

    def select(**options: Any) -> Step:
        name = f"selection-{next(numbers)}"
        return lambda: datarater.select(folder / "run", name=name, report_texts=0, **options)

    # Rules.
    yield WARM_UP, select(**half)
    yield "plain: --keep_fraction 0.5", select(**half)
    yield "--where, on the run's own columns", select(**half, where="bytes > 100")
    joined = select(**half, join=join, where=where, rank_by="rater + labels.quality")
    yield "--join of a row per document, --where, --rank_by", joined
    copies = select(sample_count=documents // 2, temperature=1)
    yield "--sample_count with --temperature", copies
    yield "--tokens_from tokenizer.json", select(**half, tokens_from=tokenizer)
    yield "--dedup 0.8, which finds near-duplicates first", select(**half, dedup=0.8)
    yield "--dedup 0.8, found before", select(**half, dedup=0.8)

    # Formats.
    for output_format in FORMATS:
        yield f"--output_format {output_format}", select(**half, output_format=output_format)
    for path in (BYTES, tokenizer):
        megatron = select(**half, output_format="megatron", output_tokenizer=path)
        yield f"--output_format megatron, tokens of {Path(path).name}", megatron


def looks(folder: Path) -> Iterator[tuple[str, Step]]:
    """Yields what looks at ten documents, by name."""
    run = RunFolder(str(folder / "run"))
    for show in (Show.BEST, Show.CUTOFF, Show.RANDOM):
        question = Question(show=show)
        look = functools.partial(inspect_run, run, question, "selection-1", MAX_UNPACKED)
        yield f"inspect --show {show}", look


def measured(steps: Iterator[tuple[str, Step]], per: float) -> dict[str, float]:
    """Takes steps and prints the processor seconds of each, divided by a number."""
    results = {}
    for name, step in steps:
        began = time.process_time()
        step()
        seconds = (time.process_time() - began) / per
        if name != WARM_UP:
            results[name] = seconds
            print(f"| {name:<55} | {seconds:7.3f} |", flush=True)
    return results


def main() -> None:
    """Prints the table and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="input files")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and results")
    args = parser.parse_args()
    folder: Path = args.output
    folder.mkdir(parents=True)

    texts = texts_of(args.corpus)
    (folder / "tokenizer.json").write_bytes(train_bpe(texts[0], VOCABULARY).serialise())
    documents = sum(map(len, texts))
    print(f"{documents:,} documents; seconds per 1,000 of them, and of each look")

    results = measured(scorings(args.corpus, folder), documents / 1000)
    write_labels(folder / "run", folder / "labels.parquet")
    results |= measured(selections(folder, documents), documents / 1000)
    results |= measured(looks(folder), 1)
    result = {"machine": machine(), "documents": documents, "seconds": results}
    (folder / "signals.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
