"""Scores documents and keeps the best half, in a Beam pipeline of your own.

    make demo                                  # once: makes demo_output/
    python examples/beam_pipeline.py --output kept

Every flag of Beam works too, such as `--runner`. Documents that have no score come out separately,
with a reason.
"""

from __future__ import annotations

import argparse
import json

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

import datarater


def main() -> None:
    """Builds the pipeline and runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default="demo_output/corpus/*.jsonl.gz", metavar="GLOB")
    parser.add_argument("--rater", default="demo_output/rater", metavar="DIR")
    parser.add_argument("--output", default="kept", metavar="PREFIX")
    args, beam_args = parser.parse_known_args()

    # Beam's in-process runner, unless --runner names another one.
    options = PipelineOptions(["--runner=FnApiRunner", *beam_args])
    with beam.Pipeline(options=options) as pipeline:
        results = (
            pipeline
            | "Read" >> beam.io.ReadFromText(args.input)
            | "Parse" >> beam.Map(json.loads)
            | "Score" >> datarater.ScoreDocuments(args.rater)
        )
        _ = (
            results["scored"]
            | "Keep" >> datarater.KeepTop(keep_fraction="0.5")
            | "Format kept" >> beam.Map(json.dumps)
            | "Write kept" >> beam.io.WriteToText(args.output, ".jsonl")
        )
        _ = (
            results["rejected"]
            | "Format rejected" >> beam.Map(json.dumps)
            | "Write rejected" >> beam.io.WriteToText(f"{args.output}-rejected", ".jsonl")
        )


if __name__ == "__main__":
    main()
