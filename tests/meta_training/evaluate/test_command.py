from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarater import cli
from datarater.meta_training.evaluate.command import evaluation_of, make_parser
from datarater.meta_training.evaluate.results import Entry
from datarater.rater_model import exit_codes
from tests.support import training

BASE = ["--pool", "p/*", "--target", "t/*", "--output", "out"]
WORDS = ["the", "sea", "was", "calm", "and", "old", "boats", "drifted", "toward", "harbors"]


def evaluation(*flags: str) -> Any:
    return evaluation_of(make_parser().parse_args([*BASE, *flags]))


def test_every_arm_runs_at_every_share_and_the_whole_pool_once() -> None:
    asked = evaluation("--keep", "0.5", "--keep", "0.9", "--arms", "random,c4,unfiltered")
    assert asked.entries({}) == [
        Entry("unfiltered", 1.0),
        *(Entry(arm, keep) for arm in ("random", "c4") for keep in (0.5, 0.9)),
    ]
    assert [keep for _, keep in evaluation("--sweep", "--arms", "c4").entries({})[1:]] == [
        0.9,
        0.75,
        0.5,
        0.25,
        0.1,
    ]


def test_an_arm_can_have_shares_of_its_own() -> None:
    asked = evaluation("--keep", "0.5", "--arms", "random,c4:0.9, c4:0.25,trigram:.1")
    assert asked.entries({})[1:] == [
        Entry("random", 0.5),
        Entry("c4", 0.9),
        Entry("c4", 0.25),
        Entry("trigram", 0.1),
    ]


def test_an_arm_of_kept_documents_has_its_own_share_and_a_random_one_beside_it() -> None:
    asked = evaluation("--kept", "curated=k/*", "--arms", "random,c4,curated")
    assert asked.entries({"curated": 0.31}) == [
        Entry("unfiltered", 1.0),
        Entry("random", 0.5),
        Entry("random", 0.31),
        Entry("c4", 0.5),
        Entry("curated", 0.31),
    ]
    same = asked.entries({"curated": 0.5})
    assert len(same) == len(set(same)) == 4


def test_a_floor_gives_every_scored_arm_a_twin() -> None:
    asked = evaluation(
        *("--source_floor", "1", "--kept", "curated=k/*", "--arms", "random,c4,curated")
    )
    assert asked.arms.names == ("unfiltered", "random", "c4", "c4_floored", "curated")
    assert asked.arms.source_floor == 1
    assert evaluation("--arms", "c4").arms.names == ("unfiltered", "c4")


def test_what_is_given_is_an_arm_by_default() -> None:
    asked = evaluation(
        *("--rater", "r", "--label_field", "quality", "--scores", "mine=s.parquet"),
        *("--kept", "curated=k/*"),
    )
    assert {"unfiltered", "random", "random_again", "rater", "label", "mine", "curated"} <= set(
        asked.arms.names
    )
    assert asked.seeds == 4
    assert evaluation("--budget", "1.5h").budget == 5400


