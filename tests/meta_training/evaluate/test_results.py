from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from datarater.meta_training.evaluate.results import (
    BASELINE,
    Costs,
    Entry,
    print_table,
    sentences,
    summarize,
)
from datarater.meta_training.evaluate.runs import RunResult

COSTS = Costs(training=6e5, scoring={"rater": 2e5})
SHARED = [0.0, 0.05, -0.03, 0.02]
"""What the seeds have in common across arms."""


def run(final: float, speed: float = 1.0) -> RunResult:
    """Returns a run whose loss falls linearly from 5 to `final`, sooner for a higher speed."""
    curve = [(step, max(final, 5 - (5 - final) * step / 400 * speed)) for step in range(0, 401, 40)]
    return RunResult(curve, final + 0.2, {"wiki": final - 0.1, "books": final + 0.1}, 1, 30.0)


def runs_of(**offsets: float) -> dict[Entry, list[RunResult]]:
    runs = {BASELINE: [run(2.5 + shared) for shared in SHARED]}
    for name, offset in offsets.items():
        arm, _, keep = name.partition("__")
        jitter = np.random.default_rng(len(name)).normal(0, 0.002, 4)
        runs[Entry(arm, int(keep or 50) / 100)] = [
            run(2.5 + shared + offset + noise) for shared, noise in zip(SHARED, jitter, strict=True)
        ]
    return runs


def row(summary: dict[str, Any], arm: str, keep: float = 0.5) -> Any:
    return next(row for row in summary["arms"] if (row["arm"], row["keep"]) == (arm, keep))


def test_differences_are_paired_with_the_seeds_of_the_whole_pool_and_of_random() -> None:
    summary = summarize(runs_of(random=0.0, rater=-0.1), COSTS, 4096)
    rater = row(summary, "rater")
    assert rater["difference"]["mean"] == pytest.approx(-0.1, abs=0.01)
    # What the seeds share cancels.
    assert rater["difference"]["deviation"] < 0.01 < np.std(SHARED)
    assert rater["difference"]["verdict"] == "better"
    assert rater["difference_from_random"]["verdict"] == "better"
    assert row(summary, "random")["difference_from_random"] is None
    assert rater["difference_by_source"]["wiki"]["mean"] == pytest.approx(-0.1, abs=0.01)


def test_the_net_gain_counts_scoring_only_for_arms_that_cost() -> None:
    summary = summarize(runs_of(rater=-0.1, trigram=-0.1), COSTS, 4096)
    rater, trigram = row(summary, "rater"), row(summary, "trigram")
    gross = rater["gain"]["mean"]
    assert 0 < gross < 1
    assert rater["net"]["gain"] == pytest.approx(1 - (1 - gross) * (1 + 2e5 / 6e5 / 0.5))
    assert trigram["net"]["gain"] == pytest.approx(trigram["gain"]["mean"])
    assert trigram["net"]["break_even_parameters"] == 0


def test_the_noise_floor_is_the_spread_of_two_random_parts() -> None:
    runs = runs_of(random=0.0, random_again=0.0)
    floor = summarize(runs, COSTS, 4096)["noise_floor"]
    differences = [
        one.final_loss - other.final_loss
        for one, other in zip(
            runs[Entry("random", 0.5)], runs[Entry("random_again", 0.5)], strict=True
        )
    ]
    assert floor["pairs"] == 4
    assert floor["deviation"] == pytest.approx(np.sqrt(np.mean(np.square(differences))))
    assert summarize(runs_of(random=0.0), COSTS, 4096)["noise_floor"] is None


