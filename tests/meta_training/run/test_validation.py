"""Validations decide when a run stops and which rater it exports."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.run.validation import (
    Standing,
    choice_lines,
    chosen_by,
    log_validation,
)


def standings(gains: list[float]) -> list[Standing]:
    """Returns the standing after each validation, at steps 10, 20, ..."""
    standing, after = Standing(), []
    for number, gain in enumerate(gains, 1):
        standing = standing.after(10 * number, gain, 0.01)
        after.append(standing)
    return after


@given(
    gains=st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    patience=st.integers(1, 5),
)
def test_a_run_stops_exactly_where_the_sequence_says(gains: list[float], patience: int) -> None:
    def improved(i: int) -> bool:
        return all(gains[i] > before for before in gains[:i])

    expected = next(
        (
            i
            for i in range(len(gains))
            if i + 1 > patience and not any(map(improved, range(i + 1 - patience, i + 1)))
        ),
        None,
    )
    ends = [standing.ends_run(patience) for standing in standings(gains)]
    assert (ends.index(True) if True in ends else None) == expected


@given(gains=st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_the_best_rater_is_the_first_of_the_highest_gain(gains: list[float]) -> None:
    last = standings(gains)[-1]
    assert last.best_step == 10 * (gains.index(max(gains)) + 1)
    assert last.best_gain == max(gains)
    assert not last.ends_run(0)


def test_a_gain_that_is_not_a_number_is_no_improvement() -> None:
    after = standings([math.nan, 0.1, math.nan])
    assert [standing.best_step for standing in after] == [None, 20, 20]
    assert [standing.since_best for standing in after] == [1, 0, 1]


@pytest.mark.parametrize(("choice", "step"), [("last", 40), ("validation", 20)])
def test_the_choice_is_recorded_and_printed(choice: str, step: int) -> None:
    chosen = chosen_by(choice, 40, standings([0.1, 0.3, 0.2, 0.2])[-1])
    assert (chosen["by"], chosen["step"], chosen["last_step"]) == (choice, step, 40)
    assert chosen["best_validation"] == {
        "best_step": 20,
        "best_gain": 0.3,
        "best_error": 0.01,
        "since_best": 2,
    }
    exported, stopped = choice_lines(chosen, 200)
    assert f"the rater of step {step}, chosen" in exported
    assert "at step 40 of 200: no improvement in 2 validations" in stopped
    assert len(choice_lines(chosen, 40)) == 1
    assert choice_lines({}, 40) == []


def test_a_rater_is_not_said_to_be_the_best_where_no_gain_is_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    standing = standings([math.nan])[-1]
    chosen = chosen_by("validation", 40, standing)
    assert (chosen["by"], chosen["step"]) == ("last", 40)
    assert choice_lines(chosen, 40)[0].endswith("the rater of step 40, chosen as the last one")

    scalars = {"validation_gain": math.nan, "validation_gain_error": 0.0}
    with caplog.at_level(logging.INFO, "datarater"):
        log_validation(10, scalars, standing)
    assert caplog.messages[-1].endswith("and no gain so far is a number")
