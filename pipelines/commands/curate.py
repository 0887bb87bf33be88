"""`datarater curate`: scores a corpus and keeps its best part, in one graph."""

import sys
from collections.abc import Sequence

from apache_beam.runners.runner import PipelineResult

from datarater.pipelines.commands import flags, printing, running
from datarater.pipelines.commands.score import add_scoring_flags, scoring_request
from datarater.pipelines.graph import scoring
from datarater.pipelines.graph.curation import Work
from datarater.pipelines.run_folder import reference
from datarater.pipelines.run_folder.identity import check_rule
from datarater.rater_model.scorer import limit_cpu_threads

COMMAND = "datarater curate"


def run(argv: Sequence[str] | None = None) -> PipelineResult | None:
    """Curates a corpus.

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
        "Scores every document of a corpus with a rater and keeps the best part of it: exactly the part asked for.",
        f"{COMMAND} --input 'crawl/*.jsonl.gz' --rater rater/ --output run/ --keep_fraction 0.5",
    )
    flags.add_output_flag(parser)
    flags.add_input_flags(parser)
    add_scoring_flags(parser)
    flags.add_selection_flags(parser)
    flags.add_local_flags(parser)
    args, layout = flags.parse_run(parser, argv)
    limit_cpu_threads()
    selection = flags.selection_request(args)
    request = scoring_request(args, layout)
    files = scoring.preflight(request)
    if selection.reference is not None:
        reference.read_reference(selection.reference, request.plan.identity)
    check_rule(selection.selection, selection.rule_fields())
    running.check_writable(request.folder)
    result = None
    if printing.read_manifest(selection) is None:
        printing.say(f"input: {len(files):,} files, {sum(file.size for file in files):,} bytes")
        result = running.run_graph(Work(scoring=request, selection=selection), layout)
    printing.print_selection(selection)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit code."""
    return running.run_command(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
