"""Scores texts with Beam's RunInference.

    make demo                                  # once: makes demo_output/rater
    python examples/run_inference.py           # or: --rater gs://bucket/rater

`RaterModelHandler` takes Beam's own options for batching and for sharing a model, such as
`max_batch_size` and `model_copies`.
"""

from __future__ import annotations

import argparse

import apache_beam as beam
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

import datarater

TEXTS = [
    "The function returns the number of items in the list, or zero if the list is empty.",
    "ehT function runters the bnumer of imtes in the slit, or erzo if the tsil is pemty.",
    "",
]


def as_line(result: PredictionResult) -> str:
    """Returns the score of a text, or the reason why it has none."""
    score = result.inference
    return f"{score.reason or round(score.score, 3)}: {result.example!r}"


def main() -> None:
    """Builds the pipeline and runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rater", default="demo_output/rater", metavar="DIR")
    args, beam_args = parser.parse_known_args()

    # Beam's in-process runner, unless --runner names another one.
    options = PipelineOptions(["--runner=FnApiRunner", *beam_args])
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "Texts" >> beam.Create(TEXTS)
            | "Score" >> RunInference(datarater.RaterModelHandler(args.rater, max_batch_size=64))
            | "Format" >> beam.Map(as_line)
            | "Print" >> beam.Map(print)
        )


if __name__ == "__main__":
    main()