def test_combined_arms_and_the_start_run_beside_the_rater() -> None:
    asked = evaluation(
        *("--train_raters", "default", "--start_raters", "--source_floor", "1"),
        *("--combine", "both=rater+2*c4", "--combine", "of_start=start+c4"),
        *("--arms", "start,both"),
    )
    assert asked.arms.names == ("unfiltered", "start", "start_floored", "both", "both_floored")
    assert asked.arms.combined["both"] == {"rater": 1.0, "c4": 2.0}
    assert asked.arms.parts("both_floored") == ("rater", "c4")
    assert asked.arms.any_needs_rater
    assert not evaluation("--combine", "both=c4+gopher").arms.any_needs_rater


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "1.5"], "argument --keep: '1.5' is not a share between 0 and 1"),
        (["--arms", "trigam"], "argument --arms: unknown arm 'trigam'; did you mean trigram?"),
        (["--arms", "rater"], "the arm rater needs --rater, --train_raters or --fixed_rater"),
        (["--arms", "c4:2"], "argument --arms: c4:2: '2' is not a share"),
        (["--arms", "label"], "the arm label needs --label_field"),
        (["--rater", "a", "--fixed_rater", "b"], "give one of --rater, --fixed_rater and --train"),
        (["--prepared", "d"], "--prepared takes the place of --pool, --target and --validation"),
        (
            ["--train_raters", "default", "--rater_config", "meta_step=1"],
            "--train_raters and --rater_config: ",
        ),
        (
            ["--train_raters", "default", "--rater_config", "seed=1"],
            "--rater_config: seed is set by the evaluation",
        ),
        (
            ["--train_raters", "default", "--rater_config", "data.prepared=p"],
            "--rater_config: data.prepared is set by the evaluation",
        ),
        (["--train_raters", "defalt"], "--train_raters and --rater_config: "),
        (["--rater_config", "seed=1"], "--rater_config needs --train_raters"),
        (["--first_seed", "-1"], "argument --first_seed: '-1' is not a whole number"),
        (["--budget", "soon"], "argument --budget: 'soon' is not a time such as 90s, 30m or 1.5h"),
        (["--scores", "c4=s.parquet"], "argument --scores: the name 'c4' is taken"),
        (["--kept", "k/*"], "argument --kept: 'k/*' is not NAME=FILES"),
        (["--scores", "a=s", "--kept", "a=k"], "argument --kept: the name 'a' is taken"),
        (
            ["--source_floor", "0.5", "--selection", "batch_top_k"],
            "--source_floor needs --selection documents",
        ),
        (["--combine", "c4=rater+trigram"], "argument --combine: the name 'c4' is taken"),
        (["--combine", "rater+trigram"], "argument --combine: 'rater+trigram' is not NAME=ARMS"),
        (["--combine", "a=trigram"], "argument --combine: 'trigram' names a single arm"),
        (["--combine", "a=random+c4"], "argument --combine: 'random' has no scores to combine"),
        (["--combine", "a=c4+c4"], "argument --combine: 'c4' is named twice"),
        (["--combine", "a=0*c4+gopher"], "argument --combine: the weight '0' must be a number"),
        (["--combine", "a=1.1.1*c4+gopher"], "argument --combine: the weight '1.1.1' must be a"),
        (["--combine", "a=c4-gopher+"], "argument --combine: 'c4-gopher' has no scores"),
        (["--combine", "a=c4+"], "argument --combine: '' is not an arm such as rater"),
        (["--kept", "k=f", "--combine", "a=k+c4"], "argument --combine: 'k' has no scores"),
        (["--combine", "a=rater+c4"], "the arm rater needs --rater, --train_raters"),
        (["--combine", "a=label+c4"], "the arm label needs --label_field"),
        (["--start_raters"], "the arm start needs --rater, --train_raters or --fixed_rater"),
        (["--rater", "r", "--arms", "start"], "the arm start needs --start_raters"),
        (["--rater", "r", "--start_raters"], "--start_raters: r must be a rater in the workdir"),
        (["--source_floor", "0"], "argument --source_floor: '0' is not a share above 0"),
        (["--scores", "a_floored=s"], "argument --scores: the name 'a_floored' is taken"),
        (["--scores", "s.parquet"], "argument --scores: 's.parquet' is not NAME=FILES"),
        (["--seeds", "0"], "argument --seeds: '0' is not a whole number above 0"),
        (["--warmup_steps", "400"], "--warmup_steps (400) must be below --steps (400)"),
        (["--tasks", "t.jsonl"], "argument --tasks: 't.jsonl' is not NAME=FILES"),
        (["--length", "1"], "--length must be at least 2 tokens"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *BASE, *flags]) == exit_codes.WRONG_USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"datarater evaluate: {message}")
    assert said.count("\n") == 1


def test_files_that_do_not_exist_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *BASE]) == exit_codes.NO_INPUT
    assert "p/*" in capsys.readouterr().err


def write_corpus(folder: Path) -> list[str]:
    """Writes a pool, half of it noise, and a target; returns the flags of a tiny evaluation."""
    rng = random.Random(0)

    def prose() -> str:
        return " ".join(rng.choices(WORDS, k=120))

    noise = np.random.default_rng(0)
    pool = [
        {"id": i, "text": prose(), "clean": 1}
        if i % 2
        else {
            "id": i,
            "text": noise.integers(33, 127, 720).astype(np.uint8).tobytes().decode(),
            "clean": 0,
        }
        for i in range(400)
    ]
    for name, records in (("pool", pool), ("target", [{"text": prose()} for _ in range(40)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return [
        f"--pool={folder / 'pool.jsonl'}",
        f"--target={folder / 'target.jsonl'}",
        f"--output={folder / 'out'}",
        "--label_field=clean",
        "--model=0.05M",
        "--steps=100",
        "--batch=16",
        "--length=64",
        "--validation_windows=64",
        "--evaluations=6",
    ]


def write_questions(folder: Path) -> Path:
    """Writes questions whose right choice has the words of the target in their usual spelling."""
    rng = random.Random(1)
    records = []
    for _ in range(60):
        words = rng.choices(WORDS, k=6)
        wrong = "".join(rng.sample(" ".join(words), k=len(" ".join(words)))).strip()
        context = " ".join(rng.choices(WORDS, k=6))
        records.append({"context": context, "choices": [wrong, " ".join(words)], "label": 1})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rows(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "out" / "evaluation.json").read_text())
    return {row["arm"]: row for row in report["arms"]}


@pytest.mark.slow
def test_an_oracle_wins_against_random_and_a_second_launch_runs_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*write_corpus(tmp_path), "--arms=random,trigram,label", "--seeds=4"]
    flags += [f"--tasks=cloze={write_questions(tmp_path)}", "--task_questions=30"]
    assert cli.main(["evaluate", *flags]) == exit_codes.DONE
    said = capsys.readouterr()
    assert "[16/16]" in said.err
    assert "better" in said.out

    found = rows(tmp_path)
    oracle = found["label"]
    assert oracle["difference_from_random"]["high"] < 0
    assert oracle["difference"]["high"] < 0
    assert oracle["gain"]["reached"] == 4
    assert oracle["gain"]["mean"] > 0.2
    assert oracle["kept_documents"] == pytest.approx(200, abs=15)
    # A trigram filter solves this corpus too; a random half does not.
    assert found["trigram"]["difference"]["verdict"] == "better"
    assert abs(found["random"]["difference"]["mean"]) < abs(oracle["difference"]["mean"]) / 2

    # More of the right words are learned from the clean half.
    answers = {arm: row["tasks"]["cloze"] for arm, row in found.items()}
    assert answers["label"]["questions"] == 30
    assert answers["label"]["accuracy_per_byte"]["mean"] > 0.8
    assert answers["label"]["margin"]["difference"]["verdict"] == "better"
    assert answers["unfiltered"]["margin"]["difference"] is None
    assert "Task cloze: 30 questions, chance 50.0%" in said.out

    # Everything comes from the cache, and a fifth seed adds its runs alone.
    stored = sorted((tmp_path / "out" / "runs").iterdir())
    times = [path.stat().st_mtime_ns for path in stored]
    assert cli.main(["evaluate", *flags]) == exit_codes.DONE
    assert "[1/" not in capsys.readouterr().err
    assert rows(tmp_path) == found
    assert cli.main(["evaluate", *flags, "--seeds=5"]) == exit_codes.DONE
    assert "[4/4]" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in stored] == times
    for arm, row in rows(tmp_path).items():
        assert row["final_losses"][:4] == found[arm]["final_losses"]


