"""Scores texts with several raters at once: each text is tokenized once per distinct tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.ngram_scorer import make_scorer
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.text_scorer import PendingScores, ScoredTexts, TextScorer
from datarater.rater_model.tokenizer import Tokenizer


class SharedTokenizer:
    """A tokenizer that several scorers share: it encodes the same batch of texts once.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.kind = tokenizer.kind
        self.vocabulary_size = tokenizer.vocabulary_size
        self.pad_id = tokenizer.pad_id
        self.separator_id = tokenizer.separator_id
        self._tokenizer = tokenizer
        # By the identity of the batch, which is kept alive here.
        self._batches: dict[int, tuple[Sequence[str], list[np.ndarray]]] = {}

    def encode(self, text: str) -> np.ndarray:
        """Returns the text's token ids."""
        return self._tokenizer.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the token ids of each text; the very same batch is not encoded again."""
        known = self._batches.get(id(texts))
        if known is not None:
            return known[1]
        encoded = self._tokenizer.encode_batch(texts)
        self._batches[id(texts)] = texts, encoded
        return encoded

    def forget(self, texts: Sequence[str]) -> None:
        """Frees the memory of a batch that all scorers have encoded."""
        self._batches.pop(id(texts), None)

    def serialise(self) -> bytes:
        """Returns the content of the tokenizer's `tokenizer.json`."""
        return self._tokenizer.serialise()


class SeveralScorer(TextScorer):
    """Scores texts with a rater and with others beside it.

    Args:
        first: Scorer of the first rater, whose scores and tokens are those of the result.
        others: Scorers of the other raters, by name.
        tokenizers: The tokenizers that they share.

    Attributes:
        digest: Digest of the first rater.
        batches_ahead: The largest number of all.
        other_raters: Names of the other raters.
    """

    def __init__(
        self,
        first: TextScorer,
        others: Mapping[str, TextScorer],
        tokenizers: Sequence[SharedTokenizer] = (),
    ) -> None:
        self.digest = first.digest
        self.batches_ahead = max(first.batches_ahead, *(s.batches_ahead for s in others.values()))
        self.other_raters = tuple(others)
        self._first = first
        self._others = dict(others)
        self._tokenizers = tuple(tokenizers)

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Returns the scores of all raters."""
        return self.submit(texts).result()

    def submit(self, texts: Sequence[str]) -> PendingScores:
        """Begins to score texts with all raters."""
        first = self._first.submit(texts)
        others = {name: scorer.submit(texts) for name, scorer in self._others.items()}

        def result() -> ScoredTexts:
            try:
                scored = first.result()
                more = {name: pending.result().scores_N for name, pending in others.items()}
            finally:
                for tokenizer in self._tokenizers:
                    tokenizer.forget(texts)
            return dataclasses.replace(scored, other_scores=more)

        return PendingScores(result)


def make_several(
    first: RaterCheckpoint,
    others: Mapping[str, RaterCheckpoint],
    options: ScoringOptions | None = None,
    *,
    reads_ahead: bool = False,
) -> TextScorer:
    """Returns the scorer of a rater, and of others beside it.

    Args:
        first: The first rater.
        others: The other raters, by name; none for a scorer of the first alone.
        options: Options that change a score; the defaults if None.
        reads_ahead: Whether a CPU has a spare core to read on while a model scores.
    """
    if not others:
        return make_scorer(first, options, reads_ahead=reads_ahead)

    shared: dict[tuple[str, bytes], SharedTokenizer] = {}

    def scorer_of(checkpoint: RaterCheckpoint) -> TextScorer:
        tokenizer = checkpoint.tokenizer
        same = (tokenizer.kind, tokenizer.serialise())
        sharing = shared.setdefault(same, SharedTokenizer(tokenizer))
        checkpoint = dataclasses.replace(checkpoint, tokenizer=sharing)
        return make_scorer(checkpoint, options, reads_ahead=reads_ahead)

    scorers = {name: scorer_of(checkpoint) for name, checkpoint in others.items()}
    return SeveralScorer(scorer_of(first), scorers, tuple(shared.values()))
