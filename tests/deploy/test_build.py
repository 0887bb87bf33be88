"""The Cloud Build file: its scripts, its substitutions, its images and its templates."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support import ROOT
from tests.support.deploy_files import DEPLOY, SUBCOMMANDS, run_linter
from tests.support.flex_templates import TEMPLATES

FILES = {name: DEPLOY / f"{name}.yaml" for name in ("cloudbuild", "cloudbuild-sbom")}
CONFIGS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load(file.read_text()) for name, file in FILES.items()
}
BUILD, SBOM = CONFIGS["cloudbuild"], CONFIGS["cloudbuild-sbom"]
SCRIPTS: dict[tuple[str, str], str] = {
    (name, step["id"]): step["script"]
    for name, config in CONFIGS.items()
    for step in config["steps"]
}
GIVEN_BY_CLOUD_BUILD = {"PROJECT_ID", "LOCATION"}
SUFFIXES = ["", *(f"-{template}" for template in TEMPLATES), "-command"]
"""What follows the tag of each image that a build pushes."""


def script(step: str, config: str = "cloudbuild") -> str:
    """Returns the script of a step."""
    return SCRIPTS[config, step]


@pytest.mark.parametrize(("config", "step"), sorted(SCRIPTS))
def test_shellcheck_finds_nothing(config: str, step: str, tmp_path: Path) -> None:
    path = tmp_path / f"{step}.sh"
    path.write_text(script(step, config))
    assert script(step, config).splitlines()[:2] == ["#!/usr/bin/env bash", "set -euo pipefail"]
    # Substitutions are passed as environment variables.
    run_linter("shellcheck", "--exclude=SC2154", path)


@pytest.mark.parametrize("config", FILES)
def test_every_substitution_is_declared_and_used(config: str) -> None:
    text = re.sub(r"^#.*$", "", FILES[config].read_text(), flags=re.MULTILINE)
    used = set(re.findall(r"\$\{(_?[A-Z][A-Z_]*)\}|\$(_[A-Z]+)", text))
    names = {first or second for first, second in used}
    # Some scripts loop over names.
    looped = set(re.findall(r"\b_[A-Z_]+\b", " ".join(re.findall(r"for name in (.+); do", text))))
    assert names | looped == set(CONFIGS[config]["substitutions"]) | GIVEN_BY_CLOUD_BUILD
    assert CONFIGS[config]["options"]["automapSubstitutions"], "scripts get substitutions by this"


@pytest.mark.parametrize("config", FILES)
def test_what_has_no_default_is_checked_first(config: str) -> None:
    empty = {name for name, value in CONFIGS[config]["substitutions"].items() if not value}
    assert empty == set(re.findall(r"\b_[A-Z]+\b", script("check", config)))
    assert CONFIGS[config]["steps"][0]["id"] == "check"


@pytest.mark.parametrize(
    ("config", "tag", "bucket", "missing"),
    [
        ("cloudbuild", "1", "", ""),
        ("cloudbuild", "", "b", "_TAG"),
        ("cloudbuild-sbom", "1", "b", ""),
        ("cloudbuild-sbom", "1", "", "_BUCKET"),
        ("cloudbuild-sbom", "", "b", "_TAG"),
    ],
)
def test_the_check_refuses_a_build_without_its_names(
    config: str, tag: str, bucket: str, missing: str, tmp_path: Path
) -> None:
    environment = {"_TAG": tag, "_BUCKET": bucket}
    done = run_script(script("check", config), environment, tmp_path)
    assert done.returncode == (2 if missing else 0)
    assert missing in done.stderr


def run_script(
    text: str, environment: dict[str, str], folder: Path, docker: str = "exit 9"
) -> subprocess.CompletedProcess[str]:
    """Runs a step's script with a program in place of docker; /workspace is the folder.

    Args:
        text: The script.
        environment: Its substitutions.
        folder: An empty folder.
        docker: A shell script that stands in for docker.
    """
    program = folder / "docker"
    program.write_text(f"#!/usr/bin/env bash\n{docker}\n")
    program.chmod(0o755)
    path = folder / "step.sh"
    path.write_text(text.replace("/workspace", str(folder)))
    environment = {"PATH": f"{folder}:/usr/bin:/bin", **environment}
    return subprocess.run(
        ["bash", path], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


BASES = {
    "_BEAM_IMAGE": BUILD["substitutions"]["_BEAM_IMAGE"],
    "_LAUNCHER_IMAGE": BUILD["substitutions"]["_LAUNCHER_IMAGE"],
}


def test_base_images_are_resolved_to_digests_before_the_build_uses_them(tmp_path: Path) -> None:
    # The registry's answer: the name without its tag, and a digest.
    inspect = 'for last; do :; done; [ "$1" = pull ] || echo "${last%:*}@sha256:${#last}"'
    done = run_script(script("bases"), BASES, tmp_path, inspect)
    assert done.returncode == 0, done.stderr
    for name, image in BASES.items():
        resolved = (tmp_path / name).read_text().strip()
        assert resolved == f"{image.rpartition(':')[0]}@sha256:{len(image)}"
        assert resolved in done.stdout, "the log of the build records it"

    log = tmp_path / "built"
    values = {**BASES, "_PACKAGES": "worker cuda12", "_TAG": "1a2b3c4", "_IMAGE": "registry/image"}
    done = run_script(script("build"), values, tmp_path, f'printf "%s\\n" "$*" >> {log}')
    assert done.returncode == 0, done.stderr
    built = log.read_text().splitlines()
    assert len(built) == len(SUFFIXES)
    for line in built:
        for name in BASES:
            resolved = (tmp_path / name).read_text().strip()
            assert f"--build-arg {name.removeprefix('_')}={resolved}" in line
        assert "--build-arg PACKAGES=worker cuda12" in line
        assert "--label org.opencontainers.image.base.digest=sha256:" in line


def test_a_base_image_without_a_digest_ends_the_build(tmp_path: Path) -> None:
    done = run_script(script("bases"), BASES, tmp_path, 'echo "$4"')
    assert done.returncode == 1
    assert "has no digest" in done.stderr


def test_every_template_is_built_and_tried() -> None:
    listed = f"for template in {' '.join(TEMPLATES)}; do"
    assert listed in script("build")
    assert listed in script("try")
    for template in TEMPLATES:
        assert (DEPLOY / "dataflow" / f"{template}.json").exists()


def test_what_is_pushed_is_what_was_built_and_tried() -> None:
    built = set(re.findall(r'--tag "\$\{_IMAGE\}:\$\{_TAG\}([^"]*)"', script("build")))
    assert built == {"", "-${template}", "-command"}
    assert BUILD["images"] == [f"${{_IMAGE}}:${{_TAG}}{suffix}" for suffix in SUFFIXES]
    order = [step["id"] for step in BUILD["steps"]]
    assert order == ["check", "bases", "build", "try"]
    tried = re.search(r"for command in (.+); do", script("try"))
    assert tried is not None
    # The image has no extra for training.
    training = {"train", "prepare", "evaluate", "analyze", "distil", "demo"}
    assert set(tried[1].split()) == SUBCOMMANDS - training - {"completion"}


def test_the_provenance_of_every_pushed_image_is_signed() -> None:
    # Cloud Build makes no provenance for an image that a step pushes.
    assert "docker push" not in FILES["cloudbuild"].read_text()
    assert BUILD["options"]["requestedVerifyOption"] == "VERIFIED"


def test_every_pushed_image_has_an_sbom_under_its_digest(tmp_path: Path) -> None:
    suffixes = re.search(r"for suffix in (.+); do", script("list", "cloudbuild-sbom"))
    assert suffixes is not None
    assert suffixes[1].split() == ['""', *SUFFIXES[1:]]

    # The stand-in answers with a digest, and lists each image as Syft would.
    docker = (
        'for last; do :; done; case "$1" in'
        ' image) echo "registry/image@sha256:${#last}" ;; run) echo "$*" ;; esac'
    )
    values = {"_IMAGE": "registry/image", "_TAG": "1a2b3c4", "_SYFT_IMAGE": "anchore/syft:v1"}
    done = run_script(script("list", "cloudbuild-sbom"), values, tmp_path, docker)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "sbom").glob("*.spdx.json"))
    names = {file.name.removesuffix(".spdx.json") for file in files}
    assert names == {f"datarater{suffix}" for suffix in SUFFIXES}
    for file in files:
        image = file.with_name(file.name.replace(".spdx.json", ".image")).read_text().strip()
        assert "@sha256:" in image
        assert file.read_text().strip().endswith(f"scan docker:{image} --output spdx-json")
    tag = SBOM["substitutions"]["_SYFT_IMAGE"].rpartition(":")[2]
    assert re.fullmatch(r"v\d+\.\d+\.\d+", tag)
    assert '--uri "$(< "${file%.spdx.json}.image")"' in script("store", "cloudbuild-sbom")


def test_build_arguments_and_targets_are_the_dockerfile_s() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    declared = dict(re.findall(r"^ARG (\w+)=(.*)$", dockerfile, re.MULTILINE))
    assert set(re.findall(r'--build-arg "(\w+)=', script("build"))) == set(declared)
    stages = set(re.findall(r"^FROM .+ AS (\w+)", dockerfile, re.MULTILINE))
    assert set(re.findall(r"--target (\w+)", script("build"))) <= stages
    for name in ("PACKAGES", "BEAM_IMAGE", "LAUNCHER_IMAGE"):
        assert BUILD["substitutions"][f"_{name}"] == declared[name]
