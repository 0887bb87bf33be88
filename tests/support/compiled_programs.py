"""A cache of compiled JAX programs, kept between runs and shared by all processes of the tests."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform

from datarater.rater_model.executable_store import OFF, VARIABLE, processor
from tests.support import ROOT

FOLDER = ROOT / ".cache" / "jax"


def environment() -> dict[str, str]:
    """Returns the environment variables that make JAX use the cache.

    The cache of a machine is its own: a compiled program uses the instructions of the processor
    that it was compiled on. A program's place in the cache depends on XLA's flags, so the flag that
    curation sets in its process is set from the start, whichever tests run before. The user's store
    of programs is off.
    """
    digest = hashlib.sha256(f"{platform.machine()} {processor()}".encode()).hexdigest()[:12]
    folder = FOLDER / f"jaxlib-{importlib.metadata.version('jaxlib')}-{digest}"
    return {
        VARIABLE: OFF,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
