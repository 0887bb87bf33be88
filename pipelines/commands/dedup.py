"""`datarater dedup`: finds the near-duplicates of a scored corpus, all but the best of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datarater.pipelines.commands import flags, outcome
from datarater.pipelines.runners import beam_import
from datarater.rater_model.command_line import CommandParser

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

COMMAND = "datarater dedup"


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Finds the documents of a scored corpus that are near-duplicates of one that ranks above "
        "them, and writes them as a Parquet table. The best document of similar ones is not among "
        "them.",
        f"{COMMAND} --output run --similarity 0.8",
    )
    flags.add_output_flag(parser)
    flags.add_duplicates_flags(parser)
    flags.add_local_flags(parser)
    return parser


def run(argv: Sequence[str] | None = None) -> PipelineResult | None:
    """Runs the command.

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

    # Beam loads here, after --help and wrong usage have been answered.
    beam_import.import_beam(beam_args)
    from datarater.pipelines.commands import printing, requests, running
    from datarater.pipelines.graph.requests import Work

    execution = requests.execution_of(parser, args, beam_args)
    request = requests.deduplication_of(args, execution)
    result = running.run(Work(duplicates=request), execution)
    printing.print_duplicates(request)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return outcome.exit_code_of(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
