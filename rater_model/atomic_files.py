"""Writes files and folders that are complete whenever they are there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
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


def rename_durably(new: str | Path, path: str | Path) -> None:
    """Renames a file once its content is on the disk, so that no power cut leaves it empty."""
    with open(new, "rb") as file:
        os.fsync(file.fileno())
    os.replace(new, path)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, completely or not at all."""
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode("utf-8"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new path with the same suffix, whose file replaces `path` if the block ends well.

    Each writer has a path of its own, so that several processes may write the same file.
    """
    new = _beside(path)
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a new, empty folder, which replaces `folder` if the block ends well."""
    new = _beside(folder)
    new.mkdir(parents=True)
    try:
        yield new
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{uuid.uuid4().hex[:12]}-{path.name}")
