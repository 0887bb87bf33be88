"""Tests the selection rules of the command line, each without scoring again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarater.pipelines.commands import curate, score, select
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import (
    ScoreStatistics,
    load_rater,
)
from datarater.rater_model.scorer import Scorer
from tests.support.corpora import as_lines, make_records
from tests.support.raters import save_tiny_rater

pytestmark = pytest.mark.xdist_group("rules")  # all select from one run folder

COUNTS = {"s0": 120, "s1": 60, "s2": 30}


@pytest.fixture(scope="module")
def rater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a rater with the quantiles of a reference sample."""
    path = save_tiny_rater(tmp_path_factory.mktemp("rater") / "rater")
    scores_N = (
        Scorer(load_rater(path)).score([record["text"] for record in make_records(500, 9)]).scores_N
    )
    quantiles = tuple(float(value) for value in np.quantile(scores_N, np.linspace(0, 1, 101)))
    return save_tiny_rater(
        path, statistics=ScoreStatistics(quantiles=quantiles, sample_size=500, max_windows=256)
    )


def corpus_of(folder: Path, seed: int) -> list[dict[str, Any]]:
    folder.mkdir()
    records = make_records(sum(COUNTS.values()), seed)
    sources = [name for name, count in COUNTS.items() for _ in range(count)]
    np.random.default_rng(seed).shuffle(sources)
    for record, source in zip(records, sources, strict=True):
        record["source"] = source
    (folder / "a.jsonl").write_bytes(as_lines(records) + b"not json\n")
    return records


@pytest.fixture(scope="module")
def run(
    rater: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[float]]]:
    """Scores a corpus; returns the run and its scores by source, the best first."""
    folder = tmp_path_factory.mktemp("rules")
    records = corpus_of(folder / "in", 1)
    output = folder / "run"
    flags = [
        "--input",
        str(folder / "in/*"),
        "--rater",
        str(rater),
        "--output",
        str(output),
        "--split_bytes",
        "4000",
    ]
    assert score.main(flags) == 0
    scores_N = Scorer(load_rater(rater)).score([record["text"] for record in records]).scores_N
    by_source: dict[str, list[float]] = {}
    for record, value in zip(records, scores_N.tolist(), strict=True):
        by_source.setdefault(record["source"], []).append(value)
    return output, {source: sorted(values, reverse=True) for source, values in by_source.items()}


