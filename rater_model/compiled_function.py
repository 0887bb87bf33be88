"""A function that is compiled once for each shape and machine, not once in each process."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import logging
import os
import pickle
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from datarater.rater_model.executable_store import ExecutableStore, folder_of_user, processor

_logger = logging.getLogger(__name__)
_CACHE_OF_JAX = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
_SETTINGS_OF_JAX = ("jax_default_matmul_precision", "jax_enable_x64")
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
# What JAX raises for a program that it cannot store, or not load here.
_ERRORS = (ValueError, TypeError, RuntimeError, NotImplementedError, pickle.PickleError, EOFError)


class CompiledFunction:
    """Compiles a function ahead of time, or takes the program that an earlier process compiled.

    A program is named after all that it depends on, the content of the modules in the function's
    folder included, so another version of the code never gets an old program. Programs come from
    the store of `DATARATER_COMPILATION_CACHE`; one that cannot be loaded or run is compiled and
    replaced. Where JAX has a compilation cache of its own (`JAX_COMPILATION_CACHE_DIR`), that one
    is used: a program from it cannot be stored again.

    Args:
        function: The function. Its first argument is static; the others are trees of arrays.
        store: Store of programs; that of the user if None.

    Attributes:
        compiled: Number of programs that were compiled.
    """

    def __init__(self, function: Callable[..., Any], store: ExecutableStore | None = None) -> None:
        self._function = function
        self._jitted = jax.jit(function, static_argnums=0)
        self._store = store
        self._executables: dict[Any, jax.stages.Compiled] = {}
        self._lock = threading.Lock()
        self.compiled = 0

    def __call__(self, static: Hashable, *arrays: Any) -> Any:
        """Calls the function; compiles it first if these shapes are new to the process."""
        leaves, structure = jax.tree.flatten(arrays)
        shapes = tuple((leaf.shape, leaf.dtype, getattr(leaf, "sharding", 0)) for leaf in leaves)
        key = (static, structure, shapes, _settings())
        executable = self._executables.get(key)
        if executable is None:
            with self._lock:
                executable = self._executables.get(key)
                if executable is None:
                    executable = self._load_or_compile(static, arrays, repr(key))
                    self._executables[key] = executable
        return executable(*arrays)

    def _load_or_compile(
        self, static: Hashable, arrays: tuple[Any, ...], call: str
    ) -> jax.stages.Compiled:
        store = self._store or ExecutableStore(folder_of_user())
        if all(getattr(jax.config, name) for name in _CACHE_OF_JAX):
            store = ExecutableStore(None)
        name = _name_of(self._function, call)
        program = store.read(name)
        if program is not None:
            try:
                loaded = serialize_executable.deserialize_and_load(*pickle.loads(program))
                jax.block_until_ready(loaded(*arrays))  # only a call shows that it is whole
                return loaded
            except _ERRORS as error:
                _logger.debug("a compiled program is compiled again: %s", error)

        executable = self._jitted.lower(static, *arrays).compile()
        self.compiled += 1
        try:
            store.write(name, pickle.dumps(serialize_executable.serialize(executable)))
        except _ERRORS as error:
            _logger.debug("a compiled program is not kept: %s", error)
        return executable


def _settings() -> tuple[Any, ...]:
    """Returns the settings of JAX that change what is computed."""
    return tuple(getattr(jax.config, name) for name in _SETTINGS_OF_JAX)


def _name_of(function: Callable[..., Any], call: str) -> str:
    """Returns the digest of all that the program of a call depends on.

    Args:
        function: The function.
        call: The static argument, the shapes of the others and the settings of JAX.
    """
    devices = jax.devices()
    parts = [
        function.__qualname__,
        source_digest(Path(inspect.getfile(function)).parent),
        call,
        *(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
        devices[0].client.platform_version,
        *(f"{device.platform} {device.device_kind}" for device in devices),
        os.environ.get("XLA_FLAGS", ""),
        processor(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.lru_cache(maxsize=8)
def source_digest(folder: Path) -> str:
    """Returns the digest of the modules of a folder, not of those below it."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
