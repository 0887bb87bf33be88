"""The examples run as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.drill


def run(words: list[str], folder: Path) -> str:
    """Runs a command in a folder and returns its output."""
    scripts = str(Path(sys.executable).parent)
    process = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_list_of_texts(folder: Path) -> None:
    lines = run([sys.executable, str(EXAMPLES / "score_texts.py")], folder).splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_datasets_map(folder: Path) -> None:
    pytest.importorskip("datasets", reason="the datasets package is not installed")
    output = run([sys.executable, str(EXAMPLES / "datasets_map.py")], folder)
    assert "kept 30 of 60 documents" in output


def test_a_beam_pipeline(folder: Path) -> None:
    run([sys.executable, str(EXAMPLES / "beam_pipeline.py"), "--output", "kept"], folder)
    kept = [line for path in folder.glob("kept-0*.jsonl") for line in path.read_text().splitlines()]
    assert len(kept) == 30


def test_run_inference(folder: Path) -> None:
    lines = run([sys.executable, str(EXAMPLES / "run_inference.py")], folder).splitlines()
    assert len(lines) == 3
    assert "text_empty: ''" in lines


def test_beam_yaml(folder: Path) -> None:
    pytest.importorskip("apache_beam.yaml.yaml_transform", reason="the yaml extra is missing")
    pipeline = EXAMPLES / "beam_yaml.yaml"
    run(
        [sys.executable, "-m", "apache_beam.yaml.main", f"--yaml_pipeline_file={pipeline}"],
        folder,
    )
    kept = [line for path in folder.glob("kept*.jsonl*") for line in path.read_text().splitlines()]
    assert len(kept) == 30


def test_a_nightly_setup(folder: Path) -> None:
    run(
        [
            str(EXAMPLES / "nightly" / "setup.sh"),
            "nightly",
            "demo_output/rater",
            "demo_output/corpus/*.jsonl.gz",
        ],
        folder,
    )
    arrived = folder / "crawl" / "2026-01-31"
    for path in arrived.iterdir():  # older than the config's quiet_minutes
        os.utime(path, (0, 0))
    arrived.rename(folder / "nightly" / "crawl" / "2026-01-31")

    run([str(EXAMPLES / "nightly" / "nightly.sh"), "nightly", "2026-01-31"], folder)
    assert (folder / "nightly" / "published" / "2026-01-31" / "_SUCCESS").exists()


def test_the_notebook(folder: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the notebook extra is missing")
    nbclient = pytest.importorskip("nbclient", reason="the notebook extra is missing")
    notebook = nbformat.read(EXAMPLES / "corpus_to_kept.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": folder}}
    )
    client.execute()
    assert notebook.cells[-1].outputs
