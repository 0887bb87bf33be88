"""One suite for every available runner: the same kept documents, counts and exit codes."""

from __future__ import annotations

import pickle
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from datarater.pipelines.commands import curate, dedup, score, select
from datarater.pipelines.graph import score_split
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater
from tests.support.corpora import as_lines, make_records
from tests.support.run_folders import run_options
from tests.support.runners import (
    duplicates_in,
    one_flink_at_a_time,
    outcome,
    prism_flags,
    score_files,
)

RUNNERS = [
    "in-process",
    "multi-process",
    "prism",
    pytest.param("flink", marks=one_flink_at_a_time),
]


def run_flags(corpus: Path, rater: Path, output: Path) -> list[str]:
    flags = [
        "--input",
        f"{corpus}/*",
        "--rater",
        str(rater),
        "--output",
        str(output),
        "--split_bytes",
        "4000",
    ]
    return [*flags, "--max_windows", "4", "--workers_to_fill", "2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 splits, with records to reject and ties."""
    folder = tmp_path_factory.mktemp("runners") / "in"
    folder.mkdir()
    for number in range(8):
        lines = (
            as_lines(make_records(60, number))
            + b'no JSON\n{"id": "same", "text": "the same text"}\n' * 3
        )
        (folder / f"{number:02d}.jsonl").write_bytes(lines)
    return folder


@pytest.fixture(scope="module")
def expected(corpus: Path, rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an undisturbed run in this process."""
    output = tmp_path_factory.mktemp("expected") / "run"
    assert curate.main([*run_flags(corpus, rater, output), "--keep_fraction", "0.5"]) == 0
    assert select.main(["--output", str(output), *ranking_flags(output)]) == 0
    assert dedup.main(["--output", str(output)]) == 0
    return output


def ranking_flags(scored: Path) -> list[str]:
    """Returns the flags of a selection by a table as large as the corpus, with equal keys."""
    flags = ["--keep_count", "100", "--name", "ranked", "--join", f"other={scored}/scores"]
    where = "source != 's1' and other.tokens is not None"
    return [*flags, "--where", where, "--rank_by", "other.score - 0.001 * tokens"]


@pytest.fixture(params=RUNNERS)
def runner_flags(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "flink":
        return list(request.getfixturevalue("flink_cluster").flags())
    if request.param == "prism":
        return prism_flags()
    return ["--local_workers", "2"] if request.param == "multi-process" else []


@pytest.mark.slow
def test_every_runner_keeps_the_same(
    corpus: Path,
    rater: Path,
    expected: Path,
    runner_flags: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    args = [*run_flags(corpus, rater, output), *runner_flags]

    # The limit lies just below the true fraction (24 of 528). So it is certain only at the end of
    # scoring that it is passed, and every runner scores all splits first.
    assert score.main([*args, "--max_rejected_fraction", "0.045"]) == exit_codes.PAST_LIMIT
    printed = capfd.readouterr()
    assert re.match(
        r"datarater score: 24 of (the )?528 records (read so far )?are rejected \(not_json 24\)",
        printed.err.splitlines()[-1],
    )
    assert "runner: " in printed.out
    scored = score_files(output)
    assert len(scored) > 20
    assert not (output / "scoring.json").exists()

    # The same folder again: nothing is scored twice.
    assert curate.main([*args, "--keep_fraction", "0.5"]) == 0
    assert score_files(output) == scored
    assert outcome(output, "keep-0.5") == outcome(expected, "keep-0.5")

    # Another rule uses the same scores, and those of another run.
    assert select.main(["--output", str(output), *ranking_flags(expected), *runner_flags]) == 0
    assert score_files(output) == scored
    assert outcome(output, "ranked") == outcome(expected, "ranked")

    # So do near-duplicates.
    assert dedup.main(["--output", str(output), *runner_flags]) == 0
    assert duplicates_in(output) == duplicates_in(expected)
    assert len(duplicates_in(output)) >= 23
    assert not list(output.glob("attempts/*"))


loaded: list[str] = []


def load(path: str) -> Any:
    loaded.append(path)
    return load_rater(path)


def test_a_process_shares_one_rater(rater: Path) -> None:
    """Several bundles at once, each with a separately unpickled step, as in Beam's workers."""
    options = run_options(rater=load_rater(str(rater)).digest)
    request = ScoringRequest(Patterns(("x",)), str(rater), "run", options)
    pickled = pickle.dumps(score_split.ScoreSplit(request, load))
    steps = [pickle.loads(pickled) for _ in range(4)]

    def bundle(step: score_split.ScoreSplit) -> None:
        step.setup()
        step._rater = step._shared.acquire(step._load, tag=options.rater)

    threads = [threading.Thread(target=bundle, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == len({id(step._rater) for step in steps}) == 1
