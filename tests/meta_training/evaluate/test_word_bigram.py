from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.evaluate.word_bigram import WordBigramFilter

# Small enough for collisions, which the calculation by hand must share.
_NUMBERS = 7
_texts = st.lists(st.sampled_from(["the", "The", "cat", "sat", "mat", "."]), max_size=8).map(
    " ".join
)


def _numbers(filter_: WordBigramFilter, text: str) -> list[int]:
    return filter_._words(text).tolist()


def _by_hand(target: list[list[int]], words: list[int]) -> list[float]:
    """Returns the probability of each word by the formulas, from lists of pairs."""
    pairs = [
        (before, word) for text in target for before, word in zip([None, *text], text, strict=False)
    ]
    known = [word for _, word in pairs]
    kinds = len(set(known))
    found = []
    for before, word in zip([None, *words], words, strict=False):
        unigram = (known.count(word) + kinds / _NUMBERS) / (len(known) + kinds)
        after = [other for history, other in pairs if history == before]
        kinds_after = len(set(after))
        found.append(
            (after.count(word) + kinds_after * unigram) / (len(after) + kinds_after)
            if after
            else unigram
        )
    return found


@given(st.lists(_texts, min_size=1, max_size=5).filter(any), _texts.filter(bool))
def test_scores_equal_a_calculation_by_hand(target: list[str], text: str) -> None:
    bigram = WordBigramFilter(_NUMBERS).fit(target)
    expected = _by_hand([_numbers(bigram, each) for each in target], _numbers(bigram, text))
    assert bigram.score(text) == pytest.approx(np.mean(np.log(expected)))


@pytest.mark.parametrize("history", ["cat", "the", "unseen"])
def test_the_probabilities_after_any_word_sum_to_one(history: str) -> None:
    bigram = WordBigramFilter(64).fit(["The cat sat on the mat.", "the cat ran"])
    before = _numbers(bigram, history)[0]
    after = [bigram._probabilities(np.array([before, word]))[1] for word in range(64)]
    assert sum(after) == pytest.approx(1)


def test_a_seen_pair_is_more_probable_than_an_unseen_one_of_the_same_words() -> None:
    bigram = WordBigramFilter().fit(["old boats drift slowly", "slowly boats sink"])
    assert bigram.score("old boats drift") > bigram.score("drift boats old")


def test_a_text_without_words_has_no_score_and_an_empty_target_is_refused() -> None:
    assert math.isnan(WordBigramFilter().fit(["a"]).score(" \n"))
    with pytest.raises(ValueError, match="empty"):
        WordBigramFilter().fit([" "])
    with pytest.raises(RuntimeError, match="fit"):
        WordBigramFilter().score("a")
