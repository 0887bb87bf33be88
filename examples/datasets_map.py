"""Adds a column of scores to a Hugging Face dataset, and keeps its best half.

    pip install datasets
    make demo                                  # once: makes demo_output/
    python examples/datasets_map.py            # or: --data 'my/*.jsonl.gz' --rater gs://bucket/rater

For a corpus that does not fit on one machine, use `datarater curate` instead.
"""

from __future__ import annotations

import argparse
from typing import Any

import datasets
import numpy as np

import datarater


def main() -> None:
    """Scores a dataset and prints what is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="demo_output/corpus/*.jsonl.gz", metavar="GLOB")
    parser.add_argument("--rater", default="demo_output/rater", metavar="DIR")
    args = parser.parse_args()
    scorer = datarater.Scorer(datarater.load_rater(args.rater))

    def add_scores(rows: dict[str, Any]) -> dict[str, Any]:
        return {"datarater_score": scorer.score(rows["text"]).scores_N}

    documents = datasets.load_dataset("json", data_files=args.data, split="train")
    scored = documents.map(add_scores, batched=True, batch_size=256)

    cutoff = np.median(scored["datarater_score"])
    kept = scored.filter(lambda row: row["datarater_score"] >= cutoff)
    print(f"kept {len(kept):,} of {len(scored):,} documents")


if __name__ == "__main__":
    main()
