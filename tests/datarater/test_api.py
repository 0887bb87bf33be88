"""The Python interface gives what the commands give."""

import json
from pathlib import Path
from typing import Any

import pytest

import datarater
from datarater import cli
from tests.support.corpora import as_lines, make_records


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.jsonl").write_bytes(as_lines(make_records(30, 1)) + b"not json\n")
    (folder / "b.jsonl").write_bytes(as_lines(make_records(20, 2)))
    return folder


def test_curate_and_select_keep_what_the_commands_keep(
    corpus: Path, rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = datarater.curate(corpus / "*.jsonl", rater, tmp_path / "api", keep_fraction=0.5)
    assert capsys.readouterr().out == ""
    flags = ["--input", f"{corpus}/*.jsonl", "--rater", str(rater), "--output"]
    assert cli.main(["curate", *flags, str(tmp_path / "command"), "--keep_fraction", "0.5"]) == 0

    selection = tmp_path / "command" / "selections" / "keep-0.5"
    expected = json.loads((selection / "manifest.json").read_bytes())
    assert manifest["counts"] == expected["counts"]
    assert (manifest["counts"]["read"], manifest["counts"]["kept"]) == (51, 25)
    assert [file["sha256"] for file in manifest["files"]] == [
        file["sha256"] for file in expected["files"]
    ]

    again = datarater.select(tmp_path / "api", keep_count=3, per="source")
    assert again["counts"]["kept"] == 9


def test_scores_read_as_one_table(corpus: Path, rater: Path, tmp_path: Path) -> None:
    scoring = datarater.score([corpus / "a.jsonl", corpus / "b.jsonl"], rater, tmp_path / "run")
    assert scoring["counts"]["scored"] == 50
    table = datarater.read_scores(tmp_path / "run", columns=["key", "score", "status"])
    assert table.num_rows == 51
    scorer = datarater.Scorer(datarater.load_rater(rater))
    records = {json.dumps(record["id"]): record["text"] for record in make_records(20, 2)}
    rows = [row for row in table.to_pylist() if row["key"] in records]
    scores_N = scorer.score([records[row["key"]] for row in rows]).scores_N
    assert [row["score"] for row in rows] == scores_N.tolist()


def test_a_folder_without_scores_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(datarater.CurationError, match="run `datarater score` into it first"):
        datarater.read_scores(tmp_path)


def test_two_rules_are_refused_before_any_work(rater: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of keep_fraction, keep_count"):
        datarater.curate("*.jsonl", rater, tmp_path / "run", keep_fraction=0.5, keep_count=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../elsewhere"}, "is not a name of letters"),
        ({"output_format": "csv"}, "'csv' is not one of same, jsonl"),
        ({"discard_fraction": "0.5"}, "discard_fraction needs accept_batch"),
    ],
)
def test_options_are_checked_before_any_work(
    options: dict[str, Any], message: str, rater: Path, tmp_path: Path
) -> None:
    with pytest.raises((datarater.CurationError, ValueError), match=message):
        datarater.curate("*.jsonl", rater, tmp_path / "run", keep_fraction=0.5, **options)
    assert not (tmp_path / "run").exists()


def test_a_damaged_score_file_is_named(corpus: Path, rater: Path, tmp_path: Path) -> None:
    datarater.score(corpus / "a.jsonl", rater, tmp_path / "run")
    (path,) = (tmp_path / "run" / "scores").glob("??/*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(datarater.CurationError, match=rf"{path} is not a score file"):
        datarater.read_scores(tmp_path / "run")
