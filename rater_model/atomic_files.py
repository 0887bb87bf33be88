"""Writes files that are complete whenever they are there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file, completely or not at all."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # otherwise the rename may reach the disk before the content
    os.replace(new, path)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, completely or not at all."""
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode("utf-8"))
