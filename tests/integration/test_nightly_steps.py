"""The steps of docs/nightly.md: score a reference, write batch.yaml, run nights, see the alarm.

`tests/docs` runs the blocks of the page itself; here are the exit codes and what an operator sees.
"""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
from pathlib import Path

import pytest

from datarater import cli
from tests.support import batches
from tests.support.corpora import as_lines, make_records

BATCH_YAML = """\
input: crawl/{date}/*.jsonl.gz
rater: work/rater
reference: reference          # without it: the rater's own reference sample
state: state                  # which batch took which file: keep it, and back it up
publish: published            # DATE/manifest.json appears here once a batch is complete
quiet_minutes: 0              # 10 if files may still be growing when the batch begins
curate:                       # flags of datarater curate
  keep_fraction: 0.5          # of the reference; its cutoff applies every night
"""
NIGHT = "datarater batch --config batch.yaml --as_of"
STEPS = [
    ("datarater score --input 'corpus/*.jsonl.gz' --rater work/rater --output reference", 0),
    (f"{NIGHT} 2026-01-31 --dry_run", 0),
    (f"{NIGHT} 2026-01-31", 0),
    (f"{NIGHT} 2026-02-01", 4),  # documents of another kind
    (f"{NIGHT} 2026-02-02", 4),  # no files
]
"""Each command with its exit code."""


def write_files(folder: Path) -> None:
    """Writes a corpus, a night like it, and a night of documents of another kind."""
    odd = [{**record, "text": "!" * 9} for record in make_records(150, 3)]
    for name, records in (
        ("corpus/a", make_records(600, 1)),
        ("crawl/2026-01-31/a", make_records(150, 2)),
        ("crawl/2026-02-01/a", odd),
    ):
        path = folder / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(as_lines(records)))


@pytest.mark.slow
def test_the_nightly_steps_run(
    rater: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    shutil.copytree(rater, tmp_path / "work" / "rater")
    Path("batch.yaml").write_text(BATCH_YAML)

    # Without the reference, the command gives the first step itself.
    assert cli.main(shlex.split(f"{NIGHT} 2026-01-31")[1:]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"datarater score --input 'GLOB' --rater {tmp_path}/work/rater" in message
    assert f"--output {tmp_path}/reference\n" in message

    for command, code in STEPS:
        assert cli.main(shlex.split(command)[1:]) == code, command
    alarms = {date: record["alarms"] for date, record in batches.check_published(tmp_path).items()}
    assert alarms["2026-01-31"] == []
    assert "population stability index" in alarms["2026-02-01"][0]
    assert alarms["2026-02-02"] == [
        "the batch has 0 scored documents, fewer than limits.min_documents: 1; no new file matches "
        f"'*.jsonl.gz' in {tmp_path}/crawl/2026-02-02"
    ]
    err = capsys.readouterr().err
    for alarm in alarms["2026-02-01"] + alarms["2026-02-02"]:
        assert f"WARNING: {alarm}" in err

    # The reference's cutoff keeps about half of a night like the corpus.
    manifest = json.loads(Path("published/2026-01-31/manifest.json").read_bytes())
    assert 40 <= manifest["counts"]["kept"] <= 110
