from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater import cli
from datarater.meta_training.analysis.analysis import Analysis, run_analysis
from datarater.meta_training.analysis.command import analysis_of, make_parser
from datarater.meta_training.analysis.documents import DocumentOptions, prepare_documents
from datarater.meta_training.analysis.features import FEATURES, features_of
from datarater.meta_training.analysis.tables import print_tables
from datarater.meta_training.evaluate.errors import EmptyDataError, FlagError
from datarater.meta_training.evaluate.workers import Event
from datarater.rater_model import exit_codes
from datarater.rater_model.documents.records import ReadOptions
from tests.support.raters import save_tiny_rater
from tests.support.run_folders import write_run

WORDS = ["the", "old", "boats", "12", "Harbors,", "and", "77", "gulls", "cried!", "{calm}", "water"]
COUNT = 120


def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 20 + 2 * index)) for index in range(COUNT)]


def write_pool(folder: Path) -> str:
    rows = [
        {
            "id": index,
            "text": text,
            "source": "web" if index % 3 else "books",
            "tongue": "fr" if index % 2 else "en",
            "year": 1900 + index,
        }
        for index, text in enumerate(texts())
    ]
    path = folder / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": 999}\n')
    return str(path)


def digit_scores() -> dict[str, float | None]:
    """Returns minus the share of digits of each document of the pool, by key."""
    index = list(FEATURES).index("digit_share")
    return {str(key): -features_of(text)[index] for key, text in enumerate(texts())}


def inline(tasks: Sequence[Callable[[Any], Any]]) -> Iterator[Event]:
    for index, task in enumerate(tasks):
        yield Event(index, 1.0, task(lambda share: None), True)


def asked(*flags: str) -> Analysis:
    return analysis_of(make_parser().parse_args([*flags, "--output", "out"]))


def test_a_run_whose_scores_are_a_feature_is_explained_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_pool(tmp_path)
    run = write_run(tmp_path / "run", digit_scores(), [pool])
    flags = ["--run", run, "--by", "year", "--language_field", "tongue", "--min_group", "10"]
    lines: list[str] = []
    report = run_analysis(asked(*flags, "--repeats", "1"), tmp_path, lines.append, inline)

    # The pool comes from the run's plan.
    assert report["documents"] == {
        "documents_read": COUNT,
        "bytes_read": sum(map(len, texts())),
        "documents": COUNT,
        "rejected": {"no_text": 1},
        "analyzed": COUNT,
    }
    rater = report["raters"][0]
    assert (rater["name"], rater["digest"]) == (run, "d1ge57")
    regression = rater["regression"]
    assert regression["ols_r2_cross_validated"] > 0.999
    coefficients = dict(zip(regression["features"], regression["lasso_paper"], strict=True))
    assert min(coefficients, key=lambda name: coefficients[name]) == "digit_share"
    assert coefficients["digit_share"] < -0.9

    by_field = {each["field"]: each for each in rater["disparity"]}
    assert set(by_field) == {"source", "language", "length in bytes", "year"}
    assert {row["group"] for row in by_field["language"]["groups"]} == {"en", "fr"}
    assert len(by_field["year"]["groups"]) == 10
    assert report["agreement"] == report["autocorrelation"] == []
    assert any("few for 27 features" in warning for warning in report["warnings"])
    assert json.loads((tmp_path / "analysis.json").read_text()) == report
    print_tables(report["tables"])
    said = capsys.readouterr().out
    assert "digit_share" in said
    assert "Keep rate by year" in said

    # The second launch reads the same documents from the cache and computes nothing.
    def nothing(tasks: Sequence[Any]) -> Iterator[Event]:
        raise AssertionError(tasks)

    again = run_analysis(asked(*flags, "--repeats", "1"), tmp_path, lines.append, nothing)
    assert again == report


