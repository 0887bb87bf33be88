"""Writes files that are complete whenever they are there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from datarater.rater_model.json_codec import to_plain


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file, completely or not at all."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # otherwise the rename may reach the disk before the content
    os.replace(new, path)


def write_json(path: Path, values: Any) -> None:
    """Writes a value as JSON, completely or not at all."""
    replace_file(path, (json.dumps(to_plain(values), indent=2) + "\n").encode("utf-8"))
