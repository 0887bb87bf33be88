"""Settings of all tests: a cache of compiled programs, Hypothesis, and the order of the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, settings

from tests.support import compiled_programs, corpora_folder

# Read when JAX is imported, here and in the processes that tests start.
for name, value in compiled_programs.environment().items():
    os.environ.setdefault(name, value)

# Read when gcsfs is imported: otherwise it asks a service that no test may reach what kind each
# bucket is.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# On a busy machine any example, and any drawing of one, can take long: speed is not what these
# tests are about.
settings.register_profile(
    "busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy_machine")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Removes what a killed process left in the cache, before any worker starts."""
    if not hasattr(session.config, "workerinput"):
        # Here, since importing JAX must wait for the variables above.
        from datarater.meta_training.run.compilation import remove_truncated

        remove_truncated(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the fast tests first; with --dist loadgroup, one worker runs a module's slow tests.

    The slow tests of a module share fixtures that take long to make.
    """

    def is_slow(item: pytest.Item) -> bool:
        return any(item.iter_markers("slow")) or any(item.iter_markers("drill"))

    items.sort(key=is_slow)
    for item in items:
        if is_slow(item) and not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(autouse=True)
def _empty_memory_file_system() -> Iterator[None]:
    """Clears fsspec's memory:// after each test: a process has one, which its tests share."""
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of test corpora: $DATARATER_CORPORA, else shared/corpora beside the repository."""
    folder = corpora_folder()
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder}; set DATARATER_CORPORA to the folder that holds them")
    return folder
