from __future__ import annotations

import pickle
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as numpy_strategies
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datarater.pipelines.selection import ranking
from datarater.pipelines.selection.cutoffs import (
    CORPUS_GROUP,
    SORT_LIMIT,
    Answers,
    Family,
    merge_answers,
)
from datarater.pipelines.selection.descent import Boundary, Cutoff, Unit
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.ranking import RankKeys, SelectionError
from datarater.pipelines.selection.rules import (
    KeepCount,
    KeepFraction,
    Rule,
    Threshold,
    TokenBudget,
)

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Recorded: a selection that an earlier version began must end with the same cutoff.
EARLIER_CUTOFFS = {
    "keep-0.1": "405fffff1566000000000000000000000000000000000000",
    "keep-0.5": "4161b2539ff38f0b5ab41fca000000020000000000001ee5",
    "keep-count-123": "3fdb96820a13fbeb25852b76000000010000000000001c67",
    "tokens-9999999": "40839114acec9c322958723d000000010000000000001ca2",
}


def find(rule: Rule, parts: list[RankKeys], sort_limit: int = SORT_LIMIT) -> Cutoff:
    """Runs the descent as the pipeline does: only sums and few keys leave a part."""
    histogram = Histogram.merge(Histogram.of(part, 0) for part in parts)
    target = rule.target(histogram.documents, histogram.tokens)
    search: Any = rule.begin(target, histogram.documents, histogram)
    rounds = 0
    while not search.done:
        search = pickle.loads(pickle.dumps(search))
        undecided = [part.between(search.low, search.high) for part in parts]
        if search.undecided <= sort_limit or search.level == ranking.LAST_LEVEL:
            search = search.settle(RankKeys.concatenate(undecided))
        else:
            search = search.descend(Histogram.merge(map(search.count, undecided)))
        rounds += 1
    assert rounds <= rule.rounds
    assert isinstance(search, Cutoff)
    return search


def best_first(keys: RankKeys) -> list[int]:
    return sorted(range(len(keys)), key=keys.key)


def kept_by_sorting(rule: Rule, keys: RankKeys) -> set[int]:
    order = best_first(keys)
    if isinstance(rule, TokenBudget):
        total, kept = 0, set()
        for index in order:
            total += int(keys.tokens_N[index])
            if total > rule.tokens:
                break
            kept.add(index)
        return kept
    return set(order[: rule.target(len(keys), int(keys.tokens_N.sum()))])


