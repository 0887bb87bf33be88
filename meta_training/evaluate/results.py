"""What the runs of an evaluation say: differences, gains, the noise floor and the best fraction.

Everything here is made from finished runs and is plain data, which goes to `evaluation.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from datarater.meta_training.evaluate.arm_names import (
    RANDOM,
    RANDOM_AGAIN,
    RATER,
    UNFILTERED,
    floored,
    without_floor,
)
from datarater.meta_training.evaluate.gains import compute_gain, net_gain, net_gains
from datarater.meta_training.evaluate.runs import RunResult
from datarater.meta_training.evaluate.statistics import (
    CONFIDENCE,
    PairedDifference,
    interval_text,
    paired_difference,
    smallest_detectable,
    typical_deviation,
)
from datarater.meta_training.evaluate.task_results import task_summary, task_tables
from datarater.rater_model.counted import counted


class Entry(NamedTuple):
    """A row of the evaluation: an arm with the share that it keeps."""

    arm: str
    keep: float


BASELINE = Entry(UNFILTERED, 1.0)
Runs = Mapping[Entry, Sequence[RunResult]]
"""The runs of each entry, by seed; every entry has the same seeds."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Floating-point operations per token.

    Attributes:
        training: Of a training step.
        scoring: Of scoring, by arm; an arm that is not listed costs nothing worth counting.
    """

    training: float
    scoring: Mapping[str, float]


def summarize(
    runs: Runs, costs: Costs, tokens_per_step: int, screen: Runs | None = None
) -> dict[str, Any]:
    """Returns the results of all entries as plain data.

    Args:
        runs: The finished runs; `BASELINE` is among the entries.
        costs: Costs of training and scoring.
        tokens_per_step: Tokens that a training step reads.
        screen: The runs that led to the entries, on other seeds; None if nothing was chosen.
    """
    arms, leads = [_row(entry, runs, costs) for entry in runs], _leads(runs)
    seeds = len(runs[BASELINE])
    deviation = typical_deviation(
        [row["difference"]["deviation"] for row in arms if row["difference"] is not None], seeds
    )

    return {
        "seeds": seeds,
        "confidence": CONFIDENCE,
        "arms": arms,
        "noise_floor": _noise_floor(runs) or (_noise_floor(screen) if screen else None),
        "typical_deviation": deviation,
        "smallest_detectable": (
            None if deviation is None else smallest_detectable(deviation, seeds)
        ),
        "best_fractions": _best_fractions(runs if screen is None else screen, runs),
        "flops_per_step": costs.training * tokens_per_step,
        "leads": leads,
        "tables": [
            table
            for table in (
                _lead_table(leads),
                _floor_table(runs),
                _screen_table(screen) if screen else None,
                *task_tables(arms),
            )
            if table is not None
        ],
    }


def _row(entry: Entry, runs: Runs, costs: Costs) -> dict[str, Any]:
    mine, baseline = runs[entry], runs[BASELINE]
    losses_S = [run.final_loss for run in mine]
    row: dict[str, Any] = {
        "arm": entry.arm,
        "keep": entry.keep,
        "final_losses": losses_S,
        "choice_losses": [run.choice_loss for run in mine],
        "mean_final_loss": float(np.mean(losses_S)),
        "by_source": _mean_by_source(mine),
        "passes": max(run.passes for run in mine),
        "seconds": sum(run.seconds for run in mine),
        "curves": [run.curve for run in mine],
        "difference": None,
        "difference_from_random": None,
        "difference_by_source": None,
        "tasks": task_summary(mine, baseline),
        "gain": None,
        "net": None,
    }
    if entry == BASELINE:
        return row

    difference = paired_difference(losses_S, _final(baseline))
    row["difference"] = _with_verdict(difference)
    row["difference_by_source"] = _difference_by_source(mine, baseline)
    same_share = Entry(RANDOM, entry.keep)
    if same_share in runs and entry.arm != RANDOM:
        from_random = paired_difference(losses_S, _final(runs[same_share]))
        row["difference_from_random"] = _with_verdict(from_random)

    gain = compute_gain([run.curve for run in mine], [run.curve for run in baseline])
    row["gain"] = dataclasses.asdict(gain)
    if gain.mean is not None:
        scoring = costs.scoring.get(without_floor(entry.arm), 0.0)
        row["net"] = {
            "gain": net_gain(gain.mean, scoring, costs.training, entry.keep),
            **net_gains(gain.mean, scoring, entry.keep),
        }
    return row


def _final(runs: Sequence[RunResult]) -> list[float]:
    return [run.final_loss for run in runs]


def _choice_losses(runs: Sequence[RunResult]) -> list[float]:
    return [run.choice_loss for run in runs]


def mean_choice_loss(runs: Sequence[RunResult]) -> float:
    """Returns the mean loss on the documents that choices are made on."""
    return float(np.mean(_choice_losses(runs)))


def _mean_by_source(runs: Sequence[RunResult]) -> dict[str, float]:
    return {
        source: float(np.mean([run.by_source[source] for run in runs if source in run.by_source]))
        for source in _sources(runs)
    }


def _difference_by_source(
    mine: Sequence[RunResult], baseline: Sequence[RunResult]
) -> dict[str, dict[str, Any]]:
    differences = {}
    for source in _sources(mine):
        pairs = [
            (run.by_source[source], other.by_source[source])
            for run, other in zip(mine, baseline, strict=True)
            if source in run.by_source
        ]
        first_S, second_S = zip(*pairs, strict=True)
        differences[source] = dataclasses.asdict(paired_difference(first_S, second_S))
    return differences


def _sources(runs: Sequence[RunResult]) -> list[str]:
    """Returns the sources of all runs: the test fold of one rotation may lack a small source."""
    return sorted({source for run in runs for source in run.by_source})


def _noise_floor(runs: Runs) -> dict[str, Any] | None:
    """Returns how far two random parts of the same size are apart; None unless both were run."""
    pairs = [
        (runs[entry], runs[Entry(RANDOM_AGAIN, entry.keep)])
        for entry in runs
        if entry.arm == RANDOM and Entry(RANDOM_AGAIN, entry.keep) in runs
    ]
    if not pairs:
        return None
    differences = np.concatenate(
        [np.subtract(_final(first), _final(second)) for first, second in pairs]
    )
    gains = [
        compute_gain([one.curve], [other.curve]).mean
        for first, second in pairs
        for one, other in zip(first, second, strict=True)
    ]
    reached = [gain for gain in gains if gain is not None]
    return {
        "pairs": len(differences),
        # The mean of a difference between two random parts is 0.
        "deviation": float(np.sqrt(np.mean(differences**2))),
        "largest_difference": float(np.abs(differences).max()),
        "largest_gain": max(reached, default=None),
    }


def _floor_table(runs: Runs) -> dict[str, Any] | None:
    """Returns what a floor per source costs each arm; None if no arm has a twin with one."""
    rows = []
    for entry in runs:
        twin = Entry(floored(entry.arm), entry.keep)
        if twin in runs:
            with_floor, without = _final(runs[twin]), _final(runs[entry])
            difference = paired_difference(with_floor, without)
            rows.append(
                [
                    entry.arm,
                    entry.keep,
                    round(float(np.mean(without)), 4),
                    round(float(np.mean(with_floor)), 4),
                    interval_text(dataclasses.asdict(difference)),
                    difference.verdict,
                ]
            )

    if not rows:
        return None
    return {
        "title": "What a floor per source costs",
        "columns": [
            "arm",
            "keep",
            "loss without",
            "loss with floor",
            "difference (95%)",
            "with floor",
        ],
        "rows": rows,
    }


def _with_verdict(difference: PairedDifference) -> dict[str, Any]:
    return {**dataclasses.asdict(difference), "verdict": difference.verdict}


def _leads(runs: Runs) -> list[dict[str, Any]]:
    """Returns the paired differences of the rater from every other arm, each at its best share."""
    best = {arm: entries[0] for arm, entries in _by_choice_loss(runs).items()}
    if RATER not in best:
        return []
    rater = best.pop(RATER)
    return [
        {
            "arm": arm,
            "keep": entry.keep,
            "rater_keep": rater.keep,
            "difference": _with_verdict(
                paired_difference(_final(runs[rater]), _final(runs[entry]))
            ),
        }
        for arm, entry in best.items()
    ]


def _lead_table(leads: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the table of `_leads`."""
    if not leads:
        return None
    return {
        "title": f"The rater, keep {leads[0]['rater_keep']:g}, against each arm at its best share",
        "columns": ["arm", "keep", "difference of the rater (95%)", "the rater is"],
        "rows": [
            [
                lead["arm"],
                f"{lead['keep']:g}",
                interval_text(lead["difference"]),
                lead["difference"]["verdict"],
            ]
            for lead in leads
        ],
    }


