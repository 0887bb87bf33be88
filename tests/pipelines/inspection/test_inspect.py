"""`datarater inspect` shows the documents that a look at everything would find, and reads few."""

from __future__ import annotations

import gzip
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datarater
from datarater.pipelines.commands import inspect
from datarater.pipelines.graph import planning
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.pipelines.inspection.inspection import Inspection, ShownDocument, inspect_run
from datarater.pipelines.inspection.judge import Decision
from datarater.pipelines.inspection.question import Question, Show
from datarater.pipelines.inspection.score_file_choice import choose_score_files
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.plan import plans_of
from datarater.pipelines.run_folder.scored import find_scoring
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.rules import BatchTopK, KeepFraction
from datarater.rater_model import exit_codes
from tests.integration.test_counting_stores import BUCKET, running_store
from tests.support import earlier_versions
from tests.support.run_folders import run_options
from tests.support.selections import digest_score, score_group, score_run, select_from

HALF = Policy(KeepFraction("0.5"))
HOSTILE = "one \x1b[2J\u202eline\r\ntwo\x00"


def record(number: int, **more: Any) -> dict[str, Any]:
    source = ("web", "wiki", "books")[number % 3]
    return {"id": f"d{number}", "text": f"text {number} {HOSTILE}", "source": source, **more}


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run of three formats with a finished selection of the best half."""
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "in").mkdir()
    (folder / "in/a.jsonl").write_bytes(lines([record(n) for n in range(20)]) + b"{broken \x1b\n")
    packed = gzip.compress(lines([record(n) for n in range(20, 40)]) + b'{"id": "no text"}\n')
    (folder / "in/b.jsonl.gz").write_bytes(packed)
    rows = pa.Table.from_pylist([record(n) for n in range(40, 60)])
    pq.write_table(rows, folder / "in/c.parquet", row_group_size=5)
    score_run(folder / "in", folder / "run", files_per_split=1)
    select_from(folder / "run", "jsonl", policy=HALF, name="half")
    return folder / "run"


def keys_of(documents: Any) -> list[str]:
    return [document.row["key"] for document in documents]


def asked(run: Path | str, **question: Any) -> list[str]:
    return keys_of(inspect_run(RunFolder(str(run)), Question(**question), None, 2**28).documents)


def in_order(run: Path, source: str | None = None) -> list[str]:
    """The keys of all documents, the best first, by a look at everything."""
    rows = datarater.read_scores(run).to_pylist()
    scored = [row for row in rows if row["score"] is not None]
    of_source = [row for row in scored if source in (None, row["source"])]
    return [row["key"] for row in sorted(of_source, key=lambda row: -row["score"])]


def score_of(key: str) -> float:
    number = json.loads(key).removeprefix("d")
    return digest_score(f"text {number} {HOSTILE}")


def test_the_best_the_worst_and_those_near_the_cutoff_are_those_of_the_whole_corpus(
    run: Path,
) -> None:
    def scores(keys: list[str]) -> list[float]:
        return list(map(score_of, keys))

    everything = in_order(run)
    assert scores(asked(run, show=Show.BEST, count=7)) == scores(everything[:7])
    assert scores(asked(run, show=Show.BEST, count=7, skip=7)) == scores(everything[7:14])
    assert scores(asked(run, show=Show.WORST, count=7)) == scores(everything[::-1][:7])
    near = asked(run, show=Show.CUTOFF, count=8)
    assert scores(near) == scores(everything[26:34])
    wiki = asked(run, show=Show.BEST, count=99, source="wiki")
    assert scores(wiki) == scores(in_order(run, "wiki"))
    assert len(wiki) == 20


def test_each_document_is_kept_where_the_selection_has_it(run: Path) -> None:
    inspection = inspect_run(RunFolder(str(run)), Question(show=Show.BEST, count=99), None, 2**28)
    kept = {
        json.loads(line)["id"]
        for path in (run / "selections/half/kept").iterdir()
        for line in path.read_bytes().splitlines()
    }
    assert len(inspection.documents) == 60
    for document in inspection.documents:
        assert document.decision is not None
        assert document.decision.kept == (json.loads(document.row["key"]) in kept)
        number = json.loads(document.row["key"]).removeprefix("d")
        assert document.text == f"text {number} {HOSTILE}"
        assert document.scores == {"score": document.row["score"]}


def test_a_random_choice_is_the_same_for_a_seed_and_another_for_another(run: Path) -> None:
    first = asked(run, show=Show.RANDOM, count=5, seed=1)
    assert first == asked(run, show=Show.RANDOM, count=5, seed=1)
    assert first != asked(run, show=Show.RANDOM, count=5, seed=2)
    assert len(set(first)) == 5
    assert len(asked(run, show=Show.RANDOM, count=99, source="web")) == 20


def test_documents_are_found_by_id_or_key(run: Path) -> None:
    assert asked(run, show=Show.KEY, keys=("d7", '"d41"', "d999")) in (
        ['"d7"', '"d41"'],
        ['"d41"', '"d7"'],
    )
    question = Question(show=Show.KEY, keys=("d7", "d999", "d'8"))
    notes = inspect_run(RunFolder(str(run)), question, None, 2**28).notes
    assert "not found: 'd999', \"d'8\"" in notes


def test_rejected_records_are_found_by_reason(run: Path) -> None:
    question = Question(show=Show.REJECTED)
    found = inspect_run(RunFolder(str(run)), question, None, 2**28).documents
    assert sorted(one.row["reason"] for one in found) == ["no_text", "not_json"]
    question = Question(show=Show.REJECTED, reason="not_json")
    (only,) = inspect_run(RunFolder(str(run)), question, None, 2**28).documents
    assert (only.is_rejected, only.text) == (True, "{broken \x1b")


def test_rejected_records_of_the_first_version_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = earlier_versions.unpack(tmp_path)
    assert inspect.main([f"{folder}/run", "--show", "rejected", "--reason", "not_json"]) == 0
    assert "1  rejected: not_json\n" in capsys.readouterr().out


# --- large runs ---


@settings(max_examples=10)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=12),
    show=st.sampled_from([Show.BEST, Show.WORST]),
    count=st.integers(1, 5),
    max_score_files=st.integers(1, 12),
    source=st.sampled_from([None, "web", "wiki"]),
)
def test_an_answer_that_is_not_called_a_sample_is_that_of_all_score_files(
    sizes: list[int], show: Show, count: int, max_score_files: int, source: str | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "in").mkdir()
        first = 0
        for number, size in enumerate(sizes):
            records = [record(n) for n in range(first, first + size)]
            (Path(name) / f"in/{number:02d}.jsonl").write_bytes(lines(records))
            first += size
        run = Path(name) / "run"
        score_run(Path(name) / "in", run, files_per_split=1, splits_per_group=2)
        scoring = find_scoring(RunFolder(str(run)))
        assert scoring is not None
        if source is not None and source not in scoring.sources:
            return
        question = Question(show=show, count=count, max_score_files=max_score_files, source=source)
        folder = RunFolder(str(run))
        choice = choose_score_files(folder, plans_of(folder), scoring, question)
        assert len(choice.ordinals) <= max_score_files
        found = asked(run, show=show, count=count, max_score_files=max_score_files, source=source)
        everything = in_order(run, source)
        expected = (everything if show is Show.BEST else everything[::-1])[:count]
        if choice.is_complete:
            assert list(map(score_of, found)) == list(map(score_of, expected))
        else:
            assert set(found) <= set(everything)


def test_summaries_lead_to_the_groups_that_have_the_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / f"in/{number:02d}.jsonl").write_bytes(lines([record(number)]))
    score_run(tmp_path / "in", tmp_path / "run", files_per_split=1, splits_per_group=2)
    run = tmp_path / "run"
    folder = RunFolder(str(run))
    question = Question(show=Show.BEST, count=1, max_score_files=30)
    choice = choose_score_files(folder, plans_of(folder), find_scoring(folder), question)
    assert (choice.is_complete, choice.committed) == (True, 40)
    assert len(choice.ordinals) <= 6
    assert asked(run, show=Show.BEST, count=1, max_score_files=30) == in_order(run)[:1]

    assert inspect.main([str(run), "--max_score_files", "3"]) == exit_codes.DONE
    assert "read: a sample, 3 of 40 score files" in capsys.readouterr().out


# --- a run that is still being scored ---


def test_a_run_in_progress_shows_what_is_committed_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        content = lines([record(number), record(number + 10)]) + b"{broken\n"
        (tmp_path / f"in/{number}.jsonl").write_bytes(content)
    request = ScoringRequest(
        Patterns((str(tmp_path / "in"),)),
        "rater",
        str(tmp_path / "run"),
        run_options(),
        files_per_split=1,
        splits_per_group=2,
    )
    planning.plan_now(request)
    assert inspect.main([request.output]) == exit_codes.FAILED
    assert "has no scores yet" in capsys.readouterr().err

    score_group(request, 0)
    score_group(request, 1)
    next((tmp_path / "run/summaries").glob("*1.json")).unlink()  # the group is not counted yet
    next((tmp_path / "run/rejected").glob("*1.jsonl")).unlink()
    for max_score_files in (0, 3):
        keys = asked(request.output, show=Show.BEST, count=99, max_score_files=max_score_files)
        assert len(keys) == (8 if not max_score_files else 6)
    assert inspect.main([request.output, "--show", "rejected"]) == exit_codes.DONE
    out = capsys.readouterr().out
    assert "only splits that are committed" in out
    assert out.count("rejected: not_json") == 4
    flags = [request.output, "--show", "rejected", "--max_score_files", "1"]
    assert inspect.main(flags) == exit_codes.DONE
    out = capsys.readouterr().out
    assert out.count("rejected: not_json") == 2
    assert "not all lists; --max_score_files 0 looks in all of them" in out


# --- what is printed ---


def test_hostile_text_is_escaped_and_cut_and_json_has_it_whole(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(run), "--key", "d7", "--characters", "10"]) == exit_codes.DONE
    out = capsys.readouterr().out
    assert "    text 7 one\n    [16 more characters; --whole shows them]" in out
    assert re.search(r"^1  score \S+  (kept|dropped)  source wiki  tokens \d+", out, re.M)
    assert inspect.main([str(run), "--key", "d7", "--whole"]) == exit_codes.DONE
    out = capsys.readouterr().out
    assert "    text 7 one \\u001b[2J\\u202eline\n    two\\u0000\n" in out
    assert "\x1b" not in out

    assert inspect.main([str(run), "--key", "d7", "--json"]) == exit_codes.DONE
    captured = capsys.readouterr()
    (fields,) = map(json.loads, captured.out.splitlines())
    assert "3 of 3 score files" in captured.err
    assert fields["text"] == f"text 7 {HOSTILE}"
    assert fields["scores"]["score"] == fields["score"] == score_of('"d7"')
    assert (fields["selection"], type(fields["kept"])) == ("half", bool)


def test_all_scores_and_who_scored_stand_side_by_side(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows: list[dict[str, Any]] = [
        {"key": '"a"', "position": 3, "tokens": 1000, "bytes": 9, "source": "", **more}
        for more in ({"score": 0.5, "scored_by": "student"}, {"score": 1.5, "scored_by": "rater"})
    ]
    documents = [
        ShownDocument(
            row,
            "f",
            "t",
            "",
            {"score": row["score"], "education": 2.25},
            Decision("half", chance),
        )
        for row, chance in zip(rows, (None, 0.25), strict=True)
    ]
    inspect.print_documents(Inspection([], documents), 10, 10)
    out = capsys.readouterr().out
    assert "1  score 0.5  education 2.25  added after the selection  scored_by student" in out
    assert "2  score 1.5  education 2.25  kept with a chance of 25%  scored_by rater" in out
    assert "tokens 1,000" in out

    inspect.print_json(Inspection([], documents), 10)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["scores"] == {"score": 0.5, "education": 2.25}
    assert (first["kept"], first["scored_by"]) == (None, "student")
    assert (second["kept"], second["chance"]) == (None, 0.25)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--selection", "other"], "--selection: the run has no selection other; it has half"),
        (["--source", "w\n"], r"--source: no source is called 'w\\n'"),
        (["--reason", "odd"], "--reason: no record was rejected for 'odd'; .*'no_text'"),
        (["--show", "key"], "--show key: give the ids of documents with --key"),
        (["--show", "best", "--key", "a"], "--key goes with --show key, not with --show best"),
        (["--reason", "no_text", "--key", "a"], "--key and --reason"),
        (["--show", "rejected", "--source", "web"], "--source: records that were rejected"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_by_name(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(run), *flags]) == exit_codes.WRONG_USAGE
    assert re.search(message, capsys.readouterr().err)


def test_a_cutoff_is_asked_for_where_a_selection_has_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    select_from(run, "scores", policy=Policy(KeepFraction("0.5"), per=Scope.SOURCE), name="each")
    select_from(run, "scores", policy=Policy(BatchTopK(2, 4)), name="drawn")
    refused: dict[tuple[str, ...], str] = {
        (): "--show cutoff: name a finished selection with --selection",
        ("--selection", "each"): "has a cutoff for each source; name one with --source",
        ("--selection", "drawn"): "draws documents; it has no cutoff",
    }
    for flags, message in refused.items():
        code = inspect.main([str(run), "--show", "cutoff", *flags])
        assert code == exit_codes.WRONG_USAGE
        assert message in capsys.readouterr().err
    flags = ("--show", "cutoff", "--selection", "each", "--source", "wiki", "--count", "2")
    assert inspect.main([str(run), *flags]) == exit_codes.DONE
    out = capsys.readouterr().out
    assert out.index("  kept  source wiki") < out.index("  dropped  source wiki")
    assert inspect.main([str(run), "--selection", "drawn", "--count", "30"]) == exit_codes.DONE
    assert "kept with a chance of " in capsys.readouterr().out


# --- the input ---


def test_a_text_that_changed_since_it_was_scored_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines([record(1), record(2)]))
    score_run(tmp_path / "in.jsonl", tmp_path / "run")
    (tmp_path / "in.jsonl").write_bytes(lines([record(1), record(3)]))
    folder = RunFolder(str(tmp_path / "run"))
    found = inspect_run(folder, Question(show=Show.BEST), None, 2**28).documents
    texts = {json.loads(one.row["key"]): (one.text, one.reason) for one in found}
    assert texts["d1"] == (f"text 1 {HOSTILE}", "")
    assert texts["d2"][0] is None
    assert "has changed since it was scored" in texts["d2"][1]

    (tmp_path / "in.jsonl").unlink()
    found = inspect_run(folder, Question(show=Show.BEST), None, 2**28).documents
    assert all("cannot be read" in one.reason for one in found)


def test_a_text_far_into_a_stream_is_left_out_and_names_the_flag(run: Path) -> None:
    folder, question = RunFolder(str(run)), Question(show=Show.KEY, keys=("d20", "d39"))
    found = inspect_run(folder, question, None, 100).documents
    reasons = {json.loads(one.row["key"]): one.reason for one in found}
    assert reasons["d20"] == ""
    assert "--max_unpacked_bytes reads that far" in reasons["d39"]


def _jsonl(records: list[dict[str, Any]]) -> bytes:
    return lines(records)


def _parquet(records: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), out, row_group_size=1, compression="none")
    return out.getvalue()


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_a_store_is_asked_for_the_documents_shown_and_little_else(
    protocol: str, tmp_path: Path
) -> None:
    formats: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
        "a.jsonl": _jsonl,
        "b.parquet": _parquet,
    }
    with running_store(protocol) as running:
        store = fsspec.filesystem(protocol)
        for name, make in formats.items():
            records = [record(n, text=f"{n} {n * 7919} " * 4000) for n in range(100)]
            content = make(records)
            store.pipe_file(f"{BUCKET}/{name}/{name}", content)
            request = score_run(
                f"{protocol}://{BUCKET}/{name}/*", f"{protocol}://{BUCKET}/run-{name}"
            )
            running.log.clear()
            inspection = inspect_run(request.folder, Question(show=Show.BEST, count=2), None, 2**28)
            shown = sum(len(one.text or "") for one in inspection.documents)
            served = running.log.bytes_served(f"{BUCKET}/{name}")
            assert all(one.text for one in inspection.documents)
            assert shown <= served <= shown + 2 * 2**16
            assert served < len(content) / 10
