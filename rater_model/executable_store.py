"""Keeps compiled programs in a folder of the user, for the next process that needs them.

A file is named after the digest of all that its program depends on, and begins with the digest of
its content. It is written beside its place and renamed, so several processes may write the same
one. A file that is damaged, or that belongs to another user, is not used. A folder that cannot be
read or written costs time, and nothing else.

`DATARATER_COMPILATION_CACHE` moves the folder, or turns it off with the value `off`. By default it
is `datarater/compiled` in `$XDG_CACHE_HOME`, else in `~/.cache`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from datarater.rater_model.atomic_files import replacing

VARIABLE = "DATARATER_COMPILATION_CACHE"
OFF = "off"
MAX_FILES = 500
_SUFFIX = ".bin"
_DIGEST_BYTES = hashlib.sha256().digest_size
_logger = logging.getLogger(__name__)


def folder_of_user(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the folder of compiled programs; None if it is turned off or there is no home.

    Args:
        environment: The environment variables.

    Example:
        >>> folder_of_user({"XDG_CACHE_HOME": "/caches"}).as_posix()
        '/caches/datarater/compiled'
        >>> folder_of_user({"DATARATER_COMPILATION_CACHE": "off"})
    """
    given = environment.get(VARIABLE, "")
    if given:
        return None if given.lower() == OFF else Path(os.path.expanduser(given))

    caches = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):  # its specification ignores relative paths
        home = environment.get("HOME") or os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        caches = os.path.join(home, ".cache")
    return Path(caches) / "datarater" / "compiled"


def processor() -> str:
    """Returns the model and the instruction sets of the processor, as far as they are known.

    A compiled program uses the instructions of the processor that it was compiled on.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features")
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return platform.processor()


class ExecutableStore:
    """A folder of compiled programs by the digest of what they depend on.

    Args:
        folder: The folder, which is made when it is needed; None for none.
        max_files: Number of programs past which those that were not used for longest are removed.
    """

    def __init__(self, folder: Path | None, max_files: int = MAX_FILES) -> None:
        self._folder = folder
        self._max_files = max_files

    def read(self, name: str) -> bytes | None:
        """Returns a program; None if there is none that can be used."""
        if self._folder is None:
            return None
        path = self._folder / f"{name}{_SUFFIX}"
        try:
            with path.open("rb") as file:
                if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid != os.getuid():
                    _logger.warning("%s belongs to another user and is not used", path)
                    return None
                content = file.read()
            os.utime(path)
        except OSError:
            return None

        digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return program if hashlib.sha256(program).digest() == digest else None

    def write(self, name: str, program: bytes) -> None:
        """Stores a program in the place of what is there; does nothing if it cannot be written."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(self._folder / f"{name}{_SUFFIX}") as new:
                new.write_bytes(hashlib.sha256(program).digest() + program)
            self._remove_unused()
        except OSError as error:
            _logger.debug("a compiled program is not kept: %s", error)

    def _remove_unused(self) -> None:
        """Removes the programs past the maximum that were not used for longest."""
        assert self._folder is not None
        paths = list(self._folder.glob(f"*{_SUFFIX}"))
        if len(paths) <= self._max_files:
            return
        used: list[tuple[float, Path]] = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # another process removes them too
                used.append((path.stat().st_mtime, path))
        for _, path in sorted(used)[: len(used) - self._max_files]:
            path.unlink(missing_ok=True)
