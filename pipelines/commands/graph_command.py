"""The commands that run the graph: flags -> requests -> run -> print."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datarater.pipelines.commands import flags, outcome
from datarater.pipelines.runners import beam_import
from datarater.rater_model.command_line import CommandParser

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult


@dataclasses.dataclass(frozen=True)
class GraphCommand:
    """A command that scores, selects or both.

    Attributes:
        name: The command as users type it.
        description: What it does, in a sentence.
        example: Flags of an example.
        scores: Whether it scores.
        selects: Whether it selects.
    """

    name: str
    description: str
    example: str
    scores: bool = False
    selects: bool = False

    def make_parser(self) -> CommandParser:
        """Returns the command's parser."""
        parser = CommandParser(self.name, self.description, f"{self.name} {self.example}")
        flags.add_output_flag(parser)
        if self.scores:
            flags.add_append_flag(parser)
            flags.add_input_flags(parser)
            flags.add_scoring_flags(parser)
        if self.scores and self.selects:
            flags.add_student_flags(parser)
        if self.selects:
            flags.add_selection_flags(parser, rater_may_rule=self.scores)
        flags.add_local_flags(parser)
        if self.scores:
            flags.add_dry_run_flags(parser)
        return parser

    def run(self, argv: Sequence[str] | None = None) -> PipelineResult | None:
        """Runs the command.

        Args:
            argv: The command's arguments; those of this process if None.

        Returns:
            Beam's result; None where nothing was left to do, or worker processes did it.

        Raises:
            CurationError: The run cannot continue; the message says why and what to do.
            SystemExit: Wrong usage, and `--help`.
        """
        parser = self.make_parser()
        args, beam_args = flags.parse(parser, argv)

        # Beam and JAX load here, after --help and wrong usage have been answered.
        beam_import.import_beam(beam_args)
        from datarater.pipelines.commands import estimate, printing, requests, running
        from datarater.pipelines.graph.requests import Work

        execution = requests.execution_of(parser, args, beam_args)
        if self.scores and self.selects and not flags.has_rule(args):
            args.rule = requests.recommended_rule(parser, args.rater, execution)
        selection = requests.selection_of(args, execution) if self.selects else None
        scoring = requests.scoring_of(args, execution) if self.scores else None
        if scoring is not None and selection is not None and args.student:
            scoring = requests.with_student(
                scoring, args.student, selection, args.agreement, execution
            )
        if scoring is not None and args.dry_run:
            worker = estimate.prices_from_flags(args, execution)
            estimate.print_estimate(scoring, execution, worker)
            return None

        result = running.run(Work(scoring, selection), execution)
        if selection is not None:
            printing.print_selection(selection)
            printing.check_bad_splits(selection.folder)
        elif scoring is not None:
            printing.print_scoring(scoring.folder)
            printing.check_bad_splits(scoring.folder)
        return result

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command and returns its exit code."""
        return outcome.exit_code_of(self.name, self.run, argv)
