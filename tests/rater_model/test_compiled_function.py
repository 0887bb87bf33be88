"""Programs are compiled once for a machine, and a store of programs never does harm."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from datarater.rater_model.compiled_function import CompiledFunction, source_digest
from datarater.rater_model.executable_store import ExecutableStore, folder_of_user

VALUES_N = np.linspace(-2, 2, 7, dtype=np.float32)
CACHE_OF_JAX = "jax_compilation_cache_dir"
Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _without_the_cache_of_jax() -> Iterator[None]:
    folder = getattr(jax.config, CACHE_OF_JAX)
    jax.config.update(CACHE_OF_JAX, None)
    compilation_cache.reset_cache()
    yield
    jax.config.update(CACHE_OF_JAX, folder)
    compilation_cache.reset_cache()


def scaled_sine(factor: float, values_N: jax.Array) -> jax.Array:
    """Returns something whose last bits depend on how it is compiled."""
    return jnp.sin(values_N) * factor + jnp.exp(values_N)


def of_new_process(folder: Path) -> CompiledFunction:
    """Returns the function as another process has it: nothing compiled, the same store."""
    return CompiledFunction(scaled_sine, ExecutableStore(folder))


def test_a_second_process_compiles_nothing_and_gets_the_same_bits(tmp_path: Path) -> None:
    first, second = of_new_process(tmp_path), of_new_process(tmp_path)
    expected = np.asarray(first(3.0, VALUES_N)).tobytes()
    assert np.asarray(second(3.0, VALUES_N)).tobytes() == expected
    assert (first.compiled, second.compiled) == (1, 0)

    # Another static argument or shape is another program.
    second(2.0, VALUES_N)
    second(2.0, VALUES_N[:3])
    second(2.0, VALUES_N[3:6])
    assert second.compiled == 2
    np.testing.assert_allclose(second(2.0, VALUES_N), scaled_sine(2.0, jnp.asarray(VALUES_N)), 1e-6)


def test_another_version_of_the_code_has_other_programs(tmp_path: Path) -> None:
    for name, content in (("old", "x = 1"), ("same", "x = 1"), ("new", "x = 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(content)
    old, same, new = (source_digest(tmp_path / name) for name in ("old", "same", "new"))
    assert old == same
    assert old != new


def test_settings_of_jax_have_programs_of_their_own(tmp_path: Path) -> None:
    function = of_new_process(tmp_path)
    function(3.0, VALUES_N)
    with jax.default_matmul_precision("highest"):
        function(3.0, VALUES_N)
    assert function.compiled == len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9),
    ],
    ids=["truncated", "empty", "changed"],
)
def test_a_damaged_program_is_compiled_again_and_replaced(tmp_path: Path, damage: Damage) -> None:
    expected = np.asarray(of_new_process(tmp_path)(3.0, VALUES_N)).tobytes()
    [path] = tmp_path.iterdir()
    damage(path)
    for compiled in (1, 0):
        function = of_new_process(tmp_path)
        assert np.asarray(function(3.0, VALUES_N)).tobytes() == expected
        assert function.compiled == compiled


def test_a_program_without_its_code_is_compiled_again(tmp_path: Path) -> None:
    of_new_process(tmp_path)(3.0, VALUES_N)
    [path] = tmp_path.iterdir()
    # What JAX gives for a program that it has loaded itself.
    loaded = serialize_executable.deserialize_and_load(*pickle.loads(path.read_bytes()[32:]))
    content = pickle.dumps(serialize_executable.serialize(loaded))
    ExecutableStore(tmp_path).write(path.stem, content)

    function = of_new_process(tmp_path)
    expected = of_new_process(tmp_path / "another")(3.0, VALUES_N)
    assert np.asarray(function(3.0, VALUES_N)).tobytes() == np.asarray(expected).tobytes()
    assert function.compiled == 1


def test_where_jax_has_a_cache_of_its_own_nothing_is_stored(tmp_path: Path) -> None:
    jax.config.update(CACHE_OF_JAX, str(tmp_path / "jax"))
    function = of_new_process(tmp_path / "ours")
    function(3.0, VALUES_N)
    assert not (tmp_path / "ours").exists()


def test_a_program_of_another_kind_is_compiled_again(tmp_path: Path) -> None:
    of_new_process(tmp_path)(3.0, VALUES_N)
    [path] = tmp_path.iterdir()
    ExecutableStore(tmp_path).write(path.stem, b"a program, whole, that JAX cannot load")
    function = of_new_process(tmp_path)
    function(3.0, VALUES_N)
    assert function.compiled == 1


def test_workers_that_start_at_once_share_one_program(tmp_path: Path) -> None:
    functions = [of_new_process(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda function: function(3.0, VALUES_N), functions))
    assert len({np.asarray(result).tobytes() for result in results}) == 1
    assert len(list(tmp_path.iterdir())) == 1
    last = of_new_process(tmp_path)
    last(3.0, VALUES_N)
    assert last.compiled == 0


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", None):
        function = CompiledFunction(scaled_sine, ExecutableStore(folder))
        assert np.asarray(function(3.0, VALUES_N)).shape == VALUES_N.shape
        assert function.compiled == 1


def test_programs_that_were_not_used_for_longest_are_removed(tmp_path: Path) -> None:
    store = ExecutableStore(tmp_path, max_files=2)
    for age, name in enumerate(["first", "second"]):
        store.write(name, b"program")
        os.utime(tmp_path / f"{name}.bin", (1000 + age, 1000 + age))
    assert store.read("first") == b"program"  # so the second was not used for longest
    store.write("third", b"program")
    assert store.read("second") is None
    assert store.read("first") == store.read("third") == b"program"


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/me"}, "/home/me/.cache/datarater/compiled"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "/caches"}, "/caches/datarater/compiled"),
        ({"HOME": "/home/me", "XDG_CACHE_HOME": "caches"}, "/home/me/.cache/datarater/compiled"),
        ({"HOME": "/home/me", "DATARATER_COMPILATION_CACHE": "/fast"}, "/fast"),
        ({"HOME": "/home/me", "DATARATER_COMPILATION_CACHE": "OFF"}, None),
    ],
)
def test_the_folder_is_the_users_cache_unless_a_variable_names_another(
    environment: dict[str, str], folder: str | None
) -> None:
    assert folder_of_user(environment) == (None if folder is None else Path(folder))
