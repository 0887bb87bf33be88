"""The commands and the Python code on the pages work as they are written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from datarater import cli
from datarater.meta_training.analysis import command as analyze
from datarater.meta_training.distil import command as distil
from datarater.meta_training.evaluate import command as evaluate
from datarater.rater_model.hugging_face import export_command, push_command
from tests.support import ROOT, training
from tests.support.pages import MARKDOWN, PAGES, Block, blocks_of
from tests.support.reference_tables import COMMANDS, flags_of, parser_of

# The README runs in every test run, the other pages in the drills.
RUN_PAGES = [
    pytest.param(page, id=page.name, marks=getattr(pytest.mark, mark))
    for page in PAGES
    for mark in ("slow" if page.name == "README.md" else "drill",)
    if any(block.runs for block in blocks_of(page))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_language_and_only_datarater_runs(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language, f"{block.place}: name the language of the block"
        if block.language == "bash" and block.runs:
            for words in block.commands():
                assert words[0] == "datarater", f"{block.place}: {words[0]} needs a no-run comment"


@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_blocks_of_a_page_run(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.title is not None:
            Path(block.title).write_text(block.code)
        elif block.runs and block.language == "bash":
            for words in block.commands():
                run_command(block, words)
        elif block.runs:
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(page), "exec"), names)


def run_command(block: Block, words: list[str]) -> None:
    """Runs a command, in this process unless it takes a config: absl and JAX keep state.

    A training run and its data get a tiny config on top of their own flags.
    """
    if words[1] in ("train", "prepare"):
        tiny = [f"--config.{name}={value}" for name, value in training.TINY.items()]
        process = subprocess.run(
            [sys.executable, "-m", *words, *tiny],
            env=training.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, f"{block.place}: {process.stderr}"
        return

    assert cli.main(words[1:]) == 0, f"{block.place}: {words}"


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    """Returns the flags of every command, of Beam and of training."""
    ours = {
        flag.split()[0]
        for run in (
            *COMMANDS.values(),
            analyze.main,
            distil.main,
            evaluate.main,
            export_command.main,
            push_command.main,
        )
        for flag, _ in flags_of(parser_of(run))
    }
    beam = {
        option
        for options in PipelineOptions.__subclasses__()
        for action in parser_with(options)
        for option in action.option_strings
    }
    return ours | beam | {"--config", "--workdir", "--coordinator", "--processes", "--process"}


def parser_with(options: type[PipelineOptions]) -> list[Any]:
    """Returns the flags that a class of Beam's options declares."""
    from apache_beam.options.pipeline_options import _BeamArgumentParser

    parser = _BeamArgumentParser()
    if hasattr(options, "_add_argparse_args"):
        options._add_argparse_args(parser)
    return list(parser._actions)


def datarater_commands(page: Path) -> Iterator[tuple[Block, list[str]]]:
    """Yields the datarater commands of a page, run or not."""
    for block in blocks_of(page):
        if block.language == "bash":
            yield from ((block, words) for words in block.commands() if words[0] == "datarater")


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_flags_on_a_page_exist(page: Path, known_flags: set[str]) -> None:
    for block, words in datarater_commands(page):
        assert words[1] in cli.COMMANDS or words[1].startswith("--"), f"{block.place}: {words}"
        for word in words[2:]:
            flag = word.partition("=")[0]
            if flag.startswith("--") and not flag.startswith("--config."):
                assert flag in known_flags, f"{block.place}: {flag} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_the_text_names_exist(page: Path, known_flags: set[str]) -> None:
    if page.name == "benchmarks.md":  # the flags of its commands
        return
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    extra = {"--help", "--version", "--documents_per_kind"}
    for flag in set(re.findall(r"`(--[a-z][\w-]*)", text)) - extra:
        assert flag in known_flags, f"{page.name}: {flag} does not exist"