@st.composite
def corpora(draw: st.DrawFn, seed: int | None = None) -> list[RankKeys]:
    scores = draw(st.lists(FINITE, min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(0, 25), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    few_keys = draw(st.booleans())
    if seed is None:
        seed = draw(st.integers(-5, 2**64))
    return [
        RankKeys.of(
            rng.choice(np.asarray(scores, np.float32), size),
            rng.integers(0, 2 if few_keys else 2**63, size, np.uint64),
            seed,
            ordinal,
            np.arange(size) * 7,
            rng.integers(0, 4, size),
        )
        for ordinal, size in enumerate(sizes)
    ]


RULES = st.one_of(
    st.fractions(0, 1).map(KeepFraction),
    st.integers(0, 140).map(KeepCount),
    st.integers(0, 250).map(TokenBudget),
)


@pytest.mark.parametrize("sort_limit", [0, 3, SORT_LIMIT])
@settings(deadline=None, max_examples=150)
@given(parts=corpora(), rule=RULES)
def test_the_descent_keeps_what_a_full_sort_keeps(
    sort_limit: int, parts: list[RankKeys], rule: Rule
) -> None:
    keys = RankKeys.concatenate(parts)
    cutoff = find(rule, parts, sort_limit)
    kept = set(np.flatnonzero(keys.below(cutoff.end)).tolist())
    assert kept == kept_by_sorting(rule, keys)
    assert cutoff.counted == (len(kept), sum(int(keys.tokens_N[index]) for index in kept))


# Scores at which the order of bits is not that of numbers, or at the ends of a digit's bin.
AWKWARD = [0.0, -0.0, 1e-45, -1e-45, 1.0, np.nextafter(np.float32(1), np.float32(0)), -1.0, 3e38]


@settings(deadline=None, max_examples=150)
@given(
    scores=st.lists(st.one_of(FINITE, st.sampled_from(AWKWARD)), min_size=1, max_size=30),
    data=st.data(),
)
def test_masks_by_rank_keys_agree_with_the_keys_as_integers(
    scores: list[float], data: st.DataObject
) -> None:
    count = len(scores)
    few = st.integers(0, 2)
    keys = RankKeys.of(
        np.asarray(scores, np.float32),
        data.draw(
            st.lists(st.one_of(few, st.integers(0, 2**64 - 1)), min_size=count, max_size=count)
        ),
        data.draw(st.integers(0, 9)),
        data.draw(st.lists(few, min_size=count, max_size=count)),
        data.draw(st.lists(few, min_size=count, max_size=count)),
        np.ones(count),
    )
    numbers = [keys.key(index) for index in range(count)]
    shift = st.sampled_from([*ranking.SHIFTS, ranking.KEY_BITS])
    end = st.builds(
        lambda number, by, add: max(0, ((number >> by) + add) << by),
        st.sampled_from(numbers),
        shift,
        st.integers(-1, 1),
    )
    low, high = data.draw(end), data.draw(end)

    assert keys.below(high).tolist() == [number < high for number in numbers]
    inside = keys.between(low, high)
    assert [inside.key(index) for index in range(len(inside))] == [
        number for number in numbers if low <= number < high
    ]
    codes_N = np.asarray(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    below_N = keys.below_each(ranking.Ends.of([low, high]), codes_N)
    ends = [(low, high)[code] for code in codes_N.tolist()]
    assert below_N.tolist() == [number < end for number, end in zip(numbers, ends, strict=True)]


def test_an_array_that_repeats_one_ordinal_is_not_stored_again() -> None:
    keys = RankKeys.of(np.arange(5), np.arange(5, dtype=np.uint64), 0, 3, np.arange(5), np.ones(5))
    taken = keys.take(np.asarray([4, 0]))
    assert taken.ordinals_N.tolist() == [3, 3]
    assert taken.ordinals_N.strides == (0,)
    assert [taken.key(0), taken.key(1)] == [keys.key(4), keys.key(0)]


def test_keys_of_several_seeds_are_not_compared() -> None:
    one, other = (RankKeys.of([0.5], np.zeros(1, np.uint64), seed, 0, [0], [1]) for seed in (1, 2))
    with pytest.raises(SelectionError, match=r"several seeds.*\[1, 2\]"):
        RankKeys.concatenate([one, other])
    assert len(RankKeys.concatenate([one, RankKeys.empty()])) == 1


@settings(deadline=None)
@given(st.lists(FINITE, min_size=2, max_size=40))
def test_orders_reverse_the_order_of_scores(scores: list[float]) -> None:
    scores_N = np.asarray(scores, np.float32)
    orders_N = ranking.orders_of(scores_N)
    assert ((scores_N[:, None] < scores_N) == (orders_N[:, None] > orders_N)).all()
    assert ((scores_N[:, None] == scores_N) == (orders_N[:, None] == orders_N)).all()


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=40))
def test_an_order_represents_its_score(scores: list[float]) -> None:
    scores_N = np.asarray(scores, np.float32)
    assert (ranking.scores_of(ranking.orders_of(scores_N)) == scores_N).all()


def test_minus_zero_is_zero_and_what_is_not_finite_is_refused() -> None:
    assert len(set(ranking.orders_of(np.asarray([-0.0, 0.0], np.float32)).tolist())) == 1
    for score in (np.nan, np.inf, -np.inf):
        with pytest.raises(SelectionError, match="not finite"):
            ranking.orders_of(np.asarray([1.0, score], np.float32))
        with pytest.raises(SelectionError, match="not finite"):
            RankKeys.of([score, 1.0], np.zeros(2, np.uint64), 0, 0, [0, 1], [1, 1])


@settings(deadline=None)
@given(corpora(), FINITE)
def test_a_threshold_keeps_the_scores_that_reach_it(parts: list[RankKeys], score: float) -> None:
    cutoff = find(Threshold(Fraction(score)), parts)
    assert cutoff.counted is None
    bound = ranking.orders_of(np.float32(score))
    for part in parts:
        assert (part.below(cutoff.end) == (part.orders() <= bound)).all()


def test_a_threshold_between_two_floats_keeps_only_the_upper() -> None:
    lower = np.float32(0.1)
    upper = np.nextafter(lower, np.float32(1))
    keys = RankKeys.of(
        np.asarray([lower, upper], np.float32), np.zeros(2, np.uint64), 0, 0, [0, 1], [1, 1]
    )
    middle = (Fraction(float(lower)) + Fraction(float(upper))) / 2
    assert keys.below(Threshold(middle).end).tolist() == [False, True]


@pytest.mark.parametrize(
    ("documents", "kept"), [(13_157, 6_578), (1, 0), (3, 2), (5, 2), (0, 0), (7, 4)]
)
def test_half_of_a_corpus_is_rounded_half_to_even(documents: int, kept: int) -> None:
    assert KeepFraction("0.5").target(documents, 0) == kept


def test_a_fraction_is_exact() -> None:
    assert KeepFraction("0.1").fraction == Fraction(1, 10)
    assert KeepFraction("0.15").target(10, 0) == 2  # the float 0.15 lies below 1.5 documents
    assert KeepFraction("0.50").name == "keep-0.5"
    assert KeepFraction("1/3").name == "keep-1-of-3"
    assert KeepFraction("1e-3").value == "0.001"
    assert KeepFraction("1").value == "1"
    assert KeepFraction("100/100").name == "keep-1"


@pytest.mark.parametrize("text", ["1.01", "-0.1", "half", "", "nan", "inf", "1/0"])
def test_a_fraction_outside_0_to_1_is_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="keep fraction"):
        KeepFraction(text)


