"""The Dockerfile, as far as it can be tested without a Docker daemon."""

from __future__ import annotations

import ast
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT
from tests.support.deploy_files import (
    DEPLOY,
    pins,
    run_linter,
    setup_names,
    setup_requirements,
)

DOCKERFILE = DEPLOY / "Dockerfile"
LOCK_FILES = sorted((DEPLOY / "requirements").glob("*.txt"))
WORKER_EXTRAS = ("gcp", "s3", "tfds")
"""The extras of setup.py that the image has."""


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions of the Dockerfile, each with its arguments on one line."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), " ".join(rest.split()))
        for word, _, rest in (line.partition(" ") for line in joined.splitlines())
        if word
    ]


def arguments() -> dict[str, str]:
    """Returns the build arguments with their defaults."""
    found = (rest.partition("=") for word, rest in instructions() if word == "ARG")
    return {name: default.strip('"') for name, _, default in found}


def copied() -> list[str]:
    """Returns the paths that the Dockerfile copies from the repository."""
    return [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]


def locked(name: str) -> dict[str, str]:
    """Returns the version that a lock file pins for each package."""
    text = (DEPLOY / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([^\s=]+)==([^\s;]+)", text, re.MULTILINE))


def sent_to_the_build(path: str) -> bool:
    """Returns whether Dockerfile.dockerignore admits a path; the last matching line counts."""
    sent = True
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if (
            line
            and not line.startswith("#")
            and (fnmatch(path, pattern) or path.startswith(f"{pattern}/"))
        ):
            sent = line.startswith("!")
    return sent


def test_hadolint_finds_nothing() -> None:
    run_linter("hadolint", "--config", DEPLOY / "hadolint.yaml", DOCKERFILE)


def test_the_base_is_the_beam_that_is_pinned() -> None:
    match = re.fullmatch(r"apache/beam_python(3\.\d+)_sdk:(\S+)", arguments()["BEAM_IMAGE"])
    assert match is not None
    assert match[2] == pins(ROOT / "constraints.txt")["apache-beam"]
    launcher = arguments()["LAUNCHER_IMAGE"]
    assert f"/python{match[1].replace('.', '')}-template-launcher-base:" in launcher, (
        "another Python"
    )
    assert not launcher.endswith(":latest")


def test_all_that_is_copied_is_there_and_reaches_the_build() -> None:
    sources = copied()
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert sent_to_the_build(source), f"{source} is kept out by Dockerfile.dockerignore"


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "demo_output/rater/rater.json",
        "key.json",
        ".env",
        "deploy/terraform/a.tfvars",
    ],
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert not sent_to_the_build(path)


def test_what_is_installed_is_there_to_install() -> None:
    text = DOCKERFILE.read_text() + (DEPLOY / "README.md").read_text()
    named = {
        name
        for given in re.findall(r'PACKAGES="([a-z0-9 ]+)"|^ARG PACKAGES=(\w+)', text, re.MULTILINE)
        for name in " ".join(given).split()
    }
    assert {"build", *named} == {file.stem for file in LOCK_FILES}
    linked = {link.readlink().name for link in (ROOT / "datarater").iterdir() if link.is_symlink()}
    assert {"datarater", *linked} <= set(copied()), "a package of setup.py is not copied"


def test_the_image_installs_nothing_without_a_hash() -> None:
    (install,) = [
        rest for word, rest in instructions() if word == "RUN" and "--requirement" in rest
    ]
    for flag in ("--require-hashes", "--no-deps", "--no-build-isolation"):
        assert flag in install
    assert "in build ${PACKAGES}; do" in install, "the build tools come first"
    (own,) = [rest for word, rest in instructions() if word == "RUN" and "--no-index" in rest]
    assert "--no-build-isolation . && /opt/datarater/bin/pip check" in own
    assert DOCKERFILE.read_text().count("pip install") == 2


@pytest.mark.parametrize("file", LOCK_FILES, ids=lambda file: file.stem)
def test_every_package_of_a_lock_file_is_pinned_with_hashes(file: Path) -> None:
    lines = re.sub(r" \\\n\s+", " ", file.read_text()).splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( --hash=sha256:[0-9a-f]{64})+", line), line[:80]


@pytest.mark.parametrize("file", LOCK_FILES, ids=lambda file: file.stem)
def test_lock_files_have_the_versions_of_the_constraints(file: Path) -> None:
    project, own = pins(ROOT / "constraints.txt"), locked(file.stem)
    assert own
    known = {name: version for name, version in own.items() if name in project}
    assert known == {name: project[name] for name in known}, "run `make lock`"
    beyond = set(own) - set(project)
    if file.stem == "cuda12":
        assert {"jax-cuda12-plugin", "jax-cuda12-pjrt"} <= beyond
        assert all(name.startswith(("jax-cuda12-", "nvidia-")) for name in beyond)
        assert own["jax-cuda12-plugin"] == own["jax-cuda12-pjrt"] == project["jax"]
    elif file.stem == "build":
        assert (ROOT / "pyproject.toml").read_text().count(
            f'"setuptools=={own["setuptools"]}"'
        ) == 1
    else:
        assert not beyond


def test_the_lock_files_have_all_that_setup_py_requires() -> None:
    worker, train = locked("worker"), {**locked("worker"), **locked("train")}
    for extra, have in [
        (None, worker),
        *((extra, worker) for extra in WORKER_EXTRAS),
        ("train", train),
    ]:
        for text in setup_requirements(extra):
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            assert name in have, f"{text}: run `make lock`"
            assert requirement.specifier.contains(have[name]), f"{text}: run `make lock`"


def test_the_default_image_is_worker_and_launcher() -> None:
    last = max(number for number, (word, _) in enumerate(instructions()) if word == "FROM")
    stage = instructions()[last:]
    assert stage[0][1].endswith(" AS dataflow")
    assert ("ENTRYPOINT", '["/opt/apache/beam/boot"]') in stage
    assert any(
        word == "COPY" and rest.endswith("/opt/google/dataflow/python_template_launcher")
        for word, rest in stage
    )
    (environment,) = [rest for word, rest in stage if word == "ENV"]
    variables = dict(re.findall(r"(\w+)=(\S+)", environment))
    assert (
        "COPY",
        f"deploy/dataflow/launch.py {variables['FLEX_TEMPLATE_PYTHON_PY_FILE']}",
    ) in stage
    assert arguments()["TEMPLATE"] == "curate"


def test_the_launcher_s_file_needs_only_what_is_installed() -> None:
    tree = ast.parse((DEPLOY / "dataflow" / "launch.py").read_text())
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }
    assert any(name.startswith("datarater.") for name in imported)
    assert not {name for name in imported if name.startswith(("deploy", "tests"))}


def test_the_image_for_commands_has_no_root() -> None:
    names = [rest.rpartition(" AS ")[2] for word, rest in instructions() if word == "FROM"]
    stages, current = dict.fromkeys(names, ""), -1
    for word, rest in instructions():
        current += word == "FROM"
        if word == "USER":
            stages[names[current]] = rest
    assert stages["command"] == "65532:65532"
    assert stages["dataflow"] == "", (
        "Dataflow's mounted folders are root's; Kubernetes sets the user itself"
    )
    (command,) = [json.loads(rest) for word, rest in instructions() if word == "CMD"]
    assert {command[0]} == setup_names("console_scripts")
