"""The tiny models that `transformers` wrote, and what it computed with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

MODELS = Path(__file__).parents[1] / "data" / "hugging_face"
"""Folder of the models; `make.py` in it wrote them."""


def expected(name: str) -> dict[str, np.ndarray]:
    """Returns tokens_BxL, lengths_B and what `transformers` computed for them."""
    return safetensors.numpy.load_file(MODELS / name / "expected.safetensors")


def changed_model(folder: Path, name: str, **config: Any) -> Path:
    """Copies a model with other values in its `config.json`; None removes one."""
    shutil.copytree(MODELS / name, folder)
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder
