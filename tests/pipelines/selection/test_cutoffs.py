"""Compares policies over sources, found in one descent, with sorting every document."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datarater.pipelines.selection import rules
from datarater.pipelines.selection.batch_top_k import Acceptance
from datarater.pipelines.selection.cutoffs import SORT_LIMIT, Cutoffs, merge_answers
from datarater.pipelines.selection.histogram import Histogram
from datarater.pipelines.selection.policy import Policy, Scope
from datarater.pipelines.selection.ranking import RankKeys, SelectionError
from datarater.pipelines.selection.rules import (
    BatchTopK,
    KeepCount,
    KeepFraction,
    Threshold,
    TokenBudget,
)

Part = tuple[RankKeys, NDArray[np.int64], list[str]]
RULES = st.one_of(
    st.fractions(0, 1).map(KeepFraction),
    st.integers(0, 60).map(KeepCount),
    st.integers(0, 150).map(TokenBudget),
    st.sampled_from([-1.0, 0.0, 0.5]).map(lambda score: Threshold(Fraction(score))),
)


def find(policy: Policy, parts: list[Part], sort_limit: int = SORT_LIMIT) -> Cutoffs:
    """Runs the descent as the pipeline does."""
    by_part = [Histogram.by_source(*part) for part in parts]
    sources: dict[str, tuple[int, int]] = {}
    for histograms in by_part:
        for name, histogram in histograms.items():
            documents, tokens = sources.get(name, (0, 0))
            sources[name] = documents + histogram.documents, tokens + histogram.tokens
    whole = Histogram.merge(
        histogram for histograms in by_part for histogram in histograms.values()
    )

    cutoffs = Cutoffs.begin(policy, whole, sources, sort_limit=sort_limit)
    for _ in range(policy.rounds):
        if cutoffs.done:
            break
        answers = []
        for part, histograms in zip(parts, by_part, strict=True):
            if cutoffs.concerns(histograms):
                known = cutoffs.from_summary(histograms)
                answers.append(cutoffs.answers(*part) if known is None else known)
        cutoffs = pickle.loads(pickle.dumps(cutoffs)).advance(merge_answers(answers[::-1]))
    assert cutoffs.done
    return cutoffs


def documents_of(parts: Sequence[Part]) -> list[tuple[int, str, int, float]]:
    """Returns every document's rank key, source, tokens and score, the best first."""
    rows = []
    for keys, codes_N, names in parts:
        for index, code in enumerate(codes_N.tolist()):
            rows.append(
                (
                    keys.key(index),
                    names[code],
                    int(keys.tokens_N[index]),
                    float(keys.scores_N[index]),
                )
            )
    return sorted(rows)


def prefix(
    rows: list[tuple[int, str, int, float]], policy: Policy, source: str | None, left: int
) -> set[int]:
    kept = set()
    for key, _, tokens, score in rows:
        if isinstance(policy.rule, Threshold):
            if score < policy.rule.score:
                break
        else:
            left -= tokens if isinstance(policy.rule, TokenBudget) else 1
            if left < 0:
                break
        kept.add(key)
    return kept


def kept_by_sorting(policy: Policy, parts: Sequence[Part]) -> set[int]:
    rows = documents_of(parts)
    names = {row[1] for row in rows}
    of_source = {name: [row for row in rows if row[1] == name] for name in names}
    minimum = {row[0] for name in names for row in of_source[name][: policy.minimum]}

    if policy.per is Scope.SOURCE:
        kept = set()
        for name, source_rows in of_source.items():
            tokens = sum(row[2] for row in source_rows)
            target = policy.rule_of(name).target(len(source_rows), tokens)
            kept |= prefix(source_rows, policy, name, target)
        return kept | minimum

    target = policy.rule.target(len(rows), sum(row[2] for row in rows))
    if policy.counts_minimum:
        by_minimum = [row for row in rows if row[0] in minimum]
        counts_tokens = isinstance(policy.rule, TokenBudget)
        target -= sum(row[2] for row in by_minimum) if counts_tokens else len(by_minimum)
        rows = [row for row in rows if row[0] not in minimum]
    return prefix(rows, policy, None, max(target, 0)) | minimum


