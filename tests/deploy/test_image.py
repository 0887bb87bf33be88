"""The Dockerfile, as far as it can be tested without a Docker daemon."""

from __future__ import annotations

import ast
import json
import re
import string
from fnmatch import fnmatch

import pytest

from tests.support import ROOT
from tests.support.deploy_files import DEPLOY, pins, run_linter, setup_names

DOCKERFILE = DEPLOY / "Dockerfile"
ACCELERATORS = ("cpu", "cuda12")


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


def copied(accelerator: str) -> list[str]:
    """Returns the paths that the Dockerfile copies from the repository."""
    values = {**arguments(), "ACCELERATOR": accelerator}
    found = []
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            found += [string.Template(source).substitute(values) for source in rest.split()[:-1]]
    return found


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


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_all_that_is_copied_is_there_and_reaches_the_build(accelerator: str) -> None:
    sources = copied(accelerator)
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
    assert set(arguments()["EXTRAS"].split(",")) == {"gcp", "s3", "tfds"}
    extras = {
        extra
        for given in re.findall(r"EXTRAS=([a-z0-9,]+)", DOCKERFILE.read_text())
        for extra in given.split(",")
    }
    assert extras <= setup_names("extras_require")
    linked = {link.readlink().name for link in (ROOT / "datarater").iterdir() if link.is_symlink()}
    assert {"datarater", *linked} <= set(copied("cpu")), "a package of setup.py is not copied"


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_the_accelerator_s_pins_agree_with_the_project_s(accelerator: str) -> None:
    project, own = pins(ROOT / "constraints.txt"), pins(DEPLOY / f"constraints-{accelerator}.txt")
    differing = {name for name in own.keys() & project.keys() if own[name] != project[name]}
    assert not differing
    if accelerator == "cuda12":
        assert own["jax"] == own["jax-cuda12-plugin"] == own["jax-cuda12-pjrt"] == project["jax"]


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