def test_the_best_fraction_has_a_wider_interval_than_a_row_of_the_table() -> None:
    summary = summarize(
        runs_of(rater__90=-0.05, rater__50=-0.1, rater__25=-0.02, random__50=0.0), COSTS, 4096
    )
    (best,) = summary["best_fractions"]
    assert (best["arm"], best["keep"], best["discard"]) == ("rater", 0.5, 0.5)
    assert best["runner_up"] == 0.9
    assert best["difference_from_runner_up"]["verdict"] == "better"
    plain = row(summary, "rater")["difference"]
    assert best["difference"]["low"] < plain["low"]
    assert best["difference"]["high"] > plain["high"]
    assert any(
        line.startswith("rater: discard 50%; difference -0.1") for line in sentences(summary)
    )


def test_what_a_screen_chose_is_measured_on_fresh_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    screen = {
        entry: runs[:2]
        for entry, runs in runs_of(
            rater__90=-0.05, rater__50=-0.1, c4__50=-0.2, c4__90=-0.1, random=0.0, random_again=0.0
        ).items()
    }
    fresh = runs_of(random=0.0, rater=-0.03)
    summary = summarize(fresh, COSTS, 4096, screen)
    (best,) = summary["best_fractions"]
    # c4 was not confirmed, and nothing is known of it but the screen.
    assert (best["arm"], best["keep"], best["runner_up"]) == ("rater", 0.5, 0.9)
    assert (best["fresh_seeds"], best["seeds"], best["confidence"]) == (True, 4, 0.95)
    assert best["difference"] == row(summary, "rater")["difference"]
    assert summary["noise_floor"]["pairs"] == 2
    table = summary["tables"][-1]
    assert [cells[:2] for cells in table["rows"]] == [[arm, keep] for arm, keep in screen]
    print_table(summary)
    said = capsys.readouterr().out
    assert any(
        line.startswith("rater: discard 50%; difference -0.0") and ", on fresh seeds" in line
        for line in said.splitlines()
    )
    assert "The screen that led to these arms and shares, 2 other seeds" in said


def test_the_best_fraction_is_chosen_by_the_documents_for_choices() -> None:
    runs = runs_of(rater__90=-0.05, rater__50=-0.1)
    runs[Entry("rater", 0.9)] = [
        dataclasses.replace(each, choice_loss=0.0) for each in runs[Entry("rater", 0.9)]
    ]
    (best,) = summarize(runs, COSTS, 4096)["best_fractions"]
    assert best["keep"] == 0.9
    assert not best["fresh_seeds"]


def test_a_table_shows_what_a_floor_per_source_costs(capsys: pytest.CaptureFixture[str]) -> None:
    summary = summarize(runs_of(rater=-0.1, rater_floored=-0.06, random=0.0), COSTS, 4096)
    *_, table = summary["tables"]
    assert table["title"] == "What a floor per source costs"
    (cells,) = table["rows"]
    assert len(cells) == len(table["columns"])
    assert cells[:2] == ["rater", 0.5]
    assert cells[3] - cells[2] == pytest.approx(0.04, abs=0.01)
    assert cells[4].startswith("+0.0")
    assert cells[5] == "worse"
    # The twin's scores cost as much.
    assert (
        row(summary, "rater_floored")["net"]["scoring_flops_per_token"]
        == row(summary, "rater")["net"]["scoring_flops_per_token"]
        == 2e5
    )
    print_table(summary)
    assert "What a floor per source costs" in capsys.readouterr().out
    assert summarize(runs_of(rater=-0.1), COSTS, 4096)["tables"][1:] == []


def test_a_sweep_that_only_harms_says_so() -> None:
    summary = summarize(runs_of(rater__90=0.05, rater__50=0.1), COSTS, 4096)
    assert row(summary, "rater")["gain"]["reached"] == 0
    assert row(summary, "rater")["net"] is None
    assert "no fraction is shown to be better than the whole pool" in " ".join(sentences(summary))


