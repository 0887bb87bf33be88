"""`--append` as a user runs it: new files are scored into a run folder that has selections."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datarater
from datarater.pipelines.commands import curate, dedup, score, select, status
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.rules import KeepFraction
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import save_rater
from datarater.report import command as report
from tests.support.corpora import as_lines, make_records
from tests.support.curation import read_kept
from tests.support.near_duplicates import ComparedCorpus, planted
from tests.support.ranked_runs import expected_kept, oracle, place_of, write_table
from tests.support.raters import random_student


def flags(inputs: Path, rater: Path, output: Path, *more: str) -> list[str]:
    folders = ["--input", str(inputs), "--rater", str(rater), "--output", str(output)]
    return [*folders, "--keep_fraction", "0.5", *more]


def write(folder: Path, name: str, seed: int, count: int) -> None:
    folder.mkdir(exist_ok=True)
    records = [{**record, "id": f"{name}-{record['id']}"} for record in make_records(count, seed)]
    (folder / name).write_bytes(as_lines(records))


def ids(run: Path, name: str) -> list[str]:
    return sorted(row["id"] for row in read_kept(run / "selections" / name))


def manifest_of(run: Path, name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run / f"selections/{name}/manifest.json").read_bytes())
    return manifest


def test_new_files_are_scored_into_the_folder_and_selections_cover_all(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, run = tmp_path / "in", tmp_path / "run"
    for name, seed, count in (("a.jsonl", 1, 30), ("c.jsonl", 2, 21)):
        write(inputs, name, seed, count)
    assert curate.main(flags(inputs, rater, run)) == 0
    before = ids(run, "keep-0.5")
    write(inputs, "b.jsonl", 3, 40)
    capsys.readouterr()

    # Without the flag the message names it; the name of a selection stays taken.
    assert curate.main(flags(inputs, rater, run)) == 3
    assert "b.jsonl is new. Add --append to score" in capsys.readouterr().err
    assert curate.main(flags(inputs, rater, run, "--append")) == 3
    message = capsys.readouterr().err
    assert "was selected before files were appended" in message
    assert "--name" in message
    assert not (run / "plan/identity-0001.json").exists()

    assert curate.main(flags(inputs, rater, run, "--append", "--name", "all")) == 0
    assert "append: 1 new" in capsys.readouterr().out
    fresh = tmp_path / "fresh"
    assert curate.main(flags(inputs, rater, fresh)) == 0
    assert ids(run, "all") == ids(fresh, "keep-0.5")
    assert manifest_of(run, "all")["plans"] == 2
    assert manifest_of(run, "all")["counts"] == manifest_of(fresh, "keep-0.5")["counts"]

    # What was there stays; status, reports and further selections cover all.
    assert ids(run, "keep-0.5") == before
    found = status.run([str(run)])
    assert found is not None
    assert (found.finished, found.counts.read) == (True, 91)
    assert len(report.run([str(run)])) == 2
    assert f"kept {len(before)}" in (run / "selections/keep-0.5/report.html").read_text()
    assert datarater.read_scores(run, columns=["file", "score"]).num_rows == 91
    assert select.main(["--output", str(run), "--keep_count", "60", "--name", "it"]) == 0
    assert len(ids(run, "it")) == 60
    assert score.main([*flags(inputs, rater, run)[:-2], "--append"]) == 0


@pytest.mark.slow
def test_a_run_folder_of_version_0_1_0_is_appended_to(
    rater: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.earlier_versions import unpacked_where_made

    with unpacked_where_made() as artifacts:
        monkeypatch.chdir(artifacts)
        shutil.copytree("run", tmp_path / "run")
        records = [{**record, "id": f"new-{record['id']}"} for record in make_records(20, 7)]
        (tmp_path / "new.jsonl").write_bytes(as_lines(records))
        made_with = ["--rater", "rater", "--split_bytes", "2500", "--output", str(tmp_path / "run")]
        keep = ["--keep_fraction", "0.5", "--name", "all"]
        inputs = ["--input", str(tmp_path / "new.jsonl"), "--append"]
        assert curate.main([*inputs, *made_with, *keep]) == 0
        manifest = manifest_of(tmp_path / "run", "all")
        assert (manifest["counts"]["read"], manifest["scored"], manifest["plans"]) == (142, 140, 2)
        assert manifest["counts"]["kept"] == 70 == len(read_kept(tmp_path / "run/selections/all"))
        scores = datarater.read_scores(tmp_path / "run")
        assert scores.num_rows == 142
        assert scores["file"].null_count == 122


@pytest.mark.slow
def test_joins_and_near_duplicates_cover_appended_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a rater that needs no compiler: a table of n-grams."""
    save_rater(tmp_path / "rater", random_student())
    texts = planted(30, 45, seed=6).texts
    records = [{"id": f"d{n}", "text": text, "source": "s"} for n, text in enumerate(texts)]
    labels: list[dict[str, Any]] = [
        {"id": f"d{n}", "bonus": n % 5} for n in range(0, len(texts), 2)
    ]
    write_table(tmp_path, "labels", [labels], id=pa.string(), bonus=pa.int64())

    def scored(run: Path, *parts: int) -> None:
        for part in parts:
            inputs = tmp_path / "in" / f"{part}.jsonl"
            inputs.parent.mkdir(exist_ok=True)
            inputs.write_bytes(as_lines(records[part::3]))
        folders = ["--input", f"{tmp_path}/in", "--rater", f"{tmp_path}/rater"]
        assert score.main([*folders, "--output", str(run), "--append"]) == 0

    def selected(run: Path, name: str, duplicates: str) -> int:
        flags = ["--output", str(run), "--keep_fraction", "0.5", "--name", name]
        flags += ["--join", f"labels={tmp_path}/labels-0.parquet", "--output_format", "scores"]
        flags += ["--rank_by", "rater + 0.01 * labels.bonus", "--dedup", duplicates]
        return select.main(flags)

    # Near-duplicates that were found among the first files do not do for all.
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    scored(run, 0, 2)
    assert selected(run, "first", "0.8") == 0
    scored(run, 1)
    capsys.readouterr()
    assert selected(run, "all", "0.8") == exit_codes.OTHER_RUN
    assert (
        "similarity-0.8 was made before files were appended to the run folder: give the "
        "deduplication of all documents another name, by datarater dedup --similarity 0.8 --name"
    ) in capsys.readouterr().err
    assert not (run / "selections/all").exists()
    assert dedup.main(["--output", str(run), "--name", "of-all"]) == 0
    assert selected(run, "all", "of-all") == 0

    # The oracle, whose near-duplicates are as exact similarities say.
    compared = ComparedCorpus.of(run, run / "duplicates/of-all")
    compared.check()
    left, bonus = set(compared.left()), {row["id"]: row["bonus"] for row in labels}

    def judge(row: dict[str, Any]) -> tuple[float | None, int]:
        added = bonus.get(json.loads(row["key"]))
        is_left = (row["file"], row["position"]) in left and added is not None
        return row["score"] + 0.01 * added if is_left and added is not None else None, row["tokens"]

    rule = KeepFraction("0.5")
    request = SelectionRequest(str(run), Policy(rule), 0, "scores", 1)
    expected = sorted(place_of(one) for one in expected_kept(oracle(request, judge), rule))
    assert 0 < len(expected) < len(left) / 2
    assert {Path(path).name for path, _ in expected} == {"0.jsonl", "1.jsonl", "2.jsonl"}
    counts = manifest_of(run, "all")["counts"]
    assert counts["excluded_by_reason"]["near_duplicate"] == len(compared.rows) > 10
    assert (counts["read"], counts["kept"]) == (len(texts), len(expected))

    # A run over all files at once keeps the same.
    scored(fresh)
    assert selected(fresh, "all", "0.8") == 0
    for folder in (run, fresh):
        rows = pq.read_table(folder / "selections/all/kept").to_pylist()
        assert sorted((row["path"], row["position"]) for row in rows) == expected
    assert manifest_of(fresh, "all")["counts"] == counts
