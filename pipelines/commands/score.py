"""`datarater score`: scores a corpus, once, into a run folder."""

import argparse
import sys
from collections.abc import Sequence

from apache_beam.runners.runner import PipelineResult

from datarater.pipelines.commands import flags, printing, running
from datarater.pipelines.graph import scoring
from datarater.pipelines.graph.curation import Work
from datarater.pipelines.graph.requests import ScoringRequest, rater_digest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.runners.execution import Execution
from datarater.rater_model.scorer import limit_cpu_threads
from datarater.rater_model.scoring_options import ScoringOptions

COMMAND = "datarater score"

_REMOTE_WORKERS_TO_FILL = 64


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """The rater, and every flag that changes a score."""
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--rater",
        required=True,
        metavar="DIR",
        help="the rater checkpoint, local or on any file system",
    )
    defaults = ScoringOptions()
    group.add_argument(
        "--max_windows",
        type=flags.whole_number,
        default=defaults.max_windows,
        metavar="N",
        help="windows scored of one document at most, spread evenly over it; default: %(default)s",
    )
    group.add_argument(
        "--tokens_per_batch",
        type=flags.whole_number,
        default=defaults.tokens_per_batch,
        metavar="N",
        help="tokens in one model call; default: %(default)s, good on a CPU; 65536 on a GPU",
    )
    group.add_argument(
        "--max_rejected_fraction",
        type=flags.fraction,
        default=1.0,
        metavar="F",
        help="stop with exit code 4 once more than this share of the records is rejected; default: 1, never",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default=defaults.dtype,
        help="default: %(default)s",
    )


def scoring_request(args: argparse.Namespace, execution: Execution) -> ScoringRequest:
    """The scoring from the flags; the rater is loaded to know its digest.

    Args:
        args: the flags.
        execution: says how many workers a run has, where that is known.

    Raises:
        CurationError: the rater cannot be loaded.
    """
    return ScoringRequest(
        inputs=flags.input_patterns(args),
        rater=args.rater,
        rater_digest=rater_digest(args.rater),
        output=args.output,
        read=flags.read_options(args),
        scoring=ScoringOptions(
            max_windows=args.max_windows, tokens_per_batch=args.tokens_per_batch, dtype=args.dtype
        ),
        split_bytes=args.split_bytes,
        max_rejected_fraction=args.max_rejected_fraction,
        max_read_amplification=args.max_read_amplification,
        workers_to_fill=args.workers_to_fill or execution.workers or _REMOTE_WORKERS_TO_FILL,
    )


def run(argv: Sequence[str] | None = None) -> PipelineResult | None:
    """Scores a corpus.

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
        "Scores every document of a corpus and commits the scores into a run folder.",
        f"{COMMAND} --input 'crawl/*.jsonl.gz' --rater rater/ --output run/",
    )
    flags.add_output_flag(parser)
    flags.add_input_flags(parser)
    add_scoring_flags(parser)
    flags.add_local_flags(parser)
    args, execution = flags.parse_run(parser, argv)
    limit_cpu_threads()
    request = scoring_request(args, execution)
    files = scoring.preflight(request)
    running.check_writable(request.folder)
    result = None
    if not commits.exists(request.folder.scoring_path):
        printing.say(f"input: {len(files):,} files, {sum(file.size for file in files):,} bytes")
        result = running.run_graph(Work(scoring=request), execution)
    if commits.exists(request.folder.scoring_path):
        printing.print_scoring(request.folder)
        printing.say(f"next: datarater select --output {request.output} --keep_fraction 0.5")
    else:
        printing.say("submitted; the job goes on without this command")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit code."""
    return running.run_command(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
