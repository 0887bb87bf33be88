"""Generates the tables of the documentation from the commands and the default config themselves.

    python -m tests.support.reference_tables     # or: make reference

writes each table between its markers in `docs/reference.md` and `docs/troubleshooting.md`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from datarater.meta_training import prepare, train
from datarater.meta_training.analysis import command as analyze
from datarater.meta_training.demo import demo
from datarater.meta_training.distil import command as distil
from datarater.meta_training.evaluate import command as evaluate
from datarater.pipelines.commands import batch, curate, dedup, inspect, score, select, status
from datarater.rater_model.exit_codes import EXIT_CODES
from datarater.rater_model.hugging_face import export_command, push_command
from datarater.report import command as report
from tests.support import ROOT

COMMANDS: dict[str, Callable[..., object]] = {
    "curate": curate.run,
    "score": score.run,
    "select": select.run,
    "dedup": dedup.run,
    "status": status.run,
    "inspect": inspect.run,
    "report": report.run,
    "batch": batch.run,
}


class _CapturedError(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(run: Callable[..., object]) -> argparse.ArgumentParser:
    """Returns the parser that a command makes, by stopping it at the first use."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _CapturedError(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop),
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            run([])
        except _CapturedError as captured:
            return captured.parser
    raise AssertionError(f"{run} parses no flags")


def flags_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yields every flag or argument of a parser, with its help."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[-1] if action.option_strings else ""
        value = action.metavar or (
            "{" + ",".join(map(str, action.choices)) + "}"
            if action.choices
            else ("" if action.nargs == 0 else action.dest.upper())
        )
        text = parser._get_formatter()._expand_help(action) if action.help else ""
        yield f"{name} {value}".strip(), " ".join(text.split())


def fit_for_a_column(flag: str, text: str) -> tuple[str, str]:
    """Returns a flag and its help, with a long list of choices in the help."""
    name, _, value = flag.partition(" ")
    if not value.startswith("{") or len(value) < 24:
        return flag, text
    choices = ", ".join(value.strip("{}").split(","))
    return f"{name} {name.rpartition('_')[2].upper()}", f"{text} One of {choices}."


def command_table() -> str:
    """Returns the table of the Beam commands' flags, each with the commands that take it."""
    takers: dict[tuple[str, str], list[str]] = {}
    for command, run in {**COMMANDS, "demo": demo.main}.items():
        for flag_and_help in flags_of(parser_of(run)):
            takers.setdefault(flag_and_help, []).append(command)
    rows = []
    for flag_and_help, commands in takers.items():
        name, text = fit_for_a_column(*flag_and_help)
        rows.append(f"| `{in_code(name)}` | {', '.join(commands)} | {escape(text)} |")
    return "\n".join(["| flag | commands | meaning |", "|---|---|---|", *rows])


def train_table() -> str:
    """Returns the table of the flags of `datarater train`."""
    return absl_flag_table(train.FLAG_HELP)


def prepare_table() -> str:
    """Returns the table of the flags of `datarater prepare`."""
    return absl_flag_table(prepare.FLAG_HELP)


def absl_flag_table(flag_help: dict[str, str]) -> str:
    """Returns the table of the flags of a command whose flags absl parses."""
    rows = (f"| `--{name}` | {escape(text)} |" for name, text in flag_help.items())
    return "\n".join(["| flag | meaning |", "|---|---|", *rows])


def evaluate_table() -> str:
    """Returns the table of the flags of `datarater evaluate`."""
    return flag_table(evaluate.main)


def analyze_table() -> str:
    """Returns the table of the flags of `datarater analyze`."""
    return flag_table(analyze.main)


def distil_table() -> str:
    """Returns the table of the flags of `datarater distil`."""
    return flag_table(distil.main)


def export_table() -> str:
    """Returns the table of the flags of `datarater export`."""
    return flag_table(export_command.main)


def push_table() -> str:
    """Returns the table of the flags of `datarater push`."""
    return flag_table(push_command.main)


def flag_table(run: Callable[..., object]) -> str:
    """Returns the table of the flags of a command that shares none with the others."""
    rows = (
        f"| `{in_code(name)}` | {escape(text)} |"
        for name, text in itertools.starmap(fit_for_a_column, flags_of(parser_of(run)))
    )
    return "\n".join(["| flag | meaning |", "|---|---|", *rows])


def config_table() -> str:
    """Returns the table of the config's fields, from the comments of the default config."""
    source = (ROOT / "meta_training" / "configs" / "default.py").read_text()
    rows = []
    for match in re.finditer(r"^    config\.([\w.]+) = (.+?)(?:  # (.+))?$", source, re.MULTILINE):
        name, value, comment = match.groups()
        if value != "ConfigDict()":
            default = in_code(repr(ast.literal_eval(value)))
            rows.append(f"| `{name}` | `{default}` | {escape(comment or '')} |")
        elif comment:
            rows.append(f"| **`{name}`** | | {escape(comment)} |")
    return "\n".join(["| `--config.` | default | meaning |", "|---|---|---|", *rows])


def exit_code_table() -> str:
    """Returns the table of exit codes."""
    rows = (f"| {code} | {escape(meaning)} |" for code, meaning in EXIT_CODES.items())
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


def in_code(text: str) -> str:
    """Returns text for a code span in a cell of a Markdown table."""
    return text.replace("|", "\\|")


def escape(text: str) -> str:
    """Returns text for a cell of a Markdown table."""
    return re.sub(r"([|*\[\]])", r"\\\1", text).replace("<", "&lt;")


TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "docs" / "reference.md": {
        "command flags": command_table,
        "train flags": train_table,
        "prepare flags": prepare_table,
        "evaluate flags": evaluate_table,
        "analyze flags": analyze_table,
        "distil flags": distil_table,
        "export flags": export_table,
        "push flags": push_table,
        "config fields": config_table,
    },
    ROOT / "docs" / "troubleshooting.md": {"exit codes": exit_code_table},
}
"""The generated tables of each page, by the name in their markers."""


def with_tables(page: Path) -> str:
    """Returns a page with its tables regenerated."""
    text = page.read_text()
    for name, table in TABLES[page].items():
        begin, end = f"<!-- {name}: made by `make reference` -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{table()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(with_tables(path))
