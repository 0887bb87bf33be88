from __future__ import annotations

import random

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.dedup import signatures
from datarater.pipelines.dedup.signatures import (
    PERMUTATIONS,
    Bands,
    Signatures,
    minima_of,
    shingles_of,
    similarities,
)
from datarater.pipelines.dedup.words import normalized, words_of
from tests.support.near_duplicates import changed, jaccard, planted, shingles, shouted


def shingle_sets(texts: list[str]) -> list[set[int]]:
    hashes_S, counts_N = shingles_of(words_of([normalized(text) for text in texts]))
    return [set(part.tolist()) for part in np.split(hashes_S, np.cumsum(counts_N)[:-1])]


def pairs(share: float, count: int = 400) -> tuple[list[str], list[str], np.ndarray]:
    """Returns texts of 300 words, others with a share of their words replaced, and similarities."""
    rng = random.Random(0)
    texts = [" ".join(f"w{rng.randrange(10**6)}" for _ in range(300)) for _ in range(count)]
    others = [changed(text, share, rng) for text in texts]
    exact_N = np.asarray([jaccard(*pair) for pair in zip(texts, others, strict=True)])
    return texts, others, exact_N


@given(st.lists(st.text("abc ", max_size=30), min_size=2, max_size=6))
def test_shingles_are_sequences_of_five_words_or_all_of_a_shorter_text(texts: list[str]) -> None:
    found = shingle_sets(texts)
    for first, one in zip(texts, found, strict=True):
        assert len(one) == max(1, len(shingles(first)))
        for second, other in zip(texts, found, strict=True):
            if shingles(first) and shingles(second):
                assert len(one & other) == len(shingles(first) & shingles(second))


def test_a_chinese_text_differs_where_its_characters_do() -> None:
    text = "机器学习的数据质量决定模型的质量因此我们需要评估每一篇文档"
    one, other = shingle_sets([text, text.replace("文档", "网页")])
    assert len(one) == len(text) - 4
    assert len(one & other) == len(text) - 4 - 2


def test_the_estimate_has_the_error_of_the_theory() -> None:
    for share in (0.1, 0.03, 0.01):
        texts, others, exact_N = pairs(share)
        estimates_N = similarities(
            Signatures.of(texts).sketches(), Signatures.of(others).sketches()
        )
        mean = exact_N.mean()
        agreeing = mean + (1 - mean) / 16
        error = np.sqrt(agreeing * (1 - agreeing) / PERMUTATIONS) * 16 / 15
        assert abs((estimates_N - exact_N).mean()) < 4 * error / np.sqrt(len(texts))
        assert 0.85 * error < (estimates_N - exact_N).std() < 1.15 * error


def test_minima_are_as_good_as_those_of_datasketch() -> None:
    texts, others, exact_N = pairs(0.04, count=150)
    minima = [Signatures.of(side).minima_NxP for side in (texts, others)]
    own_N = (minima[0] == minima[1]).mean(axis=1) - exact_N
    theirs = []
    for first, second in zip(texts, others, strict=True):
        one, other = MinHash(PERMUTATIONS), MinHash(PERMUTATIONS)
        one.update_batch([" ".join(shingle).encode() for shingle in shingles(first)])
        other.update_batch([" ".join(shingle).encode() for shingle in shingles(second)])
        theirs.append(one.jaccard(other))
    theirs_N = np.asarray(theirs) - exact_N
    assert own_N.std() < 1.2 * theirs_N.std()
    assert abs(own_N.mean()) < 0.01


def test_pairs_share_a_band_as_often_as_the_theory_says() -> None:
    bands = Bands.for_similarity(0.8)
    assert bands == Bands(16, 8)
    for share in (0.05, 0.03, 0.01):
        texts, others, exact_N = pairs(share)
        one, other = (Signatures.of(side).bands(bands) for side in (texts, others))
        shared = (one == other).any(axis=1)
        expected_N = np.asarray([bands.chance(similarity) for similarity in exact_N])
        spread = np.sqrt((expected_N * (1 - expected_N)).sum())
        assert abs(shared.sum() - expected_N.sum()) <= 4 * spread + 1


def test_the_same_pairs_are_candidates_as_in_datasketch() -> None:
    """With the same bands, as far as other hash functions can agree: on clear pairs."""
    corpus = planted(60, 60, seed=3)
    texts = [text for text in corpus.texts if len(text.split()) >= 100]
    bands = Bands(16, 8)
    own_NxB = Signatures.of(texts).bands(bands)
    sets = [shingles(text) for text in texts]
    lsh = MinHashLSH(num_perm=PERMUTATIONS, params=(bands.count, bands.rows))
    hashed = []
    for number, one in enumerate(sets):
        hashed.append(MinHash(PERMUTATIONS))
        hashed[-1].update_batch([" ".join(shingle).encode() for shingle in one])
        lsh.insert(number, hashed[-1])
    clear = 0
    for number, one in enumerate(sets):
        theirs = set(lsh.query(hashed[number]))
        own = set(np.flatnonzero((own_NxB == own_NxB[number]).any(axis=1)).tolist())
        for other, two in enumerate(sets):
            similarity = len(one & two) / len(one | two)
            if similarity > 0.93 or similarity < 0.2:
                clear += other != number and similarity > 0.93
                assert (other in own) == (other in theirs) == (similarity > 0.93)
    assert clear > 20


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_bands_find_nine_of_ten_pairs_at_the_required_similarity(similarity: float) -> None:
    bands = Bands.for_similarity(similarity)
    assert bands.chance(similarity) >= signatures.MIN_CHANCE
    assert bands.count * bands.rows <= PERMUTATIONS
    longer = Bands(PERMUTATIONS // (bands.rows + 1), bands.rows + 1) if bands.rows < 128 else None
    assert longer is None or longer.chance(similarity) < signatures.MIN_CHANCE


def test_texts_with_the_same_words_in_the_same_order_have_one_digest() -> None:
    text = "a few words that are, of course, in an order"
    texts = [text, shouted(text), "an order that a few words are in", "!!", " ! !", "?", ""]
    digests = Signatures.of(texts).digests_Nx2.tolist()
    assert digests[0] == digests[1] != digests[2]
    assert digests[3] == digests[4] != digests[5]
    assert Signatures.of(texts).has_words_N.tolist() == [True] * 3 + [False] * 4


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(5, 100),
    st.randoms(use_true_random=False),
)
def test_minima_do_not_depend_on_how_shingles_are_blocked(
    counts: list[int], block: int, rng: random.Random
) -> None:
    shingles_S = np.asarray([rng.getrandbits(32) for _ in range(sum(counts))], np.uint32)
    counts_N = np.asarray(counts)
    expected = [
        minima_of(part, np.asarray([len(part)]))[0]
        for part in np.split(shingles_S, np.cumsum(counts_N)[:-1])
    ]
    np.testing.assert_array_equal(minima_of(shingles_S, counts_N, block), expected)


def test_signatures_of_no_texts_are_empty() -> None:
    found = Signatures.of([])
    assert found.minima_NxP.shape == (0, PERMUTATIONS)
    assert found.sketches().shape == (0, signatures.SKETCH_WORDS)
    assert found.bands(Bands(16, 8)).shape == (0, 16)
