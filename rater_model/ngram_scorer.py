"""Scores texts with an n-gram rater, in NumPy; and the scorer of a checkpoint of any kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.ngram_rater import NgramConfig, Weights, score_texts, table_name
from datarater.rater_model.scoring_options import ScoringOptions
from datarater.rater_model.text_scorer import ScoredTexts, TextScorer, check_texts


class NgramScorer(TextScorer):
    """Scores texts with an n-gram rater; nothing is compiled. Safe to share between threads.

    A score depends on the whole text: no option changes it.

    Args:
        checkpoint: N-gram rater to score with.

    Raises:
        TypeError: if the rater is of another kind.
    """

    def __init__(self, checkpoint: RaterCheckpoint) -> None:
        if not isinstance(checkpoint.config, NgramConfig):
            raise TypeError("the rater is not an n-gram rater; use make_scorer")
        self.digest = checkpoint.digest
        self._config = checkpoint.config
        self._center = checkpoint.statistics.center
        self._weights = {
            order: Weights.of(checkpoint.params[table_name(order)])
            for order in checkpoint.config.orders
        }

    def score(self, texts: Sequence[str]) -> ScoredTexts:
        """Returns the scores of texts, and their sizes in bytes of UTF-8 as their tokens.

        Raises:
            TypeError: if `texts` is a single string, or one of the texts is not a string.
        """
        check_texts(texts)
        encoded = [text.encode() for text in texts]
        scores_N = score_texts(self._config, self._weights, encoded) - self._center
        return ScoredTexts(
            scores_N=scores_N.astype(np.float32),
            tokens_N=np.asarray([len(text) for text in encoded], np.int64),
        )


def make_scorer(
    checkpoint: RaterCheckpoint, options: ScoringOptions | None = None, *, reads_ahead: bool = False
) -> TextScorer:
    """Returns the scorer of a rater, whatever its kind.

    Args:
        checkpoint: Rater to score with.
        options: Options that change a score; the defaults if None. None changes that of an n-gram
            rater.
        reads_ahead: Whether a CPU has a spare core to read on while a model scores.
    """
    if isinstance(checkpoint.config, NgramConfig):
        return NgramScorer(checkpoint)

    from datarater.rater_model.scorer import Scorer  # loads JAX

    return Scorer(checkpoint, options, reads_ahead=reads_ahead)
