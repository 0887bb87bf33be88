"""Links between pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.pages import MARKDOWN, PAGES, anchors_of, without_blocks

_LINK = re.compile(r"\]\(([^()\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links_of(page: Path) -> list[str]:
    links = _LINK.findall(without_blocks(page.read_text()))
    return [link for link in links if not link.startswith(("https://", "http://"))]


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}, which does not exist"
        if anchor:
            assert anchor in anchors_of(target), f"{name_of(page)} links to {link}: no such heading"


def test_pages_of_the_site_link_only_to_each_other() -> None:
    """MkDocs publishes `docs/` alone, so that a link out of it would be dead on the site."""
    docs = ROOT / "docs"
    for page in docs.rglob("*.md"):
        for link in links_of(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            assert target.is_relative_to(docs), f"{name_of(page)} links to {link}, outside docs/"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation, (
            f"{page} is not in mkdocs.yml"
        )


def test_the_readme_links_to_every_page() -> None:
    targets = set(links_of(PAGES[0]))
    pages = {f"docs/{page.name}" for page in PAGES[1:] if page.name != "index.md"}
    assert pages <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_targets_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(r"\b(?:tests|deploy|examples|docs|meta_training)/[\w./-]*\w", text)
    for path in set(paths):
        assert (ROOT / path).exists(), f"{name_of(page)} names {path}, which does not exist"

    makefile = (ROOT / "Makefile").read_text()
    for targets in re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+?)(?: +#|`|$)", text, re.MULTILINE):
        for target in targets.split():
            assert f"\n{target}:" in makefile, f"{name_of(page)} names make {target}: no target"
