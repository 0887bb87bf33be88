"""`curate --student` and `distil` as a user runs them, on a small corpus."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard

import datarater
from datarater.pipelines.commands import curate, dedup, select, status
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.selection.ranking import key_hash, seeded_hash
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater, save_rater
from datarater.rater_model.ngram_scorer import make_scorer
from datarater.report.page import Histogram
from datarater.report.sample import Limits
from datarater.report.selection import selection_page
from tests.support.corpora import corpus_records, write_corpus
from tests.support.raters import random_student
from tests.support.runners import prism_flags
from tests.support.shared_folders import made_once

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def student(rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    provenance = {"distilled_from": load_rater(rater).digest}
    save_rater(folder, random_student(provenance=provenance))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "corpus", lambda folder: write_corpus(folder / "in")) / "in"


def flags(corpus: Path, rater: Path, student: Path, output: Path, *more: str) -> list[str]:
    named = {"--input": corpus / "*", "--rater": rater, "--student": student, "--output": output}
    words = [str(word) for pair in named.items() for word in pair]
    return [*words, "--split_bytes", "2500", *more]


HALF = ("--keep_fraction", "0.5", "--agreement", "0.96", "--output_format", "attributes")


@pytest.fixture(scope="module")
def run(corpus: Path, rater: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cascade") / "run"
    assert curate.main(flags(corpus, rater, student, output, *HALF)) == exit_codes.DONE
    return output


def rows_of(run: Path) -> Rows:
    rows = datarater.read_scores(run).to_pylist()
    return {json.loads(row["key"]): row for row in rows if row["status"] == "scored"}


def file_lines(path: Path) -> list[bytes]:
    """Returns the lines of an attributes file, whose compression is that of its input."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data.splitlines()


def scores_of(rater: Path, texts: list[str]) -> list[float]:
    scores: list[float] = make_scorer(load_rater(rater)).score(texts).scores_N.tolist()
    return scores


