"""What a budget is spent on: first a screen of arms and shares, then fresh seeds for the best.

The screen runs two seeds of as many arms and shares as half of the budget allows, the most telling
first. The rest goes to the unfiltered arm, a random one, the rater and the best rivals, each at the
share that was best in the screen, on seeds that the choice has not seen: the best of many in the
screen is partly the luckiest.

Everything here is a pure function of losses and seconds. The seconds of finished runs are stored
with them, so that the same budget gives the same plan again and a larger one finds its first runs
done.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from datarater.meta_training.evaluate.arm_names import (
    RANDOM,
    RANDOM_AGAIN,
    RATER,
    UNFILTERED,
    floored,
    without_floor,
)
from datarater.meta_training.evaluate.results import BASELINE, Entry

SCREEN_SEEDS = 2
SCREEN_SHARE = 0.5
"""Share of the budget that the screen may take."""
MIN_SCREENED = 3
"""Entries that the screen has however small the budget."""
MAX_RIVALS = 3
MIN_FRESH_SEEDS = 4
"""Fewer rivals are confirmed before there are fewer seeds than this."""
_SHARES = (0.5, 0.9, 0.75, 0.25, 0.1)
_ARMS = (UNFILTERED, RANDOM, RATER)


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """What is run after the screen.

    Attributes:
        entries: Arms with their shares, the baseline first.
        seeds: Their seeds.
        chosen: Whether the screen had a choice, so that its own seeds do not count.
    """

    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    chosen: bool


def in_priority(entries: Iterable[Entry]) -> list[Entry]:
    """Returns the entries in the order in which a screen runs them.

    Half of the pool comes first, then 90, 75, 25 and 10%; a share that is none of these was asked
    for and comes with the half. For each share: the unfiltered arm, random, the rater, the rivals
    in their order, and at last the second random part, which only shows the noise.

    Example:
        >>> entries = [Entry("c4", 0.9), Entry("c4", 0.5), Entry("rater", 0.5), BASELINE]
        >>> [f"{arm} {keep}" for arm, keep in in_priority(entries)]
        ['unfiltered 1.0', 'rater 0.5', 'c4 0.5', 'c4 0.9']
    """

    def place(entry: Entry) -> tuple[int, int]:
        share = _SHARES.index(entry.keep) if entry.keep in _SHARES else 0
        arm = without_floor(entry.arm)
        last = len(_ARMS) + (arm == RANDOM_AGAIN)
        return share, _ARMS.index(arm) if arm in _ARMS else last

    return sorted(entries, key=place)


def screened(
    entries: Sequence[Entry],
    budget: float,
    run_seconds: float,
    preparation: Callable[[Entry], float],
) -> list[Entry]:
    """Returns the entries that the screen has time for, a prefix of those given.

    The first `MIN_SCREENED` are in it however small the budget.

    Args:
        entries: Entries in their priority, the baseline first.
        budget: Seconds in all.
        run_seconds: Seconds of wall time per run, several at a time counted.
        preparation: Returns the seconds of wall time that an entry takes before its runs, beyond
            those of the entries before it; called once per entry, in their order, and not for an
            entry whose runs alone take too long.
    """
    chosen: list[Entry] = []
    spent = 0.0
    for entry in entries:
        spent += SCREEN_SEEDS * run_seconds
        small = len(chosen) < MIN_SCREENED
        if not small and spent > SCREEN_SHARE * budget:
            break
        spent += preparation(entry)
        if not small and spent > SCREEN_SHARE * budget:
            break
        chosen.append(entry)
    return chosen


def finalists(losses: Mapping[Entry, float]) -> list[Entry]:
    """Returns the entries that are worth more seeds, the most important first.

    The unfiltered arm; the rater at its best share; random at the same share; then the rivals, each
    at its best share, the best first. Without a rater, random has the share of the best rival. The
    `floored` twin of an arm is not a rival: it follows its arm where both were screened.

    Args:
        losses: Mean final loss of each entry of the screen.
    """
    best: dict[str, Entry] = {}
    for entry in sorted(losses, key=losses.__getitem__):
        if entry.arm not in (UNFILTERED, RANDOM, RANDOM_AGAIN) and entry.arm == without_floor(
            entry.arm
        ):
            best.setdefault(entry.arm, entry)
    rater = best.pop(RATER, None)
    leading = [entry for entry in (rater, *best.values()) if entry is not None]
    ordered = [BASELINE]
    if leading and Entry(RANDOM, leading[0].keep) in losses:
        ordered.append(Entry(RANDOM, leading[0].keep))
    elif not leading:
        ordered += [entry for entry in losses if entry.arm == RANDOM][:1]
    for entry in leading:
        twin = Entry(floored(entry.arm), entry.keep)
        ordered += [entry, twin] if twin in losses else [entry]
    return ordered


def confirmation(
    losses: Mapping[Entry, float],
    left: float,
    run_seconds: float,
    preparation: Mapping[str, float],
    max_seeds: int,
) -> Confirmation | None:
    """Returns what the rest of the budget is spent on; None if it allows no further seed.

    As many of the three best rivals are confirmed as leave time for four fresh seeds. Where there
    is no time even without rivals, or the screen had nothing to choose from, everything in the
    screen gets more seeds, and those of the screen count.

    Args:
        losses: Mean final loss of each entry of the screen.
        left: Seconds that are left.
        run_seconds: Seconds of wall time per run.
        preparation: Seconds of wall time that an arm takes before the runs of each seed.
        max_seeds: Maximum number of seeds in all.
    """

    def affordable(entries: Collection[Entry]) -> int:
        arms = {without_floor(entry.arm) for entry in entries}
        seconds = len(entries) * run_seconds + sum(preparation.get(arm, 0.0) for arm in arms)
        return min(max_seeds - SCREEN_SEEDS, int(max(0.0, left) // max(1e-9, seconds)))

    ordered = finalists(losses)
    rivals = list(dict.fromkeys(without_floor(e.arm) for e in ordered if _is_rival(e)))
    shares = Counter(entry.arm for entry in losses if entry.arm not in (RANDOM, RANDOM_AGAIN))
    if max(shares.values()) > 1 or len(rivals) > MAX_RIVALS:
        for count in range(min(MAX_RIVALS, len(rivals)), -1, -1):
            dropped = rivals[count:]
            entries = [entry for entry in ordered if without_floor(entry.arm) not in dropped]
            fresh = affordable(entries)
            if fresh >= MIN_FRESH_SEEDS and {entry.arm for entry in entries} - {UNFILTERED, RANDOM}:
                seeds = tuple(range(SCREEN_SEEDS, SCREEN_SEEDS + fresh))
                return Confirmation(tuple(entries), seeds, chosen=True)

    more = affordable(losses)
    if more < 1:
        return None
    return Confirmation(tuple(losses), tuple(range(SCREEN_SEEDS + more)), chosen=False)


def _is_rival(entry: Entry) -> bool:
    return without_floor(entry.arm) not in _ARMS


def duration(seconds: float) -> str:
    """Returns a duration for a person.

    Example:
        >>> duration(42), duration(300), duration(9000)
        ('42 s', '5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
