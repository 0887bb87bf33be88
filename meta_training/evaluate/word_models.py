"""Rivals that compare the target with the pool by hashed word n-grams, with scikit-learn.

N counts documents of the pool, F hashed features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

_IMPORTANCE_FEATURES = 10_000
_CLASSIFIER_FEATURES = 2**18
_PART = 1000
_PIECE_CHARACTERS = 2000
_NEGATIVES = 4000
_WORD = r"(?u)\w+|[^\w\s]"


def importance_weights(
    pool: Iterable[str], pool_again: Iterable[str], target: Sequence[str]
) -> NDArray[np.float64]:
    """Returns the mean log importance weight per n-gram of each document of the pool.

        score(x) = (1 / |x|) sum over n-grams g of x of log p_target(g) / p_pool(g)

    with p the frequencies of words and pairs of words, hashed to 10,000 features (DSIR: Xie et al.,
    arXiv 2302.03169). DSIR sums over pieces of equal length and samples; the mean keeps whole
    documents of different lengths comparable, and the harness takes the best as from any rival.

    Args:
        pool: Texts of the pool.
        pool_again: The same texts once more, since an iterable may be read only once.
        target: Texts that rivals may learn from.
    """
    vectorizer = _vectorizer(_IMPORTANCE_FEATURES, norm=None)
    pool_F = np.zeros(_IMPORTANCE_FEATURES)
    for part in _parts(pool):
        pool_F += np.asarray(vectorizer.transform(part).sum(axis=0)).ravel()
    target_F = np.asarray(vectorizer.transform(target).sum(axis=0)).ravel()
    # Add-one smoothing: a bucket without an n-gram would have an infinite ratio.
    ratio_F = np.log((target_F + 1) / (target_F + 1).sum()) - np.log(
        (pool_F + 1) / (pool_F + 1).sum()
    )

    means = []
    for part in _parts(pool_again):
        counts_NxF = vectorizer.transform(part)
        total_N = np.asarray(counts_NxF.sum(axis=1)).ravel()
        means.append(counts_NxF @ ratio_F / np.maximum(total_N, 1))
    return np.concatenate(means)


def classifier_scores(pool: Sequence[str], target: Sequence[str]) -> NDArray[np.float64]:
    """Returns the log odds of each document of the pool under a classifier of target against pool.

    Logistic regression on hashed words and pairs of words: the recipe of the fastText filter of
    DCLM (Li et al., arXiv 2406.11794) with a linear model of scikit-learn. A classifier knows its
    own negatives by heart, so there are two, and each scores the half of the pool that it has not
    seen. Scores are ranks within a half, from 0 to 1.

    Args:
        pool: Texts of the pool.
        target: Texts that rivals may learn from.
    """
    from sklearn.linear_model import LogisticRegression

    vectorizer = _vectorizer(_CLASSIFIER_FEATURES, norm="l2")
    positives_NxF = vectorizer.transform(list(_pieces(target)))
    half_N = np.random.default_rng(0).permutation(len(pool)) % 2
    scores_N = np.zeros(len(pool))
    for half in (0, 1):
        others = np.flatnonzero(half_N != half).tolist()
        sample = others[:: max(1, len(others) // (_NEGATIVES // 2))]
        negatives_NxF = vectorizer.transform(list(_pieces([pool[index] for index in sample])))
        examples_NxF = _stacked(positives_NxF, negatives_NxF)
        labels_N = np.arange(examples_NxF.shape[0]) < positives_NxF.shape[0]
        model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200)
        model.fit(examples_NxF, labels_N)

        mine = np.flatnonzero(half_N == half).tolist()
        odds_N = np.concatenate(
            [
                model.decision_function(vectorizer.transform(part))
                for part in _parts([pool[index] for index in mine])
            ]
            or [np.zeros(0)]
        )
        scores_N[mine] = odds_N.argsort().argsort() / max(1, len(mine) - 1)
    return scores_N


def _vectorizer(features: int, norm: str | None):  # type: ignore[no-untyped-def]
    # scikit-learn takes a second to import and has no types.
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=features,
        ngram_range=(1, 2),
        token_pattern=_WORD,
        alternate_sign=False,
        norm=norm,
    )


def _stacked(first_NxF, second_NxF):  # type: ignore[no-untyped-def]
    from scipy.sparse import vstack

    return vstack([first_NxF, second_NxF], format="csr")


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields the texts in lists that fit in memory as counts."""
    texts = iter(texts)
    while part := list(islice(texts, _PART)):
        yield part


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yields texts cut at white space into pieces of about the same length.

    Otherwise the length of a document, which shows in its features, would tell target from pool.
    """
    for text in texts:
        yield from re.findall(
            rf"(?s).{{1,{_PIECE_CHARACTERS}}}(?:\s|$)|.{{{_PIECE_CHARACTERS}}}", text
        )
