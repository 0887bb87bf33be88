"""`datarater batch`: scores and selects the files that arrived since the last batch."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datarater.pipelines.bad_splits import FAIL, ON_BAD_SPLIT
from datarater.pipelines.commands import flags, outcome
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import CommandParser

if TYPE_CHECKING:
    from datarater.pipelines.batch.batches import Curate
    from datarater.pipelines.batch.record import Record

COMMAND = "datarater batch"


def date_of(text: str) -> datetime.date:
    """Returns a date written as 2026-01-31.

    Raises:
        argparse.ArgumentTypeError: The text is not such a date.
    """
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:
        date = None
    # Python also reads other formats, such as 20260131.
    if date is None or date.isoformat() != text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2026-01-31")
    return date


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Scores and selects the files that no earlier batch has taken, compares them with a frozen "
        "reference, and publishes the kept documents under a date. Every file lands in exactly one "
        "batch, however often, late or concurrently the command runs. Unfinished batches of other "
        "dates are finished first.",
        f"{COMMAND} --config batch.yaml --as_of 2026-01-31",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="Config of the batches, a YAML file: a local path or any fsspec URL.",
    )
    parser.add_argument(
        "--as_of",
        required=True,
        type=date_of,
        metavar="DATE",
        help="Date of the batch, past or present. Example: 2026-01-31.",
    )

    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Print what the batch would take, and change nothing.",
    )
    parser.add_argument(
        "--adopt_reference",
        action="store_true",
        help="Continue with a rater or reference that differs from that of earlier batches. Needed "
        "once after a change.",
    )
    parser.add_argument(
        "--accept_alarm",
        action="store_true",
        help="Publish a batch that limits.on_alarm: hold holds back. Look at the batch first.",
    )
    parser.add_argument(
        "--on_bad_split",
        choices=ON_BAD_SPLIT,
        help="What to do with a file that cannot be read, and with a split that repeatedly ends "
        "its worker: end the batch, or reject it whole with its reason, publish the batch, and end "
        f"with exit code {exit_codes.BAD_SPLITS}. Default: curate.on_bad_split of the config, or "
        f"{FAIL} without it.",
    )
    return parser


def run(argv: Sequence[str] | None = None, curate: Curate | None = None) -> Record | None:
    """Makes the batch of a date, exactly once.

    Args:
        argv: Flags; those of the command line if None.
        curate: Runs the work of a batch; `running.run` if None.

    Returns:
        The record of the batch; None for a dry run.

    Raises:
        PastLimitError: The batch has passed a limit; it is published unless the configuration holds
            it back.
        BadSplitsError: The batch is published, but files or splits were rejected whole.
        CurationError: The batch failed; the message says why and what to do.
        SystemExit: A flag is invalid.
    """
    parser = make_parser()
    args, beam_args = flags.parse(parser, argv)
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    if args.as_of > tomorrow:
        parser.error(f"--as_of: {args.as_of} is in the future")

    # Imported after parsing, so that --help does not wait for Beam and JAX.
    from datarater.pipelines.batch import night
    from datarater.pipelines.batch.batches import Batches
    from datarater.pipelines.batch.config import read_config
    from datarater.pipelines.commands import running
    from datarater.pipelines.runners.interrupts import Interrupts

    config = read_config(args.config, beam_args)
    if args.on_bad_split is not None:
        config = config.with_flag("on_bad_split", args.on_bad_split)
    with Interrupts():
        if args.dry_run:
            night.dry_run(config, args.as_of)
            return None
        accept = args.as_of.isoformat() if args.accept_alarm else None
        batches = Batches(
            config,
            curate or running.run,
            adopt_reference=args.adopt_reference,
            accept_alarm=accept,
        )
        return night.run(batches, config, args.as_of)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return outcome.exit_code_of(COMMAND, run, argv)


if __name__ == "__main__":
    sys.exit(main())
