import shutil
from pathlib import Path

import pytest

from tests.support import training
from tests.support.raters import save_tiny_rater
from tests.support.runners import flink_cluster
from tests.support.shared_folders import made_once

__all__ = ["flink_cluster"]  # one for all modules: imported into each, it would be one of each


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pool to train on."""

    def make(folder: Path) -> None:
        training.write_texts(folder / "pool.jsonl")

    return made_once(tmp_path_factory, "texts", make) / "pool.jsonl"


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """The workdir of an uninterrupted run; `printed.txt` beside it is its output."""

    def make(folder: Path) -> None:
        done = training.run(training.command(folder / "work", texts))
        assert done.returncode == 0, done.stderr
        (folder / "printed.txt").write_text(done.stdout)

    return made_once(tmp_path_factory, "uninterrupted", make) / "work"


@pytest.fixture(scope="session")
def ten_steps(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """The workdir of a run that ended after ten of its meta-steps."""

    def make(folder: Path) -> None:
        done = training.run(training.command(folder / "work", texts, meta_steps=10))
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "ten_steps", make) / "work"


@pytest.fixture
def workdir(tmp_path: Path, ten_steps: Path) -> Path:
    """A copy of the workdir after ten meta-steps, which a test may change."""
    return Path(shutil.copytree(ten_steps, tmp_path / "work"))


@pytest.fixture(scope="session")
def rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rater that has learned nothing: its scores are as good as any for the pipeline."""
    return save_tiny_rater(tmp_path_factory.mktemp("rater") / "rater")


@pytest.fixture(scope="session")
def other_rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_rater(tmp_path_factory.mktemp("rater") / "other", seed=1)
