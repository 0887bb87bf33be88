"""`datarater analyze`: shows what a rater looks at and which groups of documents it drops.

This module reads the command line. It stays free of JAX, so that `--help` and wrong usage answer at
once; the work is in `datarater.meta_training.analysis.analysis`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datarater.meta_training.evaluate.command_run import (
    fraction,
    number,
    patterns_of,
    positive,
    run_command,
    whole_number,
)
from datarater.meta_training.evaluate.errors import FlagError
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser, print_line
from datarater.rater_model.documents.files import expand_home

if TYPE_CHECKING:
    from datarater.meta_training.analysis.analysis import Analysis

COMMAND = "datarater analyze"
# What the [train] extra installs and every analysis imports.
_MODULES = ("optax", "sklearn", "py3langid")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `datarater analyze`.

    Args:
        argv: Arguments after the command's name; those of the process if None.

    Returns:
        The exit code, one of `datarater.rater_model.exit_codes`.

    Raises:
        ModuleNotFoundError: If the extra `datarater[train]` is not installed.
    """
    return run_command(make_parser(), argv, _run, _MODULES)


def _run(args: argparse.Namespace) -> int:
    from datarater.meta_training.analysis import analysis, tables

    asked, output = analysis_of(args), Path(expand_home(args.output))
    output.mkdir(parents=True, exist_ok=True)
    report = analysis.run_analysis(asked, output, lambda line: print_line(line, sys.stderr))
    for warning in report["warnings"]:
        print_line(f"warning: {warning}")
    tables.print_tables(report["tables"])
    print_line(f"written to {output / analysis.REPORT}")
    return exit_codes.DONE


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Shows what a rater looks at and which groups of documents it drops: scores against "
        "features of the texts, sources and length; keep rates by group with their ratios; "
        "agreement between raters.",
        f"{COMMAND} --pool 'crawl/*.jsonl.gz' --rater work/rater --output analysis",
        takes_beam_flags=False,
    )
    _add_data_flags(parser)
    _add_group_flags(parser)
    _add_run_flags(parser)
    return parser


def _add_data_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--pool",
        action="append",
        default=[],
        metavar="FILES",
        help="Paths or globs of the documents, separated by commas. Repeatable. Default: the "
        "inputs of the first --run.",
    )
    parser.add_argument(
        "--rater",
        action="append",
        default=[],
        metavar="DIR",
        help="Rater checkpoint to score the documents with. Repeatable: raters are compared.",
    )
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="RUN",
        help="Run folder of datarater score or curate, whose scores are taken by the documents' "
        "keys. Repeatable.",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="Folder of a training run; the scores of its exported raters are compared.",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="Folder for analysis.json, the documents read and their scores. The same command "
        "continues from it.",
    )

    # What to read of a document, and of how many.
    for field, meaning in (
        ("text", "text"),
        ("id", "id"),
        ("source", "name of the document's source"),
    ):
        parser.add_argument(
            f"--{field}_field",
            metavar="NAME",
            help=f"Field of the {meaning}. Default: that of the run, or {field}.",
        )
    parser.add_argument(
        "--max_documents",
        type=whole_number,
        default=50_000,
        metavar="N",
        help="Size of the random sample that is analyzed of a larger pool. Default: %(default)s.",
    )


