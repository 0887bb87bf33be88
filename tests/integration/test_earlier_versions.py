"""Run folders and a rater that version 0.1.0 wrote are read, resumed and selected from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.commands import curate, select, status
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.scorer import Scorer
from datarater.report import command as report
from tests.support.curation import read_kept
from tests.support.earlier_versions import unpacked_where_made

pytestmark = pytest.mark.xdist_group("earlier versions")

CURATE = [
    *("--input", "corpus/*", "--rater", "rater", "--split_bytes", "2500"),
    *("--keep_fraction", "0.5"),
]


@pytest.fixture(scope="module")
def artifacts() -> Iterator[Path]:
    with unpacked_where_made() as folder:
        yield folder


@pytest.fixture
def here(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Works in the folder of the artifacts, as its makers did."""
    monkeypatch.chdir(artifacts)
    return artifacts


def copy(here: Path, run: str, tmp_path: Path) -> Path:
    """Copies a run folder, which a test may then change."""
    return Path(shutil.copytree(here / run, tmp_path / run))


def kept_texts(run: Path, selection: str) -> list[str]:
    return sorted(row["text"] for row in read_kept(run / "selections" / selection))


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {path: (path.stat().st_ino, path.read_bytes()) for path in files}


@pytest.mark.parametrize(
    ("run", "done", "finished"), [("run", 7, True), ("scored", 7, True), ("killed", 4, False)]
)
def test_status_reads_every_run(here: Path, run: str, done: int, finished: bool) -> None:
    found = status.run([run])
    assert found is not None
    assert (found.splits, found.splits_done, found.finished) == (7, done, finished)
    assert found.exact
    if finished:
        assert (found.counts.read, found.counts.scored, found.rejected) == (122, 120, 2)


def test_a_finished_selection_is_recognised(here: Path) -> None:
    before = contents(here / "run")
    assert select.run(["--output", "run", "--keep_fraction", "0.5"]) is None
    assert curate.run([*CURATE, "--output", "run"]) is None
    assert contents(here / "run") == before


def test_a_finished_selection_gets_a_report(here: Path, tmp_path: Path) -> None:
    run = copy(here, "run", tmp_path)
    (page,) = report.run([str(run)])
    text = Path(page).read_text()
    assert page == f"{run}/selections/keep-0.5/report.html"
    assert "kept 60" in text
    assert kept_texts(run, "keep-0.5")
    assert "cannot be read" not in text
    assert "not found where it was scored" not in text


def test_a_finished_run_is_selected_from_again(here: Path, tmp_path: Path) -> None:
    run = copy(here, "run", tmp_path)
    assert select.run(["--output", str(run), "--keep_fraction", "0.25"]) is not None
    quarter = kept_texts(run, "keep-0.25")
    assert len(quarter) == 30
    assert set(quarter) <= set(kept_texts(run, "keep-0.5"))
    assert not (run / "summaries").exists()


def test_a_scored_run_selects_the_same_documents(here: Path, tmp_path: Path) -> None:
    scored = copy(here, "scored", tmp_path)
    select.run(["--output", str(scored), "--keep_fraction", "0.5"])
    assert kept_texts(scored, "keep-0.5") == kept_texts(here / "run", "keep-0.5")


def test_a_killed_run_resumes_and_keeps_the_same_documents(here: Path, tmp_path: Path) -> None:
    killed = copy(here, "killed", tmp_path)
    before = contents(killed / "scores")
    curate.run([*CURATE, "--output", str(killed)])
    after = contents(killed / "scores")

    assert before.items() <= after.items()
    assert len(after) == 7
    assert [path.name for path in (killed / "summaries").iterdir()] == ["000000.json"]
    assert pq.read_table(killed / "scores").num_rows == 122
    assert kept_texts(killed, "keep-0.5") == kept_texts(here / "run", "keep-0.5")


def test_summaries_beside_the_scores_are_read(here: Path, tmp_path: Path) -> None:
    scored = copy(here, "scored", tmp_path)
    (scored / "scoring.json").unlink()
    found = status.run([str(scored)])
    assert found is not None
    assert (found.splits_done, found.counts.scored, found.exact) == (7, 120, True)

    before = contents(scored / "scores")
    curate.run([*CURATE, "--output", str(scored)])
    assert contents(scored / "scores") == before
    assert not (scored / "summaries").exists()
    assert kept_texts(scored, "keep-0.5") == kept_texts(here / "run", "keep-0.5")


def test_the_rater_gives_the_scores_that_it_gave(here: Path) -> None:
    rows = [
        row
        for path in here.glob("run/scores/??/*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["key"] is not None and row["score"] is not None
    ]
    texts = kept_texts(here / "run", "keep-0.5")
    scored = Scorer(load_rater("rater")).score(texts)
    assert np.isfinite(scored.scores_N).all()

    # Each text has the size, the tokens and, up to rounding, the score of a scored document.
    then = sorted((row["bytes"], row["tokens"], row["score"]) for row in rows)
    for text, tokens, score in zip(texts, scored.tokens_N, scored.scores_N, strict=True):
        alike = [s for size, t, s in then if (size, t) == (len(text.encode()), tokens)]
        assert min(abs(s - score) for s in alike) < 1e-5
