"""Shared code of the benchmarks: training by the command, reading, scoring, and the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from datarater.rater_model.scorer import Scorer

SCORED_AT_ONCE = 256


def train(config: str, workdir: Path, overrides: Sequence[str]) -> float:
    """Trains a rater by `datarater train`, whose output goes to `WORKDIR.log`.

    Args:
        config: Name of the config, or a config file.
        workdir: Workdir of the run; an existing one is removed.
        overrides: Flags such as `--config.seed=1`.

    Returns:
        The seconds that it took.

    Raises:
        RuntimeError: If the command fails; the message contains the end of its output.
    """
    if workdir.exists():  # otherwise its run would be resumed
        shutil.rmtree(workdir)
    workdir.parent.mkdir(parents=True, exist_ok=True)

    log = workdir.with_name(workdir.name + ".log")
    arguments = [sys.executable, "-m", "datarater", "train"]
    arguments += [f"--config={config}", f"--workdir={workdir}", *overrides]
    started = time.monotonic()
    with open(log, "w") as file:
        code = subprocess.run(
            arguments, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        end = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"{' '.join(arguments)} ended with {code}; the end of {log}:\n{end}")
    return time.monotonic() - started


def read_documents(pattern: str) -> list[tuple[Document, dict[str, Any]]]:
    """Reads documents, each with its whole record.

    Args:
        pattern: Glob of JSONL files.
    """
    documents = []
    for info in list_files([pattern]):
        for record in read_file(info.path):
            if not isinstance(record, Document) or record.raw is None:
                raise ValueError(f"{info.path}: a record that is not a readable JSONL document")
            documents.append((record, json.loads(record.raw)))
    return documents


def rater_at_step(workdir: Path, step: int) -> Path:
    """Returns the folder of the rater that a training run exported at a step."""
    return workdir / f"raters/step_{step:08d}"


def rate(rater: Path, texts: Sequence[str]) -> NDArray[np.float64]:
    """Returns scores_N of N texts, scored as curation scores them.

    Args:
        rater: Folder of a rater checkpoint.
        texts: The texts.
    """
    scorer = Scorer(load_rater(rater))
    parts = [
        scorer.score(texts[i : i + SCORED_AT_ONCE]).scores_N
        for i in range(0, len(texts), SCORED_AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.float64)


def machine() -> dict[str, Any]:
    """Returns the machine and the versions that produced the figures."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name)
            for name in ("datarater", "jax", "jaxlib", "flax", "optax", "numpy")
        },
    }
