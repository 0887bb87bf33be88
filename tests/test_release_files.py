"""The files for contributors and releases agree with the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

import datarater
from tests.support import ROOT

DOCUMENTS = ("CONTRIBUTING.md", "RELEASING.md", "SECURITY.md")
FOLDERS = "datarater|rater_model|meta_training|pipelines|deploy|tests"


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == datarater.__version__
    assert citation["preferred-citation"]["url"].endswith("2505.17895")
    assert all(author.keys() == {"family-names", "given-names"} for author in authors(citation))


def authors(citation: dict[str, dict[str, list[dict[str, str]]]]) -> list[dict[str, str]]:
    """Returns the authors of the paper."""
    return citation["preferred-citation"]["authors"]


def test_every_hook_runs_without_a_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_that_a_document_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text))
    paths |= set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_that_a_document_names_exists(name: str) -> None:
    makefile = Path(ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = re.findall(r"`make ([a-z -]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert {target for words in named for target in words.split()} <= targets


def test_the_changelog_has_a_section_for_what_is_not_released() -> None:
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
