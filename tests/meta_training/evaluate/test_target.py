from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.target import (
    Target,
    TargetDocument,
    assign_folds,
    target_digest,
    uneven_folds,
)


def documents(*texts: str) -> tuple[TargetDocument, ...]:
    return tuple(TargetDocument(text, "s") for text in texts)


def test_roles_rotate_over_three_folds_and_over_two_beside_fixed_learning() -> None:
    a, b, c = documents("a"), documents("b"), documents("c")
    three = Target((a, b, c))
    assert [three.roles(rotation) for rotation in range(4)] == [
        (a, b, c),
        (b, c, a),
        (c, a, b),
        (a, b, c),
    ]
    two = Target((a, b), learning=c)
    assert [two.roles(rotation) for rotation in range(3)] == [(c, a, b), (c, b, a), (c, a, b)]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50), st.sampled_from("xy")), min_size=1),
    st.integers(2, 3),
)
def test_clusters_stay_whole_and_folds_differ_by_at_most_the_largest_cluster(
    rows: list[tuple[int, int, str]], folds: int
) -> None:
    clusters, sizes, _ = zip(*rows, strict=True)
    fold_N = assign_folds(clusters, sizes, ["one source"] * len(rows), range(len(rows)), folds)
    assert len(fold_N) == len(rows)
    assert set(fold_N) <= set(range(folds))
    for cluster in set(clusters):
        assert (
            len({fold for fold, own in zip(fold_N, clusters, strict=True) if own == cluster}) == 1
        )
    filled_F = np.bincount(fold_N, sizes, minlength=folds)
    assert filled_F.max() - filled_F.min() <= np.bincount(clusters, sizes).max()


def test_every_source_is_spread_over_the_folds() -> None:
    sources = ["x"] * 30 + ["y"] * 6
    fold_N = assign_folds(np.arange(36), np.ones(36), sources, range(36), 3)
    assert np.bincount(fold_N[:30]).tolist() == [10, 10, 10]
    assert np.bincount(fold_N[30:]).tolist() == [2, 2, 2]


def test_a_fold_without_a_source_that_is_tested_is_named() -> None:
    novel, speech = TargetDocument("n" * 80, "novels"), TargetDocument("s" * 20, "speeches")
    target = Target(((novel, speech), (novel, speech), (speech,)))
    (line,) = uneven_folds(target, range(3))[1:]
    assert "rotation 2: 'novels' is 0% of the bytes to learn from and 80% of the test" in line

    alike = Target(((novel, speech),) * 3)
    assert uneven_folds(alike, range(3)) == []
    chosen = Target(((novel,), (novel,)), learning=(speech,))
    assert uneven_folds(chosen, range(2)) == []


def test_folds_of_many_sources_with_a_document_each_are_not_called_uneven() -> None:
    hosts = [tuple(TargetDocument("t", f"{fold}-{n}") for n in range(9)) for fold in range(3)]
    assert uneven_folds(Target(tuple(hosts)), range(3)) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("xyz")), min_size=3))
def test_folds_of_many_small_documents_of_each_source_are_even(
    rows: list[tuple[int, str]],
) -> None:
    documents = [TargetDocument("t" * size, source) for size, source in rows for _ in range(60)]
    fold_N = assign_folds(
        np.arange(len(documents)),
        [len(each.text) for each in documents],
        [each.source for each in documents],
        range(len(documents)),
        3,
    )
    folds = tuple(
        tuple(each for each, own in zip(documents, fold_N, strict=True) if own == fold)
        for fold in range(3)
    )
    assert uneven_folds(Target(folds), range(3)) == []


def test_the_digest_depends_on_texts_sources_and_their_order() -> None:
    one, two = TargetDocument("ab", "c"), TargetDocument("a", "bc")
    assert target_digest([one]) != target_digest([two])
    assert target_digest([one, two]) != target_digest([two, one])
    assert target_digest([one]) == target_digest([TargetDocument("ab", "c")])