def _screen_table(screen: Runs) -> dict[str, Any]:
    """Returns the losses of the screen that the other rows were chosen by."""
    seeds = len(screen[BASELINE])
    rows = []
    for entry in screen:
        difference = paired_difference(
            _choice_losses(screen[entry]), _choice_losses(screen[BASELINE])
        )
        rows.append(
            [
                entry.arm,
                entry.keep,
                round(mean_choice_loss(screen[entry]), 4),
                None if entry == BASELINE else interval_text(dataclasses.asdict(difference)),
            ]
        )
    return {
        "title": f"The screen that led to these arms and shares, {counted(seeds, 'other seed')}",
        "columns": ["arm", "keep", "loss on the documents for choices", "difference (95%)"],
        "rows": rows,
    }


def _by_choice_loss(runs: Runs) -> dict[str, list[Entry]]:
    """Returns the entries of each arm, the lowest mean loss on the choice fold first."""
    shares: dict[str, list[Entry]] = {}
    for entry in sorted(runs, key=lambda entry: mean_choice_loss(runs[entry])):
        shares.setdefault(entry.arm, []).append(entry)
    return shares


def _best_fractions(choice: Runs, runs: Runs) -> list[dict[str, Any]]:
    """Returns the best share of each arm that was run with several.

    The share is chosen on other documents of the target than those of the test. What is lucky in a
    run is so on both, and therefore the interval is widened for the choice among K shares
    (Bonferroni), unless the difference is measured on fresh seeds.

    Args:
        choice: Runs that the choice is made by.
        runs: Runs that the difference is measured on: the same, or those of fresh seeds.
    """
    found = []
    by_choice_loss = _by_choice_loss(choice)
    for arm in dict.fromkeys(entry.arm for entry in choice):
        entries = by_choice_loss[arm]
        if len(entries) < 2 or arm in (RANDOM, RANDOM_AGAIN) or entries[0] not in runs:
            continue

        best, second = entries[:2]
        fresh = runs is not choice
        confidence = CONFIDENCE if fresh else 1 - (1 - CONFIDENCE) / len(entries)
        difference = paired_difference(_final(runs[best]), _final(runs[BASELINE]), confidence)
        from_second = paired_difference(_final(choice[best]), _final(choice[second]))

        found.append(
            {
                "arm": arm,
                "keep": best.keep,
                "discard": round(1 - best.keep, 6),
                "confidence": confidence,
                "fresh_seeds": fresh,
                "seeds": len(runs[best]),
                "difference": _with_verdict(difference),
                "runner_up": second.keep,
                "difference_from_runner_up": _with_verdict(from_second),
            }
        )
    return found