@given(st.fractions(0, 1))
def test_a_rules_text_reads_back_as_the_rule(fraction: Fraction) -> None:
    for kind in (KeepFraction, Threshold):
        assert kind(kind(fraction).value) == kind(fraction)
        assert kind(kind(fraction / 2**210).value) == kind(fraction / 2**210)
    assert Threshold(Threshold(-fraction).value) == Threshold(-fraction)


def test_all_identical_scores_and_keys_are_cut_by_split_and_position() -> None:
    parts = [
        RankKeys.of(
            np.ones(50, np.float32), np.full(50, 7, np.uint64), 3, o, np.arange(50), np.ones(50)
        )
        for o in range(4)
    ]
    end = find(KeepCount(120), parts, sort_limit=0).end
    assert [int(part.below(end).sum()) for part in parts] == [50, 50, 20, 0]
    assert parts[2].below(end)[:20].all()


def test_the_tie_break_favours_no_split_and_follows_the_seed() -> None:
    count, splits = 2_000, 4
    hashes_N = np.asarray([ranking.key_hash(str(i)) for i in range(count)], np.uint64)

    def kept(seed: int) -> NDArray[np.bool_]:
        ordinals_N = np.arange(count) * splits // count
        keys = RankKeys.of(
            np.zeros(count, np.float32),
            hashes_N,
            seed,
            ordinals_N,
            np.arange(count),
            np.ones(count),
        )
        return keys.below(find(KeepFraction("0.5"), [keys]).end)

    first = kept(1)
    assert first.sum() == count // 2
    assert (np.abs(first.reshape(splits, -1).sum(1) - count / splits / 2) < 60).all()
    assert (first == kept(1)).all()
    assert 0.3 < (first == kept(2)).mean() < 0.7


@settings(deadline=None)
@given(st.lists(corpora(seed=3), min_size=1, max_size=3))
def test_histograms_merge_in_any_grouping(groups: list[list[RankKeys]]) -> None:
    parts = [part for group in groups for part in group]
    flat = Histogram.of(RankKeys.concatenate(parts), 0)
    nested = Histogram.merge(
        Histogram.merge(Histogram.of(part, 0) for part in reversed(group)) for group in groups
    )
    for name in ("bins_K", "counts_K", "tokens_K"):
        assert getattr(flat, name).tolist() == getattr(nested, name).tolist()
    assert Histogram.from_json(flat.to_json()).to_json() == flat.to_json()
    assert all(flat.holds(int(b)) for b in flat.bins_K)
    assert not flat.holds(70_000)


def test_changed_scores_are_noticed() -> None:
    keys = RankKeys.of(
        np.zeros(4, np.float32), np.arange(4, dtype=np.uint64), 0, 0, range(4), [1] * 4
    )
    boundary = Boundary.begin(Unit.DOCUMENTS, 2, 4, Histogram.of(keys, 0))
    assert isinstance(boundary, Boundary)
    with pytest.raises(SelectionError, match="changed"):
        boundary.settle(keys.take(np.arange(3)))
    with pytest.raises(SelectionError, match="changed"):
        boundary.descend(Histogram.of(keys.take(np.arange(3)), 1))


