"""`datarater select`: keeps the best part of a scored corpus without scoring it again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datarater.pipelines.commands import flags, outcome
from datarater.rater_model.command_line import CommandParser

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

COMMAND = "datarater select"


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Keeps the best part of a corpus that `datarater score` or `datarater curate` scored.",
        f"{COMMAND} --output run --keep_fraction 0.1",
    )
    flags.add_output_flag(parser)
    flags.add_selection_flags(parser)
    flags.add_local_flags(parser)
    return parser


def run(argv: Sequence[str] | None = None) -> PipelineResult | None:
    """Selects from a scored corpus.

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
    from datarater.pipelines.commands import printing, requests, running

    execution = requests.execution_for(parser, args, beam_args)
    request = requests.selection_request(args)
    result = running.select(request, execution)
    printing.print_selection(request)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return outcome.exit_code_of(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
