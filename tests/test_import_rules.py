"""Which package may import which, and that importing is cheap and silent."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.earlier_versions import unpack

PACKAGES = ("rater_model", "meta_training", "pipelines")
FORBIDDEN = {
    "rater_model": {"meta_training", "pipelines", "apache_beam", "optax"},
    "pipelines": {"meta_training"},
    "meta_training": {"apache_beam", "pipelines"},
}
HEAVY = ("jax", "flax", "optax", "apache_beam", "numpy", "pyarrow", "tensorflow_datasets")
FORMATS = "datarater.rater_model.documents.formats"
OWN_MODULES = sorted(
    "datarater" if file.stem == "__init__" else f"datarater.{file.stem}"
    for file in (ROOT / "datarater").glob("*.py")
    if file.stem not in ("__main__", "api")
)
"""Modules of datarater/ itself that load on every `import datarater` or start of the command."""

IMPORT_ALL = """
import importlib, json, pkgutil, socket, sys

reached = []
class WatchedSocket(socket.socket):
    # Only calls that leave the process count: some libraries probe for IPv6 with a socket that they
    # never connect.
    def connect(self, address):
        reached.append(repr(address))
        return super().connect(address)
    def connect_ex(self, address):
        reached.append(repr(address))
        return super().connect_ex(address)
    def sendto(self, *args):
        reached.append(repr(args[-1]))
        return super().sendto(*args)
socket.socket = WatchedSocket
look_up = socket.getaddrinfo
def watched_look_up(host, *args, **kwargs):
    reached.append(repr(host))
    return look_up(host, *args, **kwargs)
socket.getaddrinfo = watched_look_up

names = []
for package in sys.argv[1:]:
    importlib.import_module(package)
    for module in pkgutil.walk_packages([package], package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            names.append(module.name)
backends = False
if "jax" in sys.modules:
    from jax._src import xla_bridge
    backends = xla_bridge.backends_are_initialized()
with open(sys.argv[0] + ".json", "w") as file:
    json.dump({"names": names, "reached": reached, "backends": backends}, file)
"""


def imported_modules(source: str, package: str) -> set[str]:
    """Returns the packages that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {first_part(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "datarater":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else first_part(node.module or ""))
    return names


def first_part(name: str) -> str:
    """Returns the package of a module, such as `pipelines` for `datarater.pipelines.errors`."""
    return name.removeprefix("datarater.").split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_what_it_must_not(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        wrong = imported_modules(file.read_text(encoding="utf-8"), package) & FORBIDDEN[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_the_rule_sees_imports_of_every_kind() -> None:
    source = "import a.b, c as d\nfrom e.f import g\ndef h():\n    import i\n    from . import j\n"
    assert imported_modules(source, "package") == {"a", "c", "e", "i", "package"}
    source = "import datarater.a.b\nfrom datarater.c import d\nfrom datarater import e, f\n"
    assert imported_modules(source, "package") == {"a", "c", "e", "f"}


def test_nothing_imports_a_package_as_a_top_level_name() -> None:
    files = [
        file
        for package in (*PACKAGES, "datarater", "deploy", "tests")
        for file in (ROOT / package).rglob("*.py")
    ]
    assert len(files) > 100
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & set(PACKAGES), f"{file}: {names}"


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_importing_is_silent_and_touches_neither_devices_nor_network(
    package: str, tmp_path: Path
) -> None:
    script = tmp_path / "import_all.py"
    script.write_text(IMPORT_ALL)
    done = subprocess.run(
        [sys.executable, str(script), f"datarater.{package}"],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
    report = json.loads((tmp_path / "import_all.py.json").read_text())
    assert report["reached"] == []
    assert report["backends"] is False


@pytest.mark.parametrize("module", OWN_MODULES)
def test_importing_the_public_face_is_silent_and_loads_no_large_library(module: str) -> None:
    program = f"import sys, {module}\nprint(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("\n", "")


def loaded_by(program: str, names: Sequence[str], folder: Path = ROOT) -> list[str]:
    """Runs a program in a process of its own; returns which of the modules it has loaded."""
    program += f"\nimport sys\nprint(*sorted(set({tuple(names)!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()[-1].split()


def test_the_help_of_no_command_loads_a_large_library() -> None:
    program = (
        "from datarater import cli\n"
        "for name in cli.COMMANDS:\n"
        "    assert cli.main([name, '--help']) == 0"
    )
    assert loaded_by(program, [*HEAVY, "cattrs", "tokenizers"]) == []


def test_the_status_of_a_run_loads_neither_beam_nor_a_model_nor_readers(tmp_path: Path) -> None:
    unpack(tmp_path)
    program = "from datarater import cli\nassert cli.main(['status', 'run']) == 0"
    names = ["jax", "flax", "apache_beam", "pandas", "tokenizers", FORMATS, "numpy"]
    assert loaded_by(program, names, tmp_path) == ["numpy"]


def test_what_works_on_this_machine_loads_beam_alone_and_jax_only_to_score() -> None:
    pytest.importorskip("pandas")
    program = (
        "import sys\n"
        "from datarater.pipelines.runners import beam_import\n"
        "beam_import.import_beam(['--runner=DataflowRunner'])\n"
        "assert 'apache_beam' not in sys.modules\n"
        "beam_import.import_beam()\n"
        "from apache_beam.runners.worker import sdk_worker_main\n"
        "from datarater.pipelines.commands import estimate, running\n"
        "assert 'pandas' not in sys.modules\n"
        "import pyarrow\n"
        # Keys are made of pandas's timestamps where it is installed, whoever reads them.
        "moment = pyarrow.array([1], pyarrow.timestamp('ns'))[0].as_py()\n"
        "assert type(moment).__name__ == 'Timestamp', type(moment)"
    )
    names = ["IPython", "boto3", "flax", "google.cloud.bigquery", "jax", "pymongo"]
    # IPython is there as a module that cannot be imported.
    assert loaded_by(program, [*names, "apache_beam"]) == ["IPython", "apache_beam"]
