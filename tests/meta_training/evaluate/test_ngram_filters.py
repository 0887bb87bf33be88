from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.meta_training.demo.corruption import bytes_to_text, shuffle_within, text_to_bytes
from datarater.meta_training.demo.ranking import auc
from datarater.meta_training.evaluate import ngram_filters
from datarater.meta_training.evaluate.ngram_filters import (
    NgramFilter,
    bigram_filter,
    unigram_filter,
)

TEXT = (
    "A filter gives each document a number. Documents that look like the target get a higher one, "
    "and the rest are left out. Whether that number says anything about what training on the "
    "document is worth is a question that only a measurement can answer."
)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(ngram_filters).failed == 0


def by_hand(target: list[str], text: str, order: int, alpha: float) -> float:
    """Computes the formula byte by byte."""
    total = 0.0
    encoded = text.encode()
    for index, byte in enumerate(encoded):
        history = encoded[max(0, index - order + 1) : index]
        gram_count = history_count = 0
        for document in target:
            raw = document.encode()
            for start in range(len(raw) - len(history)):
                if raw[start : start + len(history)] == history:
                    history_count += 1
                    gram_count += raw[start + len(history)] == byte
        total += math.log((gram_count + alpha) / (history_count + 256 * alpha))
    return total / len(encoded)


@given(
    st.lists(st.text("abcé", min_size=1, max_size=12), min_size=1, max_size=4),
    st.text("abcdé", min_size=1, max_size=12),
    st.integers(1, 2),
    st.floats(0.01, 5),
)
def test_scores_equal_a_calculation_by_hand(
    target: list[str], text: str, order: int, alpha: float
) -> None:
    assert NgramFilter(order, alpha).fit(target).score(text) == pytest.approx(
        by_hand(target, text, order, alpha)
    )


def test_a_trigram_filter_equals_a_calculation_by_hand() -> None:
    trigram = NgramFilter(3).fit([TEXT])
    for text in ("a document", "zq", "z", "measurement of nothing"):
        assert trigram.score(text) == pytest.approx(by_hand([TEXT], text, 3, 0.1))


def test_a_unigram_filter_is_blind_to_order_and_a_bigram_filter_is_not() -> None:
    rng = np.random.default_rng(0)
    clean = [TEXT[start : start + 80] for start in range(0, 160, 8)]
    shuffled = [
        bytes_to_text(shuffle_within(text_to_bytes(text), 1.0, rng).astype(np.uint8))
        for text in clean
    ]
    positive_N = [True] * len(clean) + [False] * len(shuffled)
    assert auc(np.round(unigram_filter([TEXT]).score_all(clean + shuffled), 9), positive_N) == 0.5
    assert auc(bigram_filter([TEXT]).score_all(clean + shuffled), positive_N) == 1.0


def test_wrong_use_is_refused() -> None:
    for order in (0, 4):
        with pytest.raises(ValueError, match="order"):
            NgramFilter(order)
    with pytest.raises(ValueError, match="alpha"):
        NgramFilter(1, alpha=0)
    with pytest.raises(ValueError, match="empty"):
        NgramFilter(1).fit([""])
    with pytest.raises(RuntimeError, match="fit"):
        NgramFilter(1).score("a")
    with pytest.raises(ValueError, match="empty"):
        unigram_filter(["a"]).score("")
