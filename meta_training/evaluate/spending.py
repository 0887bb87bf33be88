"""Runs an evaluation within a budget: a screen, a choice, and fresh seeds (see `budget`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datarater.meta_training.evaluate import budget
from datarater.meta_training.evaluate.arm_names import without_floor
from datarater.meta_training.evaluate.arms import Arms
from datarater.meta_training.evaluate.budget import Confirmation, duration
from datarater.meta_training.evaluate.results import BASELINE, Entry
from datarater.meta_training.evaluate.statistics import smallest_detectable
from datarater.rater_model.counted import counted

if TYPE_CHECKING:
    from datarater.meta_training.evaluate.harness import Trainer


def spend(
    trainer: Trainer, arms: Arms, seconds: float, max_seeds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Spends a budget and returns the content of `evaluation.json`.

    The seconds of a run or a score are those of when it was first made: the same budget always
    leads to the same runs, and a larger one finds its first runs in the cache.

    Args:
        trainer: Makes the runs.
        arms: Scores the pool.
        seconds: The budget, in seconds of wall time.
        max_seeds: Maximum number of seeds.
        say: Prints a line of progress.
    """
    seeds = range(min(budget.SCREEN_SEEDS, max_seeds))
    entries = budget.in_priority(trainer.entries)
    prepared: dict[str, float] = {}
    included: set[str] = set()

    def prepare(entry: Entry) -> float:
        arm = without_floor(entry.arm)
        if arm not in prepared:
            prepared[arm] = arms.prepare(arm, trainer.numbers(seeds))
        return prepared[arm]

    def preparation(entry: Entry) -> float:
        arm = without_floor(entry.arm)
        if arm in included:
            return 0.0
        included.add(arm)
        return prepare(entry)

    # What is screened in any case shows how long a run takes.
    always = entries[: budget.MIN_SCREENED]
    for entry in always:
        prepare(entry)
    trainer.train(always, seeds)
    per_run = trainer.run_seconds(always, seeds)
    screen = budget.screened(entries, seconds, per_run, preparation)
    say(
        f"screen on {counted(len(seeds), 'seed')}: {listed(screen)}"
        + (f"; no time for {len(entries) - len(screen)} more" if len(screen) < len(entries) else "")
    )
    trainer.train(screen, seeds)
    report = trainer.report(screen, seeds)

    # What the screen took, and what it leaves.
    per_run = trainer.run_seconds(screen, seeds)
    spent = arms.seconds + trainer.spent_seconds(screen, seeds)
    if spent > seconds:
        say(
            f"the budget of {duration(seconds)} is below the {duration(spent)} of this screen, the "
            "least there is"
        )
    per_seed = {arm: time / len(seeds) for arm, time in prepared.items() if arms.needs_rater(arm)}
    if not arms.rater_per_seed:
        per_seed = {}
    losses = {entry: trainer.choice_loss(entry, seeds) for entry in screen}
    plan = budget.confirmation(losses, seconds - spent, per_run, per_seed, max_seeds)
    if plan is None:
        say(plan_line(None, report, len(seeds)))
        return report
    say(plan_line(plan, report, len(seeds)))
    trainer.train(plan.entries, plan.seeds)
    return trainer.report(plan.entries, plan.seeds, screen=(screen, seeds) if plan.chosen else None)


def plan_line(plan: Confirmation | None, summary: Mapping[str, Any], screened_seeds: int) -> str:
    """Returns the plan after the screen with the smallest difference that it can detect.

    Args:
        plan: What is run next; None for nothing.
        summary: Summary of the screen.
        screened_seeds: Number of its seeds.
    """
    seeds = screened_seeds if plan is None else len(plan.seeds)
    deviation = summary["typical_deviation"]
    seen = None if deviation is None else smallest_detectable(deviation, seeds)
    detects = "" if seen is None else f", which detect a difference of about {seen:.4f}"
    if plan is None:
        return f"plan: no time for more than these {counted(seeds, 'seed')}{detects}"
    if plan.chosen:
        return f"plan: {seeds} fresh seeds of {listed(plan.entries)}{detects}"
    return f"plan: {counted(seeds, 'seed')} in all of everything{detects}"


def listed(entries: Sequence[Entry]) -> str:
    """Returns entries by share, in a line.

    Example:
        >>> listed([BASELINE, Entry("random", 0.5), Entry("rater", 0.5), Entry("c4", 0.9)])
        'unfiltered; keep 0.5: random, rater; keep 0.9: c4'
    """
    by_share: dict[float, list[str]] = {}
    for entry in entries:
        if entry != BASELINE:
            by_share.setdefault(entry.keep, []).append(entry.arm)
    return "; ".join(
        [
            BASELINE.arm,
            *(f"keep {keep:g}: {', '.join(names)}" for keep, names in by_share.items()),
        ]
    )