def print_table(summary: Mapping[str, Any]) -> None:
    """Prints the results as a table with the sentences that go with it.

    Args:
        summary: Results, as `summarize` returns them.
    """
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Final validation loss, {counted(summary['seeds'], 'seed')}")
    for heading in ("arm", "keep", "loss", "difference (95%)", "from random", "gain", "net"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in summary["arms"]:
        difference = row["difference"]
        table.add_row(
            row["arm"],
            f"{row['keep']:g}",
            f"{row['mean_final_loss']:.4f}",
            interval_text(difference),
            interval_text(row["difference_from_random"]),
            _gain(row["gain"]),
            "" if row["net"] is None else f"{row['net']['gain']:.0%}",
            "" if difference is None else difference["verdict"],
        )
    # A fixed width where there is no terminal, so that a log contains the whole table.
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for line in sentences(summary):
        console.print(line, highlight=False, soft_wrap=True)
    for extra in summary.get("tables", []):
        table = Table(title=extra["title"])
        for index, heading in enumerate(extra["columns"]):
            table.add_column(heading, justify="right" if index else "left", no_wrap=True)
        for row in extra["rows"]:
            table.add_row(*("" if cell is None else str(cell) for cell in row))
        console.print(table)


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Returns what follows the table: the noise floor, what can be seen, and the best shares."""
    lines = []
    floor = summary["noise_floor"]
    if floor is not None:
        gain = floor["largest_gain"]
        lines.append(
            f"Two random parts differ by {floor['deviation']:.4f} (root mean square of "
            f"{counted(floor['pairs'], 'pair')}), at most by {floor['largest_difference']:.4f}"
            + ("." if gain is None else f"; one gained {gain:.0%} of the compute over the other.")
        )

    if summary["smallest_detectable"] is not None:
        lines.append(
            f"{counted(summary['seeds'], 'seed')} find a difference of "
            f"{summary['smallest_detectable']:.4f} "
            "in 4 of 5 evaluations; a smaller one is easily missed."
        )

    for best in summary["best_fractions"]:
        if best["difference"]["verdict"] == "better":
            ahead = best["difference_from_runner_up"]["verdict"] == "better"
            lines.append(
                f"{best['arm']}: discard {best['discard']:.0%}; difference "
                f"{interval_text(best['difference'])}, "
                + ("on fresh seeds" if best["fresh_seeds"] else "widened for the choice")
                + ("." if ahead else f"; keep {best['runner_up']:g} is not shown to be worse.")
            )
        else:
            lines.append(
                f"{best['arm']}: no fraction is shown to be better than the whole pool; the best "
                f"is discard {best['discard']:.0%}, {interval_text(best['difference'])}."
            )
    return lines


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    if gain["mean"] is not None:
        return f"{gain['mean']:.0%}"
    missed = gain["seeds"] - gain["reached"]
    if not gain["reached"]:
        return f"not reached in {missed}"
    return f"at most {gain['at_most']:.0%}, not reached in {missed}"
