"""`datarater dedup` against brute force: exact similarities of all pairs of small corpora."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datarater
from datarater.pipelines.commands import curate, dedup, requests, running, score, select, status
from datarater.pipelines.errors import CountsError, InputChangedError, UsageError
from datarater.pipelines.graph.duplicates import SignSplit, begin
from datarater.pipelines.graph.requests import DeduplicationRequest, Work
from datarater.pipelines.run_folder.duplicates import duplicate_rows, read_summary
from datarater.pipelines.run_folder.plan import read_group
from datarater.pipelines.runners import choice
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import save_rater
from tests.support.corpora import as_lines, make_records
from tests.support.near_duplicates import SIMILARITY, ComparedCorpus, Place, planted, shouted
from tests.support.raters import random_student


@pytest.fixture(scope="module")
def rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rater that needs no compiler: a table of n-grams."""
    folder = tmp_path_factory.mktemp("rater") / "rater"
    save_rater(folder, random_student())
    return folder


def scored_corpus(
    folder: Path, rater: Path, texts: list[str], split_bytes: int = 2**24, files: int = 3
) -> Path:
    """Writes texts into files, every second one with an id, and scores them."""
    (folder / "in").mkdir(parents=True)
    for number in range(files):
        records: list[dict[str, Any]] = [
            {"text": text, **({"id": f"d{place}"} if place % 2 else {})}
            for place, text in enumerate(texts)
            if place % files == number
        ]
        lines = [json.dumps(record) for record in records]
        lines.insert(1, "not JSON")
        (folder / "in" / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["--input", f"{folder}/in/*", "--rater", str(rater), "--output", f"{folder}/run"]
    assert score.main([*flags, "--split_bytes", str(split_bytes)]) == 0
    return folder / "run"


def find(run: Path, **options: Any) -> Path:
    """Finds near-duplicates in this process; returns the folder."""
    request = DeduplicationRequest(str(run), SIMILARITY, **options)
    running.run(Work(duplicates=request), choice.choose([], 1), lambda line: None, False)
    return run / "duplicates" / request.name


@pytest.fixture(scope="module")
def run_folder(rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored corpus with clusters of near-duplicates, ties and short texts."""
    corpus = planted(60, 90, seed=1)
    short = [
        "one two",
        "One, two!",
        "two one",
        "...",
        ". . .",
        "?",
        "猫が好きです",
        "猫が好きです。",
    ]
    return scored_corpus(
        tmp_path_factory.mktemp("dedup"), rater, [*corpus.texts, *short], split_bytes=20_000
    )


@pytest.fixture(scope="module")
def found(run_folder: Path) -> Path:
    return find(run_folder, name="it")


def test_documents_with_a_verified_neighbor_above_them_are_dropped(
    run_folder: Path, found: Path
) -> None:
    corpus = ComparedCorpus.of(run_folder, found)
    corpus.check()
    kinds = [row["exact"] for row in corpus.rows]
    assert sum(kinds) > 20
    assert len(kinds) - sum(kinds) > 10
    short = sorted(
        corpus.texts[place] for place in corpus.dropped() if len(corpus.texts[place]) < 12
    )
    assert [text.strip(",.!。 ").replace(",", "").lower() for text in short] in (
        ["", "one two", "猫が好きです"],
        ["one two", "", "猫が好きです"],
    )


def test_every_record_is_kept_or_dropped_as_a_duplicate_of_a_key_or_rejected(
    run_folder: Path, found: Path
) -> None:
    request = DeduplicationRequest(str(run_folder), SIMILARITY, name="it")
    summary = read_summary(request.duplicates)
    assert summary is not None
    counts, rows = summary.counts, pq.read_table(found / "documents").to_pylist()
    assert counts.read == counts.kept + counts.exact + counts.near + counts.rejected
    assert (counts.rejected, counts.dropped) == (3, len(rows))
    assert counts.exact == sum(row["exact"] for row in rows)

    # A file for every split, whose rows are those of its score file.
    scores = {path.name: path for path in run_folder.glob("scores/??/*.parquet")}
    files = {path.name: path for path in found.glob("documents/??/*.parquet")}
    assert scores.keys() == files.keys()
    assert len(files) > 2
    keys = set()
    for name, path in files.items():
        split = int(name.split(".")[0])
        chosen = duplicate_rows(request.duplicates, split).tolist()
        table, own = pq.read_table(scores[name]), pq.read_table(path)
        assert own["split"].to_pylist() == [split] * len(chosen)
        for column in ("key", "position", "file"):
            assert table[column].take(chosen).to_pylist() == own[column].to_pylist()
        keys |= set(table["key"].to_pylist())
    assert {row["duplicate_of"] for row in rows} < keys
    assert sorted(path.name for path in found.iterdir()) == [
        "_SUCCESS",
        "documents",
        "options.json",
        "summary.json",
    ]


@pytest.mark.parametrize("split_bytes", ["2000", "10MB"])
def test_the_result_does_not_depend_on_splits_and_memory(
    split_bytes: str, run_folder: Path, found: Path, rater: Path, tmp_path: Path
) -> None:
    """The same documents in other splits, with partitions and blocks of other sizes."""
    corpus = ComparedCorpus.of(run_folder, found)
    folder = tmp_path / "again"
    (folder / "in").mkdir(parents=True)
    for path in (run_folder.parent / "in").iterdir():
        (folder / "in" / path.name).write_bytes(path.read_bytes())
    flags = ["--input", f"{folder}/in/*", "--rater", str(rater), "--output", f"{folder}/run"]
    assert score.main([*flags, "--split_bytes", split_bytes]) == 0

    again = find(folder / "run", entries_per_partition=40, max_entries=10, signatures_per_block=7)
    expected = {(os.path.basename(row["file"]), row["position"]): row for row in corpus.rows}
    rows = pq.read_table(again / "documents").to_pylist()
    assert len(rows) == len(expected)
    for row in rows:
        same = expected[os.path.basename(row["file"]), row["position"]]
        for name in ("key", "duplicate_of", "similarity", "exact", "duplicate_of_position"):
            assert row[name] == same[name]


def test_texts_without_ids_that_share_a_key_are_told_apart_by_their_places(
    rater: Path, tmp_path: Path
) -> None:
    run = scored_corpus(tmp_path, rater, ["the same text twice over"] * 6)
    rows = pq.read_table(find(run) / "documents").to_pylist()
    assert len(rows) == 5
    assert len({(row["split"], row["row"]) for row in rows}) == 5
    assert len({row["key"] for row in rows if "sha256" in row["key"]}) == 1


def test_files_of_all_formats_that_share_splits_are_compared(rater: Path, tmp_path: Path) -> None:
    records = [record for record in make_records(40, 0) if len(record["text"].split()) > 9]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(b"[]\n" + as_lines(records))
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(as_lines(records[::-1])))
    (tmp_path / "in" / "c.jsonl").write_bytes(b"no JSON\n" * 1500)
    table = pa.Table.from_pylist([{"id": "x", "text": shouted(r["text"])} for r in records])
    pq.write_table(table, tmp_path / "in" / "d.parquet", row_group_size=11)
    flags = ["--input", f"{tmp_path}/in/*", "--rater", str(rater), "--output", f"{tmp_path}/run"]
    assert score.main(flags) == 0

    found = find(tmp_path / "run")
    rows = pq.read_table(found / "documents").to_pylist()
    assert len(rows) == 2 * len(records)
    summary = json.loads((found / "summary.json").read_bytes())
    assert (summary["splits"], summary["counts"]["rejected"]) == (1, 1501)
    scores = datarater.read_scores(tmp_path / "run").to_pylist()
    for row in rows:
        assert row["exact"]
        scored = scores[row["row"]]
        for column in ("key", "file", "position"):
            assert scored[column] == row[column]


def test_a_text_of_many_megabytes_is_compared_too(rater: Path, tmp_path: Path) -> None:
    text = " ".join(f"w{number % 70_001 * 7 % 90_001}" for number in range(90_000))
    run = scored_corpus(tmp_path, rater, [text, "short " + text, "another text"], files=1)
    rows = pq.read_table(find(run) / "documents").to_pylist()
    assert len(rows) == 1
    assert rows[0]["similarity"] > 0.99


def test_a_resumed_run_reads_only_the_splits_that_have_no_signatures(
    run_folder: Path, found: Path, rater: Path, tmp_path: Path
) -> None:
    run = scored_corpus(tmp_path, rater, planted(20, 20, seed=2).texts, split_bytes=4000)
    expected = pq.read_table(find(run, name="whole") / "documents").to_pylist()

    # One of the files is signed, and then removed.
    request = DeduplicationRequest(str(run), SIMILARITY)
    begin(request)
    gone = str(tmp_path / "in" / "1.jsonl")
    for task in read_group(request.folder, 0):
        if task.split.path == gone:
            assert list(SignSplit(request).process(task)) == [(task.split.ordinal, b"")]
    os.rename(gone, tmp_path / "gone")
    assert pq.read_table(find(run) / "documents").to_pylist() == expected

    # Complete: nothing is done again. Damaged: the splits that are there stay.
    before = {path: path.stat().st_ino for path in run.rglob("*") if path.is_file()}
    find(run)
    assert {path: path.stat().st_ino for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(InputChangedError, match=r"1\.jsonl is gone"):
        find(run, name="other")


def test_a_run_that_ended_after_the_counts_only_cleans_up(
    run_folder: Path, found: Path, rater: Path, tmp_path: Path
) -> None:
    run = scored_corpus(tmp_path, rater, planted(10, 5, seed=3).texts)
    folder = find(run)
    (folder / "_SUCCESS").unlink()
    left = folder / "signatures" / "00"
    left.mkdir(parents=True)
    (left / "00000000.bin").write_bytes(b"left")
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    find(run)
    assert (folder / "_SUCCESS").exists()
    assert not (folder / "signatures").exists()


def test_a_modified_input_is_refused(rater: Path, tmp_path: Path) -> None:
    run = scored_corpus(tmp_path, rater, ["a text", "another text"], files=1)
    path = tmp_path / "in" / "0.jsonl"
    path.write_text(path.read_text().replace("another", "changed"))
    with pytest.raises(InputChangedError, match="was modified"):
        find(run)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--similarity", "0.7"], exit_codes.OTHER_RUN, "similarity"),
        (["--seed", "1"], exit_codes.OTHER_RUN, "seed"),
        (["--similarity", "0.2"], exit_codes.WRONG_USAGE, "from 0.3 to 1"),
        (["--output", "no_such_folder"], exit_codes.WRONG_USAGE, "does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    flags: list[str],
    code: int,
    message: str,
    run_folder: Path,
    found: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call: Callable[[], int] = lambda: dedup.main(  # noqa: E731
        ["--output", str(run_folder), "--name", "it", *flags]
    )
    if code == exit_codes.WRONG_USAGE and "--similarity" in flags:
        with pytest.raises(SystemExit) as ended:
            call()
        assert ended.value.code == code
    else:
        assert call() == code
    assert message in capsys.readouterr().err


def test_an_unscored_folder_is_refused(rater: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(CountsError, match="first run datarater score"):
        find(tmp_path / "run")


def test_the_command_prints_the_counts_and_status_shows_it(
    run_folder: Path, found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dedup.main(["--output", str(run_folder), "--name", "it"]) == 0
    printed = capsys.readouterr().out
    assert "same words" in printed
    assert f"{found}/documents/" in printed
    assert status.main([str(run_folder)]) == 0
    assert f"duplicates it: complete, {found}/summary.json" in capsys.readouterr().out
    assert status.main([str(run_folder), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["phase"] for one in seen["duplicates"]}["it"] == "complete"


def test_the_memory_of_a_comparison_on_this_machine_is_said_where_it_is_much(
    run_folder: Path, found: Path
) -> None:
    lines: list[str] = []
    work = Work(duplicates=DeduplicationRequest(str(run_folder), SIMILARITY, name="new"))
    running.say_memory(work, lines.append)
    running.say_memory(work, lines.append, min_bytes=1)
    done = Work(duplicates=DeduplicationRequest(str(run_folder), SIMILARITY, name="it"))
    running.say_memory(done, lines.append, min_bytes=1)
    assert len(lines) == 1
    assert "documents at similarity 0.8 takes about 0.0 GB of memory" in lines[0]


def test_a_deduplication_in_an_object_store_leaves_the_same(
    run_folder: Path, found: Path, rater: Path
) -> None:
    memory = fsspec.filesystem("memory")
    for path in (run_folder.parent / "in").iterdir():
        memory.pipe_file(f"/planted/{path.name}", path.read_bytes())
    run = "memory://deduplicated"
    flags = ["--input", "memory://planted/*", "--rater", str(rater), "--output", run]
    assert curate.main([*flags, "--dedup", "0.8", "--name", "half", *HALF]) == 0
    counts = json.loads(memory.cat_file("/deduplicated/duplicates/similarity-0.8/summary.json"))
    assert counts["counts"] == json.loads((found / "summary.json").read_bytes())["counts"]
    assert not memory.find("/deduplicated/duplicates/similarity-0.8/signatures")
    kept = {
        (Path(row["path"]).name, row["position"])
        for path in memory.find("/deduplicated/selections/half/kept")
        for row in pq.read_table(io.BytesIO(memory.cat_file(path))).to_pylist()
    }
    expected, _ = half_of_the_rest(run_folder, found)
    assert kept == {(Path(path).name, position) for path, position in expected}


def test_flags_become_a_request(tmp_path: Path) -> None:
    args = dedup.make_parser().parse_args(["--output", str(tmp_path), "--seed", "3"])
    request = requests.deduplication_of(args, choice.choose([], 1))
    assert request == DeduplicationRequest(str(tmp_path), 0.8, 3, "similarity-0.8-seed-3")


def half_of_the_rest(run: Path, duplicates: Path) -> tuple[list[Place], int]:
    """Returns the best half of the documents that are left, and how many are not."""
    corpus = ComparedCorpus.of(run, duplicates)
    left = corpus.left()
    return sorted(left[: round(len(left) / 2)]), len(corpus.rows)


def kept_in(run: Path, name: str) -> list[Place]:
    """Returns the documents that a selection keeps."""
    rows = pq.read_table(run / "selections" / name / "kept").to_pylist()
    return sorted((row["path"], row["position"]) for row in rows)


HALF = ["--keep_fraction", "0.5", "--output_format", "scores"]


def test_a_selection_keeps_its_share_of_what_is_left_without_near_duplicates(
    run_folder: Path, found: Path
) -> None:
    expected, dropped = half_of_the_rest(run_folder, found)
    flags = ["--output", str(run_folder), "--name", "half", *HALF]
    assert select.main([*flags, "--dedup", "it"]) == 0
    assert kept_in(run_folder, "half") == expected
    manifest = json.loads((run_folder / "selections/half/manifest.json").read_bytes())
    counts = manifest["counts"]
    assert counts["excluded_by_reason"] == {"near_duplicate": dropped}
    assert counts["read"] == counts["kept"] + counts["dropped"] + counts["rejected"]
    assert manifest["ranking"]["duplicates"] == "it"

    # Conditions apply to what is left, and the reasons of both are counted apart.
    flags = ["--output", str(run_folder), "--name", "short", *HALF, "--where", "bytes < 1000"]
    assert select.main([*flags, "--dedup", "it"]) == 0
    manifest = json.loads((run_folder / "selections/short/manifest.json").read_bytes())
    reasons = manifest["counts"]["excluded_by_reason"]
    assert reasons["near_duplicate"] == dropped
    assert reasons["condition_not_met"] > 0


def test_curate_scores_finds_near_duplicates_and_selects_in_one_graph(
    run_folder: Path, found: Path, rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = run_folder.parent / "in"
    flags = ["--input", f"{inputs}/*", "--rater", str(rater), "--output", str(tmp_path / "run")]
    assert curate.main([*flags, "--dedup", "0.8", "--name", "half", *HALF]) == 0
    assert kept_in(tmp_path / "run", "half") == half_of_the_rest(run_folder, found)[0]
    assert "near_duplicate" in capsys.readouterr().out
    assert (tmp_path / "run/duplicates/similarity-0.8/_SUCCESS").exists()


def test_the_python_interface_finds_what_the_command_found(run_folder: Path, found: Path) -> None:
    again = datarater.dedup(run_folder, name="it")
    committed = json.loads((run_folder / "duplicates/it/summary.json").read_bytes())
    assert (again["name"], again["similarity"], again["counts"]) == (
        "it",
        committed["similarity"],
        committed["counts"],
    )
    for wrong, message in (
        ({"similarity": 0.1}, "--similarity"),
        ({"name": "a/b"}, "--name"),
        ({"name": "0.9"}, "--name: '0.9' is a number"),
        ({"name": "20260102"}, "--name: '20260102' is a number"),
    ):
        with pytest.raises(UsageError, match=message):
            datarater.dedup(run_folder, **wrong)


@pytest.mark.parametrize(
    ("value", "message"),
    [("no-such", "has no complete deduplication 'no-such'"), ("0.1", "from 0.3 to 1")],
)
def test_a_deduplication_that_is_not_there_is_refused(
    value: str, message: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", str(run_folder), "--keep_fraction", "0.5", "--dedup", value]
    with contextlib.suppress(SystemExit):
        assert select.main(flags) == exit_codes.WRONG_USAGE
    assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match=message):
        datarater.select(run_folder, keep_fraction=0.5, dedup=value)
