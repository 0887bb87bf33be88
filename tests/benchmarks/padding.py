r"""How many of the scored tokens are padding, and how many shapes are compiled, by padded lengths.

    python -m tests.benchmarks.padding --corpus '../shared/corpora/dev/*'

For each tokenizer and window, the table compares three rules for the lengths that short windows are
padded to, and packing. Padding includes the empty rows of calls of the model: each rule scores
batches of as many documents as `datarater score` does. "work" is the floating-point operations of
an encoder of 1M parameters, divided by those of the windows without any padding. Packing puts short
windows into rows of a full window. It is taken to leave no gap, which favors it: what it costs is
the attention over whole rows.

The BPE is trained on a part of the corpus.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datarater.pipelines.graph.score_split import BATCH_RECORDS
from datarater.rater_model.scorer import bucket_lengths, window_starts
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from tests.benchmarks.benchmark_support import machine, read_documents
from tests.benchmarks.forward_pass import encoder_flops

OPTIONS = ScoringOptions()
ENCODER = "1M"
TRAINED_ON = 2000
WINDOWS = (128, 256, 512, 1024, 2048)


def steps(window: int, per_octave: int, least: int) -> tuple[int, ...]:
    """Returns lengths with a number of steps to the octave, each of some tokens at least."""
    lengths, length = [], 64
    while length < window:
        lengths.append(length)
        length += max(least, (1 << (length.bit_length() - 1)) // per_octave)
    return (*lengths, window)


RULES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "powers of two": lambda window: steps(window, 1, 64),
    "and 1.5 times": lambda window: steps(window, 2, 32),
    "in use": bucket_lengths,
}


def compare(tokens: Sequence[int], window: int) -> list[dict[str, Any]]:
    """Returns a row for each rule, and one for packing.

    Args:
        tokens: Tokens of each document.
        window: Tokens in a full window.
    """
    batches = []
    for first in range(0, len(tokens), BATCH_RECORDS):
        windows = [
            min(window, count - start)
            for count in tokens[first : first + BATCH_RECORDS]
            for start in window_starts(count, window, OPTIONS.max_windows)
        ]
        batches.append(np.array(windows))
    lengths = np.concatenate(batches)
    ideal = sum(encoder_flops(ENCODER, 1, int(length)) for length in lengths)

    rows = []
    for name, rule in RULES.items():
        shapes = np.array(rule(window))
        sizes = np.maximum(1, OPTIONS.tokens_per_batch // shapes)
        calls = np.zeros(len(shapes), np.int64)
        for batch in batches:
            counts = np.bincount(np.searchsorted(shapes, batch), minlength=len(shapes))
            calls += -(-counts // sizes)
        scored = int((calls * sizes * shapes).sum())
        work = sum(
            encoder_flops(ENCODER, int(rows), int(length))
            for rows, length in zip(calls * sizes, shapes, strict=True)
        )
        padding = 1 - lengths.sum() / scored
        rows.append({"rule": name, "shapes": len(shapes), "padding": padding, "work": work / ideal})

    packed = encoder_flops(ENCODER, 1, window) / window * float(lengths.sum())
    rows.append({"rule": "packing", "shapes": 1, "padding": 0.0, "work": packed / ideal})
    return rows


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, metavar="GLOB", help="JSONL files")
    parser.add_argument("--vocabulary", type=int, default=4096, help="of the BPE")
    parser.add_argument("--windows", nargs="+", type=int, default=WINDOWS)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON of the figures")
    args = parser.parse_args()

    texts = [document.text for document, _ in read_documents(args.corpus)]
    sample = texts[:: max(1, len(texts) // TRAINED_ON)]
    tokenizers: list[Tokenizer] = [ByteTokenizer(), train_bpe(sample, args.vocabulary)]
    print("| tokenizer, window | rule | shapes | padding | work |")
    print("|---|---|---:|---:|---:|")

    rows = []
    for tokenizer in tokenizers:
        tokens = [len(ids) for ids in tokenizer.encode_batch(texts)]
        for window in args.windows:
            for row in compare(tokens, window):
                rows.append({"tokenizer": tokenizer.kind, "window": window, **row})
                print(
                    f"| {tokenizer.kind}, {window} | {row['rule']} | {row['shapes']} "
                    f"| {row['padding']:.1%} | {row['work']:.3f} |",
                    flush=True,
                )

    if args.output is not None:
        result = {"machine": machine(), "documents": len(texts), "rows": rows}
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
