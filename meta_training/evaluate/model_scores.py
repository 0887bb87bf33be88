"""Tasks for worker processes that score documents with a model: a rater, or a small language model.

N counts documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from datarater.meta_training.evaluate.pool import Data, open_data
from datarater.meta_training.evaluate.protocol import Model, Protocol
from datarater.meta_training.evaluate.walk import KeptDocuments

POOL, TARGET = "pool", "target"
_TEXTS = 64
_WINDOWS = 512
_WINDOWS_PER_DOCUMENT = 4


@dataclasses.dataclass(frozen=True)
class RaterTask:
    """Scores a range of the pool's documents with a rater.

    Attributes:
        data: Folder of the data.
        rater: Folder of the rater checkpoint.
        first: Index of the first document.
        last: Index after the last document.
    """

    data: str
    rater: str
    first: int
    last: int

    def __call__(self, report: Callable[[float], None]) -> NDArray[np.float64]:
        """Returns the scores, float64."""
        texts = open_data(self.data).texts(self.first, self.last)
        return rater_scores(self.rater, texts, self.last - self.first, report)


def rater_scores(
    rater: str, texts: Iterable[str], count: int, report: Callable[[float], None]
) -> NDArray[np.float64]:
    """Returns a rater's scores under its own cap of windows.

    Args:
        rater: Folder of the rater checkpoint.
        texts: Texts of the documents.
        count: Their number, for the progress.
        report: Reports the share that is done.
    """
    from datarater.rater_model.checkpoint import load_rater
    from datarater.rater_model.ngram_scorer import make_scorer
    from datarater.rater_model.scoring_options import ScoringOptions

    checkpoint = load_rater(rater)
    cap = checkpoint.statistics.max_windows or ScoringOptions().max_windows
    scorer = make_scorer(checkpoint, ScoringOptions(max_windows=cap))
    texts = iter(texts)
    scores = [np.zeros(0)]
    while part := list(islice(texts, _TEXTS)):
        scores.append(scorer.score(part).scores_N.astype(np.float64))
        report(len(np.concatenate(scores)) / max(1, count))
    return np.concatenate(scores)


@dataclasses.dataclass(frozen=True)
class LanguageModelTask:
    """Trains a small language model and scores the pool's documents by their log-probability.

    Attributes:
        data: Folder of the data.
        rotation: Which folds of the target have which role.
        corpus: What the model is trained on: `POOL`, or `TARGET` for its learning part.
        model: Shape of the model.
        protocol: How it is trained.
        seed: Seed of the model; not that of any run of the evaluation.
    """

    data: str
    rotation: int
    corpus: str
    model: Model
    protocol: Protocol
    seed: int

    def __call__(self, report: Callable[[float], None]) -> NDArray[np.float64]:
        """Returns the mean log-probability per token of each document, in nats.

        Of a long document, 4 windows are read, spread evenly. A document of a single token, of
        which nothing is predicted, gets NaN.
        """
        from datarater.meta_training.evaluate import training
        from datarater.rater_model.scorer import window_starts

        data = open_data(self.data).at(self.rotation)
        corpus = data if self.corpus == POOL else _target_as_pool(data)
        everything = KeptDocuments(np.ones(len(corpus.token_ends_N), bool))
        job = training.Job(corpus, everything, self.seed)
        run = training.train(job, self.model, self.protocol, lambda share: report(share / 2))
        length = self.protocol.length
        config = training.language_model_config(self.model, data.tokenizer.vocabulary_size)
        losses = training.make_window_losses(config, _WINDOWS, length)

        # All windows as (document, start, size), then one shape of batches over them.
        sizes_N = data.tokens_N
        starts_N = data.token_ends_N - sizes_N
        pieces = np.array(
            [
                (document, starts_N[document] + start, min(length, size - start))
                for document, size in enumerate(sizes_N.tolist())
                for start in window_starts(size, length, _WINDOWS_PER_DOCUMENT)
                if size - start >= 2
            ],
            np.int64,
        ).reshape(-1, 3)
        sums_N, weights_N = np.zeros(len(sizes_N)), np.zeros(len(sizes_N))
        for first in range(0, len(pieces), _WINDOWS):
            part = pieces[first : first + _WINDOWS]
            tokens_WxL = np.full((len(part), length), data.tokenizer.pad_id, np.int32)
            for row, (_, start, size) in enumerate(part):
                tokens_WxL[row, :size] = data.tokens_T[start : start + size]
            owners_W, weights_W = part[:, 0], part[:, 2] - 1
            losses_W = losses(run.params, tokens_WxL, part[:, 2].astype(np.int32))
            np.add.at(sums_N, owners_W, -losses_W.astype(np.float64) * weights_W)
            np.add.at(weights_N, owners_W, weights_W)
            report(0.5 + first / len(pieces) / 2)
        with np.errstate(invalid="ignore"):
            return sums_N / weights_N


def _target_as_pool(data: Data) -> Data:
    """Returns the learning part of the target as data to train on."""
    encoded = [data.tokenizer.encode(document.text) for document in data.learning]
    return dataclasses.replace(
        data,
        tokens_T=np.concatenate(encoded),
        token_ends_N=np.cumsum([len(ids) for ids in encoded]).astype(np.int64),
    )
