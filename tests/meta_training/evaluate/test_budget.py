from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.budget import (
    MIN_FRESH_SEEDS,
    SCREEN_SEEDS,
    Confirmation,
    confirmation,
    finalists,
    in_priority,
    screened,
)
from datarater.meta_training.evaluate.results import BASELINE, Entry

RIVALS = ("trigram", "importance", "classifier", "c4")
ALL = [
    BASELINE,
    *(
        Entry(arm, keep)
        for arm in ("random", "random_again", "rater", *RIVALS)
        for keep in (0.9, 0.75, 0.5, 0.25, 0.1)
    ),
]

losses = st.dictionaries(st.sampled_from(ALL[1:]), st.floats(1, 3), min_size=1).map(
    lambda drawn: {BASELINE: 2.0, **drawn}
)
seconds = st.floats(1, 1000)


def test_the_rater_at_half_of_the_pool_comes_first_and_noise_at_last() -> None:
    ordered = in_priority(ALL)
    assert ordered[:4] == [BASELINE, *(Entry(a, 0.5) for a in ("random", "rater", "trigram"))]
    assert [entry.arm for entry in ordered if entry.keep == 0.5] == [
        *("random", "rater", *RIVALS, "random_again")
    ]
    assert list(dict.fromkeys(entry.keep for entry in ordered)) == [1.0, 0.5, 0.9, 0.75, 0.25, 0.1]


def test_a_share_that_is_asked_for_by_number_comes_with_the_half() -> None:
    entries = [BASELINE, Entry("c4", 0.9), Entry("c4", 0.61), Entry("curated", 0.3457)]
    assert [entry.keep for entry in in_priority(entries)] == [1.0, 0.61, 0.3457, 0.9]


@given(st.permutations(ALL), seconds, st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 50))
def test_a_larger_budget_screens_the_same_and_more(
    entries: list[Entry], run: float, one: float, other: float, preparation: float
) -> None:
    smaller, larger = (
        screened(entries, budget, run, lambda entry: preparation) for budget in sorted((one, other))
    )
    assert larger[: len(smaller)] == smaller == entries[: len(smaller)]
    assert len(smaller) >= 3


@given(st.floats(1, 100), st.floats(0, 1e5), st.lists(st.floats(0, 500), min_size=41, max_size=41))
def test_a_screen_is_as_long_as_half_of_the_budget_allows(
    run: float, budget: float, preparations: list[float]
) -> None:
    by_entry = dict(zip(ALL, preparations, strict=False))
    chosen = screened(ALL, budget, run, by_entry.__getitem__)

    def cost(count: int) -> float:
        return sum(SCREEN_SEEDS * run + by_entry[entry] for entry in ALL[:count])

    assert len(chosen) == 3 or cost(len(chosen)) <= budget / 2 * (1 + 1e-9)
    assert len(chosen) == len(ALL) or cost(len(chosen) + 1) > budget / 2 * (1 - 1e-9)


def test_what_is_too_long_to_run_is_not_scored() -> None:
    scored: list[Entry] = []

    def preparation(entry: Entry) -> float:
        scored.append(entry)
        return 0.0

    screened(ALL, 80.0, 10.0, preparation)
    assert scored == ALL[:3]


def test_the_rater_and_the_best_rivals_go_on_at_their_best_shares() -> None:
    found = finalists(
        {
            BASELINE: 2.0,
            Entry("random", 0.5): 2.0,
            Entry("random", 0.9): 1.9,
            Entry("rater", 0.5): 1.8,
            Entry("rater", 0.9): 1.7,
            Entry("trigram", 0.5): 1.6,
            Entry("trigram", 0.9): 1.65,
            Entry("c4", 0.5): 1.5,
            Entry("random_again", 0.5): 1.0,
        }
    )
    assert found == [
        BASELINE,
        Entry("random", 0.9),
        Entry("rater", 0.9),
        Entry("c4", 0.5),
        Entry("trigram", 0.5),
    ]


def test_a_twin_with_a_floor_follows_its_arm() -> None:
    found = finalists(
        {
            BASELINE: 2.0,
            Entry("rater", 0.5): 1.8,
            Entry("rater_floored", 0.5): 1.9,
            Entry("rater", 0.9): 1.9,
            Entry("rater_floored", 0.9): 1.7,
        }
    )
    assert found == [BASELINE, Entry("rater", 0.5), Entry("rater_floored", 0.5)]


