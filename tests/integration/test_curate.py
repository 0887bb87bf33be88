"""The three commands as a user runs them, on small corpora of every format."""

import base64
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datarater
from datarater.pipelines.commands import curate, requests, running, score, select
from datarater.pipelines.commands.flags import parse
from datarater.pipelines.graph.requests import Work
from datarater.pipelines.runners import choice
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.scorer import Scorer
from tests.support.corpora import as_lines, corpus_records, make_records, write_corpus
from tests.support.curation import read_kept
from tests.support.shared_folders import made_once

SMALL = ["--split_bytes", "2500"]


def flags(corpus: Path | str, rater: Path, output: Path | str, *more: str) -> list[str]:
    return ["--input", str(corpus), "--rater", str(rater), "--output", str(output), *SMALL, *more]


def scores_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By id; JSON's shortest text for a float32 reads as another float64."""
    return {row["id"]: float(np.float32(row["datarater_score"])) for row in rows}


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = made_once(tmp_path_factory, "corpus", lambda folder: write_corpus(folder / "in"))
    return folder / "in", corpus_records()


@pytest.fixture(scope="module")
def curated(
    corpus: tuple[Path, list[dict[str, Any]]], rater: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    def make(folder: Path) -> None:
        args = flags(corpus[0] / "*", rater, folder / "run", "--keep_fraction", "0.5")
        assert curate.main(args) == 0

    return made_once(tmp_path_factory, "curated", make) / "run"


@pytest.fixture
def run_folder(curated: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(curated, tmp_path / "run"))


@pytest.fixture(scope="module")
def expected(corpus: tuple[Path, list[dict[str, Any]]], rater: Path) -> dict[str, float]:
    """Every document's score, as the rater gives it outside of any pipeline."""
    records = corpus[1]
    scores_N = Scorer(load_rater(str(rater))).score([record["text"] for record in records]).scores_N
    return {record["id"]: float(score) for record, score in zip(records, scores_N, strict=True)}


def test_the_best_half_is_kept_and_the_counts_add_up(
    curated: Path, expected: dict[str, float]
) -> None:
    selection = curated / "selections/keep-0.5"
    manifest = json.loads((selection / "manifest.json").read_bytes())
    counts = manifest["counts"]
    assert (counts["read"], counts["kept"], counts["dropped"], counts["rejected"]) == (
        242,
        120,
        120,
        2,
    )
    assert counts["rejected_by_reason"] == {"not_json": 1, "no_text": 1}
    for name in ("read", "kept", "dropped", "rejected", "kept_tokens"):
        assert sum(source[name] for source in manifest["sources"].values()) == counts[name]
    assert (selection / "_SUCCESS").read_bytes() == b""
    kept = scores_of(read_kept(selection))
    assert len(kept) == 120
    assert kept.items() <= expected.items()
    dropped = set(expected) - set(kept)
    assert min(kept.values()) >= max(expected[id_] for id_ in dropped)
    assert manifest["cutoff"]["lowest_score"] <= min(kept.values())


def test_score_files_hold_every_record_once(curated: Path, expected: dict[str, float]) -> None:
    rows = [
        row
        for path in (curated / "scores").glob("??/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    scored = {json.loads(row["key"]): row["score"] for row in rows if row["status"] == "scored"}
    assert len(rows) == 242
    assert scored == expected
    assert Counter(row["status"] for row in rows) == {"scored": 240, "not_json": 1, "no_text": 1}


def test_rejected_records_are_written_with_file_position_and_reason(
    curated: Path, corpus: tuple[Path, list[dict[str, Any]]]
) -> None:
    lines = (curated / "rejected/000000.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    data = (corpus[0] / "a.jsonl").read_bytes()
    assert [(row["reason"], row["excerpt"]) for row in rows] == [
        ("not_json", "not json"),
        ("no_text", '{"id": 5}'),
    ]
    for row in rows:
        assert row["file"] == str(corpus[0] / "a.jsonl")
        assert data[row["position"] :].startswith(row["excerpt"].encode())


def test_kept_documents_are_untouched_and_in_order(
    curated: Path, corpus: tuple[Path, list[dict[str, Any]]]
) -> None:
    kept = curated / "selections/keep-0.5/kept"
    found = {path.name.split(".", 1)[1]: path for path in kept.iterdir()}
    assert set(found) == {"jsonl", "jsonl.gz", "jsonl.zst", "parquet"}
    originals = (corpus[0] / "a.jsonl").read_bytes().splitlines()
    bare = [
        line.rsplit(b',"datarater_score":', 1)[0] + b"}"
        for line in found["jsonl"].read_bytes().splitlines()
    ]
    assert bare == [line for line in originals if line in set(bare)]
    table = pq.read_table(found["parquet"])
    before = pq.read_table(corpus[0] / "d.parquet")
    assert table.schema.names == [*before.schema.names, "datarater_score"]
    ids = table.column("id").to_pylist()
    rows = [row for row in before.to_pylist() if row["id"] in set(ids)]
    assert table.drop_columns(["datarater_score"]).to_pylist() == rows


def test_score_then_select_is_curate(
    corpus: tuple[Path, list[dict[str, Any]]], rater: Path, curated: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    assert score.main(flags(corpus[0] / "*", rater, output)) == 0
    assert json.loads((output / "scoring.json").read_bytes())["counts"]["scored"] == 240
    assert not (output / "selections").exists()
    assert select.main(["--output", str(output), "--keep_fraction", "0.5"]) == 0
    kept = "selections/keep-0.5/kept"
    assert {p.name: p.read_bytes() for p in (output / kept).iterdir()} == {
        p.name: p.read_bytes() for p in (curated / kept).iterdir()
    }


@pytest.mark.parametrize("output_format", ["jsonl", "jsonl.gz", "parquet"])
def test_every_format_becomes_the_one_asked_for(
    run_folder: Path, expected: dict[str, float], output_format: str
) -> None:
    args = [
        "--output",
        str(run_folder),
        "--keep_fraction",
        "1",
        "--output_format",
        output_format,
        "--name",
        "all",
    ]
    assert select.main([*args, "--output_shard_bytes", "8000"]) == 0
    rows = read_kept(run_folder / "selections/all")
    assert scores_of(rows) == expected
    names = sorted(path.name for path in (run_folder / "selections/all/kept").iterdir())
    assert len(names) > 2
    assert all(name.endswith("." + output_format) for name in names)
    assert names[0] == f"part-00000-of-{len(names):05d}.{output_format}"
    if output_format == "parquet":
        row = next(row for row in rows if row["id"] == "1-5")
        assert json.loads(row["metadata"]) == {"url": {"host": "example.org", "depth": 5}}
        assert row["source"] == "s2"


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (["--keep_count", "17"], "keep-count-17"),
        (["--token_budget", "5000"], "tokens-5000"),
        (["--threshold=0"], "threshold-0"),
        (["--keep_fraction", "0"], "keep-0"),
        (["--keep_fraction", "1/7", "--seed", "3"], "keep-1-of-7"),
    ],
)
def test_other_rules_need_no_scoring(
    run_folder: Path, expected: dict[str, float], rule: list[str], name: str
) -> None:
    scores = tree(run_folder / "scores")
    assert select.main(["--output", str(run_folder), *rule]) == 0
    assert tree(run_folder / "scores") == scores
    kept = read_kept(run_folder / "selections" / name)
    best = sorted(expected.values(), reverse=True)
    if "count" in name or "keep-" in name:
        count = {"keep-count-17": 17, "keep-0": 0, "keep-1-of-7": 34}[name]
        assert len(kept) == count
        assert sorted(scores_of(kept).values(), reverse=True) == best[:count]
    elif "threshold" in name:
        assert len(kept) == sum(value >= 0 for value in best)
    else:
        tokens = sum(len(row["text"]) for row in kept)
        assert 5000 - 400 < tokens <= 5000


def test_a_finished_run_does_nothing_when_run_again(
    run_folder: Path,
    corpus: tuple[Path, list[dict[str, Any]]],
    rater: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = tree(run_folder)
    assert curate.main(flags(corpus[0] / "*", rater, run_folder, "--keep_fraction", "0.5")) == 0
    assert tree(run_folder) == before
    assert "120" in capsys.readouterr().out


def test_what_changes_only_the_cost_may_change_when_a_run_is_resumed(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_records(60, 1)
    (tmp_path / "in.jsonl").write_bytes(as_lines(records))
    output = tmp_path / "run"
    args = flags(tmp_path / "in.jsonl", rater, output, "--split_bytes", "3000")
    assert score.main([*args, "--tokens_per_batch", "256"]) == 0
    before = datarater.read_scores(output).sort_by("position")
    lost = sorted((output / "scores").glob("??/*.parquet"))[::2]
    for path in lost:
        path.unlink()
    shutil.rmtree(output / "summaries")
    (output / "scoring.json").unlink()
    capsys.readouterr()

    # What the messages of a split that ends its worker and of too little memory advise.
    resumed = flags(tmp_path / "in.jsonl", rater, output, "--split_bytes", "9000")
    assert score.main([*resumed, "--tokens_per_batch", "64"]) == 0
    said = capsys.readouterr().out
    assert "note: --split_bytes 9000 changes nothing here" in said
    assert "note: --tokens_per_batch 64 from here on; the run began with 256" in said
    assert all(path.exists() for path in lost)
    after = datarater.read_scores(output).sort_by("position")
    assert after["key"].equals(before["key"])
    np.testing.assert_allclose(after["score"], before["score"], rtol=1e-4, atol=1e-5)
    assert select.main(["--output", str(output), "--keep_fraction", "0.5"]) == 0

    # What changes which documents there are may not.
    assert score.main([*args, "--max_record_bytes", "100"]) == exit_codes.OTHER_RUN
    assert "read.max_record_bytes is" in capsys.readouterr().err


@pytest.mark.parametrize("linked", [False, True])
def test_a_run_folder_under_the_input_glob_is_no_input(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], linked: bool
) -> None:
    folder = tmp_path / "in"
    (folder / "runs").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(as_lines(make_records(20, 1)))
    (folder / "runs/b.jsonl").write_bytes(as_lines(make_records(10, 2)))
    output = folder / "runs/it"
    if linked:
        output.mkdir()
        (tmp_path / "link").symlink_to(output)
        output = tmp_path / "link"
    args = flags(f"{folder}/**", rater, output, "--keep_fraction", "0.5")
    for _ in range(2):  # each time there is more in the run folder
        assert curate.main(args) == 0
        assert "input: 2 files" in capsys.readouterr().out or (output / "scoring.json").exists()
    assert json.loads((output / "scoring.json").read_bytes())["counts"]["read"] == 30

    inside = flags(f"{folder}/runs/it/**/*.jsonl", rater, output, "--keep_fraction", "0.5")
    assert curate.main(inside) == exit_codes.NO_INPUT
    assert "every file that matches is in" in capsys.readouterr().err


def test_a_run_goes_on_where_it_stopped(
    run_folder: Path, corpus: tuple[Path, list[dict[str, Any]]], rater: Path
) -> None:
    kept = tree(run_folder / "selections/keep-0.5/kept")
    score_files = sorted((run_folder / "scores").glob("??/*.parquet"))
    lost = score_files[::3]
    for path in lost:
        path.unlink()
    shutil.rmtree(run_folder / "summaries")
    shutil.rmtree(run_folder / "selections")
    shutil.rmtree(run_folder / "rejected")
    (run_folder / "scoring.json").unlink()
    before = tree(run_folder / "scores")
    left_over = lost[0].parent / ".tmp-left-by-a-killed-process"
    left_over.write_bytes(b"half a file")
    assert curate.main(flags(corpus[0] / "*", rater, run_folder, "--keep_fraction", "0.5")) == 0
    after = tree(run_folder / "scores")
    assert before.items() <= after.items()
    assert not left_over.exists()
    assert len(list((run_folder / "scores").glob("??/0*.parquet"))) == len(score_files)
    again = tree(run_folder / "selections/keep-0.5/kept")
    assert {name: data for name, (_, data) in again.items()} == {
        name: data for name, (_, data) in kept.items()
    }


@pytest.mark.parametrize("lost", ["_SUCCESS", "manifest.json", "kept", "counts"])
def test_a_selection_goes_on_where_it_stopped(run_folder: Path, lost: str) -> None:
    selection = run_folder / "selections/keep-0.5"

    def contents() -> dict[str, bytes]:
        # The manifest has the time, and the report also the path of the run folder.
        files = {name: data for name, (_, data) in tree(selection).items()}
        assert {"manifest.json", "report.html"} <= files.keys()
        return {n: d for n, d in files.items() if n not in ("manifest.json", "report.html")}

    before = contents()
    (selection / "_SUCCESS").unlink()
    if lost in ("kept", "counts"):
        (selection / "manifest.json").unlink()
        shutil.rmtree(selection / lost)
    elif lost == "manifest.json":
        (selection / lost).unlink()
    assert select.main(["--output", str(run_folder), "--keep_fraction", "0.5"]) == 0
    assert contents() == before


def test_another_runs_folder_is_refused_naming_the_difference(
    run_folder: Path,
    corpus: tuple[Path, list[dict[str, Any]]],
    rater: Path,
    other_rater: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = corpus[0] / "*"
    keep = ["--keep_fraction", "0.5"]

    def refused(*args: str) -> str:
        assert curate.main([*args]) == 3
        return capsys.readouterr().err

    assert "rater is" in refused(*flags(files, other_rater, run_folder, *keep))
    assert "scoring.max_windows is 256 there, but 3 now" in refused(
        *flags(files, rater, run_folder, *keep, "--max_windows", "3")
    )
    assert "read.id_field" in refused(*flags(files, rater, run_folder, *keep, "--id_field", "key"))
    assert "b.jsonl.gz is gone" in refused(*flags(corpus[0] / "a.jsonl", rater, run_folder, *keep))
    assert "rule.value is '0.5' there, but '0.25' now" in refused(
        *flags(files, rater, run_folder, "--keep_fraction", "0.25", "--name", "keep-0.5")
    )
    assert "output_format" in refused(
        *flags(files, rater, run_folder, *keep, "--output_format", "jsonl")
    )


TOUCHED: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl.gz": lambda records: gzip.compress(as_lines(records), mtime=0),
    "parquet": lambda records: parquet_of(
        [{"id": record["id"], "text": record["text"]} for record in records]
    ),
}


def parquet_of(records: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), buffer, row_group_size=7, compression="none")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jsonl.gz", "parquet"])
def test_an_input_that_was_touched_is_the_same_and_one_that_was_modified_is_not(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    records, corpus, output = make_records(40, 9), tmp_path / f"in.{suffix}", tmp_path / "run"
    corpus.write_bytes(TOUCHED[suffix](records))
    args = flags(corpus, rater, output, "--split_bytes", "2000")
    assert score.main(args) == 0
    keep = ["--output", str(output), "--name", "best", "--keep_fraction", "0.5"]

    # The last two documents have changed places, which at most changes the size of a stream.
    corpus.write_bytes(TOUCHED[suffix]([*records[:-2], records[-1], records[-2]]))
    assert select.main([*keep[:-1], "1"]) == exit_codes.OTHER_RUN
    said = capsys.readouterr().err
    assert f"the input {corpus} was modified" in said
    assert "Traceback" not in said
    # Nothing keeps the name from another rule.
    assert not list((output / "selections/best").rglob("*.json"))

    corpus.write_bytes(TOUCHED[suffix](records))  # restored, at another time
    assert select.main(keep) == 0
    assert len(json.loads((output / "selections/best/manifest.json").read_bytes())["files"]) == 1
    os.utime(corpus)
    assert select.main([*keep[:-1], "0.25"]) == exit_codes.OTHER_RUN  # the name is taken by now
    assert select.main(["--output", str(output), "--keep_fraction", "0.25"]) == 0


def test_a_run_resumes_with_a_touched_input_and_not_with_a_modified_one(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, corpus, output = make_records(20, 9), tmp_path / "in.jsonl", tmp_path / "run"
    corpus.write_bytes(as_lines(records))
    args = flags(corpus, rater, output)
    assert score.main(args) == 0
    lost = sorted((output / "scores").glob("??/*.parquet"))[0]
    lost.unlink()
    shutil.rmtree(output / "summaries")
    (output / "scoring.json").unlink()

    os.utime(corpus)
    assert score.main(args) == 0
    assert lost.exists()
    corpus.write_bytes(as_lines([*records[:-2], records[-1], records[-2]]))
    capsys.readouterr()
    assert curate.main([*args, "--keep_fraction", "0.2"]) == exit_codes.OTHER_RUN
    assert f"{corpus} was modified" in capsys.readouterr().err


def test_an_input_that_changed_between_the_reads_fails_with_its_name(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "in.jsonl"
    records = make_records(20, 9)
    corpus.write_bytes(as_lines(records))
    output = tmp_path / "run"
    assert curate.main(flags(corpus, rater, output, "--keep_count", "3")) == 0

    # The file's own time says nothing.
    times = os.stat(corpus)
    corpus.write_bytes(as_lines(records[::-1]))
    os.utime(corpus, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert select.main(["--output", str(output), "--keep_fraction", "0.5"]) == exit_codes.OTHER_RUN
    assert f"the input {corpus} was modified after it was scored" in capsys.readouterr().err
    assert not (output / "selections/keep-0.5/_SUCCESS").exists()


def test_a_missing_score_file_stops_the_selection(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = next((run_folder / "scores").glob("??/*.parquet"))
    lost.unlink()
    assert select.main(["--output", str(run_folder), "--keep_fraction", "0.1"]) == 1
    message = capsys.readouterr().err
    assert str(lost) in message
    assert "to score it again" in message


def test_counts_that_do_not_add_up_fail_the_selection(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select.main(["--output", str(run_folder), "--keep_fraction", "0.1"]) == 0
    selection = run_folder / "selections/keep-0.1"
    counts = json.loads((selection / "counts/000000.json").read_bytes())
    counts["splits"]["read"][0] += 1
    (selection / "counts/000000.json").write_text(json.dumps(counts))
    (selection / "manifest.json").unlink()
    (selection / "_SUCCESS").unlink()
    assert select.main(["--output", str(run_folder), "--keep_fraction", "0.1"]) == 1
    assert "documents read, but" in capsys.readouterr().err
    assert not (selection / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"--input": "nothing/*.jsonl"}, 66, "no file matches"),
        ({"--rater": "no/rater"}, 2, "--rater"),
        ({"--keep_fraction": "2"}, 2, "outside [0, 1]"),
        ({"--split_bytes": "many"}, 2, "not a number of bytes"),
        ({"--name": "a/b"}, 2, "is not a name of letters"),
        ({"--keep_fracton": "0.5"}, 2, "did you mean --keep_fraction?"),
        ({"--output": "/proc/nowhere/run"}, 1, "/proc/nowhere/run cannot be written"),
        ({"--max_rejected_fraction": "2"}, 2, "not a number from 0 to 1"),
    ],
)
def test_wrong_usage_is_said_before_any_work(
    corpus: tuple[Path, list[dict[str, Any]]],
    rater: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    code: int,
    says: str,
) -> None:
    values = {
        "--input": str(corpus[0] / "*"),
        "--rater": str(rater),
        "--output": str(tmp_path / "run"),
        "--keep_fraction": "0.5",
    } | change
    argv = [word for pair in values.items() for word in pair]
    try:
        found: int | str | None = curate.main(argv)
    except SystemExit as error:
        found = error.code
    assert found == code
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_a_run_folder_and_inputs_in_an_object_store(rater: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/crawl/a.jsonl", as_lines(make_records(30, 1)))
    memory.pipe_file("/crawl/b.jsonl.gz", gzip.compress(as_lines(make_records(30, 2))))
    args = flags("memory://crawl/*", rater, "memory://run", "--keep_count", "10", "--name", "ten")
    assert curate.main(args) == 0
    manifest = json.loads(memory.cat_file("/run/selections/ten/manifest.json"))
    assert manifest["counts"]["kept"] == 10
    assert sum(entry["documents"] for entry in manifest["files"]) == 10
    for entry in manifest["files"]:
        data = memory.cat_file(f"/run/selections/ten/{entry['path']}")
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert curate.main(args) == 0


def test_parquet_of_many_types_becomes_json(rater: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["one text", "another text"]).dictionary_encode(),
            "blob": pa.array([b"\x00\xff", None]),
            "day": pa.array([0, 1], pa.date32()),
            "instant": pa.array([1, 10**9 + 1], pa.timestamp("ns", "UTC")),
            "price": pa.array(["1.10", "2"]).cast(pa.decimal128(5, 2)),
            "nested": pa.array([{"a": [1, 2]}, {"a": []}]),
            "nan": pa.array([float("nan"), 0.5]),
            "datarater_score": pa.array(["old", "older"]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    run = tmp_path / "run"
    assert (
        curate.main(
            flags(
                tmp_path / "in.parquet",
                rater,
                run,
                "--keep_fraction",
                "1",
                "--output_format",
                "jsonl",
            )
        )
        == 0
    )
    rows = {row["text"]: row for row in read_kept(run / "selections/keep-1")}
    row = rows["one text"]
    assert base64.b64decode(row["blob"]) == b"\x00\xff"
    assert row["day"] == "1970-01-01"
    assert row["instant"].startswith("1970-01-01 00:00:00.000000001")
    assert (row["price"], row["nested"], row["nan"]) == ("1.10", {"a": [1, 2]}, None)
    assert isinstance(row["datarater_score"], float)
    assert select.main(["--output", str(run), "--keep_fraction", "1", "--name", "as-they-are"]) == 0
    (entry,) = json.loads((run / "selections/as-they-are/manifest.json").read_bytes())["files"]
    kept = pq.read_table(run / "selections/as-they-are" / entry["path"])
    assert kept.schema.field("datarater_score").type == pa.float32()
    assert kept.schema.field("instant").type == pa.timestamp("ns", "UTC")
    assert kept.column("blob").to_pylist() == [b"\x00\xff", None]


@pytest.mark.parametrize("sort_limit", [0, 10, 65_536])
def test_many_groups_and_ties_that_only_the_position_breaks(
    rater: Path, tmp_path: Path, sort_limit: int
) -> None:
    records = make_records(40, 5)
    for index in range(60):  # one id and one text, over and over
        records.insert(index * 2 % len(records), {"id": "same", "text": "the same text"})
    (tmp_path / "in.jsonl").write_bytes(as_lines(records))
    run = tmp_path / "run"
    scores_N = Scorer(load_rater(str(rater))).score([record["text"] for record in records]).scores_N
    tied = float(scores_N[[record["id"] for record in records].index("same")])
    above = int((scores_N > tied).sum())
    keep = above + 25
    argv = flags(tmp_path / "in.jsonl", rater, run)[:-2]
    argv += ["--split_bytes", "700", "--output_shard_bytes", "1000"]
    argv += ["--keep_count", str(keep), "--name", "it"]
    (args, _), execution = parse(curate.make_parser(), argv), choice.choose([], 1)
    selection = requests.selection_of(args, execution)
    selection = dataclasses.replace(selection, sort_limit=sort_limit)
    scoring = dataclasses.replace(requests.scoring_of(args, execution), splits_per_group=3)
    running.run(Work(scoring, selection), execution)
    assert len(list((run / "summaries").iterdir())) > 3
    kept = read_kept(run / "selections/it")
    assert len(kept) == keep
    firsts = [index for index, record in enumerate(records) if record["id"] == "same"][:25]
    wanted = [
        r["id"]
        for i, (r, s) in enumerate(zip(records, scores_N, strict=True))
        if s > tied or i in firsts
    ]
    assert [row["id"] for row in kept] == wanted


def test_a_corpus_without_a_record_and_one_of_garbage_are_refused(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, mixed = tmp_path / "empty.jsonl", tmp_path / "mixed.jsonl"
    empty.write_bytes(b"\n\n")
    mixed.write_bytes(as_lines(make_records(9, 1)) + b"garbage\n")
    keep = ["--keep_fraction", "1"]
    assert curate.main(flags(empty, rater, tmp_path / "a", *keep)) == 65
    assert "the files contain no records" in capsys.readouterr().err
    args = flags(mixed, rater, tmp_path / "b", *keep)
    assert curate.main([*args, "--max_rejected_fraction", "0.05"]) == 4
    assert "1 of 10 records are rejected (not_json 1)" in capsys.readouterr().err
    assert curate.main([*args, "--max_rejected_fraction", "0.1"]) == 0
    assert score.main([*args[:-2], "--max_rejected_fraction", "0.05"]) == 4


def test_beams_metrics_count_what_was_done(
    corpus: tuple[Path, list[dict[str, Any]]], rater: Path, tmp_path: Path
) -> None:
    args = flags(corpus[0] / "*", rater, tmp_path / "run", "--keep_count", "7")
    result = curate.run(args)
    assert result is not None
    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    assert (
        counters.items() >= {"documents": 240, "documents_kept": 7, "rejected_no_text": 1}.items()
    )
    assert (
        counters["splits_scored"]
        == json.loads((tmp_path / "run/scoring.json").read_bytes())["splits"]
    )
    assert curate.run(args) is None


def launch(args: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "datarater.pipelines.commands.curate", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def same_kept_files(one: Path, other: Path) -> bool:
    kept = "selections/keep-0.5/kept"
    return {name: data for name, (_, data) in tree(one / kept).items() if ".tmp-" not in name} == {
        name: data for name, (_, data) in tree(other / kept).items() if ".tmp-" not in name
    }


@pytest.mark.slow
def test_of_two_launches_at_once_one_says_who_is_at_work(
    corpus: tuple[Path, list[dict[str, Any]]], rater: Path, curated: Path, tmp_path: Path
) -> None:
    args = flags(corpus[0] / "*", rater, tmp_path / "run", "--keep_fraction", "0.5")
    launched = [launch(args) for _ in range(2)]
    said = [process.communicate(timeout=300)[0].decode() for process in launched]
    (refused,) = [number for number in range(2) if launched[number].returncode == 3]
    assert launched[1 - refused].returncode == 0, said[1 - refused]
    last = said[refused].splitlines()[-1]
    assert f"process {launched[1 - refused].pid} on " in last
    assert "its lease expires in " in last
    assert same_kept_files(tmp_path / "run", curated)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_never_killed(
    corpus: tuple[Path, list[dict[str, Any]]], rater: Path, curated: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    args = flags(corpus[0] / "*", rater, output, "--keep_fraction", "0.5")
    score_files: dict[Path, int] = {}
    for after in (1, 3, 6, 8):
        process = launch(args)
        while process.poll() is None and len(list(output.glob("scores/??/0*.parquet"))) < after:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        found = {path: path.stat().st_ino for path in output.glob("scores/??/0*.parquet")}
        assert score_files.items() <= found.items()
        score_files = found
    assert curate.main(args) == 0
    assert (
        score_files.items()
        <= {p: p.stat().st_ino for p in output.glob("scores/??/0*.parquet")}.items()
    )
    assert same_kept_files(output, curated)
    manifests = [
        json.loads((run / "selections/keep-0.5/manifest.json").read_bytes())
        for run in (output, curated)
    ]
    for name in ("counts", "sources", "cutoff", "files"):
        assert manifests[0][name] == manifests[1][name]


@pytest.mark.slow
def test_a_signal_stops_a_run_that_can_go_on(
    corpus: tuple[Path, list[dict[str, Any]]], rater: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    args = flags(corpus[0] / "*", rater, output, "--keep_fraction", "0.5")
    process = launch(args)
    while process.poll() is None and not list(output.glob("scores/??/0*.parquet")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert said.decode().splitlines()[-1].startswith("datarater curate: stopped by SIGTERM")
    assert curate.main(args) == 0


@pytest.mark.slow
def test_two_worker_processes_keep_the_same_bytes(
    corpus: tuple[Path, list[dict[str, Any]]], rater: Path, curated: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    args = flags(corpus[0] / "*", rater, output, "--keep_fraction", "0.5", "--local_workers", "2")
    assert curate.main(args) == 0
    kept = "selections/keep-0.5/kept"
    assert {p.name: p.read_bytes() for p in (output / kept).iterdir()} == {
        p.name: p.read_bytes() for p in (curated / kept).iterdir()
    }
    assert {p.name: p.read_bytes() for p in (output / "rejected").iterdir()} == {
        p.name: p.read_bytes() for p in (curated / "rejected").iterdir()
    }
