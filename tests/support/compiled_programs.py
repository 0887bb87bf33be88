"""A cache of compiled JAX programs, kept between runs and shared by all processes of the tests."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
import zlib
from pathlib import Path

import zstandard

from tests.support import ROOT

FOLDER = ROOT / ".cache" / "jax"


def environment() -> dict[str, str]:
    """Returns the environment variables that make JAX use the cache.

    The cache of a machine is its own: a compiled program uses the instructions of the processor
    that it was compiled on. A program's place in the cache depends on XLA's flags, so the flag that
    curation sets in its process is set from the start, whichever tests run before.
    """
    digest = hashlib.sha256(f"{platform.machine()} {_processor()}".encode()).hexdigest()[:12]
    folder = FOLDER / f"jaxlib-{importlib.metadata.version('jaxlib')}-{digest}"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _processor() -> str:
    """Returns the model and the instruction sets of the processor, as far as they are known."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features")
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return platform.processor()


def remove_truncated(folder: Path) -> None:
    """Removes the entries that a process was writing when it was killed.

    JAX would compile such a program again in every process, with a warning, and never replace the
    entry.
    """
    for path in folder.glob("*-cache"):
        data = path.read_bytes()
        try:
            if data.startswith(zstandard.FRAME_HEADER):
                zstandard.ZstdDecompressor().decompress(data)
            else:
                zlib.decompress(data)
        except (zstandard.ZstdError, zlib.error):
            path.unlink(missing_ok=True)
