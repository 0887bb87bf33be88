"""The rival filters that score texts without a language model, by their names as arms.

N counts documents of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.evaluate.heuristics import c4_score, gopher_score
from datarater.meta_training.evaluate.ngram_filters import NgramFilter
from datarater.meta_training.evaluate.word_bigram import WordBigramFilter

TEXT_FILTERS = (
    "unigram",
    "bigram",
    "trigram",
    "word_bigram",
    "importance",
    "classifier",
    "c4",
    "gopher",
)


def filter_scores(
    name: str, pool: Callable[[], Iterable[str]], target: Sequence[str]
) -> NDArray[np.float64]:
    """Returns the score of each document of the pool by a filter; NaN for one that it cannot score.

    Args:
        name: One of `TEXT_FILTERS`.
        pool: Returns the N texts of the pool, none of them empty; some filters read them twice.
        target: Texts that the filter may learn from.

    Raises:
        ValueError: If the target has no text and the filter learns from it.

    Example:
        >>> pool = ["the mat", "hte tam"]
        >>> scores_N = filter_scores("bigram", lambda: pool, ["the cat sat on the mat"])
        >>> bool(scores_N[0] > scores_N[1])
        True
    """
    if name in _BY_NGRAMS:
        learned = _BY_NGRAMS[name]()
        learned.fit(target)
        return np.array([learned.score(text) for text in pool()])
    if name in _BY_RULES:
        return np.array([_BY_RULES[name](text) for text in pool()], np.float64)

    from datarater.meta_training.evaluate.word_models import classifier_scores, importance_weights

    if name == "importance":
        return importance_weights(pool(), pool(), target)
    return classifier_scores(list(pool()), target)


_BY_NGRAMS: dict[str, Callable[[], NgramFilter | WordBigramFilter]] = {
    "unigram": lambda: NgramFilter(1),
    "bigram": lambda: NgramFilter(2),
    "trigram": lambda: NgramFilter(3),
    "word_bigram": WordBigramFilter,
}
_BY_RULES: dict[str, Callable[[str], float]] = {"c4": c4_score, "gopher": gopher_score}