@pytest.mark.slow
def test_a_budget_decides_the_seeds_and_a_larger_one_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*write_corpus(tmp_path), "--arms=random", "--keep=0.5", "--steps=20"]
    assert cli.main(["evaluate", *flags, "--budget=1s"]) == exit_codes.DONE
    said = capsys.readouterr().err
    assert "the budget of 1 s is below" in said
    assert "plan: no time for more than these 2 seeds" in said
    first = rows(tmp_path)["random"]["final_losses"]
    assert len(first) == 2

    seconds = sum(row["seconds"] for row in rows(tmp_path).values())
    larger = f"--budget={2 * seconds + 1:.0f}s"
    assert cli.main(["evaluate", *flags, larger]) == exit_codes.DONE
    said = capsys.readouterr().err
    assert "detect a difference of about" in said
    more = rows(tmp_path)["random"]["final_losses"]
    assert len(more) >= 4
    assert more[:2] == first


@pytest.mark.slow
def test_a_signal_stops_the_workers_and_keeps_finished_runs(tmp_path: Path) -> None:
    flags = [*write_corpus(tmp_path), "--arms=random", "--seeds=50"]
    process = subprocess.Popen(
        [sys.executable, "-m", "datarater", "evaluate", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    runs = tmp_path / "out" / "runs"
    deadline = time.monotonic() + 300
    while not list(runs.glob("*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == exit_codes.STOPPED
    assert said.endswith("stopped; run the same command to continue\n")
    assert "Traceback" not in said
    for path in runs.glob("*.json"):
        assert json.loads(path.read_text())["result"]["curve"]


@pytest.mark.slow
def test_the_start_of_a_trained_rater_and_combined_arms_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers compile sooner without optimization.
    monkeypatch.setenv("XLA_FLAGS", training.environment()["XLA_FLAGS"])
    # So large a meta-step changes what is kept.
    tiny = {**training.TINY, "meta_steps": 2, "population.warmup_steps": 0}
    tiny |= {"meta_optimiser.learning_rate": 0.3, "meta_optimiser.warmup_steps": 0}
    changed = [f"--rater_config={name}={value}" for name, value in tiny.items()]
    changed = [flag for flag in changed if "data.outer_share" not in flag]
    flags = [*write_corpus(tmp_path), *changed, "--train_raters=default", "--start_raters"]
    flags += ["--combine=both=rater+trigram", "--arms=rater,start,both", "--steps=4", "--seeds=1"]
    assert cli.main(["evaluate", *flags]) == exit_codes.DONE

    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    losses = {row["arm"]: row["final_losses"] for row in report["arms"]}
    assert losses["start"] != losses["rater"]
    assert losses["both"] not in (losses["rater"], losses["start"])
    # The paired difference of the rater from its start is among the leads.
    (lead,) = [lead for lead in report["leads"] if lead["arm"] == "start"]
    expected = np.mean(np.subtract(losses["rater"], losses["start"]))
    assert lead["difference"]["mean"] == pytest.approx(expected)

    # The rater, its start and the trigram filter have scored the pool, each once.
    assert len(list((tmp_path / "out" / "scores").glob("*.npz"))) == 3
