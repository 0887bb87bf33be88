"""The report of a selection agrees with its scores, and never harms the selection."""

import dataclasses
import gzip
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

import datarater
from datarater import cli
from datarater.pipelines.commands.ranking import ranking_options
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.kept_counts import KeptCounts
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.manifest import RuleFields, SelectionOptions
from datarater.pipelines.selection.histogram import Histogram as RankHistogram
from datarater.pipelines.selection.policy import Policy
from datarater.pipelines.selection.ranking import RankKeys
from datarater.pipelines.selection.rules import KeepFraction
from datarater.rater_model.documents.records import Record
from datarater.report import documents
from datarater.report.page import BarTable, Excerpts, Histogram, Page, Tiles
from datarater.report.sample import Limits
from datarater.report.selection import (
    ScoreBins,
    asked_for,
    rank_correlation,
    selection_page,
    source_tables,
    try_to_write_report,
    write_report,
)
from tests.pipelines.graph.test_packing import ScorerOfDigests
from tests.support.corpora import as_lines, make_records
from tests.support.ranked_runs import score_corpus, select_now, write_table

MARKER = "a very private sentence"
Select = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two files, one of them compressed, with rejected records."""
    folder = tmp_path_factory.mktemp("report")
    first = make_records(300, 1)
    for record in first:
        record["text"] = f"{MARKER} {record['text']}"
    (folder / "a.jsonl").write_bytes(as_lines(first) + b"not json\n" * 9)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(as_lines(make_records(200, 2))))
    datarater.score([folder / "a.jsonl", folder / "b.jsonl.gz"], rater, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def select(run: Path) -> Select:
    """Selects by a rule, once; returns the manifest."""
    done: dict[str, dict[str, Any]] = {}

    def by(**rule: Any) -> dict[str, Any]:
        key = str(rule)
        if key not in done:
            done[key] = datarater.select(run, **rule)
        return done[key]

    return by


def page_of(run: Path, manifest: dict[str, Any], limits: Limits | None = None) -> Page:
    return selection_page(RunFolder(str(run)), manifest["name"], 10, limits or Limits())


def block(page: Page, kind: type, title: str = "") -> Any:
    (found,) = (
        one
        for section in page.sections
        for one in section.blocks
        if isinstance(one, kind) and title in getattr(one, "title", "")
    )
    return found


def scores_of(run: Path) -> list[dict[str, Any]]:
    rows = datarater.read_scores(run, ["key", "score", "source", "tokens"]).to_pylist()
    return [row for row in rows if row["score"] is not None]


@pytest.mark.parametrize(
    "rule",
    [
        {"keep_fraction": 0.3},
        {"keep_fraction": 0.3, "per": "source"},
        {"keep_count": 7, "min_per_source": 20},
        {"keep_count": 0},
    ],
    ids=str,
)
def test_the_figures_count_what_the_manifest_counts(
    run: Path, select: Select, rule: dict[str, Any]
) -> None:
    manifest = select(**rule)
    page = page_of(run, manifest)
    histogram = block(page, Histogram)
    (_, _, dropped), (_, _, kept) = histogram.parts
    assert sum(dropped) + sum(kept) == pytest.approx(manifest["scored"])
    # The bar with the cutoff is divided in the ratio of its documents.
    assert sum(kept) == pytest.approx(manifest["counts"]["kept"], abs=3)
    assert block(page, Tiles).parts[0][1] == manifest["counts"]["kept"]


def test_documents_that_are_drawn_are_shown_with_their_chance(run: Path, select: Select) -> None:
    page = page_of(run, select(accept_batch=4, discard_fraction="0.5"))
    (_, _, _), (_, _, kept) = block(page, Histogram).parts
    assert sum(kept) == pytest.approx(250, abs=5)
    border = block(page, Excerpts, "Borderline").items
    assert all(item.decision.startswith("chance ") for item in border)
    assert {item.decision for item in border} <= {f"chance {share}%" for share in range(45, 56)}


def test_the_listed_documents_are_the_best_the_worst_and_those_at_the_cutoff(
    run: Path, select: Select
) -> None:
    page = page_of(run, select(keep_fraction=0.3))
    scores = sorted((row["score"] for row in scores_of(run)), reverse=True)
    shown = {
        title: [item.score for item in block(page, Excerpts, title).items]
        for title in ("Best", "Borderline", "Worst")
    }
    assert shown["Best"] == scores[:10]
    assert shown["Worst"] == scores[:-11:-1]
    assert shown["Borderline"] == scores[145:155]
    decisions = [item.decision for item in block(page, Excerpts, "Borderline").items]
    assert decisions == ["kept"] * 5 + ["dropped"] * 5


def test_each_listed_document_shows_its_own_text(run: Path, select: Select, rater: Path) -> None:
    page = page_of(run, select(keep_fraction=0.3))
    scorer = datarater.Scorer(datarater.load_rater(rater))
    for title in ("Best", "Borderline", "Worst"):
        for item in block(page, Excerpts, title).items:
            assert item.cut == 0
            (score,) = scorer.score([item.text]).scores_N
            assert score == pytest.approx(item.score, abs=1e-5)


def test_sources_are_compared_and_rejects_are_counted(run: Path, select: Select) -> None:
    page = page_of(run, select(keep_fraction=0.3))
    counted = Counter(row["source"] for row in scores_of(run))
    sources = block(page, BarTable, "source")
    assert {row.cells[0]: row.cells[1] for row in sources.rows} == {
        name: f"{count:,}" for name, count in counted.items()
    }
    assert sources.mark == (0.3, "all sources, 30.0%")
    (rejects,) = block(page, BarTable, "Rejected").rows
    assert rejects.cells == ["not_json", "9"]
    assert "1.8% of the records were rejected (9 of 509)." in page.warnings


def test_a_larger_run_is_sampled_and_says_so(run: Path, select: Select) -> None:
    page = page_of(run, select(keep_fraction=0.3), Limits(files=1))
    assert sum(sum(part[2]) for part in block(page, Histogram).parts) == pytest.approx(500)
    texts = [
        one.text for section in page.sections for one in section.blocks if hasattr(one, "text")
    ]
    assert any("A sample: " in text and "in 1 of 2 splits" in text for text in texts)
    assert len(block(page, Excerpts, "Best").items) == 10


def test_without_texts_no_text_of_the_corpus_is_in_the_page(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = ["--keep_fraction", "0.4", "--name", "quiet"]
    assert cli.main(["select", "--output", str(run), *rule, "--report_texts", "0"]) == 0
    report = run / "selections" / "quiet" / "report.html"
    assert f"report:         {report}" in capsys.readouterr().out.splitlines()
    assert MARKER not in report.read_text()
    assert "Left out (--report_texts 0)." in report.read_text()
    assert cli.main(["report", str(run), "--name", "quiet"]) == 0
    assert MARKER not in report.read_text()
    assert cli.main(["report", str(run), "--name", "quiet", "--report_texts=2"]) == 0
    assert MARKER in report.read_text()
    assert cli.main(["report", str(run), "--name", "quiet", "--report_texts=0"]) == 0
    assert MARKER not in report.read_text()


def test_a_changed_or_missing_input_is_said_where_the_text_would_be(
    rater: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(make_records(20, 1)))
    datarater.curate(path, rater, tmp_path / "run", keep_fraction=0.5)
    folder = RunFolder(str(tmp_path / "run"))

    path.write_bytes(path.read_bytes().replace(b'"1-', b'"2-'))
    page = selection_page(folder, "keep-0.5", 2, Limits())
    reasons = {item.reason for item in block(page, Excerpts, "Best").items}
    assert reasons == {"The input has changed since it was scored."}

    path.unlink()
    page = selection_page(folder, "keep-0.5", 2, Limits())
    (reason,) = {item.reason for item in block(page, Excerpts, "Best").items}
    assert reason.startswith("The text cannot be read: ")
    assert all(item.text is None for item in block(page, Excerpts, "Worst").items)


def test_a_report_that_fails_leaves_the_selection_complete_and_is_logged(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(commits, "replace", full)
    with caplog.at_level(logging.WARNING):
        datarater.select(run, keep_fraction=0.25, name="unseen")
    folder = run / "selections" / "unseen"
    assert (folder / "_SUCCESS").exists()
    assert not (folder / "report.html").exists()
    assert try_to_write_report(RunFolder(str(run)), "unseen", 0) is False
    assert "to make it later: datarater report" in caplog.text


def test_a_report_that_takes_too_long_is_given_up(
    run: Path, select: Select, caplog: pytest.LogCaptureFixture
) -> None:
    name = select(keep_fraction=0.3)["name"]
    report = run / "selections" / name / "report.html"
    before = report.read_bytes()
    assert try_to_write_report(RunFolder(str(run)), name, 0, seconds=0) is False
    assert report.read_bytes() == before
    assert "it took longer than 0 s" in caplog.text
    assert f"datarater report {run} --name {name} --report_texts 0" in caplog.text


def test_an_input_that_hangs_delays_the_report_only_for_a_while(
    run: Path, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hangs(*_: Any) -> Iterator[Record]:
        released.wait()
        yield from ()

    name = select(keep_fraction=0.3)["name"]
    monkeypatch.setattr(documents, "read_documents_at", hangs)
    begun = time.monotonic()
    page = selection_page(RunFolder(str(run)), name, 2, Limits(text_seconds=0.1))
    released.set()
    assert time.monotonic() - begun < 30
    assert {item.reason for item in block(page, Excerpts, "Worst").items} == {
        "The text was not read: the time for reading texts ran out."
    }


def test_of_ten_thousand_sources_the_largest_and_the_extreme_ones_are_shown() -> None:
    sources = {"x" * 5000: KeptCounts(read=999, kept=999)}
    for number in range(10_000):
        kept = min(number, 150)
        sources[f"s{number:04}"] = KeptCounts(read=150, kept=kept, dropped=150 - kept)
    largest, extremes = source_tables(sources, 0.5)
    assert isinstance(largest, BarTable)
    assert isinstance(extremes, BarTable)
    assert largest.rows[0].cells == ["x" * 59 + "…", "999", "999", "100.0%"]
    assert [row.cells[0] for row in largest.rows[1:]] == [
        *(f"s{number:04}" for number in range(29)), "and 9,971 more",
    ]  # fmt: skip
    assert [row.cells[0] for row in extremes.rows] == [
        *(f"s{number:04}" for number in range(150, 155)),
        *(f"s{number:04}" for number in range(33, 28, -1)),
    ]


def test_the_command_makes_every_report_again_and_names_them(
    run: Path, select: Select, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run / "selections" / select(keep_fraction=0.3)["name"] / "report.html"
    report.unlink()
    assert cli.main(["report", str(run)]) == 0
    assert report.exists()
    assert str(report) in capsys.readouterr().out.splitlines()


def test_the_command_refuses_what_has_no_selection(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert cli.main(["report", str(tmp_path / "no")]) == 2
    assert cli.main(["report", str(run), "--name", "absent"]) == 2
    assert cli.main(["report", str(run), "--report_texts", "-1"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} has no finished selection" in said
    assert "has no finished selection absent" in said
    assert "is not a whole number from 0 to 100" in said


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("keep_fraction", "0.125"), "Keep the best 12.5% of the scored documents."),
        (("keep_fraction", "1/3"), "Keep the best 1/3 (33.3333%) of the scored documents."),
        (("keep_count", "1000"), "Keep the best 1,000 documents."),
        (("token_budget", "5000000"), "Keep the best documents that fit in 5,000,000 tokens."),
        (("threshold", "-0.5"), "Keep the documents that score at least -0.5."),
        (
            ("sample_tokens", "5000 temperature=0.5 max_copies=4"),
            "Keep documents in copies that grow with their scores, 5,000 tokens in all "
            "(temperature 0.5, at most 4 copies of a document).",
        ),
    ],
)
def test_the_rule_is_said_in_a_sentence(fields: tuple[str, str], sentence: str) -> None:
    options = SelectionOptions(
        rule=RuleFields(*fields),
        per="corpus",
        source_weights={},
        min_per_source=0,
        reference=None,
        seed=0,
        output_format="same",
        output_shard_bytes=1,
    )
    assert asked_for(options) == sentence
    per_source = dataclasses.replace(
        options, per="source", min_per_source=9, source_weights={"w": "2"}
    )
    assert asked_for(per_source) == (
        f"{sentence[:-1]}, of each source separately. Weights of sources: w 2. At least 9 "
        "documents of each source."
    )


def test_the_report_of_a_ranking_shows_what_it_excludes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(as_lines(make_records(30, 0)))
    scoring = score_corpus(tmp_path / "in", tmp_path / "run", ScorerOfDigests())
    labels = [[{"id": f"0-{number}", "ok": number % 3 > 0} for number in range(15)]]
    path = write_table(tmp_path, "labels", labels, id=pa.string(), ok=pa.bool_())
    options = ranking_options({"labels": [path]}, where="labels.ok", rank_by="-rater")
    request = SelectionRequest(
        scoring.output, Policy(KeepFraction("1/2")), 0, "same", 2**20, ranking=options, name="it"
    )
    select_now(request)
    page = Path(write_report(request.folder, "it", 3)).read_text()
    for shown in (
        "Only documents that meet the condition labels.ok count. They are ranked by -rater.",
        "Documents that the conditions exclude, by reason",
        "condition_missing",
        "joined labels: 15 rows, of 15 of 30 documents.",
        "dropped 5",  # of the ten that meet it
    ):
        assert shown in page


def test_the_histogram_of_the_scores_counts_every_document_once() -> None:
    scores_N = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    scores_N[:3] = (-1e6, 1e6, 0)
    keys = RankKeys.of(scores_N, np.arange(5000, dtype=np.uint64), 0, 0, range(5000), [1] * 5000)
    bins = ScoreBins.of(RankHistogram.of(keys, 0))
    edges_B = bins.axis([0.5])
    counts_B = bins.counts(edges_B)
    assert counts_B.sum() == pytest.approx(5000)
    clipped_N = np.clip(scores_N, edges_B[0], edges_B[-1])
    expected_B, _ = np.histogram(clipped_N, edges_B)
    assert np.abs(counts_B - expected_B).max() < 12
    assert -10 < edges_B[0] < edges_B[-1] < 10


def test_the_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    x_N = rng.integers(0, 12, 800)
    y_N = (x_N + rng.integers(0, 9, 800)) // 2
    counts = np.zeros((12, 10), np.int64)
    np.add.at(counts, (x_N, y_N), 1)
    assert rank_correlation(counts) == pytest.approx(spearmanr(x_N, y_N).statistic)
    assert rank_correlation(np.asarray([[5, 0], [0, 0]])) is None