def kept_by(cutoffs: Cutoffs, parts: Sequence[Part], seed: int = 0) -> set[int]:
    return {
        part[0].key(i)
        for part in parts
        for i in np.flatnonzero(cutoffs.keeps(*part, seed)).tolist()
    }


@st.composite
def corpora(draw: st.DrawFn) -> list[Part]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = draw(
        st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 0.50001, 3.0]), min_size=1, max_size=4)
    )

    parts = []
    for ordinal, size in enumerate(draw(st.lists(st.integers(0, 25), min_size=1, max_size=4))):
        keys = RankKeys.of(
            rng.choice(np.asarray(scores, np.float32), size),
            rng.integers(0, draw(st.sampled_from([2, 2**62])), size, np.uint64),
            0,
            ordinal,
            np.arange(size) * 3,
            rng.integers(0, 4, size),
        )
        # A part may name sources without documents, and in a different order from other parts.
        names = [f"s{i}" for i in rng.permutation(draw(st.integers(1, 5)))]
        parts.append((keys, rng.integers(0, len(names), size), names))
    return parts


@pytest.mark.parametrize("sort_limit", [0, 4, SORT_LIMIT])
@settings(deadline=None, max_examples=150)
@given(
    parts=corpora(),
    rule=RULES,
    per=st.sampled_from(Scope),
    minimum=st.sampled_from([0, 0, 1, 5]),
    data=st.data(),
)
def test_the_descent_keeps_what_sorting_keeps(
    sort_limit: int,
    parts: list[Part],
    rule: rules.Rule,
    per: Scope,
    minimum: int,
    data: st.DataObject,
) -> None:
    weights: dict[str, Fraction] = {}
    present = sorted(
        {name for _, codes_N, names in parts for name in (names[code] for code in codes_N.tolist())}
    )
    if per is Scope.SOURCE and present and not isinstance(rule, Threshold):
        weights = data.draw(
            st.dictionaries(st.sampled_from(present), st.fractions(0, 4), max_size=2)
        )
    policy = Policy(rule, per, weights, minimum)

    cutoffs = find(policy, parts, sort_limit)
    kept = kept_by(cutoffs, parts)
    assert kept == kept_by_sorting(policy, parts)
    counted = cutoffs.counted()
    if counted is not None:
        tokens = {row[0]: row[2] for row in documents_of(parts)}
        assert counted == (len(kept), sum(tokens[key] for key in kept))


@settings(deadline=None, max_examples=30)
@given(corpora())
def test_histograms_by_source_count_each_sources_documents(parts: list[Part]) -> None:
    for keys, codes_N, names in parts:
        by_source = Histogram.by_source(keys, codes_N, names)
        assert set(by_source) == {names[code] for code in codes_N.tolist()}
        for name, histogram in by_source.items():
            of_source = keys.take(codes_N == names.index(name))
            assert histogram.to_json() == Histogram.of(of_source, 0).to_json()


def test_sources_with_many_documents_and_with_few_are_counted_alike() -> None:
    count, sources = 20_000, 300
    rng = np.random.default_rng(0)
    keys = RankKeys.of(
        rng.standard_normal(count),
        np.zeros(count, np.uint64),
        0,
        0,
        np.arange(count),
        rng.integers(0, 9, count),
    )
    # Every second document is of the first source; some sources have none.
    codes_N = np.where(np.arange(count) % 2, rng.integers(5, sources, count), 1)
    names = [f"s{code}" for code in range(sources)]
    by_source = Histogram.by_source(keys, codes_N, names)
    assert list(by_source) == [names[code] for code in np.unique(codes_N)]
    for code in np.unique(codes_N).tolist():
        of_source = Histogram.of(keys.take(codes_N == code), 0)
        assert by_source[names[code]].to_json() == of_source.to_json()