def _add_group_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="FIELD",
        help="Field to compare keep rates by, besides source, language and length. Repeatable. "
        "Many different numbers are cut at their deciles.",
    )
    parser.add_argument(
        "--language_field",
        default="",
        metavar="NAME",
        help="Field of the language. Default: identified from the text.",
    )

    # What is kept.
    parser.add_argument(
        "--keep",
        type=fraction,
        metavar="SHARE",
        help="Kept share of the keep rates. Default: the best one according to an evaluation of "
        "the first rater, or 0.5.",
    )
    parser.add_argument(
        "--keep_unit",
        choices=("documents", "bytes"),
        default="documents",
        help="Unit of kept shares. Default: %(default)s.",
    )

    # When a group is flagged.
    parser.add_argument(
        "--max_disparity",
        type=_above_one,
        default=1.25,
        metavar="RATIO",
        help="Ratio of a group's keep rate to the overall one above which, or below whose inverse, "
        "the group is flagged. Default: %(default)s, the four-fifths rule.",
    )
    parser.add_argument(
        "--min_group",
        type=whole_number,
        default=30,
        metavar="N",
        help="Documents of a group below which it is put together with other small groups. "
        "Default: %(default)s.",
    )


def _add_run_flags(parser: CommandParser) -> None:
    parser.add_argument(
        "--folds",
        type=_folds,
        default=10,
        metavar="N",
        help="Folds of the cross-validation. Default: %(default)s.",
    )
    parser.add_argument(
        "--repeats",
        type=whole_number,
        default=5,
        metavar="N",
        help="Times that the cross-validation is repeated. Default: %(default)s.",
    )

    # How to run it.
    parser.add_argument(
        "--processes",
        type=whole_number,
        default=2,
        metavar="N",
        help="Single-threaded processes at a time. Default: %(default)s.",
    )


def analysis_of(args: argparse.Namespace) -> Analysis:
    """Returns the analysis that the flags ask for.

    Raises:
        FlagError: If flags contradict each other or something is missing.
        OSError: If the inputs of a run cannot be read.
    """
    from datarater.meta_training.analysis.analysis import LANGUAGE, LENGTH, SOURCE, Analysis
    from datarater.meta_training.analysis.documents import DocumentOptions
    from datarater.meta_training.analysis.run_scores import read_inputs
    from datarater.rater_model.documents.records import ReadOptions

    raters = [*args.rater]
    if not raters and not args.run:
        if not args.workdir:
            raise FlagError("give --rater DIR, --run RUN or --workdir DIR")
        raters = [f"{args.workdir}/rater"]
    if not args.pool and not args.run:
        raise FlagError("give --pool FILES, the documents that the rater scores")
    taken = [name for name in args.by if name in (SOURCE, LANGUAGE, LENGTH)]
    if taken:
        raise FlagError(
            f"--by {taken[0]}: keep rates by {SOURCE}, {LANGUAGE} and {LENGTH} are always shown; "
            "name the field of the source or language by --source_field or --language_field"
        )

    runs = tuple(dict.fromkeys(expand_home(run).rstrip("/") for run in args.run))
    files, read = patterns_of(args.pool), ReadOptions()
    if runs:
        # Keys depend on how the run read its documents.
        inputs = read_inputs(runs[0])
        files, read = files or inputs.files, inputs.read
    by = tuple(dict.fromkeys(args.by))
    fields = [*by, *([args.language_field] if args.language_field else [])]
    return Analysis(
        documents=DocumentOptions(
            pool=files,
            read=ReadOptions(
                args.text_field or read.text_field,
                args.id_field or read.id_field,
                args.source_field or read.source_field,
                read.max_record_bytes,
            ),
            fields=tuple(dict.fromkeys(fields)),
            max_documents=args.max_documents,
        ),
        raters=tuple(dict.fromkeys(expand_home(rater).rstrip("/") for rater in raters)),
        runs=runs,
        workdir=expand_home(args.workdir or ""),
        by=by,
        language_field=args.language_field,
        keep=args.keep,
        keep_unit=args.keep_unit,
        max_disparity=args.max_disparity,
        min_group=args.min_group,
        folds=args.folds,
        repeats=args.repeats,
        processes=args.processes,
    )


# Types of values. argparse prints the message of an ArgumentTypeError after the flag's name.


def _above_one(text: str) -> float:
    if not number(text) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a ratio above 1")
    return positive(text)


def _folds(text: str) -> int:
    if whole_number(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of folds; two are the least")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
