"""Several raters score the same texts, which are tokenized once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from datarater.rater_model.several_raters import SeveralScorer, SharedTokenizer
from datarater.rater_model.text_scorer import PendingScores, ScoredTexts, TextScorer
from datarater.rater_model.tokenizer import ByteTokenizer

TEXTS = [["a", "bcd"], ["", "ef"], ["a", "bcd"]]


class CountingTokenizer(ByteTokenizer):
    """A tokenizer that counts the batches that it encodes."""

    def __init__(self) -> None:
        self.batches = 0

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        self.batches += 1
        return super().encode_batch(texts)


class SumOfTokens(TextScorer):
    """Scores a text by the sum of its tokens, late, as a device does."""

    digest = "sum"

    def __init__(self, tokenizer: SharedTokenizer, factor: float, batches_ahead: int) -> None:
        self.batches_ahead = batches_ahead
        self._tokenizer = tokenizer
        self._factor = factor

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        encoded = self._tokenizer.encode_batch(texts)
        return ScoredTexts(
            np.asarray([self._factor * ids.sum() for ids in encoded], np.float32),
            np.asarray([len(ids) for ids in encoded], np.int64),
        )

    def submit(self, texts: Sequence[str]) -> PendingScores:
        return PendingScores(lambda: self.score(texts))


def expected(texts: Sequence[str], factor: float) -> list[float]:
    return [factor * sum(text.encode()) for text in texts]


def test_each_batch_is_tokenized_once_and_scored_by_each_rater() -> None:
    tokenizer = CountingTokenizer()
    shared = SharedTokenizer(tokenizer)
    first, second = SumOfTokens(shared, 1, 2), SumOfTokens(shared, -0.5, 5)
    scorer = SeveralScorer(first, {"second": second}, [shared])
    assert (scorer.digest, scorer.other_raters, scorer.batches_ahead) == ("sum", ("second",), 5)

    # Several batches wait, of which two are equal and yet not the same.
    pending = [scorer.submit(texts) for texts in TEXTS]
    for texts, scores in zip(TEXTS, pending, strict=True):
        scored = scores.result()
        assert scored.scores_N.tolist() == expected(texts, 1)
        assert scored.other_scores["second"].tolist() == expected(texts, -0.5)
        assert scored.tokens_N.tolist() == [len(text) for text in texts]
    assert tokenizer.batches == len(TEXTS)
    assert not shared._batches  # nothing is kept


def test_a_failing_rater_fails_the_batch_and_keeps_nothing() -> None:
    shared = SharedTokenizer(ByteTokenizer())

    class Failing(SumOfTokens):
        def score(self, texts: Sequence[str]) -> ScoredTexts:
            raise RuntimeError("no device")

    scorer = SeveralScorer(SumOfTokens(shared, 1, 0), {"bad": Failing(shared, 1, 0)}, [shared])
    with pytest.raises(RuntimeError, match="no device"):
        scorer.score(["a"])
    assert not shared._batches
