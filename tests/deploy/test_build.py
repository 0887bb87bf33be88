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

FILE = DEPLOY / "cloudbuild.yaml"
BUILD: dict[str, Any] = yaml.safe_load(FILE.read_text())
SCRIPTS: dict[str, str] = {step["id"]: step["script"] for step in BUILD["steps"]}
GIVEN_BY_CLOUD_BUILD = {"PROJECT_ID", "LOCATION"}


@pytest.mark.parametrize("step", sorted(SCRIPTS))
def test_shellcheck_finds_nothing(step: str, tmp_path: Path) -> None:
    script = tmp_path / f"{step}.sh"
    script.write_text(SCRIPTS[step])
    assert SCRIPTS[step].splitlines()[:2] == ["#!/usr/bin/env bash", "set -euo pipefail"]
    # Substitutions are passed as environment variables.
    run_linter("shellcheck", "--exclude=SC2154", script)


def test_every_substitution_is_declared_and_used() -> None:
    used = set(re.findall(r"\$\{(_?[A-Z][A-Z_]*)\}|\$(_[A-Z]+)", FILE.read_text()))
    names = {first or second for first, second in used}
    named_in_check = set(re.findall(r"\b_[A-Z]+\b", SCRIPTS["check"]))
    assert names | named_in_check == set(BUILD["substitutions"]) | GIVEN_BY_CLOUD_BUILD
    assert BUILD["options"]["automapSubstitutions"], "scripts get substitutions by this alone"


def test_what_has_no_default_is_checked_first() -> None:
    empty = {name for name, value in BUILD["substitutions"].items() if not value}
    assert empty == set(re.findall(r"\b_[A-Z]+\b", SCRIPTS["check"]))
    assert BUILD["steps"][0]["id"] == "check"


@pytest.mark.parametrize(
    ("tag", "bucket", "missing"), [("1", "b", ""), ("1", "", "_BUCKET"), ("", "b", "_TAG")]
)
def test_the_check_refuses_a_build_without_its_names(
    tag: str, bucket: str, missing: str, tmp_path: Path
) -> None:
    script = tmp_path / "check.sh"
    script.write_text(SCRIPTS["check"])
    environment = {"PATH": "/usr/bin:/bin", "_TAG": tag, "_BUCKET": bucket}
    done = subprocess.run(
        ["bash", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (2 if missing else 0)
    assert missing in done.stderr


def test_every_template_is_built_and_published() -> None:
    listed = f"for template in {' '.join(TEMPLATES)}; do"
    assert listed in SCRIPTS["build"]
    assert listed in SCRIPTS["templates"]
    for template in TEMPLATES:
        assert (DEPLOY / "dataflow" / f"{template}.json").exists()


def test_what_is_pushed_is_what_was_built_and_tried() -> None:
    built = set(re.findall(r'--tag "\$\{_IMAGE\}:\$\{_TAG\}([^"]*)"', SCRIPTS["build"]))
    assert built == {"", "-${template}", "-command"}
    suffixes = re.search(r"for suffix in (.+); do", SCRIPTS["push"])
    assert suffixes is not None
    assert suffixes[1].split() == ['""', *(f"-{template}" for template in TEMPLATES), "-command"]
    order = [step["id"] for step in BUILD["steps"]]
    assert (
        order.index("build") < order.index("try") < order.index("push") < order.index("templates")
    )
    tried = re.search(r"for command in (.+); do", SCRIPTS["try"])
    assert tried is not None
    # The image has no extra for training.
    training = {"train", "evaluate", "analyze", "demo"}
    assert set(tried[1].split()) == SUBCOMMANDS - training - {"completion"}


def test_build_arguments_and_targets_are_the_dockerfile_s() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    declared = set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    assert set(re.findall(r'--build-arg "(\w+)=', SCRIPTS["build"])) <= declared
    stages = set(re.findall(r"^FROM .+ AS (\w+)", dockerfile, re.MULTILINE))
    assert set(re.findall(r"--target (\w+)", SCRIPTS["build"])) <= stages
    assert (ROOT / "deploy" / f"constraints-{BUILD['substitutions']['_ACCELERATOR']}.txt").exists()
