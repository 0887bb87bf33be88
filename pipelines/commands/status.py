"""`datarater status`: reports the progress of a run folder, from anywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datarater.pipelines.commands import flags, outcome
from datarater.pipelines.errors import CurationError, UsageError
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser, print_line

if TYPE_CHECKING:
    from datarater.pipelines.run_folder.layout import RunFolder
    from datarater.pipelines.run_folder.progress import Status

COMMAND = "datarater status"
_MIN_WAIT_SECONDS = 0.1
STALLED_SECONDS = 300.0
"""Time after which a watch ends in which no launch works in the folder and nothing moves."""


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Reports the progress of a run, of its scoring, deduplications and selections: what is "
        "done, rates, time left, and records rejected so far.",
        f"{COMMAND} gs://bucket/run --watch 10",
        usage=f"{COMMAND} RUN_DIR [flags]",
        takes_beam_flags=False,
    )

    parser.add_argument(
        "folder", metavar="RUN_DIR", help="Run folder: a local path or any fsspec URL."
    )
    parser.add_argument(
        "--watch",
        type=flags.positive_number,
        metavar="SECONDS",
        help="Report again at this interval until everything is scored and all selections and "
        "deduplications that were started are complete. Ends with exit code "
        f"{exit_codes.FAILED} if no launch works in the folder and nothing moves for "
        f"{STALLED_SECONDS / 60:.0f} minutes.",
    )
    parser.add_argument(
        "--json", action="store_true", help="Print each report as one JSON object, for programs."
    )
    return parser


def run(
    argv: Sequence[str] | None = None, stalled_seconds: float = STALLED_SECONDS
) -> Status | None:
    """Prints the progress of a run.

    Args:
        argv: The command's arguments; those of this process if None.
        stalled_seconds: Time after which a watch ends in which no launch works in the folder and
            nothing moves.

    Returns:
        The status; None before the run is planned.

    Raises:
        UsageError: There is no such folder, or it is not a run folder.
        CurationError: The run folder cannot be read, or nobody continues the run that is watched.
        SystemExit: Wrong usage, and `--help`.
    """
    args = make_parser().parse_args(argv)

    # Imported after parsing, so that --help does not wait for NumPy, pyarrow and fsspec.
    import orjson

    from datarater.pipelines.run_folder import commits
    from datarater.pipelines.run_folder.layout import RunFolder
    from datarater.pipelines.run_folder.progress import Watcher, launches, report
    from datarater.pipelines.run_folder.selection_progress import duration
    from datarater.rater_model.documents.files import expand_home
    from datarater.rater_model.documents.store_errors import in_time

    path = expand_home(args.folder)
    commits.check_protocols("RUN_DIR", path)
    folder = RunFolder(path)
    begun: RunFolder | None = None
    watchers: dict[RunFolder, Watcher] = {}
    moved, last = time.monotonic(), None
    while True:
        try:
            # After a first pass follows the run itself.
            if begun != folder:
                begun = in_time(folder.path, lambda: begun_run(folder))
                if begun != folder:
                    print_line(f"the student scores first, into {begun.path}", sys.stderr)
            watcher = watchers.setdefault(begun, Watcher(begun))
            status = watcher.look()
            lines = report(begun, status) if not args.json else []
            steps = None if status is None else (begun, status.steps)
            if steps != last or launches(begun):
                moved, last = time.monotonic(), steps
        except OSError as error:
            raise CurationError(f"{folder.path} cannot be read: {error}") from error
        if args.json:
            lines = [orjson.dumps(status.to_json() if status else None).decode()]
        for line in lines:
            print_line(line)
        is_finished = status is not None and status.finished and begun == folder
        if args.watch is None or is_finished:
            return status
        if time.monotonic() - moved >= stalled_seconds:
            raise CurationError(
                f"{folder.path}: no launch is working here, and nothing has moved for "
                f"{duration(stalled_seconds)}; run the same command again to continue"
            )
        time.sleep(max(args.watch, _MIN_WAIT_SECONDS))


def begun_run(folder: RunFolder) -> RunFolder:
    """Returns the run folder, or that of its first pass where nothing else has begun.

    Raises:
        UsageError: There is no such folder, or it is not a run folder.
    """
    from datarater.pipelines.run_folder import commits
    from datarater.pipelines.run_folder.layout import FIRST_PASS, RunFolder

    if not commits.exists(folder.path):
        raise UsageError(f"RUN_DIR: {folder.path} does not exist")
    names = set(commits.list_subfolders(folder.path))
    if FIRST_PASS in names and "plan" not in names:
        return RunFolder(folder.first_pass_path)
    if not {"plan", "lease"} & names:
        raise UsageError(f"RUN_DIR: {folder.path} is not a run folder; give the --output of a run")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return outcome.exit_code_of(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