@settings(deadline=None, max_examples=30)
@given(corpora(), st.sampled_from(Scope), st.sampled_from([0, 3]))
def test_a_draw_per_source_knows_its_expectation(
    parts: list[Part], per: Scope, minimum: int
) -> None:
    cutoffs = find(Policy(BatchTopK(1, 4), per, {}, minimum), parts)
    assert all(isinstance(group, Acceptance) for group in cutoffs.rule.values())
    documents = sum(len(part[0]) for part in parts)
    expected = cutoffs.expected()
    if documents and not minimum:
        assert expected is not None
        assert expected[0] == pytest.approx(documents / 4)
    kept = kept_by(cutoffs, parts)
    rows = documents_of(parts)
    for name in {row[1] for row in rows}:
        assert {row[0] for row in [row for row in rows if row[1] == name][:minimum]} <= kept


def test_a_weight_multiplies_a_share() -> None:
    count = 1000
    keys = RankKeys.of(
        np.arange(count), np.arange(count, dtype=np.uint64), 0, 0, np.arange(count), np.ones(count)
    )
    part = keys, np.arange(count) % 2, ["wiki", "crawl"]
    policy = Policy(KeepFraction("0.1"), Scope.SOURCE, {"wiki": Fraction("2.0")})
    assert policy.name == "keep-0.1-per-source-weighted"
    kept_N = find(policy, [part]).keeps(*part, 0)
    assert (kept_N[::2].sum(), kept_N[1::2].sum()) == (100, 50)


def test_policies_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SelectionError, match="--per source"):
        Policy(KeepFraction("0.1"), weights={"a": Fraction(2)})
    with pytest.raises(SelectionError, match="no share"):
        Policy(Threshold("0.1"), Scope.SOURCE, {"a": Fraction(2)})
    with pytest.raises(SelectionError, match=r"no source is called 'wkii'.*'wiki'"):
        Cutoffs.begin(
            Policy(KeepCount(3), Scope.SOURCE, {"wkii": Fraction(2)}),
            Histogram.empty(),
            {"wiki": (0, 0)},
        )


def test_ten_million_equal_scores_half_of_them_with_one_key() -> None:
    count, splits = 10_000_000, 20
    size = count // splits
    rng = np.random.default_rng(0)
    parts: list[Part] = []
    for ordinal in range(splits):
        hashes_N = rng.integers(0, 2**63, size, np.uint64)
        hashes_N[: size // 2] = 7
        keys = RankKeys.of(
            np.zeros(size, np.float32),
            hashes_N,
            0,
            ordinal,
            np.arange(size),
            np.ones(size, np.int64),
        )
        parts.append((keys, np.zeros(size, np.int64), ["one"]))

    cutoffs = find(Policy(KeepCount(4_999_999)), parts)
    assert cutoffs.counted() == (4_999_999, 4_999_999)
    assert sum(int(cutoffs.keeps(*part, 0).sum()) for part in parts) == 4_999_999


def test_ten_thousand_sources() -> None:
    sources, each = 10_000, 32
    rng = np.random.default_rng(0)
    count = sources * each
    names = [f"s{index}" for index in range(sources)]
    parts: list[Part] = []
    for ordinal in range(4):
        size = count // 4
        keys = RankKeys.of(
            rng.standard_normal(size),
            rng.integers(0, 2**63, size, np.uint64),
            0,
            ordinal,
            np.arange(size),
            rng.integers(1, 9, size),
        )
        parts.append((keys, np.arange(size) % sources, names))

    cutoffs = find(
        Policy(KeepFraction("0.5"), Scope.SOURCE, {"s17": Fraction(2)}, minimum=3), parts
    )

    kept_S = np.zeros(sources, np.int64)
    for keys, codes_N, part_names in parts:
        np.add.at(kept_S, codes_N[cutoffs.keeps(keys, codes_N, part_names, 0)], 1)
    expected = np.full(sources, each // 2)
    expected[17] = each
    assert kept_S.tolist() == expected.tolist()