@settings(deadline=None)
@given(numpy_strategies.arrays(np.float32, 20, elements=FINITE), st.integers(1, 19))
def test_the_lowest_score_is_the_last_kept_ones(scores_N: NDArray[np.float32], count: int) -> None:
    keys = RankKeys.of(scores_N, np.arange(20, dtype=np.uint64), 0, 0, range(20), [1] * 20)
    lowest = find(KeepCount(count), [keys]).lowest_score()
    assert lowest is None or lowest <= np.sort(scores_N)[::-1][count - 1]


def test_hashes_are_of_fixed_value() -> None:
    assert ranking.key_hash("a") == ranking.key_hash("a")
    assert ranking.key_hash('"1"') != ranking.key_hash("1")
    assert (
        ranking.seeded_hash([1, 2, 3], 0).tolist() == ranking.seeded_hash([1, 2, 3], 2**64).tolist()
    )
    assert len(set(ranking.seeded_hash(np.arange(10_000), 5).tolist())) == 10_000


@pytest.mark.parametrize("max_tokens", [9, 2**40])
def test_a_histogram_of_many_is_that_of_its_parts(max_tokens: int) -> None:
    rng = np.random.default_rng(0)
    count = 20_000
    scores_N = rng.standard_normal(count).astype(np.float32)
    scores_N[::7] = rng.choice(np.asarray(AWKWARD, np.float32), len(scores_N[::7]))
    keys = RankKeys.of(
        scores_N,
        rng.integers(0, 2**63, count, np.uint64),
        1,
        0,
        range(count),
        rng.integers(0, max_tokens, count),
    )
    for level in range(6):
        whole = Histogram.of(keys, level)
        digits, index_N = np.unique(keys.digits(level), return_inverse=True)
        assert whole.bins_K.tolist() == digits.tolist()
        assert whole.counts_K.tolist() == np.bincount(index_N).tolist()
        assert whole.tokens == int(keys.tokens_N.sum())
        parts = Histogram.merge(Histogram.of(part, level) for part in keys.parts(100))
        assert whole.to_json() == parts.to_json()


def test_more_documents_than_fit_into_one_packed_sum_are_counted_apart() -> None:
    count = 300_000
    keys = RankKeys.of(
        np.full(count, 2.5, np.float32),
        np.zeros(count, np.uint64),
        0,
        0,
        np.arange(count),
        np.full(count, 2**27 - 1),
    )
    counted = Histogram.of(keys, 0)
    assert counted.counts_K.tolist() == [count]
    assert counted.tokens_K.tolist() == [count * (2**27 - 1)]


def test_what_is_sent_of_a_round_is_small_however_many_parts_are_merged() -> None:
    rng = np.random.default_rng(0)
    question = Family.RULE, CORPUS_GROUP

    def parts() -> Iterator[Answers]:
        for ordinal in range(20):
            hashes_N = rng.integers(0, 2**64, 50_000, np.uint64)
            keys = RankKeys.of(np.zeros(50_000), hashes_N, 0, ordinal, range(50_000), [1] * 50_000)
            yield Answers({question: Histogram.of(keys, 2)}, {})

    sent = pickle.dumps(merge_answers(parts()))
    merged = pickle.loads(sent).counts[question]
    assert merged.documents == 20 * 50_000
    assert len(sent) < 65_536 * 24 + 2_000


def test_cutoffs_are_those_of_earlier_versions() -> None:
    rng = np.random.default_rng(0)
    count = 30_000
    scores_N = rng.standard_normal(count).astype(np.float32)
    scores_N[::5] = 1.25
    scores_N[::101] = -0.0
    hashes_N = rng.integers(0, 2**63, count, np.uint64)
    tokens_N = rng.integers(0, 2048, count)
    parts = [
        RankKeys.of(scores_N[o::3], hashes_N[o::3], 11, o, range(count // 3), tokens_N[o::3])
        for o in range(3)
    ]
    assert {
        rule.name: f"{find(rule, parts, sort_limit=100).end:x}"
        for rule in (
            KeepFraction("0.1"),
            KeepFraction("0.5"),
            KeepCount(123),
            TokenBudget(9_999_999),
        )
    } == EARLIER_CUTOFFS
