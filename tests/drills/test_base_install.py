"""An install with the base requirements alone: what it prints, and that nothing is missing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from datarater.rater_model import exit_codes
from tests.drills.conftest import Environment
from tests.support.earlier_versions import unpack, unpacked_where_made

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(3600),
    pytest.mark.xdist_group("wheel"),
]

PROGRESS = ("plan: ", "scored ", "selection ")


def test_two_workers_print_two_lines_at_most(
    base_environment: Environment, empty_folder: Path
) -> None:
    unpack(empty_folder)
    began = time.monotonic()
    done = base_environment.run(
        *("datarater", "curate", "--local_workers", "2"),
        *("--input", "corpus/*", "--rater", "rater", "--output", "new"),
        *("--keep_fraction", "0.5", "--split_bytes", "2500"),
        cwd=empty_folder,
    )
    seconds = time.monotonic() - began

    assert done.returncode == 0, done.stderr
    assert "kept                60" in done.stdout
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith(PROGRESS)] == []
    # On a machine that is busy a line of progress is printed every 30 s.
    assert len(lines) <= 2 + seconds // 30


def test_one_process_prints_nothing_to_standard_error(
    base_environment: Environment, empty_folder: Path
) -> None:
    unpack(empty_folder)
    for words in (["select", "--output", "run", "--keep_fraction", "0.5"], ["status", "run"]):
        done = base_environment.run("datarater", *words, cwd=empty_folder)
        assert (done.returncode, done.stderr) == (0, "")


def test_every_command_of_the_pipelines_needs_no_extra(base_environment: Environment) -> None:
    half = ["select", "--output", "run", "--keep_fraction", "0.5"]
    tokens = ["--output_format", "megatron", "--output_tokenizer", "byte"]
    with unpacked_where_made() as folder:  # near-duplicates are found in the run's input files
        for words in (
            ["dedup", "--output", "run"],
            [*half, "--dedup", "0.8", "--where", "bytes > 10", "--name", "recipe", *tokens],
            [*half, "--name", "folder", "--output_format", "huggingface"],
            [*half, "--name", "shards", "--output_format", "mds"],
            ["inspect", "run", "--selection", "recipe", "--show", "cutoff"],
            ["inspect", "run", "--show", "rejected"],
        ):
            done = base_environment.run("datarater", *words, cwd=folder)
            assert (done.returncode, done.stderr) == (0, ""), words


def test_the_format_that_needs_an_extra_is_refused_with_its_name(
    base_environment: Environment, empty_folder: Path
) -> None:
    unpack(empty_folder)
    words = ["select", "--output", "run", "--keep_fraction", "0.5", "--name", "grain"]
    done = base_environment.run(
        "datarater", *words, "--output_format", "array_record", cwd=empty_folder
    )
    assert done.returncode == exit_codes.WRONG_USAGE, done.stderr
    assert "pip install 'datarater[tfds]'" in done.stderr
    assert not (empty_folder / "run/selections/grain").exists()
