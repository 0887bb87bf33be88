"""Writes the report of the evaluation that a command has ended with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datarater.rater_model.command_line import print_line
from datarater.rater_model.documents.files import expand_home
from datarater.report import EVALUATION_FILE


def after(argv: Sequence[str]) -> None:
    """Writes and names the report of an evaluation; a failure is a warning.

    Args:
        argv: Arguments of the command that has ended. The evaluation is in its `--output` folder,
            or in the folder `evaluation` below, as the demo leaves it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output")
    output = parser.parse_known_args(argv)[0].output
    if output is None:
        return
    for folder in (Path(expand_home(output)), Path(expand_home(output), "evaluation")):
        if not (folder / EVALUATION_FILE).exists():
            continue
        try:
            from datarater.report.evaluation import write_evaluation_report

            print_line(f"report: {write_evaluation_report(str(folder))}")
        except Exception as error:  # the results are complete without a picture of them
            print_line(
                f"WARNING: the report was not written ({error}); to make it: datarater report "
                f"{folder}",
                sys.stderr,
            )
