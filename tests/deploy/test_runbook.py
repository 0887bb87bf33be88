"""The README and the runbook of deploy/ match its files; the nightly script."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from pathlib import Path

import pytest

from datarater.pipelines.runners.choice import beam_flags
from datarater.rater_model.exit_codes import EXIT_CODES
from tests.support import ROOT
from tests.support.deploy_files import DEPLOY, SUBCOMMANDS, run_linter
from tests.support.reference_tables import COMMANDS, flags_of, parser_of

README, RUNBOOK = DEPLOY / "README.md", DEPLOY / "RUNBOOK.md"
NIGHTLY = DEPLOY / "nightly.sh"


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    run_linter("shellcheck", script)
    assert os.access(script, os.X_OK)


def nightly(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """Returns the arguments that deploy/nightly.sh passes to `datarater batch`."""
    command = folder / "datarater"
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 4\n')
    command.chmod(0o755)
    done = subprocess.run(
        [NIGHTLY, *arguments],
        env={"PATH": f"{folder}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, "the batch's own exit code"
    words = done.stdout.splitlines()
    assert words[0] == "batch"
    return words[1:]


def test_a_night_s_batch_is_for_the_day_that_has_ended(tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.UTC).date()
    # In this time zone the date differs from UTC for most of the day.
    given = nightly(tmp_path, "--config", "gs://b/a b.yaml", TZ="Pacific/Kiritimati")
    after = datetime.datetime.now(datetime.UTC).date()
    day = datetime.timedelta(days=1)
    assert given[0] == "--as_of"
    assert given[1] in {(before - day).isoformat(), (after - day).isoformat()}
    assert given[2:] == ["--config", "gs://b/a b.yaml"]


def test_another_date_can_be_given(tmp_path: Path) -> None:
    assert nightly(tmp_path, "--dry_run", AS_OF="2026-01-31") == [
        "--as_of",
        "2026-01-31",
        "--dry_run",
    ]


@pytest.mark.parametrize("document", [README, RUNBOOK], ids=lambda path: path.name)
def test_links_and_names_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert all((DEPLOY / link).exists() for link in links), links
    named = set(
        re.findall(
            r"\b(?:deploy|tests|pipelines|meta_training)/[\w./-]+\.(?:py|yaml|sh|json|md|txt|tf)\b",
            text,
        )
    )
    assert not [name for name in named if not (ROOT / name).exists()]
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--build-arg")]
    commands = set(re.findall(r"(?:^|`)datarater ([a-z]+)", "\n".join(lines), re.MULTILINE))
    assert commands
    assert commands <= SUBCOMMANDS


def test_every_folder_is_told_of() -> None:
    told = README.read_text()
    for path in DEPLOY.iterdir():
        if path.name not in ("README.md", "__init__.py", "__pycache__", "batch.example.yaml"):
            assert f"`{path.name}`" in told or f"[{path.name}](" in told, path.name


def test_every_exit_code_is_explained() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", RUNBOOK.read_text(), re.MULTILINE)
    explained = {int(code) for code, _ in rows}
    assert explained == set(EXIT_CODES) | {137, 143}


def test_metrics_that_are_explained_are_counted() -> None:
    sources = "\n".join(file.read_text() for file in (ROOT / "pipelines").rglob("*.py"))
    counted = set(re.findall(r'Metrics\.\w+\(\s*[^,]+, f?"(\w+)', sources))
    told = set(re.findall(r"^\| `(\w+)` \| .*counter", RUNBOOK.read_text(), re.MULTILINE))
    assert told == {name if not name.endswith("_") else "rejected_REASON" for name in counted}


def test_flags_that_the_runbook_names_are_there() -> None:
    known = {
        flag.partition(" ")[0] for run in COMMANDS.values() for flag, _ in flags_of(parser_of(run))
    }
    batch = set(
        re.findall(r'"(--\w+)"', (ROOT / "pipelines" / "commands" / "batch.py").read_text())
    )
    train = {"--workdir", "--config"}
    text = RUNBOOK.read_text()
    named = {
        flag
        for line in text.splitlines()
        if "datarater " in line
        for flag in re.findall(r"(--[a-z_]+)\b(?!-)", line)
    }
    assert named <= known | beam_flags() | batch | train
