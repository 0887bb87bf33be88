"""An install with the base requirements alone: what it prints, and that nothing is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.earlier_versions import unpack

PROGRESS = ("plan: ", "scored ")


def make_base_install(folder: Path) -> Path:
    """Installs the checkout with its base requirements into a virtual environment of its own.

    Returns:
        The environment's Python.
    """
    # A copy, because an install leaves files behind in the folder that it installs from.
    checkout = shutil.copytree(
        ROOT,
        folder / "checkout",
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "demo_output", "tests"),
    )
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    constraints = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", checkout], env=constraints, check=True
    )
    return python


@pytest.fixture(scope="session")
def base_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("DATARATER_BASE_PYTHON")
    return Path(given) if given else make_base_install(tmp_path_factory.mktemp("base"))


def check_that_two_workers_print_little(python: Path, folder: Path) -> None:
    """Curates with two worker processes; standard error has two lines at most.

    Args:
        python: Python of an environment that datarater is installed in.
        folder: Empty folder to work in.
    """
    unpack(folder)
    # A folder of the user's with the name of one of ours must not get in the way.
    (folder / "pipelines").mkdir()
    (folder / "pipelines/__init__.py").write_text("raise ImportError('the wrong pipelines')\n")

    command = [
        *(str(python), "-m", "datarater.pipelines.commands.curate", "--local_workers", "2"),
        *("--input", "corpus/*", "--rater", "rater", "--output", "new"),
        *("--keep_fraction", "0.5", "--split_bytes", "2500"),
    ]
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True)
    seconds = time.monotonic() - began

    assert done.returncode == 0, done.stderr
    assert "kept                60" in done.stdout
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith(PROGRESS)] == []
    # On a machine that is busy a line of progress is printed every 30 s.
    assert len(lines) <= 2 + seconds // 30


def check_that_one_process_prints_nothing(python: Path, folder: Path) -> None:
    """Selects from a scored run and asks for its status; standard error stays empty.

    Args:
        python: Python of an environment that datarater is installed in.
        folder: Empty folder to work in.
    """
    unpack(folder)
    for arguments in (
        ["select", "--output", "run", "--keep_fraction", "0.5"],
        ["status", "run"],
    ):
        command = [
            str(python),
            "-m",
            f"datarater.pipelines.commands.{arguments[0]}",
            *arguments[1:],
        ]
        done = subprocess.run(
            command, cwd=folder, env=_environment(), capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


def _environment() -> dict[str, str]:
    """The environment without what leads to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.slow
def test_two_workers_print_two_lines_at_most(base_python: Path, tmp_path: Path) -> None:
    check_that_two_workers_print_little(base_python, tmp_path)


@pytest.mark.slow
def test_one_process_prints_nothing_to_standard_error(base_python: Path, tmp_path: Path) -> None:
    check_that_one_process_prints_nothing(base_python, tmp_path)
