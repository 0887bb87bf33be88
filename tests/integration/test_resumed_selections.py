"""Deduplications and rankings that are killed: the same command completes them, file by file."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datarater.pipelines.commands import score, select
from datarater.rater_model.checkpoint import save_rater
from tests.support import ROOT
from tests.support.near_duplicates import planted
from tests.support.ranked_runs import a_tokenizer, write_table
from tests.support.raters import random_student

KILLED_AT = """
import os, signal, sys
from datarater.pipelines.commands import select

folder, left, real = sys.argv[1], int(sys.argv[2]), os.link


def link(source, target, *args, **kwargs):
    global left
    left -= folder in str(target)
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(source, target, *args, **kwargs)


os.link = link
sys.exit(select.main(sys.argv[3:]))
"""
"""Selects, and dies in place of the commit of a file once so many are committed below a folder."""

KILLS = {
    "/duplicates/similarity-0.8/signatures/": 4,
    "/duplicates/similarity-0.8/documents/": 3,
    "/selections/it/ranking/scores/": 4,
    "/selections/it/kept/": 1,
}


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Scores a corpus with near-duplicates in about ten splits; returns how to select from it."""
    texts = planted(40, 40, seed=4).texts
    for number in range(5):
        records = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts) if n % 5 == number]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.jsonl").write_text(lines + "no JSON\n")
    save_rater(tmp_path / "rater", random_student())
    scored = ["--input", f"{tmp_path}/in/*", "--rater", f"{tmp_path}/rater"]
    run = str(tmp_path / "run")
    assert score.main([*scored, "--output", run, "--split_bytes", "9000"]) == 0

    labels = [{"id": f"d{n}", "weight": n % 7} for n in range(0, len(texts), 2)]
    write_table(tmp_path, "labels", [labels], id=pa.string(), weight=pa.int64())
    a_tokenizer().save(str(tmp_path / "tokenizer.json"))
    rule = ["--token_budget", "2000", "--tokens_from", f"{tmp_path}/tokenizer.json", "--name", "it"]
    rule += ["--dedup", "0.8", "--join", f"labels={tmp_path}/labels-*.parquet"]
    rule += ["--rank_by", "rater + 0.01 * labels.weight", "--output_shard_bytes", "2000"]
    return ["--output", run, *rule]


def files_of(run: Path) -> dict[str, Any]:
    """Returns the content of all files of a run folder, without leases, reports and times."""
    contents: dict[str, Any] = {}
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if not path.is_file() or name.startswith("lease/") or path.suffix == ".html":
            continue
        contents[name] = path.read_bytes()
        if path.suffix == ".json" and b"finished" in contents[name]:
            contents[name] = {**json.loads(contents[name]), "finished": ""}
    return contents


@pytest.mark.slow
def test_a_deduplication_and_a_ranking_that_are_killed_end_as_undisturbed_ones(
    flags: list[str], tmp_path: Path
) -> None:
    run, scored = tmp_path / "run", tmp_path / "scored"
    shutil.copytree(run, scored)
    assert select.main(flags) == 0
    undisturbed = files_of(run)
    shutil.rmtree(run)
    scored.rename(run)

    committed: dict[Path, int] = {}
    for folder, number in KILLS.items():
        command = [sys.executable, "-c", KILLED_AT, folder, str(number), *flags]
        done = subprocess.run(command, capture_output=True, cwd=ROOT)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        below = Path(f"{run}{folder}")
        there = [path for path in below.rglob("*") if path.is_file() and path.name[0] not in "._"]
        assert len(there) == number

        # What was ranked or found before is not made anew.
        assert all(path.stat().st_ino == inode for path, inode in committed.items())
        committed |= {path: path.stat().st_ino for path in there if "/signatures/" not in folder}
    assert select.main(flags) == 0
    assert all(path.stat().st_ino == inode for path, inode in committed.items())
    assert files_of(run) == undisturbed
