"""The `datarater` command, which loads a subcommand only when it is called."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence

import datarater
from datarater.rater_model import exit_codes
from datarater.rater_model.command_line import (
    exit_code_lines,
    leave_broken_pipe,
    near_miss,
    print_line,
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        module: Module whose `main(argv)` runs it and returns the exit code.
        summary: What it does, in a line.
        extra: Extra of the distribution that it needs; "" for none.
        then: Module whose `after(argv)` runs where the command has ended well; "" for none.
    """

    module: str
    summary: str
    extra: str = ""
    then: str = ""


COMMANDS = {
    "train": Command(
        "datarater.meta_training.train", "Meta-train a rater on your own corpus.", "train"
    ),
    "prepare": Command(
        "datarater.meta_training.prepare",
        "Tokenize and cut a corpus once, for several runs of train.",
        "train",
    ),
    "score": Command("datarater.pipelines.commands.score", "Score every document of a corpus."),
    "select": Command(
        "datarater.pipelines.commands.select", "Keep the best part of a scored corpus."
    ),
    "curate": Command(
        "datarater.pipelines.commands.curate", "Score a corpus and keep its best part."
    ),
    "dedup": Command(
        "datarater.pipelines.commands.dedup", "Find the near-duplicates of a scored corpus."
    ),
    "status": Command("datarater.pipelines.commands.status", "Report the progress of a run."),
    "inspect": Command(
        "datarater.pipelines.commands.inspect", "Show documents of a run with their scores."
    ),
    "report": Command(
        "datarater.report.command", "Make the report of a selection or an evaluation again."
    ),
    "batch": Command(
        "datarater.pipelines.commands.batch", "Curate the files that arrived since the last batch."
    ),
    "evaluate": Command(
        "datarater.meta_training.evaluate.command",
        "Measure what a rater saves, against other filters.",
        "train",
        then="datarater.report.after",
    ),
    "analyze": Command(
        "datarater.meta_training.analysis.command",
        "Show what a rater looks at and which groups it drops.",
        "train",
    ),
    "distil": Command(
        "datarater.meta_training.distil.command",
        "Fit a fast student to a rater's scores, alone or as a first pass.",
        "train",
    ),
    "export": Command(
        "datarater.rater_model.hugging_face.export_command",
        "Write a rater as a model that transformers loads.",
    ),
    "push": Command(
        "datarater.rater_model.hugging_face.push_command",
        "Upload a rater to the Hugging Face Hub, with a model card.",
    ),
    "demo": Command(
        "datarater.meta_training.demo.demo",
        "Meta-train a small rater on a built-in corpus and curate the corpus with it.",
        "train",
        then="datarater.report.after",
    ),
    "completion": Command("datarater.completion", "Print a completion script for a shell."),
}
"""Subcommands by name, in the order of the help."""

_EXAMPLE = """\
Example:
  datarater train --config.data.inner='crawl/*.jsonl.gz' --workdir=work
  datarater curate --input 'crawl/*.jsonl.gz' --rater work/rater --output run --keep_fraction 0.5
"""


def help_text() -> str:
    """Returns what `datarater --help` prints."""
    commands = "\n".join(f"  {name:<11} {command.summary}" for name, command in COMMANDS.items())
    return f"""\
Learns what training data is worth, and keeps the best of it.

{_EXAMPLE}
usage: datarater COMMAND [flags]
       datarater COMMAND --help
       datarater --version

Commands:
{commands}

Exit codes of every command:
{exit_code_lines()}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: The words after `datarater`; those of this process if None.

    Returns:
        The exit code (`datarater.rater_model.exit_codes`).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return exit_codes.DONE if words else exit_codes.WRONG_USAGE
    if words[0] in ("-V", "--version"):
        print(f"datarater {datarater.__version__}")
        return exit_codes.DONE

    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = near_miss(name, COMMANDS)
        hint = f"did you mean {near}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print_line(f"datarater: unknown command {name!r}; {hint}", sys.stderr)
        return exit_codes.WRONG_USAGE

    command = COMMANDS[name]
    try:
        code: int = importlib.import_module(command.module).main(rest)
        if code == exit_codes.DONE and command.then:
            importlib.import_module(command.then).after(rest)
    except ModuleNotFoundError as error:
        # Ours missing is a defect; a library missing is an extra that was not installed.
        if not command.extra or (error.name or "").startswith("datarater"):
            raise
        print(
            f"datarater {name}: the package {error.name} is not installed; "
            f"pip install 'datarater[{command.extra}]'",
            file=sys.stderr,
        )
        return exit_codes.FAILED
    except SystemExit as error:  # argparse ends this way, after --help and for wrong usage
        code = error.code if isinstance(error.code, int) else exit_codes.DONE
        if isinstance(error.code, str):  # sys.exit("message"), such as in a config file
            print_line(f"datarater {name}: {error.code}", sys.stderr)
            code = exit_codes.FAILED
    except BrokenPipeError:
        # The reader of the output has left. A command that only prints is done; another one may
        # have stopped halfway.
        leave_broken_pipe()
        only_prints = name == "completion" or {"-h", "--help"} & set(rest)
        code = exit_codes.DONE if only_prints else exit_codes.FAILED
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leave_broken_pipe()
    return code


if __name__ == "__main__":
    sys.exit(main())
