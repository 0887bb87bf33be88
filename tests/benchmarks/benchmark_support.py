"""What the benchmarks share: training by the command, reading, scoring, and what to record of the machine."""

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
from datarater.rater_model.documents.reading import Document, list_files, read_file
from datarater.rater_model.scorer import Scorer

SCORED_AT_ONCE = 256


def train(config: Path, workdir: Path, overrides: Sequence[str]) -> float:
    """Trains a rater by `datarater train`, which writes what it says to `workdir` with `.log` behind.

    Args:
        config: the config file.
        workdir: a folder; one that is there is removed with all it holds.
        overrides: flags such as `--config.seed=1`.

    Returns:
        Seconds it took.

    Raises:
        RuntimeError: the command failed; the message holds the end of what it said.
    """
    command = shutil.which(
        "datarater", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if command is None:
        raise RuntimeError("datarater train is not installed: pip install -e '.[train,dev]'")
    if workdir.exists():  # else the run in it would be resumed
        shutil.rmtree(workdir)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    log = workdir.with_name(workdir.name + ".log")
    started = time.monotonic()
    with open(log, "w") as file:
        arguments = [command, f"--config={config}", f"--workdir={workdir}", *overrides]
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
        pattern: a glob of JSONL files.
    """
    found = []
    for info in list_files([pattern]):
        for record in read_file(info.path):
            if not isinstance(record, Document) or record.raw is None:
                raise ValueError(f"{info.path}: a record that is not a readable JSONL document")
            found.append((record, json.loads(record.raw)))
    return found


def rater_at_step(workdir: Path, step: int) -> Path:
    """Returns where a training run put the rater of a step."""
    return workdir / f"raters/step_{step:08d}"


def rate(rater: Path, texts: Sequence[str]) -> NDArray[np.float64]:
    """Scores texts as curation does.

    Args:
        rater: a rater checkpoint.
        texts: N texts.

    Returns:
        N scores.
    """
    scorer = Scorer(load_rater(rater))
    parts = [
        scorer.score(texts[i : i + SCORED_AT_ONCE]).scores_N
        for i in range(0, len(texts), SCORED_AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.float64)


def machine() -> dict[str, Any]:
    """Returns the kind of machine and the versions that figures belong to."""
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
