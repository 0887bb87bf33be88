"""What the flags of a ranking mean, and what of them is refused before work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater.pipelines.commands import curate, select
from datarater.pipelines.commands.ranking import ranking_options
from datarater.pipelines.errors import CurationError, NoMatchError, UsageError
from datarater.pipelines.run_folder.ranking_options import ColumnType
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import save_rater
from tests.support.raters import random_student


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, list[str]]:
    """Writes two tables, one of two files whose types differ where they may."""
    lang = pa.table({"id": ["a"], "language": ["en"], "parts": [[1]], "n": [1]})
    pq.write_table(lang, tmp_path / "lang-0.parquet")
    later = {"id": ["b"], "language": pa.array([None]), "parts": [[1]], "n": [0.5]}
    pq.write_table(pa.table(later), tmp_path / "lang-1.parquet")
    pq.write_table(pa.table({"key": ['"a"'], "url": ["u"], "ok": [True]}), tmp_path / "q.parquet")
    return {"lang": [f"{tmp_path}/lang-*"], "q": [f"{tmp_path}/q.parquet"]}


def test_tables_are_read_by_the_columns_that_rules_use(tables: dict[str, list[str]]) -> None:
    options = ranking_options(
        tables, {"q": "url"}, "q.ok and lang.language == 'en'", "rater + lang.n", "lang.n"
    )
    assert options is not None
    lang, quality = options.joins
    assert (lang.key, lang.by_id) == ("id", True)
    assert lang.columns == {"language": ColumnType.TEXT, "n": ColumnType.NUMBER}
    assert lang.inputs.files == 2
    assert (quality.key, quality.by_id) == ("url", True)
    assert quality.columns == {"ok": ColumnType.TRUTH}

    (by_key,) = ranking_options({"q": tables["q"]}, where="q.ok").joins  # type: ignore[union-attr]
    assert (by_key.key, by_key.by_id) == ("key", False)


def test_without_any_of_its_options_there_is_no_ranking() -> None:
    assert ranking_options({}) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"where": "lang.langage == 'en'"}, r"^--where: .*; did you mean 'lang\.language'\?"),
        ({"where": "lang.parts == 'en'"}, "^--where: .*numbers, texts and truths.*'lang.parts'"),
        ({"where": "rater"}, "^--where: 'rater' is a number, not a truth"),
        ({"where": "rater >"}, "^--where: .*not an expression"),
        ({"rank_by": "lang.language"}, "^--rank_by: 'lang.language' is a text, not a number"),
        ({"rank_by": "0.5 * rate"}, r"^--rank_by: .*; did you mean 'rater'\?"),
        ({"tokens_from": "lang.m"}, r"^--tokens_from: .*; did you mean 'lang\.n'\?"),
        ({"tokens_from": "x.json"}, "^--tokens_from: 'x.json' is neither a tokenizer.json nor a "),
        ({"tokens_from": "record."}, "^--tokens_from: .* write record.FIELD for a field of the "),
        ({"tokens_from": "lang.language"}, "^--tokens_from: .* is a text, not a number"),
        ({"where": "lang.n > 1"}, "^--join q: no rule uses a column of it; name one as q.COLUMN"),
        ({"keys": {"lang": "idd"}, "where": "lang.n > 1"}, "^--join_key lang=idd: .*'idd'"),
        ({"keys": {"lang": "parts"}}, r"^--join lang: the key column 'parts' .*list"),
        ({"keys": {"x": "id"}}, "^--join_key x: there is no --join x"),
        ({"joins": {"rater": ["x"]}}, "^--join rater: 'rater' is a column of every document"),
        ({"joins": {"record": ["x"]}}, "^--join record: record.FIELD is a field of the records"),
        ({"joins": {"not": ["x"]}}, "^--join not: 'not' is not a name"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_flag(
    tables: dict[str, list[str]], flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ranking_options(**{"joins": tables, **flags})


def test_a_table_without_a_known_key_asks_for_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"doc": ["a"], "v": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=r"^--join t: .* by --join_key t=COLUMN; there are doc, v"):
        ranking_options({"t": [str(tmp_path)]}, where="t.v > 0")


def test_files_are_looked_at_before_work_begins(tmp_path: Path) -> None:
    with pytest.raises(NoMatchError, match=r"^--join t: .*absent"):
        ranking_options({"t": [f"{tmp_path}/absent.parquet"]}, where="t.v > 0")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CurationError, match=r"^--join t: .*bad\.parquet is not a Parquet file"):
        ranking_options({"t": [f"{tmp_path}/bad.parquet"]}, where="t.v > 0")


def test_a_word_of_rules_names_no_table(tables: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError, match=r"^--join true: 'true' is not a name .* no word of rules"):
        ranking_options({"true": tables["lang"]}, where="true.n > 0")


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.table(columns, names=["id", "v", "v"]), tmp_path / "t.parquet")
    with pytest.raises(CurationError, match=r"^--join t: .*t\.parquet has 2 columns 'v'"):
        ranking_options({"t": [f"{tmp_path}/t.parquet"]}, where="t.v > 0")


def test_columns_of_several_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "v": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"id": ["a"], "v": ["x"]}), tmp_path / "1.parquet")
    with pytest.raises(UsageError, match=r"--where: .*'t\.v'"):
        ranking_options({"t": [str(tmp_path)]}, where="t.v > 0")


def test_the_command_refuses_with_its_flag_and_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", str(tmp_path), "--keep_fraction", "0.5"]
    assert select.main([*flags, "--where", "bytess > 3"]) == exit_codes.WRONG_USAGE
    line = "datarater select: --where: there is no column 'bytess'; did you mean 'bytes'?"
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)

    with pytest.raises(SystemExit):
        select.main([*flags, "--join", "labels.parquet"])
    assert "argument --join: 'labels.parquet' is not a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--rank_by", "2 * rater", "--reference", "other"],
            "--rank_by: the numbers cannot be compared with the scores of --reference; give one",
        ),
        *(
            (
                [flag, value, "--student", "other"],
                "--student: a student is in doubt near the cutoff",
            )
            for flag, value in [
                ("--rank_by", "2 * rater"),
                ("--where", "bytes > 3"),
                ("--tokens_from", "bytes"),
                ("--dedup", "0.8"),
            ]
        ),
    ],
)
def test_a_ranking_that_a_reference_or_a_student_does_not_go_with_is_refused_before_work(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a text"}\n')
    save_rater(tmp_path / "rater", random_student())
    folders = ["--input", f"{tmp_path}/a.jsonl", "--rater", f"{tmp_path}/rater"]
    folders += ["--output", f"{tmp_path}/run", "--keep_fraction", "0.5"]
    assert curate.main([*folders, *flags]) == exit_codes.WRONG_USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
