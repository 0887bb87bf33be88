"""The report of an evaluation shows its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from datarater import cli
from datarater.report.evaluation import evaluation_page
from datarater.report.html import render
from datarater.report.page import Curves, Intervals, Note, Table


def row(arm: str, keep: float, losses: list[float], **fields: Any) -> dict[str, Any]:
    return {
        "arm": arm,
        "keep": keep,
        "mean_final_loss": sum(losses) / len(losses),
        "curves": [[[0, 5.0], [100, 3.0], [200, loss]] for loss in losses],
        "difference": None,
        "difference_from_random": None,
        "gain": None,
        "net": None,
        **fields,
    }


def evaluation() -> dict[str, Any]:
    better = {"mean": -0.125, "low": -0.25, "high": -0.0625, "verdict": "better"}
    unclear = {"mean": 0.1, "low": None, "high": None, "verdict": "one seed"}
    return {
        "datarater": "0.1.0",
        "seeds": 2,
        "confidence": 0.95,
        "parameters": 140_000,
        "smallest_detectable": 0.02,
        "flops_per_step": 1e12,
        "warnings": ["The pool is small."],
        "options": {"protocol": {"steps": 200}, "output": "out"},
        "data": {"pool_documents": 5490},
        "noise_floor": {
            "pairs": 2, "deviation": 0.01, "largest_difference": 0.02, "largest_gain": 0.14,
        },
        "best_fractions": [{"arm": "rater", "discard": 0.5, "difference": better}],
        "arms": [
            row(
                "rater", 0.5, [2.25, 2.5], difference=better, difference_from_random=better,
                gain={"mean": 0.4, "low": 0.3, "high": 0.5, "reached": 1, "seeds": 2},
                net={
                    "gain": -0.1, "scoring_flops_per_token": 1e6, "break_even_parameters": 2e6,
                    "by_parameters": [[1e5, -0.2], [1e7, 0.3]],
                },
            ),
            row("unfiltered", 1.0, [2.5, 2.5]),
            row(
                "other", 0.9, [2.75, 2.5], difference=unclear,
                gain={"mean": None, "low": None, "high": None, "reached": 0, "seeds": 2},
            ),
        ],
    }  # fmt: skip


def test_warnings_differences_gains_and_curves_are_shown() -> None:
    page = evaluation_page(evaluation())
    assert page.warnings == ["The pool is small."]
    blocks = [one for section in page.sections for one in section.blocks]
    (differences,) = (one for one in blocks if isinstance(one, Intervals))
    shown = "−0.1250 (−0.2500 to −0.0625)"
    assert differences.rows[0].cells == ["rater", "50%", "2.3750", shown, shown, "better"]
    assert (differences.rows[1].mean, differences.rows[2].low) == (None, None)
    (gains,) = (one for one in blocks if isinstance(one, Table))
    assert (
        gains.rows
        == [
            ["rater 50%", "40% (30% to 50%)", "−10%", "2M", "1 of 2"],
            ["other 90%", "", "", "", "2 of 2"],
        ]
        or gains.rows[0][3] == "2M"
    )
    floor, best = (one.text for one in blocks if isinstance(one, Note))
    assert "differ by 0.0100" in floor
    assert "seemed to save 14%" in floor
    assert best.startswith(f"rater: discard 50%, difference {shown}, better.")


def test_curves_are_means_over_the_seeds_with_their_span_and_the_baseline_first() -> None:
    blocks = [one for section in evaluation_page(evaluation()).sections for one in section.blocks]
    loss, net = (one for one in blocks if isinstance(one, Curves))
    assert [curve.name for curve in loss.curves] == ["unfiltered", "rater 50%", "other 90%"]
    rater = loss.curves[1]
    assert list(rater.x) == [0, 1e14, 2e14]
    assert (rater.low[-1], rater.y[-1], rater.high[-1]) == (2.25, 2.375, 2.5)
    assert list(net.curves[0].x) == [1e5, 1e7]
    assert (loss.baseline, net.baseline, net.log_x) == (True, False, True)


def test_one_seed_and_only_the_baseline_are_shown() -> None:
    fields = evaluation()
    alone: dict[str, Any] = {
        "seeds": 1,
        "noise_floor": None,
        "best_fractions": [],
        "smallest_detectable": None,
    }
    fields |= {**alone, "arms": [row("unfiltered", 1.0, [2.5])]}
    html = render(evaluation_page(fields))
    assert "1 seed," in html
    assert "Noise floor" not in html


def test_the_command_makes_the_page_of_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    assert (tmp_path / "report.html").read_text() == render(evaluation_page(evaluation()))


def test_a_file_that_is_no_evaluation_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "evaluation.json is not the result of an evaluation" in capsys.readouterr().err