def test_raters_are_compared_and_scores_are_those_of_the_scorer(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    raters = [str(save_tiny_rater(tmp_path / f"rater{seed}", seed)) for seed in (0, 1)]
    workdir = tmp_path / "work"
    for step, seed in ((0, 0), (10, 1)):
        save_tiny_rater(workdir / "raters" / f"step_{step:08d}", seed)
    flags = ["--pool", pool, "--rater", raters[0], "--rater", raters[1], "--workdir", str(workdir)]
    flags += ["--repeats", "1", "--folds", "2", "--language_field", "tongue"]
    report = run_analysis(asked(*flags), tmp_path, lambda line: None, inline)

    (pair,) = report["agreement"]
    assert [pair["first"], pair["second"]] == raters
    steps = report["autocorrelation"]
    assert [row["step"] for row in steps] == [0, 10]
    assert steps[0]["with_last"] == pytest.approx(steps[1]["with_previous"])
    # The two exports are the two raters, on the same documents.
    assert steps[0]["spearman_with_last"] == pytest.approx(pair["spearman"])
    titles = [table["title"] for table in report["tables"]]
    assert "Agreement between raters" in titles
    assert "Scores over training" in titles
    for table in report["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_a_sample_of_a_pool_depends_on_the_texts_alone(tmp_path: Path) -> None:
    pool = Path(write_pool(tmp_path))
    lines = pool.read_text().splitlines(keepends=True)
    (tmp_path / "reversed.jsonl").write_text("".join(lines[::-1]))
    keys = []
    for path in (pool, tmp_path / "reversed.jsonl"):
        options = DocumentOptions((str(path),), fields=("year",), max_documents=40)
        documents = prepare_documents(options, tmp_path, lambda line: None)
        keys.append(documents.keys)
        assert documents.fields["year"] == [str(1900 + int(key)) for key in documents.keys]
        assert documents.counts["documents_read"] == COUNT
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 40


def test_documents_without_a_score_are_left_out_with_a_warning(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    scores = digit_scores()
    del scores["5"]
    scores["6"] = None
    run = write_run(tmp_path / "run", scores, [pool])
    # Key 7 occurs again with another score.
    more = pa.table({"key": ["7"], "score": pa.array([3.0], pa.float32())})
    pq.write_table(more, tmp_path / "run" / "scores" / "3f" / "00000001.parquet")
    report = run_analysis(
        asked("--run", run, "--repeats", "1"), tmp_path, lambda line: None, inline
    )
    assert report["documents"]["analyzed"] == COUNT - 3
    assert any(
        "left out: 1 document with the key of another" in warning for warning in report["warnings"]
    )
    assert any(
        "left out of 120 documents: 3 without a" in warning for warning in report["warnings"]
    )


def test_too_few_documents_are_refused_by_the_flag_of_the_folds(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    run = write_run(tmp_path / "run", {str(key): 1.0 * key for key in range(7)}, [pool])
    with pytest.raises(FlagError, match="--folds 10 needs at least 10 documents with scores, not"):
        run_analysis(asked("--run", run), tmp_path, lambda line: None, inline)


def test_equal_scores_explain_nothing_and_say_so(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    run = write_run(tmp_path / "run", {str(key): 1.0 for key in range(COUNT)}, [pool])
    report = run_analysis(asked("--run", run), tmp_path, lambda line: None, inline)
    assert report["raters"][0]["regression"] is None
    assert any("all scores are equal" in warning for warning in report["warnings"])


def test_a_field_that_no_document_has_is_refused(tmp_path: Path) -> None:
    options = DocumentOptions((write_pool(tmp_path),), fields=("nation",))
    with pytest.raises(FlagError, match="'nation' is in no document; check --by"):
        prepare_documents(options, tmp_path, lambda line: None)
    empty = DocumentOptions((write_pool(tmp_path),), read=ReadOptions(text_field="body"))
    with pytest.raises(EmptyDataError, match=r"no document; records rejected: \{'no_text': 121\}"):
        prepare_documents(empty, tmp_path, lambda line: None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pool", "p/*"], "give --rater DIR, --run RUN or --workdir DIR"),
        (["--rater", "r"], "give --pool FILES, the documents that the rater scores"),
        (["--run", "nowhere"], "--run nowhere: there is no nowhere/plan/identity.json; give a"),
        (["--pool", "p", "--rater", "r", "--by", "source"], "--by source: keep rates by source,"),
        (["--pool", "p", "--workdir", "w", "--keep", "1"], "argument --keep: '1' is not a share"),
        (["--max_disparity", "0.8"], "argument --max_disparity: '0.8' is not a ratio above 1"),
        (["--folds", "1"], "argument --folds: '1' is not a number of folds; two are the least"),
        (["--pool", "p", "--rater", "r"], "--rater: r is not a rater checkpoint: there is no"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["analyze", *flags, "--output", "out"]) == exit_codes.WRONG_USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"datarater analyze: {message}")
    assert said.count("\n") == 1


def test_a_run_folder_that_is_not_one_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    pool = write_pool(tmp_path)
    run = write_run(tmp_path / "run", {"x": 1.0}, [pool])
    with pytest.raises(FlagError, match="keys of the pool look like"):
        run_analysis(asked("--run", run), tmp_path, lambda line: None, inline)

    file = tmp_path / "run" / "scores" / "3f" / "00000000.parquet"
    pq.write_table(pa.table({"key": ["1"], "value": [1.0]}), file)
    with pytest.raises(FlagError, match="has no column score; it has key, value"):
        run_analysis(asked("--run", run), tmp_path, lambda line: None, inline)
    file.write_bytes(b"text")
    with pytest.raises(FlagError, match="is not a Parquet file"):
        run_analysis(asked("--run", run), tmp_path, lambda line: None, inline)
    file.unlink()
    with pytest.raises(FlagError, match="there are no score files in"):
        run_analysis(asked("--run", run), tmp_path, lambda line: None, inline)
    (tmp_path / "run" / "plan" / "identity.json").write_text("{}")
    with pytest.raises(FlagError, match="the plan cannot be read"):
        asked("--run", run)


def test_a_workdir_without_two_exports_is_refused(tmp_path: Path) -> None:
    flags = ["--workdir", str(tmp_path), "--pool", write_pool(tmp_path), "--rater"]
    rater = str(save_tiny_rater(tmp_path / "rater"))
    with pytest.raises(FlagError, match="has 0 exported raters, and two are the least"):
        run_analysis(asked(*flags, rater), tmp_path, lambda line: None, inline)


def test_flags_reach_the_analysis() -> None:
    analysis = asked("--pool", "a,b", "--workdir", "w", "--text_field", "body", "--by", "x")
    assert analysis.raters == ("w/rater",)
    assert analysis.documents.pool == ("a", "b")
    assert analysis.documents.read == ReadOptions(text_field="body")
    assert analysis.documents.fields == analysis.by == ("x",)


@pytest.mark.slow
def test_the_command_scores_in_worker_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rater = save_tiny_rater(tmp_path / "rater")
    flags = ["--pool", write_pool(tmp_path), "--rater", str(rater), "--output", str(tmp_path / "o")]
    assert cli.main(["analyze", *flags, "--repeats", "1", "--processes", "1"]) == exit_codes.DONE
    said = capsys.readouterr()
    assert "scoring with" in said.err
    assert said.out.startswith("warning: ")
    assert f"written to {tmp_path / 'o' / 'analysis.json'}" in said.out
