"""`datarater select`: keeps the best part of a scored corpus; nothing is scored again."""

import sys
from collections.abc import Sequence

from apache_beam.runners.runner import PipelineResult

from datarater.pipelines.commands import flags, printing, running
from datarater.pipelines.graph import cutoff_search
from datarater.pipelines.graph.curation import Work
from datarater.pipelines.run_folder.identity import check_rule

COMMAND = "datarater select"


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
    parser = flags.parser(
        COMMAND,
        "Keeps the best part of a corpus that datarater score or datarater curate scored.",
        f"{COMMAND} --output run/ --keep_fraction 0.1",
    )
    flags.add_output_flag(parser)
    flags.add_selection_flags(parser)
    flags.add_local_flags(parser)
    args, layout = flags.parse_run(parser, argv)
    request = flags.selection_request(args)
    cutoff_search.first_cutoffs(request)
    check_rule(request.selection, request.rule_fields())
    result = None
    if printing.read_manifest(request) is None:
        running.check_writable(request.folder)
        result = running.run_graph(Work(selection=request), layout)
    printing.print_selection(request)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit code."""
    return running.run_command(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
