"""`datarater-select`: keeps the best part of a scored corpus; nothing is scored again."""

import sys
from collections.abc import Sequence

from apache_beam.runners.runner import PipelineResult

from pipelines import command, ledger, options, selecting
from pipelines.work import Work

COMMAND = "datarater-select"


def run(argv: Sequence[str] | None = None) -> PipelineResult | None:
    """Selects from a scored corpus.

    Args:
        argv: flags; those of the command line if None.

    Returns:
        Beam's result, or None where everything was done before.

    Raises:
        CurationError: what is wrong, and what to do.
        SystemExit: wrong usage.
    """
    parser = options.parser(
        COMMAND,
        "Keeps the best part of a corpus that datarater-score or datarater-curate scored.",
        f"{COMMAND} --output run/ --keep_fraction 0.1",
    )
    options.add_output_flag(parser)
    options.add_selection_flags(parser)
    options.add_local_flags(parser)
    args, layout = options.parse_run(parser, argv)
    request = options.selection_request(args)
    selecting.first_cutoffs(request)
    ledger.check_rule(request.selection, request.rule_fields())
    result = None
    if command.read_manifest(request) is None:
        command.check_writable(request.folder)
        result = command.run_graph(Work(selection=request), layout)
    command.print_selection(request)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit code."""
    return command.run_command(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
