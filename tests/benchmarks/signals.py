"""What several signals cost: processor seconds of selections, per 1,000 documents.

    python -m tests.benchmarks.signals --corpus ../shared/corpora/dev --output signals

The corpus is scored by a hash, since scoring is not what is measured. Every selection keeps half of
the documents or as many copies, and writes them, in this process and without a report of texts. The
joined table has a row of every document. The tokenizer is a byte-level BPE of 8,000 tokens, trained
on a quarter of the files. The first selection warms up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

import datarater
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.json_lines import id_text
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from tests.pipelines.graph.test_packing import ScorerOfDigests
from tests.support.ranked_runs import score_corpus

VOCABULARY = 8_000


def texts_of(corpus: Path) -> Iterator[str]:
    """Yields the texts of a quarter of the files."""
    for file in list_files([str(corpus)])[::4]:
        for record in read_file(file.path):
            if isinstance(record, Document):
                yield record.text


def write_tokenizer(corpus: Path, path: Path) -> None:
    """Trains a tokenizer and writes its `tokenizer.json`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False)
    tokenizer.train_from_iterator(texts_of(corpus), trainer)
    tokenizer.save(str(path))


def write_labels(keys: list[str], path: Path) -> None:
    """Writes a table with a label and a number for every document."""
    rng = np.random.default_rng(0)
    labels = {
        "id": [id_text(key) for key in keys],
        "language": rng.choice(["en", "de"], len(keys)),
        "quality": rng.random(len(keys)),
    }
    pq.write_table(pa.table(labels), path)


def selections(folder: Path, documents: int) -> dict[str, dict[str, Any]]:
    """Returns the options of each selection by its name."""
    half: dict[str, Any] = {"keep_fraction": 0.5}
    join = {"labels": str(folder / "labels.parquet")}
    where = "labels.language == 'en' or labels.quality >= 0"
    return {
        "warm": half,
        "plain": half,
        "condition": {**half, "where": "bytes > 100"},
        "join": {**half, "join": join, "where": where, "rank_by": "rater + labels.quality"},
        "copies": {"sample_count": documents // 2, "temperature": 1},
        "tokenizer": {**half, "tokens_from": str(folder / "tokenizer.json")},
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    args.output.mkdir(parents=True)
    score_corpus(args.corpus, args.output / "run", ScorerOfDigests())
    keys = datarater.read_scores(args.output / "run", ["key"])["key"].drop_null().to_pylist()
    write_labels(keys, args.output / "labels.parquet")
    write_tokenizer(args.corpus, args.output / "tokenizer.json")

    seconds: dict[str, float] = {}
    for name, options in selections(args.output, len(keys)).items():
        began = time.process_time()
        datarater.select(args.output / "run", name=name, report_texts=0, **options)
        seconds[name] = (time.process_time() - began) * 1000 / len(keys)
        if name != "warm":
            print(f"{name:<10} {seconds[name]:8.3f} s per 1,000 documents", flush=True)
    (args.output / "signals.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