def test_the_summary_is_plain_data_and_prints_as_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = summarize(runs_of(random=0.0, random_again=0.0, rater=-0.1, c4=0.2), COSTS, 4096)
    assert json.loads(json.dumps(summary, allow_nan=False))["seeds"] == 4
    print_table(summary)
    said = capsys.readouterr().out
    for word in ("rater", "better", "worse", "not reached in 4", "Two random parts differ by"):
        assert word in said
    assert len(row(summary, "rater")["curves"]) == 4


def test_one_seed_is_reported_without_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    single = {entry: runs[:1] for entry, runs in runs_of(random=0.0, rater=-0.1).items()}
    summary = summarize(single, COSTS, 4096)
    assert summary["smallest_detectable"] is None
    assert row(summary, "rater")["difference"]["low"] is None
    print_table(summary)
    assert "undecided" in capsys.readouterr().out


def test_tasks_are_compared_by_seed_and_higher_is_better() -> None:
    def answered(result: RunResult, accuracy: float) -> RunResult:
        figures = {"questions": 20, "chance": 0.25, "accuracy": accuracy}
        figures |= {"accuracy_per_byte": 0.5, "margin": -accuracy}
        return dataclasses.replace(result, tasks={"mine": figures})

    runs = runs_of(rater=-0.1)
    spread = {BASELINE: [0.3, 0.4, 0.5, 0.6], Entry("rater", 0.5): [0.41, 0.5, 0.59, 0.7]}
    asked = {
        entry: [answered(*each) for each in zip(results, spread[entry], strict=True)]
        for entry, results in runs.items()
    }
    summary = summarize(asked, COSTS, 4096)
    task = row(summary, "rater")["tasks"]["mine"]
    assert task["accuracy"]["mean"] == pytest.approx(0.55)
    assert task["accuracy"]["difference"]["mean"] == pytest.approx(0.1)
    assert task["accuracy"]["difference"]["verdict"] == "better"
    assert task["accuracy_per_byte"]["difference"]["verdict"] == "undecided"
    assert task["margin"]["difference"]["verdict"] == "worse"
    *_, table = summary["tables"]
    assert table["title"] == "Task mine: 20 questions, chance 25.0%"
    assert table["rows"][0][:4] == ["unfiltered", 1.0, 0.45, ""]
    assert table["rows"][1][:3] == ["rater", 0.5, 0.55]
    assert table["rows"][1][3].startswith("+0.1000 (")
    assert summarize(runs, COSTS, 4096)["tables"][1:] == []


def test_a_source_that_one_fold_lacks_is_compared_where_it_is() -> None:
    runs = runs_of(rater=-0.1)
    for own in runs.values():
        del own[1].by_source["books"]
    rater = row(summarize(runs, COSTS, 4096), "rater")
    assert rater["difference_by_source"]["books"]["seeds"] == 3
    assert rater["difference_by_source"]["wiki"]["seeds"] == 4
    assert set(rater["by_source"]) == {"wiki", "books"}


def test_the_rater_is_compared_with_every_arm_at_the_share_of_the_lowest_choice_loss() -> None:
    runs = runs_of(rater=-0.1, rater__90=-0.05, trigram__90=-0.02, trigram__50=0.3)
    summary = summarize(runs, COSTS, 4096)
    (table,) = summary["tables"]
    leads = {lead["arm"]: lead for lead in summary["leads"]}
    assert set(leads) == {"unfiltered", "trigram"}
    assert (leads["trigram"]["keep"], leads["trigram"]["rater_keep"]) == (0.9, 0.5)
    assert leads["trigram"]["difference"]["mean"] == pytest.approx(-0.08, abs=0.01)
    assert table["title"] == "The rater, keep 0.5, against each arm at its best share"
    rows = {cells[0]: cells[1:] for cells in table["rows"]}
    assert rows["trigram"][0] == "0.9"
    assert rows["trigram"][1].startswith("-0.08")
    assert rows["trigram"][2] == "better"
    assert set(rows) == {"unfiltered", "trigram"}
    assert summarize(runs_of(trigram=0.0), COSTS, 4096)["tables"] == []
