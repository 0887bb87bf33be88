"""The README and the generated pages say what the commands say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.reference_tables import TABLES, with_tables

README = ROOT / "README.md"


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_commands(page: Path) -> None:
    assert page.read_text() == with_tables(page), "run `make reference`"


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_first_pages_show_one_small_picture_of_the_demo() -> None:
    picture = ROOT / "docs" / "images" / "scores-by-kind.svg"
    assert picture.stat().st_size < 200_000
    assert "docs/images/scores-by-kind.svg" in README.read_text()
