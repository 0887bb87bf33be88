"""Reads `start.scores`: filters and files whose scores a rater imitates before meta-training."""

from __future__ import annotations

from ml_collections import ConfigDict

from datarater.meta_training.errors import ConfigError
from datarater.meta_training.evaluate.text_filters import TEXT_FILTERS
from datarater.rater_model.documents.files import split_on_commas
from datarater.rater_model.documents.tfds import TFDS_PREFIX

MIN_DOCUMENTS = 20
"""Minimum number of documents with a score."""


def check_start_scores(config: ConfigDict) -> None:
    """Refuses a value of `start.scores` that names nothing to imitate.

    Raises:
        ConfigError: A name is neither a filter nor a path, the inner documents have no keys, or
            only their windows are given.
    """
    _, files = names_and_files(config.start.scores)
    if config.start.scores and not config.data.inner:
        raise ConfigError(
            "start.scores needs the inner documents, not only their windows: give data.inner too, "
            f"from which {config.data.prepared} was prepared"
        )
    if files and config.data.inner.startswith(TFDS_PREFIX):
        raise ConfigError(
            "start.scores: the documents of a TensorFlow dataset have no keys to match those of "
            f"{files[0]}; name filters"
        )


def names_and_files(value: str) -> tuple[list[str], list[str]]:
    """Returns the filters and the files of scores that `start.scores` names, in its order.

    Raises:
        ConfigError: A name is neither.

    Example:
        >>> names_and_files("classifier,run/scores")
        (['classifier'], ['run/scores'])
    """
    parts = [part.strip() for part in split_on_commas(value) if part.strip()]
    names = [part for part in parts if part in TEXT_FILTERS]
    files = [part for part in parts if part not in TEXT_FILTERS]
    for part in files:
        if not any(sign in part for sign in "/.*"):
            raise ConfigError(
                f"start.scores: {part!r} is neither a filter ({', '.join(TEXT_FILTERS)}) nor a "
                "path of Parquet files, such as RUN/scores"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"start.scores names a filter twice: {value!r}")
    return names, files
