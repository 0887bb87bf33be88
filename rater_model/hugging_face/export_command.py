"""`datarater export`: writes a rater as a model that `transformers` loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from datarater.rater_model.command_line import CommandParser
from datarater.rater_model.hugging_face.command_run import run_command

COMMAND = "datarater export"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(make_parser(), argv, _run)


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Writes a rater as a model that AutoModelForSequenceClassification of transformers loads "
        "without code of ours. Its one logit is the score of a window.",
        f"{COMMAND} --rater work/rater --output exported",
        takes_beam_flags=False,
    )
    parser.add_argument(
        "--rater",
        required=True,
        metavar="DIR",
        help="Rater checkpoint: a local path or any fsspec URL. It must have no n-gram tables: "
        "train it with --config.rater.ngram_orders='()'.",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="Local folder to write, new or empty."
    )
    return parser


def _run(args: argparse.Namespace) -> list[str]:
    from datarater.rater_model.checkpoint import load_rater
    from datarater.rater_model.documents.files import expand_home
    from datarater.rater_model.hugging_face.exporting import export_to_transformers

    rater = load_rater(expand_home(args.rater))
    export_to_transformers(rater, expand_home(args.output))
    return [f"rater {rater.digest[:12]} written to {args.output}"]


if __name__ == "__main__":
    sys.exit(main())
