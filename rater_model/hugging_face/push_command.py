"""`datarater push`: uploads a rater to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from datarater.rater_model.command_line import CommandParser
from datarater.rater_model.hugging_face.command_run import run_command

COMMAND = "datarater push"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(make_parser(), argv, _run)


def make_parser() -> CommandParser:
    """Returns the command's parser."""
    parser = CommandParser(
        COMMAND,
        "Uploads a rater checkpoint to the Hugging Face Hub in one commit, with a model card that "
        "is written from what the rater records of its training. It is then loaded from "
        "hf://ORG/NAME. The config is uploaded too, with the paths of the data.",
        f"{COMMAND} --rater work/rater --repo my-org/my-rater --license apache-2.0",
        takes_beam_flags=False,
    )
    parser.add_argument(
        "--rater",
        required=True,
        metavar="DIR",
        help="Rater checkpoint: a local path or any fsspec URL.",
    )
    parser.add_argument(
        "--repo",
        required=True,
        metavar="ORG/NAME",
        help="Repository of the Hub; it is created if there is none.",
    )
    parser.add_argument(
        "--license",
        required=True,
        metavar="LICENSE",
        help="License of the rater, by the Hub's identifier, such as apache-2.0 or other. It is "
        "yours to choose: no default could know the terms of your data.",
    )
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    return parser


def _run(args: argparse.Namespace) -> list[str]:
    from datarater.rater_model.documents.files import expand_home
    from datarater.rater_model.hugging_face.hub import push_to_hub

    url = push_to_hub(expand_home(args.rater), args.repo, args.license, private=args.private)
    return [
        f"uploaded to {url}",
        f"next:  datarater score --rater hf://{args.repo} --input FILES --output run",
    ]


if __name__ == "__main__":
    sys.exit(main())
