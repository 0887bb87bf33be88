from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.clusters import (
    MIN_SHARED,
    SEQUENCE_WORDS,
    near_duplicate_clusters,
    near_duplicates_of,
)

_LIMIT = 3


def _sequences(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    last = len(words) - SEQUENCE_WORDS + 1
    return {tuple(words[at : at + SEQUENCE_WORDS]) for at in range(last)}


def _by_brute_force(texts: list[str], works: list[str], limit: int) -> list[int]:
    sequences = [_sequences(text) for text in texts]
    frequency = Counter(each for those in sequences for each in those)
    usual = {each for each, count in frequency.items() if count <= limit}
    labels = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if (
            texts[i].casefold().split() == texts[j].casefold().split()
            or len(sequences[i] & sequences[j] & usual) >= MIN_SHARED
            or (works[i] and works[i] == works[j])
        ):
            old, new = labels[j], labels[i]
            labels = [new if label == old else label for label in labels]
    return [sorted(set(labels), key=labels.index).index(label) for label in labels]


# Texts of a few blocks, some of which give 2, 3 or 4 sequences, joined by words of their own.
_BLOCKS = [
    " ".join(f"{name}{i}" for i in range(SEQUENCE_WORDS - 1 + shared))
    for name, shared in (("a", 2), ("b", MIN_SHARED), ("c", 4), ("d", 1), ("e", 1))
]
_BLOCKS += ["same " * 40, "short text", "Short\n TEXT", ""]


@st.composite
def _documents(draw: st.DrawFn) -> list[str]:
    pieces = st.one_of(st.sampled_from(_BLOCKS), st.integers(0, 10**6).map(lambda i: f"unique{i}"))
    drawn = draw(st.lists(st.lists(pieces, max_size=5), min_size=1, max_size=9))
    return [" ".join(each) for each in drawn]


@given(_documents(), st.data())
def test_clusters_are_those_of_brute_force(texts: list[str], data: st.DataObject) -> None:
    works = data.draw(
        st.lists(st.sampled_from(["", "", "x", "y"]), min_size=len(texts), max_size=len(texts))
    )
    labels = near_duplicate_clusters(texts, works, max_documents=_LIMIT)
    assert labels.tolist() == _by_brute_force(texts, works, _LIMIT)


@given(_documents(), _documents())
def test_near_duplicates_of_a_target_are_those_of_brute_force(
    texts: list[str], target: list[str]
) -> None:
    wholes = [each.casefold().split() for each in target]
    frequencies = [
        Counter(each for text in those for each in _sequences(text)) for those in (texts, target)
    ]
    counted = {
        each
        for each in frequencies[1]
        if all(frequency[each] <= _LIMIT for frequency in frequencies)
    }
    expected = [
        text.casefold().split() in wholes or len(_sequences(text) & counted) >= MIN_SHARED
        for text in texts
    ]
    assert near_duplicates_of(texts, target, max_documents=_LIMIT).tolist() == expected


def test_sequences_are_counted_alike_in_batches_and_at_once() -> None:
    # A document of more than a million words fills a batch of its own.
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 5000, 1_050_000)]
    texts = [" ".join(words), "one of its own", " ".join(words[-15:]), " ".join(words[-14:])]
    assert near_duplicate_clusters([*texts, " ".join(words[300:500_000])]).tolist() == [
        0,
        1,
        0,
        2,
        0,
    ]


def test_boilerplate_in_many_documents_does_not_merge_them() -> None:
    license_text = " ".join(f"clause{i}" for i in range(30))
    texts = [f"{license_text} document {i}" for i in range(25)]
    assert near_duplicate_clusters(texts).tolist() == list(range(25))
    assert near_duplicate_clusters(texts[:20]).tolist() == [0] * 20
    assert not near_duplicates_of(texts, texts[0:1])[1:].any()


def test_equal_texts_are_one_cluster_however_many_there_are() -> None:
    story = " ".join(f"word{i}" for i in range(20))
    assert near_duplicate_clusters([story, story.upper(), "x"] * 20).tolist() == [0, 0, 1] * 20


def test_no_documents_have_no_clusters() -> None:
    assert near_duplicate_clusters([]).shape == (0,)
    assert near_duplicates_of([], ["a"]).shape == (0,)
    assert near_duplicates_of(["a"], []).tolist() == [False]


def test_works_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="2 works were given for 1 document"):
        near_duplicate_clusters(["a"], ["x", "y"])
