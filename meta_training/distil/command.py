"""`datarater distil`: fits a student to the scores of a run, which scores at the speed of memory.

This module reads the command line. It stays free of JAX, so that `--help` and wrong usage answer at
once; the work is in `datarater.meta_training.distil.distillation`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datarater.meta_training.evaluate.command_run import (
    fraction,
    patterns_of,
    run_command,
    whole_number,
)
from datarater.meta_training.evaluate.errors import FlagError
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser, print_line
from datarater.rater_model.documents.files import expand_home

COMMAND = "datarater distil"
# What the [train] extra installs and every distillation imports.
_MODULES = ("scipy", "sklearn")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `datarater distil`.

    Args:
        argv: Arguments after the command's name; those of the process if None.

    Returns:
        The exit code, one of `datarater.rater_model.exit_codes`.

    Raises:
        ModuleNotFoundError: If the extra `datarater[train]` is not installed.
    """
    return run_command(make_parser(), argv, _run, _MODULES)


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Fits a student to the scores of a run: a linear function of hashed byte n-grams, which "
        "scores at the speed of memory. It is a rater checkpoint, for score --rater, or for curate "
        "--student, which leaves to the rater only the documents that the student is not sure of.",
        f"{COMMAND} --run run --output student",
        takes_beam_flags=False,
    )

    # What is read and written.
    parser.add_argument(
        "--run",
        required=True,
        metavar="RUN",
        help="Run folder that datarater score or datarater curate filled with the rater's scores.",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="Folder for the student, a rater checkpoint; an older one there is replaced.",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="FILES",
        help="Paths or globs of the documents, separated by commas. Repeatable. Default: the "
        "inputs of the run.",
    )

    # How much of it.
    parser.add_argument(
        "--max_documents",
        type=whole_number,
        default=20_000,
        metavar="N",
        help="Size of the random sample that is taken of more documents; each takes about 50 KB "
        "of memory. Default: %(default)s.",
    )
    parser.add_argument(
        "--held_out",
        type=fraction,
        default=0.25,
        metavar="SHARE",
        help="Share of these documents that the student is not fitted to. Its error on them "
        "decides what a cascade leaves to the rater. Default: %(default)s.",
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    import numpy as np

    from datarater.meta_training.analysis.documents import (
        DocumentOptions,
        prepare_documents,
        texts_of_part,
    )
    from datarater.meta_training.analysis.run_scores import read_inputs, read_run_scores
    from datarater.meta_training.distil.distillation import Scored, cost_table, distil
    from datarater.rater_model.cascade import HeldOut
    from datarater.rater_model.checkpoint import CheckpointError, check_replaceable, save_rater
    from datarater.rater_model.ngram_rater import NgramConfig

    def say(line: str) -> None:
        print_line(line, sys.stderr)

    try:
        check_replaceable(expand_home(args.output))
    except CheckpointError as error:
        raise FlagError(f"--output: {error}") from error

    # Read a random sample of the run's documents, and their scores by their keys.
    run = expand_home(args.run).rstrip("/")
    inputs = read_inputs(run)
    if inputs.has_student:
        raise FlagError(
            f"--run {run}: a student gave some of its scores; give a run of the rater alone"
        )
    options = DocumentOptions(
        pool=patterns_of(args.input) or inputs.files,
        read=inputs.read,
        max_documents=args.max_documents,
    )
    with tempfile.TemporaryDirectory() as folder:
        documents = prepare_documents(options, Path(folder), say)
        texts = [
            text
            for part in range(documents.parts)
            for text in texts_of_part(str(documents.folder), part)
        ]
    scores = read_run_scores(run, documents.keys)
    has_score_N = np.isfinite(scores.scores_N)
    scored = Scored(
        [texts[index] for index in np.flatnonzero(has_score_N).tolist()],
        scores.scores_N[has_score_N],
        scores.rater,
    )

    student = distil(scored, NgramConfig(), args.held_out, say)
    student = save_rater(expand_home(args.output), student)
    found = student.provenance
    held_out = HeldOut.of(student)
    print_line(
        f"fitted to {found['fitted_documents']:,} documents; on {len(held_out.rater_H):,} others: "
        f"R2 {found['r2']:.3f}, rank correlation {found['rank_correlation']:.3f}"
    )
    print_line("share of the bytes that curate --student leaves to the rater:")
    for line in cost_table(held_out):
        print_line(line)
    print_line(f"written to {args.output}")
    return exit_codes.DONE


if __name__ == "__main__":
    sys.exit(main())
