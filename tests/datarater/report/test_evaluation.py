"""The report of an evaluation shows its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from datarater import cli
from datarater.meta_training.demo import demo
from datarater.report.after import after
from datarater.report.evaluation import evaluation_page
from datarater.report.html import render
from datarater.report.page import Curves, Intervals, Note, Page, Table, Tiles


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
        "best_fractions": [{"arm": "rater", "keep": 0.5, "discard": 0.5, "difference": better}],
        "arms": [
            row(
                "rater", 0.5, [2.25, 2.5], difference=better, difference_from_random=better,
                gain={"mean": 0.4, "low": 0.3, "high": 0.5, "reached": 2, "seeds": 2},
                net={
                    "gain": -0.1, "scoring_flops_per_token": 1e6, "break_even_parameters": 2e6,
                    "by_parameters": [[1e5, -0.2], [1e7, 0.3]],
                },
            ),
            row("unfiltered", 1.0, [2.5, 2.5]),
            row(
                "other", 0.9, [2.75, 2.5], difference=unclear,
                gain={
                    "mean": None, "low": None, "high": None, "at_most": 0.1, "reached": 1,
                    "seeds": 2,
                },
            ),
        ],
    }  # fmt: skip


def block(page: Page, kind: type, title: str = "") -> Any:
    (found,) = (
        one
        for section in page.sections
        for one in section.blocks
        if isinstance(one, kind) and title in getattr(one, "title", "")
    )
    return found


def test_warnings_differences_gains_and_curves_are_shown() -> None:
    page = evaluation_page(evaluation())
    assert page.warnings == [
        "The pool is small.",
        "Scoring costs more than rater 50% saves in training a language model of this size: "
        "−10% net.",
    ]
    blocks = [one for section in page.sections for one in section.blocks]
    (differences,) = (one for one in blocks if isinstance(one, Intervals))
    shown = "−0.1250 (−0.2500 to −0.0625)"
    assert differences.rows[0].cells == ["rater", "50%", "2.3750", shown, shown, "better"]
    assert (differences.rows[1].mean, differences.rows[2].low) == (None, None)
    best, gains = (one for one in blocks if isinstance(one, Table))
    assert gains.rows == [
        ["rater 50%", "40% (30% to 50%)", "−10%", "2M", "0 of 2"],
        ["other 90%", "at most 10%", "", "", "1 of 2"],
    ]
    (floor,) = (one.text for one in blocks if isinstance(one, Note))
    assert "differ by 0.0100" in floor
    assert "seemed to save 14%" in floor
    assert best.rows == [["rater", "50%", shown, "better"]]


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
    assert "(1 seed)" in html
    assert "No arm is compared" in html
    assert "Noise floor" not in html


def test_the_page_opens_with_the_raters_difference_its_gains_and_its_best_rival() -> None:
    fields = evaluation()
    page = evaluation_page(fields)
    assert page.title == "What is the rater worth?"
    assert page.lead == (
        "Language models of 140k parameters trained on what rater 50% keeps end 0.1250 lower in "
        "validation loss than those trained on the whole pool (2 seeds). Verdict: better."
    )
    tiles = {tile.label: (tile.value, tile.note) for tile in block(page, Tiles).tiles}
    assert tiles == {
        "rater 50%: difference in loss": ("−0.1250", "(−0.2500 to −0.0625)"),
        "Verdict": ("better", "at 95% confidence"),
        "Compute saved": ("40%", "(30% to 50%)"),
        "Net of scoring": ("−10%", "pays from 2M parameters"),
        "Best rival": ("+0.1000", "other 90%"),
        "Detectable": ("0.0200", "difference found in 4 of 5 evaluations"),
    }


def test_a_rater_that_is_not_shown_to_help_or_loses_to_a_rival_is_a_warning() -> None:
    fields = evaluation()
    rater, _, other = fields["arms"]
    rater["difference"] = {"mean": 0.05, "low": -0.1, "high": 0.2, "verdict": "undecided"}
    other["difference"]["mean"] = 0.03
    rater |= {"gain": other["gain"], "net": None}
    fields["best_fractions"] = []
    assert evaluation_page(fields).warnings == [
        "The pool is small.",
        "rater 50% is not shown to be better than the whole pool. These seeds detect 0.0200 in 4 "
        "of 5 evaluations.",
        "other 90% ends lower than rater 50%, by 0.0200.",
        "rater 50%: 1 of 2 runs never reach the whole pool's loss, so there is no compute gain.",
    ]
    rater["difference"] |= {"low": 0.01, "verdict": "worse"}
    assert "rater 50% is worse than no filter at all." in evaluation_page(fields).warnings


@pytest.mark.parametrize(
    ("verdict", "warning"),
    [
        ("better", []),
        (
            "undecided",
            [
                "rater 50% is not shown to be better than other 90%: difference +0.0100 "
                "(\u22120.0200 to +0.0400)."
            ],
        ),
        (
            "worse",
            ["other 90% is better than rater 50%: difference +0.0100 (\u22120.0200 to +0.0400)."],
        ),
    ],
)
def test_the_best_rival_is_a_warning_unless_the_paired_difference_shows_a_lead(
    verdict: str, warning: list[str]
) -> None:
    fields = evaluation()
    lead = {"mean": 0.01, "low": -0.02, "high": 0.04, "verdict": verdict}
    fields["leads"] = [{"arm": "other", "keep": 0.9, "rater_keep": 0.5, "difference": lead}]
    assert [each for each in evaluation_page(fields).warnings if "other" in each] == warning


def test_a_sweep_is_a_curve_of_the_differences_with_their_intervals() -> None:
    fields = evaluation()
    worse = {"mean": 0.5, "low": 0.25, "high": 0.75, "verdict": "worse"}
    fields["arms"].append(row("rater", 0.25, [3.0, 3.0], difference=worse))
    (curve,) = block(evaluation_page(fields), Curves, "by share discarded").curves
    assert (curve.name, curve.x, curve.y) == ("rater", [0.5, 0.75], [-0.125, 0.5])
    assert (curve.low, curve.high) == ([-0.25, 0.25], [-0.0625, 0.75])


def test_the_page_is_about_the_share_that_was_chosen_with_its_widened_interval() -> None:
    fields = evaluation()
    luckiest = {"mean": -0.5, "low": -0.75, "high": -0.25, "verdict": "better"}
    fields["arms"].append(row("rater", 0.25, [2.0, 2.0], difference=luckiest))
    widened = {"mean": -0.125, "low": -0.3, "high": 0.05, "verdict": "undecided"}
    fields["best_fractions"][0]["difference"] = widened
    page = evaluation_page(fields)
    first, verdict = block(page, Tiles).tiles[:2]
    assert (first.label, first.note) == ("rater 50%: difference in loss", "(−0.3000 to +0.0500)")
    assert verdict.value == "undecided"


def test_sources_are_listed_with_those_that_lose_first() -> None:
    fields = evaluation()
    by_source = {
        "books": {"mean": -0.5, "low": -0.75, "high": -0.25},
        "mail": {"mean": 0.25, "low": 0.125, "high": 0.5},
    }
    fields["arms"][0] |= {"difference_by_source": by_source, "by_source": {"mail": 2.0}}
    fields["arms"][2]["difference_by_source"] = {"mail": {"mean": 1.0}}
    page = evaluation_page(fields)
    rows = block(page, Intervals, "by source").rows
    assert [one.cells for one in rows] == [
        ["mail", "2.0000", "+0.2500 (+0.1250 to +0.5000)"],
        ["books", "", "−0.5000 (−0.7500 to −0.2500)"],
    ]
    assert block(page, Table, "All arms").rows == [
        ["mail", "+0.2500", "+1.0000"],
        ["books", "−0.5000", ""],
    ]


def test_tables_of_results_without_a_figure_are_shown_as_they_are() -> None:
    fields = evaluation()
    rows: list[list[Any]] = [["piqa", 1200, 0.25, None], ["arc", True]]
    fields["tables"] = [{"title": "Tasks", "columns": ["task", "n", "share", "x"], "rows": rows}]
    shown = block(evaluation_page(fields), Table, "Tasks")
    assert shown.rows == [["piqa", "1,200", "0.25", ""], ["arc", "yes", "", ""]]


def test_only_the_names_of_the_arms_are_needed() -> None:
    page = evaluation_page({"arms": [{"arm": "unfiltered"}, {"arm": "rater", "keep": 0.5}]})
    assert "No arm is compared with the whole pool." in page.warnings
    assert [section.title for section in page.sections] == [
        "In short",
        "Against the whole pool",
        "Settings",
    ]
    render(page)


def test_the_command_makes_the_page_of_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    assert (tmp_path / "report.html").read_text() == render(evaluation_page(evaluation()))


def test_a_command_that_ends_well_is_followed_by_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = iter([0, 1])
    monkeypatch.setattr(demo, "main", lambda argv: next(codes))
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    assert cli.main(["demo", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/report.html\n"
    assert cli.main(["demo", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("below", ["", "evaluation"])
def test_a_command_that_ends_with_an_evaluation_names_its_report(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    after(["--budget", "1h", f"--output={tmp_path}"])
    assert capsys.readouterr().out == f"report: {folder}/report.html\n"
    assert (folder / "report.html").exists()


def test_a_report_that_cannot_be_made_after_a_command_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text("[]")
    after(["--output", str(tmp_path)])
    said = capsys.readouterr()
    assert said.out == ""
    assert f"to make it: datarater report {tmp_path}\n" in said.err
    after(["--output", str(tmp_path / "nothing")])
    after([])


def test_a_file_that_is_no_evaluation_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "evaluation.json is not the result of an evaluation" in capsys.readouterr().err