def test_what_is_kept_is_the_best_part_of_the_specified_order(
    run: Path, rater: Path, student: Path
) -> None:
    texts = {record["id"]: record["text"] for record in corpus_records()}
    by_student, by_rater = (
        dict(zip(texts, scores_of(path, [*texts.values()]), strict=True))
        for path in (student, rater)
    )
    rows = rows_of(run)
    assert rows.keys() == texts.keys()

    # The three classes, each scored by the one that it should be.
    cascade = json.loads((run / "plan/identity.json").read_bytes())["cascade"]
    assert cascade["student"] == load_rater(student).digest
    half = cascade["offset"] / 2
    certainty = {
        key: 0 if abs(row["score"]) < half else int(np.sign(row["score"]))
        for key, row in rows.items()
    }
    assert set(certainty.values()) == {-1, 0, 1}
    for key, row in rows.items():
        assert row["scored_by"] == ("student" if certainty[key] else "rater")
        own = row["score"] - certainty[key] * cascade["offset"]
        expected = by_student[key] if certainty[key] else by_rater[key]
        assert own == pytest.approx(expected, abs=1e-5)
        assert row["tokens"] == len(texts[key].encode())

    # The student's order decides what is in doubt, and the order of the classes what is kept.
    sure = [key for key in rows if certainty[key] == 1]
    assert len(sure) <= cascade["surely_kept"] * len(rows)
    others = [by_student[key] for key in rows if certainty[key] != 1]
    assert min(by_student[key] for key in sure) > max(others)
    hashes = {key: int(seeded_hash([key_hash(json.dumps(key))], 0)[0]) for key in rows}
    ranked = sorted(rows, key=lambda key: (-rows[key]["score"], hashes[key]))
    kept = [
        json.loads(line)
        for path in (run / "selections/keep-0.5/kept").iterdir()
        for line in file_lines(path)
    ]
    assert {row["id"] for row in kept} == set(ranked[: len(rows) // 2])

    # Each document's attributes say who scored it.
    for row in kept:
        (start, end, by_it), *_ = row["attributes"]["datarater__by_student"]
        assert (start, end) == (0, len(texts[row["id"]]))
        assert bool(by_it) == (certainty[row["id"]] != 0)


def test_the_counts_add_up_in_both_passes(run: Path) -> None:
    for folder in (run, run / "student"):
        counts = json.loads((folder / "scoring.json").read_bytes())["counts"]
        assert (counts["read"], counts["scored"]) == (242, 240)
        assert counts["rejected"] == {"not_json": 1, "no_text": 1}
    counts = json.loads((run / "selections/keep-0.5/manifest.json").read_bytes())["counts"]
    assert counts["read"] == counts["kept"] + counts["dropped"] + counts["rejected"]


def test_the_same_command_finds_everything_done_and_another_cascade_is_refused(
    run: Path, corpus: Path, rater: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    assert curate.main(flags(corpus, rater, student, run, *HALF)) == exit_codes.DONE
    assert "by rater" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}

    more = ("--keep_fraction", "0.5", "--agreement", "0.95")
    assert curate.main(flags(corpus, rater, student, run, *more)) == exit_codes.OTHER_RUN
    assert "cascade.agreement is 0.96 there, but 0.95 now" in capsys.readouterr().err


def test_an_interrupted_second_pass_continues_without_the_first(
    run: Path, corpus: Path, rater: Path, student: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("scoring.json", "summaries", "selections"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lost = sorted((copy / "scores").glob("??/*.parquet"))[::2]
    for path in lost:
        path.unlink()
    shutil.rmtree(copy / "student/scores")  # its counts are enough

    assert curate.main(flags(corpus, rater, student, copy, *HALF)) == exit_codes.DONE
    assert rows_of(copy) == rows_of(run)
    manifests = [
        json.loads((folder / "selections/keep-0.5/manifest.json").read_bytes())["files"]
        for folder in (run, copy)
    ]
    assert manifests[0] == manifests[1]


def test_appended_files_are_in_doubt_by_the_scores_of_the_first_ones(
    corpus: Path, rater: Path, student: Path, tmp_path: Path
) -> None:
    words = flags(corpus, rater, student, tmp_path / "run", *HALF)
    words[1] = str(corpus / "[ab]*")
    assert curate.main(words) == exit_codes.DONE
    before = rows_of(tmp_path / "run")

    words[1] = str(corpus / "*")
    assert curate.main([*words, "--append", "--name", "all"]) == exit_codes.DONE
    after = rows_of(tmp_path / "run")
    assert len(before) == 120
    assert len(after) == 240
    assert before.items() <= after.items()
    manifest = json.loads((tmp_path / "run/selections/all/manifest.json").read_bytes())
    assert manifest["counts"]["kept"] == 120

    # The band is one of scores by the student, for old and new documents alike.
    texts = {record["id"]: record["text"] for record in corpus_records()}
    by_student = dict(zip(texts, scores_of(student, [*texts.values()]), strict=True))
    in_doubt = [by_student[key] for key, row in after.items() if row["scored_by"] == "rater"]
    for key, row in after.items():
        inside = min(in_doubt) <= by_student[key] <= max(in_doubt)
        assert inside == (row["scored_by"] == "rater")


def test_a_student_in_doubt_of_everything_is_reported_and_loses_nothing(
    corpus: Path, rater: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flags(corpus, rater, student, tmp_path / "run", "--keep_fraction", "0.5")
    words += ["--agreement", "1"]
    assert curate.main([*words, "--dry_run"]) == exit_codes.DONE
    assert "leaves it about 100.0% of the documents" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()

    assert curate.main(words) == exit_codes.DONE
    printed = capsys.readouterr().out
    assert "the student is in doubt of every document at --agreement 1" in printed
    assert "by rater           240  (100.0% of the tokens" in printed
    texts = [record["text"] for record in corpus_records()]
    by_rater = scores_of(rater, texts)
    found = [row["score"] for row in rows_of(tmp_path / "run").values()]
    assert sorted(found) == pytest.approx(sorted(by_rater))


def test_python_finds_the_same_run_done(
    run: Path, corpus: Path, rater: Path, student: Path
) -> None:
    manifest = datarater.curate(
        corpus / "*",
        rater,
        run,
        student=student,
        agreement=0.96,
        keep_fraction=0.5,
        output_format="attributes",
        split_bytes=2500,
    )
    assert manifest["identity"]["cascade"]["student"] == load_rater(student).digest
    assert manifest["counts"]["kept"] == 120


def test_the_report_shows_the_scores_of_the_rater(run: Path) -> None:
    page = selection_page(RunFolder(str(run)), "keep-0.5", 10, Limits())
    (histogram,) = (
        block
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Histogram)
    )
    by_rater = [row for row in rows_of(run).values() if row["scored_by"] == "rater"]
    assert sum(sum(counts) for _, _, counts in histogram.parts) == pytest.approx(len(by_rater))
    assert f"The {len(by_rater)} documents that the rater scored" in histogram.caption


def test_the_status_of_a_first_pass_is_that_of_the_student(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "student", tmp_path / "run/student")
    assert status.main([str(tmp_path / "run")]) == exit_codes.DONE
    printed = capsys.readouterr()
    assert "the student scores first" in printed.err
    assert "240" in printed.out


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["multi-process", "prism"])
def test_other_runners_keep_the_same(
    run: Path, corpus: Path, rater: Path, student: Path, runner: str, tmp_path: Path
) -> None:
    more = prism_flags() if runner == "prism" else ["--local_workers", "2"]
    output = tmp_path / "run"
    words = flags(corpus, rater, student, output, *HALF, "--workers_to_fill", "1", *more)
    assert curate.main(words) == exit_codes.DONE
    assert rows_of(output) == rows_of(run)
    kept = [
        json.loads((folder / "selections/keep-0.5/manifest.json").read_bytes())["files"]
        for folder in (run, output)
    ]
    assert kept[0] == kept[1]


def test_another_share_can_be_selected_and_a_note_says_what_decides(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", str(run), "--keep_fraction", "0.1", "--output_format", "scores"]
    assert select.main(flags) == exit_codes.DONE
    assert "the student alone decides elsewhere" in capsys.readouterr().out
    kept = pq.read_table(run / "selections/keep-0.1/kept").to_pylist()
    best = sorted(rows_of(run).values(), key=lambda row: -row["score"])[:24]
    assert len(kept) == 24
    assert {row["scored_by"] for row in kept} == {row["scored_by"] for row in best}
    assert {row["id"] for row in kept} == {json.loads(row["key"]) for row in best}


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (select, ["--keep_fraction", "0.5", "--where", "bytes > 100", "--output_format", "scores"]),
        (dedup, []),
    ],
)
def test_what_ranks_documents_far_from_the_cutoff_says_that_the_student_ranked_them(
    command: ModuleType, flags: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--output", str(run), *flags]) == exit_codes.DONE
    assert "the student alone decides elsewhere" in capsys.readouterr().out


def test_a_cascade_that_cannot_be_meant_is_refused(
    corpus: Path,
    rater: Path,
    other_rater: Path,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    cases = [
        (flags(corpus, other_rater, student, output, *HALF), "was distilled from the rater"),
        (flags(corpus, rater, rater, output, *HALF), "was distilled from the rater None"),
        (flags(corpus, rater, tmp_path / "none", output, *HALF), "not a rater checkpoint"),
        (flags(corpus, rater, student, output, "--keep_count", "3"), "give --keep_fraction"),
        (flags(corpus, rater, student, output, *HALF, "--per", "source"), "without --per source"),
    ]
    for words, message in cases:
        assert curate.main(words) == exit_codes.WRONG_USAGE
        assert message in capsys.readouterr().err
    assert not output.exists()
