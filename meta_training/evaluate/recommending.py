"""Writes the best share to keep, as a sweep found it, into the raters that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datarater.meta_training.evaluate.arm_names import RATER
from datarater.rater_model.checkpoint import (
    Recommendation,
    load_statistics,
    save_recommendation,
)


def recommend(
    summary: Mapping[str, Any], raters: Iterable[str], corpus: str, say: Callable[[str], None]
) -> None:
    """Writes the rater's best share into each rater checkpoint.

    Nothing is written unless several shares were run and the best one is shown to be better than
    the whole pool. A checkpoint that cannot be written is reported and left as it is.

    Args:
        summary: Results, as `summarize` returns them.
        raters: Folders of the raters of the evaluation.
        corpus: Digest of the pool.
        say: Prints a line.
    """
    best = next((each for each in summary["best_fractions"] if each["arm"] == RATER), None)
    if best is None or best["difference"]["verdict"] != "better":
        return

    difference = best["difference"]
    for rater in dict.fromkeys(raters):
        digest, _ = load_statistics(rater)
        recommendation = Recommendation(
            keep=best["keep"],
            difference=difference["mean"],
            low=difference["low"],
            high=difference["high"],
            confidence=best["confidence"],
            seeds=best["seeds"],
            rater=digest,
            corpus=corpus,
        )

        try:
            save_recommendation(rater, recommendation)
        except OSError as error:
            say(f"the best share is not written into {rater}: {error}")
        else:
            say(f"keep {best['keep']:g} is written into {rater}, as the default of curate")
