"""Artifacts of released versions, which every later version must read (tests/data/README.md)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

V0_1_0 = "v0.1.0"
RECORDED_FOLDER = Path("/tmp")
"""Where the artifacts were made: plans and batch states record absolute paths below it."""


def unpack(folder: Path, version: str = V0_1_0) -> Path:
    """Unpacks the artifacts of a released version.

    Modification times are kept: they are part of a run's identity.

    Args:
        folder: Folder that receives the artifacts themselves, without the archive's top folder; it
            is created if it is missing.
        version: Name of the archive.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def without_top_folder(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        inner = member.name.partition("/")[2]
        if not inner:
            return None
        return tarfile.data_filter(member.replace(name=inner, deep=False), path)

    with tarfile.open(ROOT / "tests/data" / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter=without_top_folder)
    return folder


@contextlib.contextmanager
def unpacked_where_made(version: str = V0_1_0) -> Iterator[Path]:
    """Unpacks the artifacts to the path that they were made in, for as long as the block runs.

    Run folders and batch states record absolute paths of input files, so most of what reads them
    needs the files in the same place. One process at a time has that place; whatever is there
    already is moved aside and put back.

    Yields:
        The folder.
    """
    folder = RECORDED_FOLDER / f"datarater-{version}"
    with open(RECORDED_FOLDER / f".{folder.name}.{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}-aside-", dir=RECORDED_FOLDER))
        if folder.exists():
            folder.rename(aside / folder.name)
        try:
            yield unpack(folder, version)
        finally:
            shutil.rmtree(folder)
            if (aside / folder.name).exists():
                (aside / folder.name).rename(folder)
            aside.rmdir()
