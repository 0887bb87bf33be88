"""A tiny meta-training run by the real command, for tests that watch, stop and resume it."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datarater.meta_training import train
from datarater.meta_training.run.cost import RATES
from datarater.meta_training.run.metrics import METRICS_FILE
from tests.support import ROOT

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
]
TINY = {
    "meta_steps": 24,
    "length": 32,
    "inner_batch": 4,
    "outer_batch": 4,
    "report_every": 4,
    "export_every": 5,
    "checkpoint_every": 3,
    "warmup_checkpoint_every": 7,
    "rater.width": 16,
    "rater.mlp_width": 16,
    "rater.ngram_rows": 64,
    "inner_model.width": 16,
    "inner_model.mlp_width": 16,
    "inner_model.layers": 1,
    "population.size": 2,
    "population.lifetime": 6,
    "population.warmup_steps": 40,
    "population.warmup_entries": 2,
    "export.reference_documents": 16,
    "data.outer_share": 0.25,
}


def write_texts(path: Path, count: int = 200, seed: int = 0) -> Path:
    """Writes a JSONL file of texts made from a dozen words."""
    rng = random.Random(seed)
    records = [
        {"id": i, "text": " ".join(rng.choices(WORDS, k=rng.randint(5, 60)))} for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def command(workdir: Path, inner: str | Path, **changed: object) -> list[str]:
    """Returns the command of a tiny run; `__` in a changed field's name is a dot."""
    values = {**TINY, "data.inner": inner} | {
        name.replace("__", "."): value for name, value in changed.items()
    }
    return [
        sys.executable,
        "-m",
        "datarater.meta_training.train",
        f"--config={ROOT / 'meta_training' / 'configs' / 'default.py'}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in values.items()),
    ]


def environment(devices: int = 1) -> dict[str, str]:
    """Returns the environment of a run on simulated devices."""
    # Programs this small run as fast without optimization, and compile sooner.
    quick = "--xla_backend_optimization_level=0"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{quick} --xla_force_host_platform_device_count={devices}",
    }


def run(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command until it ends, with some environment variables changed."""
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run_here(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process, for those that train no rater to compare with others.

    Programs are optimized here as elsewhere, and those of `run` are not.
    """
    capsys.readouterr()
    code = train.main(arguments[3:])
    return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())


def start(arguments: list[str], devices: int = 1) -> subprocess.Popen[str]:
    """Starts a command with its output and errors in one pipe."""
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_until(process: subprocess.Popen[str], text: str) -> Iterator[str]:
    """Yields the lines a process prints, up to and including the first one with a text."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if text in line:
            return


def repeatable_rows(workdir: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's metrics as they were written, without how fast each step was."""
    with (workdir / "metrics" / METRICS_FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["step_seconds"]) > 0 for row in rows)
    return [{name: text for name, text in row.items() if name not in RATES} for row in rows]


def digest(rater: Path) -> str:
    """Returns the digest of a rater checkpoint."""
    value: str = json.loads((rater / "rater.json").read_text())["digest"]
    return value
