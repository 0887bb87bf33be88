"""Scores a list of texts with a rater.

    make demo                                  # once: makes demo_output/rater
    python examples/score_texts.py             # or: --rater gs://bucket/rater

Prints one line per text, the best first.
"""

from __future__ import annotations

import argparse

import datarater

TEXTS = [
    "The function returns the number of items in the list, or zero if the list is empty.",
    "ehT function runters the bnumer of imtes in the slit, or erzo if the tsil is pemty.",
    "Click here Click here Click here Click here Click here Click here Click here Click here",
]


def main() -> None:
    """Scores the texts and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rater", default="demo_output/rater", metavar="DIR")
    args = parser.parse_args()

    scorer = datarater.Scorer(datarater.load_rater(args.rater))
    scores = scorer.score(TEXTS).scores_N.tolist()

    for score, text in sorted(zip(scores, TEXTS, strict=True), reverse=True):
        print(f"{score:8.3f}  {text}")


if __name__ == "__main__":
    main()