def screen(arms: int, shares: tuple[float, ...]) -> dict[Entry, float]:
    """Returns losses that fall from arm to arm and rise from share to share."""
    names = ("random", "rater", *RIVALS)[:arms]
    return {
        BASELINE: 2.0,
        **{
            Entry(name, keep): 2 - 0.1 * index + 0.01 * place
            for index, name in enumerate(names)
            for place, keep in enumerate(shares)
        },
    }


def plan(losses: dict[Entry, float], left: float, max_seeds: int = 100) -> Confirmation:
    found = confirmation(losses, left, 1.0, {}, max_seeds)
    assert found is not None
    return found


def test_after_a_choice_only_fresh_seeds_count() -> None:
    found = plan(screen(6, (0.5, 0.9)), left=48)
    assert found.chosen
    assert [entry.arm for entry in found.entries] == [
        *("unfiltered", "random", "rater", "c4", "classifier", "importance")
    ]
    assert {entry.keep for entry in found.entries[1:]} == {0.5}
    assert found.seeds == (2, 3, 4, 5, 6, 7, 8, 9)
    assert plan(screen(6, (0.5, 0.9)), left=48, max_seeds=7).seeds == (2, 3, 4, 5, 6)


def test_a_small_rest_confirms_fewer_rivals() -> None:
    found = plan(screen(6, (0.5, 0.9)), left=17)
    assert [entry.arm for entry in found.entries] == ["unfiltered", "random", "rater", "c4"]
    assert found.seeds == (2, 3, 4, 5)


def test_without_a_choice_all_entries_get_more_seeds() -> None:
    losses = screen(3, (0.5,))
    found = plan(losses, left=9)
    assert found == Confirmation(tuple(losses), (0, 1, 2, 3), chosen=False)


def test_a_rest_too_small_for_fresh_seeds_adds_to_the_screen() -> None:
    losses = screen(2, (0.5, 0.9))
    assert plan(losses, left=11) == Confirmation(tuple(losses), (0, 1, 2, 3), chosen=False)
    assert confirmation(losses, 4.9, 1.0, {}, 100) is None
    assert confirmation(losses, -1.0, 1.0, {}, 100) is None


def test_the_training_of_a_rater_for_each_seed_is_counted() -> None:
    losses = screen(3, (0.5, 0.9))
    without = plan(losses, left=80)
    with_rater = confirmation(losses, 80, 1.0, {"rater": 6.0, "c4": 100.0}, 100)
    assert len(without.seeds) == 20
    assert with_rater is not None
    assert len(with_rater.seeds) == 8


@given(losses, st.floats(0, 1e4), seconds, st.floats(0, 100), st.integers(2, 12))
def test_a_plan_stays_within_what_is_left(
    drawn: dict[Entry, float], left: float, run: float, preparation: float, max_seeds: int
) -> None:
    found = confirmation(drawn, left, run, {"rater": preparation}, max_seeds)
    if found is None:
        return
    assert found.entries[0] == BASELINE
    assert set(found.entries) <= set(drawn)
    assert len(set(found.entries)) == len(found.entries)
    fresh = [seed for seed in found.seeds if seed >= SCREEN_SEEDS]
    assert max(found.seeds) < max_seeds
    has_rater = any(entry.arm == "rater" for entry in found.entries)
    per_seed = len(found.entries) * run + has_rater * preparation
    assert len(fresh) * per_seed <= left * (1 + 1e-9)
    assert len(fresh) == max_seeds - SCREEN_SEEDS or (len(fresh) + 1) * per_seed > left * (1 - 1e-9)
    if found.chosen:
        assert len(fresh) == len(found.seeds) >= MIN_FRESH_SEEDS
    else:
        assert set(found.entries) == set(drawn)
        assert found.seeds[:SCREEN_SEEDS] == (0, 1)


@given(losses, st.floats(0, 1e4), st.floats(0, 1e4), seconds)
def test_a_larger_budget_continues_the_seeds_of_a_smaller_one(
    drawn: dict[Entry, float], one: float, other: float, run: float
) -> None:
    small, large = (confirmation(drawn, left, run, {}, 100) for left in sorted((one, other)))
    if small is None:
        return
    assert large is not None
    if small.entries == large.entries:
        assert large.seeds[: len(small.seeds)] == small.seeds
