"""What a Flex Template's launcher runs, run as the launcher runs it, on this machine's runner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.corpora import as_lines, make_records


@pytest.mark.slow
def test_the_launcher_curates_with_a_template_s_parameters(rater: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(as_lines(make_records(9, seed=0)))
    done = subprocess.run(
        [
            sys.executable,
            "deploy/dataflow/launch.py",
            f"--input={tmp_path / 'in.jsonl'}",
            f"--rater={rater}",
            f"--output={tmp_path / 'run'}",
            "--keep_fraction=1/3",
            "--per=source",
            "--source_weight=s0=3,s1=0",
            "--reference=",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DATARATER_TEMPLATE": "curate"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (manifest,) = (tmp_path / "run" / "selections").glob("*/manifest.json")
    sources = json.loads(manifest.read_text())["sources"]
    assert {name: counts["kept"] for name, counts in sources.items()} == {"s0": 3, "s1": 0, "s2": 1}
