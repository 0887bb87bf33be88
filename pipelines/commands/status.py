"""`datarater status`: reports the progress of a run folder, from anywhere."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

import orjson

from datarater.pipelines.errors import CurationError, UsageError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.progress import Status, Watcher, report
from datarater.rater_model import exit_codes

COMMAND = "datarater status"


def run(argv: Sequence[str] | None = None) -> Status | None:
    """Prints how far a run is.

    Args:
        argv: flags; those of the command line if None.

    Returns:
        The status; None before the run is planned.

    Raises:
        UsageError: there is no such folder.
        CurationError: the run folder cannot be read.
        SystemExit: wrong usage.
    """
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Says how far a run is: splits done, documents and tokens a second, time left, rejects so far.",
        epilog=f"example:\n  {COMMAND} gs://bucket/run --watch 10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", metavar="RUN_DIR", help="the run folder, local or on any file system"
    )
    parser.add_argument(
        "--watch",
        type=float,
        metavar="SECONDS",
        help="look again every so many seconds, until done",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a look, for programs"
    )
    args = parser.parse_args(argv)
    commits.check_protocols("RUN_DIR", args.folder)
    folder = RunFolder(args.folder)
    try:
        if not commits.exists(folder.path):
            raise UsageError(f"{folder.path}: no such run folder")
    except OSError as error:
        raise CurationError(f"{folder.path} cannot be read: {error}") from error
    watcher = Watcher(folder)
    while True:
        try:
            status = watcher.look()
            lines = report(folder, status) if not args.json else []
        except OSError as error:
            raise CurationError(f"{folder.path} cannot be read: {error}") from error
        if args.json:
            lines = [orjson.dumps(status.to_json() if status else None).decode()]
        print("\n".join(lines), flush=True)
        if args.watch is None or (status is not None and status.finished):
            return status
        time.sleep(max(args.watch, 0.1))


def main(argv: Sequence[str] | None = None) -> int:
    """The console entry; returns the exit code."""
    try:
        run(argv)
    except CurationError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return exit_codes.STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_codes.DONE


if __name__ == "__main__":
    sys.exit(main())
