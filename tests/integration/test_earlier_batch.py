"""A state folder and a publication of version 0.1.0, continued by this version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from datarater.pipelines.batch.journal import Journal
from datarater.pipelines.commands import batch
from datarater.rater_model.documents.records import DEFAULT_ZSTD_WINDOW_BYTES
from datarater.rater_model.scoring_options import SCORER_VERSION
from tests.support import batches, earlier_versions

# Only one process at a time can unpack to the recorded path, so these tests run in one worker.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("earlier versions")]

PUBLISHED, NEXT = "2026-01-30", "2026-01-31"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The artifacts, where their batch recorded them."""
    with earlier_versions.unpacked_where_made() as folder:
        yield folder


def run(folder: Path, date: str) -> int:
    return batch.main(["--config", str(folder / "batch.yaml"), "--as_of", date])


def test_a_published_batch_stays_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(folder, PUBLISHED) == 0
    out, err = capsys.readouterr()
    assert f"batch {PUBLISHED} was already published and does not change" in out
    assert f"batch {PUBLISHED}: 1 file, 30 records; kept 12, dropped 18, rejected 0" in out
    assert f"published: {folder}/published/{PUBLISHED}/manifest.json" in out
    assert err == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_next_batch_is_made_and_published(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, NEXT) == 0
    out = capsys.readouterr().out
    assert f"published: {folder}/published/{NEXT}/manifest.json" in out

    # Both are complete, compared with the same reference, and neither took a file of the other.
    records = batches.check_published(folder)
    assert list(records) == [PUBLISHED, NEXT]
    assert records[NEXT]["reference"] == records[PUBLISHED]["reference"]
    terms = records[NEXT]["terms"]
    assert terms["scoring"]["read"].pop("max_zstd_window_bytes") == DEFAULT_ZSTD_WINDOW_BYTES
    assert terms["scoring"].pop("scorer_version") == SCORER_VERSION
    assert records[PUBLISHED]["terms"]["scoring"].pop("scorer_version") == 1
    assert terms == records[PUBLISHED]["terms"]
    assert records[NEXT]["counts"]["read"] == 30
    paths = [
        [
            json.loads(line)["path"]
            for line in Path(record["inputs"]["list"]).read_text().splitlines()
        ]
        for record in records.values()
    ]
    assert paths == [[f"{folder}/crawl/{day}/x.jsonl"] for day in (PUBLISHED, NEXT)]
    assert len(Journal(str(folder / "state")).read().publications) == 2
