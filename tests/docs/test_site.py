"""The site builds without a warning and loads nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.pages import PAGES


@pytest.mark.drill
def test_the_site_builds_and_stands_alone(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the docs extra is missing")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the docs extra is missing")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr

    pages = list(tmp_path.rglob("index.html"))
    assert len(pages) == len(PAGES) - 1  # the README is no page of the site
    for page in pages:
        html = page.read_text()
        assert "Scorer" in html or page.parent.name != "python"
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', html)
        assert not loaded, f"{page.parent.name} loads {loaded}"
