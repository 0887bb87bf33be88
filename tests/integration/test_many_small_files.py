"""What many small files cost: processor time of scoring them, and memory of planning them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.corpora import as_lines, make_records
from tests.support.made_up_listing import plan_in_a_process

pytestmark = pytest.mark.drill

FILES = 2000


def score(inputs: Path, rater: Path, output: Path) -> float:
    """Scores a corpus with one worker; returns the processor seconds of the command."""
    flags = ["--input", str(inputs), "--rater", str(rater), "--output", str(output)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "datarater", "score", *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_two_thousand_files_of_a_line_cost_little_more_than_one_file_of_the_lines(
    rater: Path, tmp_path: Path
) -> None:
    lines = as_lines(make_records(FILES, 0)).splitlines(keepends=True)
    (tmp_path / "one.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "many").mkdir()
    for number, line in enumerate(lines):
        (tmp_path / "many" / f"{number:05d}.jsonl").write_bytes(line)

    # The other work of the machine disturbs both alike, so rounds alternate and the best count.
    seconds: dict[str, list[float]] = {"one.jsonl": [], "many": []}
    for number in range(3):
        for name, rounds in seconds.items():
            rounds.append(score(tmp_path / name, rater, tmp_path / f"run-{name}-{number}"))
    one, many = (min(rounds) for rounds in seconds.values())
    print(f"one file {one:.2f} s, {FILES:,} files {many:.2f} s: {many / one:.2f} times")
    assert many <= 1.3 * one
    scores = list((tmp_path / "run-many-0" / "scores").rglob("*.parquet"))
    assert sum(path.stat().st_size for path in scores) < 1000 * FILES


def test_planning_a_million_files_takes_hardly_more_memory_than_planning_ten_thousand(
    tmp_path: Path,
) -> None:
    megabytes = {}
    for files in (10_000, 1_000_000):
        megabytes[files], seconds = plan_in_a_process(files, 0, str(tmp_path / str(files)))
        print(f"{files:,} files: {megabytes[files]:.0f} MB more, {seconds:.0f} s")
    # Ten million files may add 500 MB: 50 bytes for each.
    assert megabytes[1_000_000] - megabytes[10_000] < 50
