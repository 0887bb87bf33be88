from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from datarater.meta_training.evaluate.results import BASELINE, Entry
from datarater.meta_training.evaluate.spending import spend

ARMS = ("random", "rater", "trigram", "c4", "classifier", "importance")
KEEPS = (0.9, 0.75, 0.5, 0.25, 0.1)
RUN = 10.0


class Ledger:
    """Stands in for the arms and the trainer; every run takes the same time and is made once."""

    rater_per_seed = False

    def __init__(self, raters_take: float = 0.0) -> None:
        self.entries = [BASELINE, *(Entry(arm, keep) for arm in ARMS for keep in KEEPS)]
        self.made: list[tuple[Entry, int]] = []
        self.lines: list[str] = []
        self.reported: list[tuple[tuple[Entry, ...], tuple[int, ...], bool]] = []
        self.seconds = 0.0
        self._raters_take = raters_take

    # What arms do.

    def needs_rater(self, name: str) -> bool:
        return name == "rater"

    def prepare(self, name: str, seeds: Sequence[int]) -> float:
        seconds = self._raters_take * len(seeds) if name == "rater" else 0.0
        self.seconds += seconds
        return seconds

    # What a trainer does.

    def numbers(self, seeds: Sequence[int]) -> list[int]:
        return list(seeds)

    def train(self, entries: Sequence[Entry], seeds: Sequence[int]) -> None:
        wanted = [(entry, seed) for seed in seeds for entry in entries]
        self.made += [run for run in wanted if run not in self.made]

    def run_seconds(self, entries: Sequence[Entry], seeds: Sequence[int]) -> float:
        return RUN

    def spent_seconds(self, entries: Sequence[Entry], seeds: Sequence[int]) -> float:
        return RUN * len(entries) * len(seeds)

    def choice_loss(self, entry: Entry, seeds: Sequence[int]) -> float:
        """The rater is best at 75%, rivals at half, the later the better."""
        if entry.arm == "rater":
            return 2 - 0.1 * (entry.keep == 0.75)
        return 2 - 0.01 * ("unfiltered", *ARMS).index(entry.arm) * (entry.keep == 0.5)

    def report(
        self, entries: Sequence[Entry], seeds: Sequence[int], screen: Any = None
    ) -> dict[str, Any]:
        self.reported.append((tuple(entries), tuple(seeds), screen is not None))
        deviation = 0.01 if len(seeds) > 1 else None
        return {"seeds": len(seeds), "typical_deviation": deviation}

    def spend(self, seconds: float, max_seeds: int = 100) -> dict[str, Any]:
        trainer: Any = self
        return spend(trainer, trainer, seconds, max_seeds, self.lines.append)


def test_half_of_the_budget_screens_and_the_rest_confirms_the_best_on_fresh_seeds() -> None:
    ledger = Ledger()
    report = ledger.spend(64 * RUN)
    (screen, seeds, _), (entries, fresh, from_screen) = ledger.reported
    assert (len(screen), seeds) == (16, (0, 1))
    assert from_screen
    assert entries == (
        BASELINE,
        Entry("random", 0.75),
        Entry("rater", 0.75),
        Entry("importance", 0.5),
        Entry("classifier", 0.5),
        Entry("c4", 0.5),
    )
    assert fresh == (2, 3, 4, 5, 6)
    assert report["seeds"] == 5
    assert len(ledger.made) <= 64

    screened, plan = ledger.lines
    assert screened == (
        "screen on 2 seeds: unfiltered; keep 0.5: random, rater, trigram, c4, classifier, "
        "importance; keep 0.9: random, rater, trigram, c4, classifier, importance; keep 0.75: "
        "random, rater, trigram; no time for 15 more"
    )
    assert plan.startswith(
        "plan: 5 fresh seeds of unfiltered; keep 0.75: random, rater; keep 0.5: importance, "
        "classifier, c4, which detect a difference of about 0.01"
    )


def test_a_larger_budget_repeats_what_a_smaller_one_did_and_continues() -> None:
    before = Ledger()
    before.spend(120 * RUN)
    for budget in range(121, 200):
        ledger = Ledger()
        ledger.spend(budget * RUN)
        # All shares fit into the half of the first budget: the choice stays.
        if len(ledger.reported[0][0]) == len(before.reported[0][0]):
            assert ledger.made[: len(before.made)] == before.made
        assert set(before.made) <= set(ledger.made)
        before = ledger
    assert len(before.made) > 180


@pytest.mark.parametrize("budget", [5, 30, 64, 100, 400])
def test_a_budget_is_kept_beyond_the_smallest_screen(budget: int) -> None:
    ledger = Ledger()
    ledger.spend(budget * RUN)
    assert len(ledger.made) <= max(budget, 6)


def test_a_budget_below_the_smallest_screen_says_so() -> None:
    ledger = Ledger()
    report = ledger.spend(5 * RUN)
    assert (
        ledger.lines[1] == "the budget of 50 s is below the 60 s of this screen, the least there is"
    )
    assert ledger.lines[2].startswith("plan: no time for more than these 2 seeds")
    assert report["seeds"] == 2


def test_the_training_of_raters_counts() -> None:
    ledger = Ledger(raters_take=100.0)
    ledger.rater_per_seed = True
    ledger.spend(160 * RUN)
    (screen, _, _), (entries, fresh, _) = ledger.reported
    # Two raters take as long as 20 runs.
    assert len(screen) == (80 - 20) // 2
    assert len(fresh) == (160 - 20 - 60) // (len(entries) + 10) == 5


def test_the_number_of_seeds_may_be_limited() -> None:
    ledger = Ledger()
    ledger.spend(1000 * RUN, max_seeds=8)
    assert ledger.reported[1][1] == (2, 3, 4, 5, 6, 7)
    alone = Ledger()
    alone.spend(1000 * RUN, max_seeds=1)
    assert {seed for _, seed in alone.made} == {0}
