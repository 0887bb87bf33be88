"""Helpers of the tests of deploy/: reading its files, and running the linters of the dev extra."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from datarater import cli
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
SUBCOMMANDS = set(cli.COMMANDS)
"""Subcommands of `datarater`."""


def run_linter(name: str, *arguments: str | Path) -> None:
    """Runs a linter, which must report nothing; skips the test if the linter is not installed."""
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed; it comes with the dev extra")
    done = subprocess.run(
        [program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def pins(file: Path) -> dict[str, str]:
    """Returns the version that a file of constraints pins for each package on Python 3.11."""
    versions = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(
                {"python_full_version": "3.11.9"}
            ):
                versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    return versions


def setup_names(keyword: str) -> set[str]:
    """Returns the names under a keyword of setup.py: `extras_require` or `console_scripts`."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if (
            isinstance(node, ast.keyword)
            and node.arg == keyword
            and isinstance(node.value, ast.Dict)
        ):
            return {ast.literal_eval(key) for key in node.value.keys if key is not None}
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if (
                    isinstance(key, ast.Constant)
                    and key.value == keyword
                    and isinstance(value, ast.List)
                ):
                    return {ast.literal_eval(each).partition(" ")[0] for each in value.elts}
    raise AssertionError(f"setup.py has no {keyword}")


def setup_requirements(extra: str | None) -> list[str]:
    """Returns the requirements of setup.py: those of an extra, or the base's for None."""
    name = (extra or "scoring").upper()
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == name
        ):
            listed: list[str] = ast.literal_eval(node.value)
            return listed
    raise AssertionError(f"setup.py has no {name}")
