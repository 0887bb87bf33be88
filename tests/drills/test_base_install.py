"""An install with the base requirements alone: what it prints, and that nothing is missing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.drills.conftest import Environment
from tests.support.earlier_versions import unpack

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
