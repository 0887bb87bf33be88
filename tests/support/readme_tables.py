"""The README's tables of flags, made from the commands and the default config themselves.

python -m tests.readme_tables     # writes them into README.md, between their markers
"""

import argparse
import ast
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from unittest import mock

from datarater.pipelines.commands import batch, curate, score, select, status
from tests.support import ROOT

README = ROOT / "README.md"
COMMANDS: dict[str, Callable[..., object]] = {
    "curate": curate.run,
    "score": score.run,
    "select": select.run,
    "status": status.run,
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


def command_table() -> str:
    """Returns the table of the Beam commands' flags, each with the commands that take it."""
    takers: dict[tuple[str, str], list[str]] = {}
    for command, run in COMMANDS.items():
        for flag in flags_of(parser_of(run)):
            takers.setdefault(flag, []).append(command)
    rows = [
        f"| `{escape(flag)}` | {', '.join(commands)} | {escape(text)} |"
        for (flag, text), commands in takers.items()
    ]
    return "\n".join(["| flag | of `datarater-` | meaning |", "|---|---|---|", *rows])


def config_table() -> str:
    """Returns the table of the training config's fields, from the default config's own comments."""
    source = (ROOT / "meta_training" / "configs" / "default.py").read_text()
    rows = []
    for match in re.finditer(r"^    config\.([\w.]+) = (.+?)(?:  # (.+))?$", source, re.MULTILINE):
        name, value, comment = match.groups()
        if value != "ConfigDict()":
            rows.append(
                f"| `{name}` | `{escape(repr(ast.literal_eval(value)))}` | {escape(comment or '')} |"
            )
        elif comment:
            rows.append(f"| **`{name}`** | | {escape(comment)} |")
    return "\n".join(["| `--config.` | default | meaning |", "|---|---|---|", *rows])


def escape(text: str) -> str:
    """Returns text that stands in a table's cell."""
    return text.replace("|", "\\|")


def filled(readme: str) -> str:
    """Returns the README with its tables made anew."""
    for name, table in (("command flags", command_table()), ("config fields", config_table())):
        begin, end = f"<!-- {name}: made by `make readme` -->", f"<!-- end of {name} -->"
        before, rest = readme.split(begin)
        _, after = rest.split(end)
        readme = f"{before}{begin}\n{table}\n{end}{after}"
    return readme


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
