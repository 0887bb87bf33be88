"""Several raters in one read: their scores side by side, as each gives them by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import datarater
from datarater.pipelines.commands import curate, score, select
from datarater.rater_model import exit_codes
from tests.support.corpora import as_lines, make_records
from tests.support.raters import save_tiny_rater

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a corpus with a bad record, and two raters."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "in").mkdir()
    (folder / "in/a.jsonl").write_bytes(as_lines(make_records(40, 0)) + b"bad\n")
    save_tiny_rater(folder / "first", seed=0)
    save_tiny_rater(folder / "second", seed=1)
    return folder


def scoring_flags(folder: Path, output: str, *raters: str) -> list[str]:
    flags = ["--input", f"{folder}/in", "--output", f"{folder}/{output}"]
    return [*flags, *(word for rater in raters for word in ("--rater", rater))]


def test_several_raters_score_as_each_by_itself_and_rules_name_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = f"{folder}/first", f"{folder}/second"
    rule = ["--keep_count", "7", "--rank_by", "rater - 2 * other", "--output_format", "scores"]
    flags = scoring_flags(folder, "both", f"other={second}", first)
    assert curate.main([*flags, *rule, "--name", "it"]) == 0
    assert score.main(scoring_flags(folder, "one", first)) == 0
    assert score.main(scoring_flags(folder, "two", second)) == 0

    # Each score is the one that the rater gives alone, to the bit.
    columns = ["key", "score", "tokens", "status"]
    both = datarater.read_scores(folder / "both")
    assert both.select(columns).equals(datarater.read_scores(folder / "one").select(columns))
    assert both["score_other"].equals(datarater.read_scores(folder / "two")["score"])

    # The rule ranks by both, and the output has both.
    kept = pq.read_table(folder / "both/selections/it/kept").to_pylist()
    ranks = sorted(
        (row["score"] - 2 * row["score_other"] for row in both.to_pylist() if row["key"]),
        reverse=True,
    )
    assert sorted((row["ranked_by"] for row in kept), reverse=True) == pytest.approx(ranks[:7])
    for row in kept:
        assert row["ranked_by"] == pytest.approx(row["datarater_score"] - 2 * row["score_other"])

    # So can a later selection, which names the raters of the run.
    again = ["--output", f"{folder}/both", "--keep_fraction", "0.5", "--where"]
    assert select.main([*again, "other > rater"]) == 0
    manifest = json.loads((folder / "both/selections/keep-0.5-ranked/manifest.json").read_bytes())
    assert manifest["identity"]["other_raters"].keys() == {"other"}
    assert manifest["counts"]["kept"] + manifest["counts"]["dropped"] == 40
    capsys.readouterr()
    assert select.main([*again, "othr > rater", "--name", "x"]) == exit_codes.WRONG_USAGE
    assert "--where: there is no column 'othr'; did you mean 'other'?" in capsys.readouterr().err

    # The names and digests belong to the run.
    changed = scoring_flags(folder, "both", first, f"other={first}")
    assert score.main(changed) == exit_codes.OTHER_RUN
    assert "other_raters.other is " in capsys.readouterr().err
    assert score.main(scoring_flags(folder, "both", first)) == exit_codes.OTHER_RUN


@pytest.mark.parametrize(
    ("raters", "message"),
    [
        (["first", "second"], "give one rater without a name"),
        (["other=first"], "give one rater without a name"),
        (["first", "x=second", "x=second"], "--rater x: two raters have this name"),
        (["first", "tokens=second"], "--rater tokens: 'tokens' is a column of every document"),
        (["first", "x=absent"], "--rater x: "),
    ],
)
def test_raters_that_cannot_be_meant_are_refused(
    folder: Path, raters: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [f"{rater.rpartition('=')[0]}={folder}/{rater.rpartition('=')[2]}" for rater in raters]
    flags = scoring_flags(folder, "none", *(path.removeprefix("=") for path in paths))
    try:
        code = score.main(flags)
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    assert code == exit_codes.WRONG_USAGE
    assert message in capsys.readouterr().err
    assert not (folder / "none").exists()
