"""Which package may import which, and that importing is cheap and silent."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGES = ("rater_model", "meta_training", "pipelines")
FORBIDDEN = {
    "rater_model": {"meta_training", "pipelines", "apache_beam", "optax"},
    "pipelines": {"meta_training"},
    "meta_training": {"apache_beam", "pipelines"},
}
HEAVY = ("jax", "flax", "optax", "apache_beam", "numpy", "pyarrow", "tensorflow_datasets")
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