def selected(output: Path, name: str, *flags: str) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Selects; returns the manifest and the kept scores by source, the best first."""
    # Selecting touches no score file.
    before = {
        path: path.stat().st_mtime_ns for path in (output / "scores").rglob("*") if path.is_file()
    }
    assert select.main(["--output", str(output), *flags]) == 0
    assert {
        path: path.stat().st_mtime_ns for path in (output / "scores").rglob("*") if path.is_file()
    } == before

    folder = output / "selections" / name
    manifest = json.loads((folder / "manifest.json").read_bytes())
    kept: dict[str, list[float]] = {}
    for entry in manifest["files"]:
        for line in (folder / entry["path"]).read_bytes().splitlines():
            row = json.loads(line)
            kept.setdefault(row["source"], []).append(float(np.float32(row["datarater_score"])))

    # The counts agree with the kept documents.
    counts = manifest["counts"]
    assert counts["read"] == counts["kept"] + counts["dropped"] + counts["rejected"] == 211
    for source, values in kept.items():
        values.sort(reverse=True)
        assert len(values) == manifest["sources"][source]["kept"]
    return manifest, kept


def test_a_fraction_per_source(run: tuple[Path, dict[str, list[float]]]) -> None:
    manifest, kept = selected(
        run[0], "keep-0.1-per-source", "--keep_fraction", "0.1", "--per", "source"
    )
    assert {source: len(values) for source, values in kept.items()} == {"s0": 12, "s1": 6, "s2": 3}
    assert kept == {source: values[: len(kept[source])] for source, values in run[1].items()}
    assert manifest["per"] == "source"
    assert set(manifest["cutoff"]["sources"]) == set(COUNTS)


def test_weights_and_a_minimum(run: tuple[Path, dict[str, list[float]]]) -> None:
    flags = [
        "--keep_fraction",
        "0.1",
        "--per",
        "source",
        "--source_weight",
        "s0=2.0",
        "--source_weight",
        "s1=0",
    ]
    _, kept = selected(
        run[0], "keep-0.1-per-source-weighted-min-4", *flags, "--min_per_source", "4"
    )
    assert {source: len(values) for source, values in kept.items()} == {"s0": 24, "s1": 4, "s2": 4}
    assert kept == {source: values[: len(kept[source])] for source, values in run[1].items()}


@pytest.mark.parametrize(
    "rule", [["--keep_count", "5"], ["--token_budget", "400"], ["--threshold=0"]]
)
def test_other_rules_per_source(run: tuple[Path, dict[str, list[float]]], rule: list[str]) -> None:
    manifest, kept = selected(
        run[0],
        "it-" + rule[0].strip("-=0"),
        *rule,
        "--per",
        "source",
        "--name",
        "it-" + rule[0].strip("-=0"),
    )
    for source, values in kept.items():
        assert values == run[1][source][: len(values)]
        if "count" in rule[0]:
            assert len(values) == 5
        if "budget" in rule[0]:
            assert 0 < manifest["sources"][source]["kept_tokens"] <= 400


def test_a_minimum_counts_towards_the_corpus_target(
    run: tuple[Path, dict[str, list[float]]],
) -> None:
    _, kept = selected(
        run[0], "keep-count-60-min-19", "--keep_count", "60", "--min_per_source", "19"
    )
    assert sum(map(len, kept.values())) == 60
    assert min(map(len, kept.values())) >= 19
    left = sorted((value for values in run[1].values() for value in values[19:]), reverse=True)
    rest = sorted((value for values in kept.values() for value in values[19:]), reverse=True)
    assert rest == left[: 60 - 57]


def test_batch_top_k_is_drawn_near_its_expectation_and_again_the_same(
    run: tuple[Path, dict[str, list[float]]],
) -> None:
    flags = ["--accept_batch", "64", "--discard_fraction", "0.75"]
    manifest, kept = selected(run[0], "batch-16-of-64", *flags)
    draw = manifest["draw"]
    assert draw["expected"] == pytest.approx(210 / 4)
    assert draw["actual"] == sum(map(len, kept.values())) == manifest["counts"]["kept"]
    assert abs(draw["actual"] - draw["expected"]) < 5 * draw["standard_deviation"]
    _, again = selected(run[0], "again", *flags, "--name", "again")
    assert again == kept
    _, other = selected(run[0], "other", *flags, "--name", "other", "--seed", "1")
    assert other != kept
    manifest, _ = selected(run[0], "batch-16-of-64-per-source", *flags, "--per", "source")
    assert manifest["draw"]["expected"] == pytest.approx(210 / 4)


def test_a_reference_run_and_the_raters_own_quantiles(
    run: tuple[Path, dict[str, list[float]]],
    rater: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A reference with the same scores gives the same cutoff as the corpus itself.
    fraction = ["--keep_fraction", "0.3"]
    first, own = selected(run[0], "own", *fraction, "--name", "own")
    _, same = selected(run[0], "same", *fraction, "--name", "same", "--reference", str(run[0]))
    assert same == own

    # In another corpus of the same kind, about as many documents are above its cutoff.
    corpus_of(tmp_path / "in", 5)
    flags = ["--input", str(tmp_path / "in/*"), "--rater", str(rater), "--split_bytes", "4000"]
    assert (
        curate.main(
            [*flags, "--output", str(tmp_path / "run"), *fraction, "--reference", str(run[0])]
        )
        == 0
    )
    manifest = json.loads(
        (tmp_path / "run/selections/keep-0.3-by-reference/manifest.json").read_bytes()
    )
    assert manifest["cutoff"] == first["cutoff"]
    assert 30 < manifest["counts"]["kept"] < 100

    for name, reference in (("by-run", run[0]), ("by-rater", rater)):
        _, kept = selected(run[0], name, *fraction, "--name", name, "--reference", str(reference))
        assert 40 < sum(map(len, kept.values())) < 90
        batch = ["--accept_batch", "64", "--discard_fraction", "0.75", "--name", "batch-" + name]
        _, kept = selected(run[0], "batch-" + name, *batch, "--reference", str(reference))
        assert 20 < sum(map(len, kept.values())) < 90

    capsys.readouterr()
    assert (
        select.main(
            ["--output", str(run[0]), *fraction, "--reference", str(tmp_path / "in"), "--name", "x"]
        )
        == 1
    )
    assert "neither a completely scored run folder" in capsys.readouterr().err


def test_a_reference_of_another_rater_or_window_cap_is_refused(
    run: tuple[Path, dict[str, list[float]]],
    other_rater: Path,
    rater: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--output", str(run[0]), "--keep_fraction", "0.3", "--name", "refused"]
    assert select.main([*flags, "--reference", str(other_rater)]) == 3
    assert "rater" in capsys.readouterr().err
    scored = [
        "--input",
        str(tmp_path / "in/*"),
        "--rater",
        str(rater),
        "--output",
        str(tmp_path / "run"),
    ]
    corpus_of(tmp_path / "in", 5)
    assert score.main([*scored, "--max_windows", "2"]) == 0
    assert select.main([*flags, "--reference", str(tmp_path / "run")]) == 3
    assert "max_windows" in capsys.readouterr().err
    assert not (run[0] / "selections/refused").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--accept_batch", "64"], "--discard_fraction"),
        (["--accept_batch", "10", "--discard_fraction", "0.25"], "leaves 7.5"),
        (["--keep_fraction", "0.1", "--discard_fraction", "0.25"], "needs --accept_batch"),
        (["--keep_fraction", "0.1", "--source_weight", "a=2"], "--per source"),
        (["--keep_fraction", "0.1", "--per", "source", "--source_weight", "a"], "wiki=2.0"),
        (["--keep_count", "3", "--reference", "x"], "--reference needs"),
        (["--keep_fraction", "0.1", "--per", "source", "--reference", "x"], "whole corpus"),
    ],
)
def test_flags_that_do_not_go_together_are_wrong_usage(
    run: tuple[Path, dict[str, list[float]]],
    flags: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        select.main(["--output", str(run[0]), *flags])
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


def test_a_weight_for_no_source_names_those_there_are(
    run: tuple[Path, dict[str, list[float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--output",
        str(run[0]),
        "--keep_fraction",
        "0.1",
        "--per",
        "source",
        "--source_weight",
        "s9=2",
    ]
    assert select.main([*flags, "--name", "typo"]) == exit_codes.WRONG_USAGE
    error = capsys.readouterr().err
    assert "'s9'" in error
    assert "'s0', 's1', 's2'" in error
    assert not (run[0] / "selections/typo").exists()


def test_the_corpus_has_what_the_tests_count_on(run: tuple[Path, dict[str, list[float]]]) -> None:
    assert Counter({source: len(values) for source, values in run[1].items()}) == Counter(COUNTS)


def test_a_second_read_in_pieces_publishes_the_same_documents(
    run: tuple[Path, dict[str, list[float]]],
) -> None:
    output, _ = run
    flags = ("--keep_fraction", "0.4")
    whole, kept = selected(output, "whole", "--name", "whole", *flags)
    pieces, kept_in_pieces = selected(
        output, "pieces", "--name", "pieces", "--second_read_bytes", "1", *flags
    )
    assert kept_in_pieces == kept
    assert pieces["second_read_bytes"] == 1
    # Plain JSONL is the same byte by byte, and no piece is left.
    assert [file["sha256"] for file in pieces["files"]] == [
        file["sha256"] for file in whole["files"]
    ]
    assert not (output / "selections/pieces/pieces").exists()
