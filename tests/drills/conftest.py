"""Fixtures of the drills: a copy of the checkout, its wheel, and environments with the wheel."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support import ROOT, earlier_versions

_NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "site", "__pycache__", "*.egg-info", "*_output"
)


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment outside the checkout.

    Attributes:
        folder: Folder of the environment.
        home: Home folder of the processes that run in it.
    """

    folder: Path
    home: Path

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """The folder of the installed packages."""
        (path,) = self.folder.glob("lib/python3.*/site-packages")
        return path

    def run(
        self, *words: str | Path, cwd: Path, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment with no other environment variables than PATH and HOME.

        Args:
            words: Name of a program in the environment's `bin` folder, and its arguments.
            cwd: Working directory.
            timeout: Seconds after which the program is killed.
        """
        program = self.folder / "bin" / words[0]
        return subprocess.run(
            [program, *words[1:]],
            cwd=cwd,
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin", "HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def _pip(*words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without build outputs, which would leak old files into the wheel."""
    folder = tmp_path_factory.mktemp("checkout") / "datarater"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=_NOT_COPIED)
    return folder


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip wheel .` builds."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--wheel-dir", folder, checkout)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="session")
def base_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh environment with the wheel and only its base requirements, at the pinned versions."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder / "venv", symlinks=True)
    environment = Environment(folder / "venv", folder)
    constraints = ROOT / "constraints.txt"
    _pip(
        "--python",
        environment.python,
        "install",
        "--no-compile",
        "--constraint",
        constraints,
        wheel,
    )
    return environment


@pytest.fixture(scope="session")
def train_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel that borrows all other packages from the test environment.

    Installing the train extra again would take minutes and prove nothing about the wheel. The
    checkout itself is not on the path: Python ignores `.pth` files, among them that of an editable
    installation, in folders that are only added by another `.pth` file.
    """
    folder = tmp_path_factory.mktemp("train")
    venv.create(folder / "venv", symlinks=True)
    environment = Environment(folder / "venv", folder)
    _pip("--python", environment.python, "install", "--no-deps", wheel)
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (environment.site_packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return environment


@pytest.fixture(scope="session")
def earlier_rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rater checkpoint made by version 0.1.0."""
    return earlier_versions.unpack(tmp_path_factory.mktemp("earlier")) / "rater"


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    """An empty working directory outside the checkout."""
    folder = tmp_path / "work"
    folder.mkdir()
    assert not os.listdir(folder)
    return folder
