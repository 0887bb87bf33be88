"""The folder where JAX keeps compiled programs of training, for the next start of any run.

It is `datarater/compiled/training-DIGEST` in the user's cache folder; the digest is that of the
processor, whose instructions a program uses, so that machines may share a home. Programs that
`JAX_COMPILATION_CACHE_DIR` or the config's `compilation_cache` place elsewhere stay there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import zstandard
from jax.experimental.compilation_cache import compilation_cache

from datarater.rater_model.executable_store import OFF, folder_of_user, processor

_LOG = logging.getLogger("datarater")
_CHECKED = ".checked"  # its time is that of the last look for truncated entries
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def cache_folder(where: str) -> Path | None:
    """Returns the folder of compiled programs; None for what JAX itself is set to.

    Args:
        where: "" for the user's cache folder, "off" for none, else a folder.
    """
    if where.lower() == OFF:
        return None
    if where:
        return Path(where).expanduser()
    of_user = folder_of_user()
    # JAX refuses `config.read` of a setting that has a context manager.
    if getattr(jax.config, _SETTINGS[0]) or of_user is None:
        return None
    machine = f"{platform.machine()} {processor()}"
    return of_user / f"training-{hashlib.sha256(machine.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def kept_programs(where: str) -> Iterator[None]:
    """Lets JAX keep the programs that it compiles meanwhile, and take those of earlier processes.

    A folder that cannot be used costs time and nothing else: one warning is logged.

    Args:
        where: See `cache_folder`.
    """
    folder = cache_folder(where)
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    if where.lower() == OFF:
        _use(dict(zip(_SETTINGS, (None, 0.0, -1), strict=True)))
    elif folder is not None and _is_usable(folder):
        remove_truncated(folder)
        # Small programs are kept too: a start compiles a hundred of them.
        _use(dict(zip(_SETTINGS, (str(folder), 0.0, -1), strict=True)))
    try:
        yield
    finally:
        _use(before)


def _use(settings: dict[str, object]) -> None:
    if all(getattr(jax.config, name) == value for name, value in settings.items()):
        return
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at its settings once


def _is_usable(folder: Path) -> bool:
    """Returns whether files can be written to a folder, which is made if it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        _LOG.warning(
            "compiled programs are not kept, so the next start compiles again: %s cannot be "
            "written (%s); set compilation_cache to another folder, or to 'off'",
            folder,
            error.strerror,
        )
        return False


def remove_truncated(folder: Path) -> None:
    """Removes the entries that a process was writing when it was killed.

    JAX would compile such a program again in every process, with a warning, and never replace the
    entry. Only entries that were written since the last call are read.

    Args:
        folder: Folder of JAX's compilation cache.
    """
    checked = folder / _CHECKED
    with contextlib.suppress(OSError):  # another process may remove the same entry
        since = checked.stat().st_mtime if checked.exists() else 0.0
        newest = since
        for path in folder.glob("*-cache"):
            written = path.stat().st_mtime
            newest = max(newest, written)
            if written >= since and not _is_complete(path.read_bytes()):
                path.unlink(missing_ok=True)

        checked.touch()
        os.utime(checked, (newest, newest))


def _is_complete(data: bytes) -> bool:
    try:
        if data.startswith(zstandard.FRAME_HEADER):
            zstandard.ZstdDecompressor().decompress(data)
        else:
            zlib.decompress(data)
    except (zstandard.ZstdError, zlib.error):
        return False
    return True
