"""The scores of `start.scores` on a sample of the inner documents, for the rater to start from.

They come from filters that `datarater evaluate` knows as arms, fitted to the outer documents, or
from Parquet files. N counts documents of the sample.
"""

from __future__ import annotations

import dataclasses
import heapq
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from datarater.meta_training.config.outer_sets import outer_weights
from datarater.meta_training.config.start_scores import MIN_DOCUMENTS, names_and_files
from datarater.meta_training.data.sets import INNER, TextSet, names_of_roles, open_sets
from datarater.meta_training.data.texts import DataError
from datarater.meta_training.errors import ConfigError
from datarater.meta_training.evaluate.arms import read_scores
from datarater.meta_training.evaluate.combining import mean_ranks
from datarater.meta_training.evaluate.errors import FlagError
from datarater.meta_training.evaluate.keeping import text_hash
from datarater.meta_training.evaluate.text_filters import filter_scores
from datarater.meta_training.run.preparation import set_names
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import list_files, split_on_commas
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import (
    DEFAULT_ZSTD_WINDOW_BYTES,
    Document,
    ReadOptions,
)

_LOG = logging.getLogger("datarater")
# A document counts by its beginning, so that books do not fill the memory.
_MAX_CHARACTERS = 20_000


@dataclasses.dataclass(frozen=True)
class ScoredTexts:
    """Documents with the scores that the rater is fitted to.

    Attributes:
        texts: The N texts, in an order that depends on nothing in them.
        scores_N: A rank in each of the filters' scores, their mean mapped to a standard normal
            distribution, float64.
    """

    texts: list[str]
    scores_N: NDArray[np.float64]


def scored_texts(config: ConfigDict) -> ScoredTexts:
    """Returns a sample of the inner documents with the scores of `start.scores`.

    Args:
        config: The whole config.

    Raises:
        ConfigError: The scores cannot be used; the message says why.
        DataError: The data cannot be used.
        NoInputError: No file matches a pattern.
        OSError: A file cannot be read.
    """
    names, files = names_and_files(config.start.scores)
    weights = outer_weights(config)
    inner, outer = _open(config, weights)
    if files:
        keys, texts = _sample_with_keys(config, inner)
    else:
        keys, texts = [], [text[:_MAX_CHARACTERS] for text in inner.spread(config.start.documents)]
    if not texts:
        raise ConfigError("start.scores: no inner document could be read again")

    target = _target_sample(outer, weights, config.start.documents)
    scores = [_filter_scores(name, texts, target) for name in names]
    scores += [_file_scores(pattern, keys) for pattern in files]

    has_all_N = np.isfinite(np.stack(scores)).all(axis=0)
    if has_all_N.sum() < MIN_DOCUMENTS:
        raise ConfigError(
            f"start.scores={config.start.scores!r} gives "
            f"{counted(int(has_all_N.sum()), 'inner document')} a score; a start needs at least "
            f"{MIN_DOCUMENTS}"
        )
    if not has_all_N.all():
        _LOG.info(
            "%s of %s have no score and do not count for the start",
            f"{int((~has_all_N).sum()):,}",
            counted(len(texts), "document"),
        )
    kept = np.flatnonzero(has_all_N).tolist()
    normal_N = normal_scores([each[has_all_N] for each in scores])
    return ScoredTexts([texts[index] for index in kept], normal_N)


def normal_scores(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Returns the mean of ranks in several scores, mapped to a standard normal distribution.

    Filters' scores have tails that differ: the log-probability of a document in another script is
    far below all others. Only their order decides what is kept, so only their order is fitted.

        z(x) = Phi^-1((rank of x, with ties averaged, - 1/2) / N)

    Args:
        scores: Finite scores of N documents by each filter.

    Raises:
        ConfigError: All documents have the same score.

    Example:
        >>> normal_scores([np.array([3.0, 1.0, 2.0])]).round(2).tolist()
        [0.97, -0.97, 0.0]
    """
    from scipy.stats import norm, rankdata

    mean_N = mean_ranks(scores, [1.0] * len(scores))
    if np.ptp(mean_N) == 0:
        raise ConfigError("start.scores: all inner documents have the same score")
    normal_N: NDArray[np.float64] = norm.ppf((rankdata(mean_N) - 0.5) / len(mean_N))
    return normal_N


def _open(config: ConfigDict, outer_names: Iterable[str]) -> tuple[TextSet, dict[str, TextSet]]:
    """Returns the inner set, and the outer sets by name."""
    data = config.data
    sets = open_sets(set_names(config), data.text_field, data.tfds_data_dir, data.source_field)
    names = names_of_roles(outer_names)
    return sets[INNER], {names[role]: texts for role, texts in sets.items() if role in names}


def _target_sample(
    outer: Mapping[str, TextSet], weights: Mapping[str, float], count: int
) -> list[str]:
    """Returns the beginnings of outer documents, of each set in proportion to its weight.

    Questions, whose weight may be the only one, have no documents: then all sets count alike.
    """
    shares = {name: weights[name] for name in outer}
    if not any(shares.values()):
        shares = dict.fromkeys(outer, 1.0)
    total = sum(shares.values())
    return [
        text[:_MAX_CHARACTERS]
        for name, texts in outer.items()
        if shares[name]
        for text in texts.spread(math.ceil(count * shares[name] / total))
    ]


def _filter_scores(name: str, texts: Sequence[str], target: Sequence[str]) -> NDArray[np.float64]:
    _LOG.info(
        "start: scoring %s by %s, with %s of the target",
        counted(len(texts), "document"),
        name,
        counted(len(target), "document"),
    )
    try:
        return filter_scores(name, lambda: texts, target)
    except ValueError as error:
        raise DataError(f"start.scores: {name}: {error}") from error


def _file_scores(pattern: str, keys_N: Sequence[str]) -> NDArray[np.float64]:
    try:
        return read_scores("start", [pattern], keys_N)
    except FlagError as error:
        raise ConfigError(f"start.scores: {str(error).removeprefix('--scores start: ')}") from error


def _sample_with_keys(config: ConfigDict, inner: TextSet) -> tuple[list[str], list[str]]:
    """Returns keys and texts of inner documents, those with the smallest hashes of their texts."""
    # Negative, because a heap gives up its smallest first; a number decides between twins.
    heap: list[tuple[int, int, Document]] = []
    for number, document in enumerate(_documents(config)):
        if not inner.holds(document.text):
            continue
        cut = document.text[:_MAX_CHARACTERS]
        entry = (
            -text_hash(document.text),
            -number,
            dataclasses.replace(document, text=cut, raw=None),
        )
        if len(heap) < config.start.documents:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    documents = [document for _, _, document in sorted(heap, reverse=True)]
    return [document.key for document in documents], [document.text for document in documents]


def _documents(config: ConfigDict) -> Iterator[Document]:
    options = ReadOptions(
        text_field=config.data.text_field, max_zstd_window_bytes=DEFAULT_ZSTD_WINDOW_BYTES
    )
    for info in list_files(split_on_commas(config.data.inner)):
        for record in read_file(info.path, options):
            if isinstance(record, Document):
                yield record
