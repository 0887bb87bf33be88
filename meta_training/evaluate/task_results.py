"""How well the models of each arm do on downstream tasks, with paired differences over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datarater.meta_training.evaluate.runs import RunResult
from datarater.meta_training.evaluate.statistics import interval_text, paired_difference
from datarater.rater_model.counted import counted

MEASURES = {
    "accuracy": "accuracy",
    "accuracy_per_byte": "per byte",
    "margin": "margin",
}
"""Measures of `multiple_choice.TaskResult`, each with its heading; higher is better."""


def task_summary(
    runs: Sequence[RunResult], baseline: Sequence[RunResult]
) -> dict[str, dict[str, Any]]:
    """Returns, for each task and measure, the mean over seeds and the difference from a baseline.

    Args:
        runs: Runs of an arm, by seed.
        baseline: Runs on the whole pool, by seed; the arm's own for no difference.

    Returns:
        The number of questions, the chance level, and for each measure its values by seed, their
        mean, and the paired difference (None for the baseline itself). All are None or absent from
        runs without tasks.
    """
    summary: dict[str, dict[str, Any]] = {}
    for name, figures in runs[0].tasks.items():
        summary[name] = {key: figures[key] for key in ("questions", "chance")}
        for measure in MEASURES:
            mine, whole = ([run.tasks[name][measure] for run in each] for each in (runs, baseline))
            difference = None if runs is baseline else paired_difference(mine, whole)
            summary[name][measure] = {
                "by_seed": mine,
                "mean": float(np.mean(mine)),
                "difference": difference
                and {
                    **dataclasses.asdict(difference),
                    # A verdict is about losses: the whole pool's lower figure is the better one.
                    "verdict": paired_difference(whole, mine).verdict,
                },
            }
    return summary


def task_tables(arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a table for each task.

    Args:
        arms: Rows of the evaluation, each with its `task_summary`.
    """
    tables = []
    for name, figures in arms[0]["tasks"].items():
        columns = ["arm", "keep"]
        for heading in MEASURES.values():
            columns += [heading, "difference (95%)"]

        rows = []
        for arm in arms:
            row: list[Any] = [arm["arm"], arm["keep"]]
            for measure in MEASURES:
                values = arm["tasks"][name][measure]
                row += [round(values["mean"], 4), interval_text(values["difference"])]
            rows.append(row)

        tables.append(
            {
                "title": f"Task {name}: {counted(figures['questions'], 'question')}, "
                f"chance {figures['chance']:.1%}",
                "columns": columns,
                "rows": rows,
                "caption": "Accuracy by log-probability, and by log-probability per byte. The "
                "margin is the right choice's log-probability per byte minus the mean of the wrong "
                "ones', in nats. Differences from the whole pool; higher is better.",
            }
        )
    return tables
