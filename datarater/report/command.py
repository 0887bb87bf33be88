"""`datarater report`: makes the report of a selection or an evaluation again."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from datarater.pipelines.commands import flags, outcome
from datarater.pipelines.errors import UsageError
from datarater.rater_model.command_line import CommandParser, print_line
from datarater.report import EVALUATION_FILE

COMMAND = "datarater report"


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Makes report.html again, for every finished selection of a run folder or for an "
        "evaluation. Nothing is scored, selected or trained again.",
        f"{COMMAND} run --report_texts 0",
        usage=f"{COMMAND} RUN_DIR [flags]",
        takes_beam_flags=False,
    )
    parser.add_argument(
        "folder",
        metavar="RUN_DIR",
        help="Run folder: a local path or any fsspec URL.",
    )
    parser.add_argument(
        "--name", type=flags.selection_name, metavar="NAME", help="Only the selection of this name."
    )
    flags.add_report_flag(parser, as_before=True)
    return parser


def run(argv: Sequence[str] | None = None) -> list[str]:
    """Makes the reports of a folder.

    Args:
        argv: The command's arguments; those of this process if None.

    Returns:
        The paths of the reports.

    Raises:
        UsageError: The folder does not exist, or has neither a finished selection nor an
            evaluation.
        CurationError: A file of the run is missing or damaged.
        OSError: A file cannot be read or written.
        SystemExit: Wrong usage, and `--help`.
    """
    args = make_parser().parse_args(argv)

    # Imported after parsing, so that --help does not wait for NumPy, pyarrow and fsspec.
    from datarater.pipelines.run_folder import commits
    from datarater.pipelines.run_folder.layout import RunFolder
    from datarater.rater_model.documents.files import expand_home
    from datarater.report.evaluation import write_evaluation_report
    from datarater.report.selection import finished_selections, leaves_texts_out, write_report

    path = expand_home(args.folder)
    commits.check_protocols("RUN_DIR", path)
    folder = RunFolder(path)
    if not commits.exists(folder.path):
        raise UsageError(f"RUN_DIR: {folder.path} does not exist")

    written = []
    if args.name is None and commits.exists(f"{folder.path}/{EVALUATION_FILE}"):
        written.append(write_evaluation_report(folder.path))
    for name in finished_selections(folder):
        if args.name not in (None, name):
            continue
        texts = args.report_texts
        if texts is None:
            # Who left the texts out does not get them back unasked.
            before = commits.read_if_there(folder.selection(name).report_path)
            left_out = before is not None and leaves_texts_out(before)
            texts = 0 if left_out else flags.DEFAULT_REPORT_TEXTS
        written.append(write_report(folder, name, texts))

    if not written:
        what = "selection" if args.name is None else f"selection {args.name}"
        raise UsageError(f"RUN_DIR: {folder.path} has no finished {what}")
    for report in written:
        print_line(report)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return outcome.exit_code_of(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
