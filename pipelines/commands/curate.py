"""`datarater curate`: scores a corpus and keeps its best part, in one graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datarater.pipelines.commands import flags, outcome
from datarater.rater_model.command_line import CommandParser

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

COMMAND = "datarater curate"


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Scores every document of a corpus with a rater and keeps exactly the part you ask for.",
        f"{COMMAND} --input 'crawl/*.jsonl.gz' --rater rater --output run --keep_fraction 0.5",
    )
    flags.add_output_flag(parser)
    flags.add_input_flags(parser)
    flags.add_scoring_flags(parser)
    flags.add_selection_flags(parser)
    flags.add_local_flags(parser)
    flags.add_dry_run_flags(parser)
    return parser


def run(argv: Sequence[str] | None = None) -> PipelineResult | None:
    """Curates a corpus.

    Args:
        argv: The command's arguments; those of this process if None.

    Returns:
        Beam's result; None where nothing was left to do, or worker processes did it.

    Raises:
        CurationError: The run cannot continue; the message says why and what to do.
        SystemExit: Wrong usage, and `--help`.
    """
    parser = make_parser()
    args, beam_args = flags.parse(parser, argv)

    # Beam and JAX load here, after --help and wrong usage have been answered.
    from datarater.pipelines.commands import estimate, printing, requests, running

    execution = requests.execution_for(parser, args, beam_args)
    selection = requests.selection_request(args)
    scoring = requests.scoring_request(args, execution)
    if args.dry_run:
        worker = estimate.prices_from_flags(args, execution)
        estimate.print_estimate(scoring, execution, worker)
        return None
    result = running.curate(scoring, selection, execution)
    printing.print_selection(selection)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return outcome.exit_code_of(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
