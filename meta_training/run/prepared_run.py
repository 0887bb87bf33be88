"""The parts of a run that stay the same from its first step to its last, made of its config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from importlib import metadata
from typing import Any

from ml_collections import ConfigDict

from datarater.meta_training import errors
from datarater.meta_training.algorithm.language_model import LanguageModelConfig
from datarater.meta_training.config import build
from datarater.meta_training.data.texts import FileTexts, TextSet, open_sets
from datarater.meta_training.data.windows import StreamedWindows, WindowSet, make_windows
from datarater.rater_model.rater import RaterConfig
from datarater.rater_model.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
    train_bpe,
)

_LOG = logging.getLogger("datarater")
_RECORDED = ("datarater", "jax", "jaxlib", "flax", "optax", "numpy", "grain", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config asks for, checked and made.

    Attributes:
        config: the whole config.
        tokenizer: turns texts into ids.
        rater: the rater's shape.
        language_model: the inner models' shape.
        inner: windows of the inner set.
        outer: windows of the outer set.
        reference: inner documents over which exported scores are centred and raters compared.
        data: which texts these are: changes whenever one of them does.
        provenance: what a rater's checkpoint says of its making, but for the step.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    rater: RaterConfig
    language_model: LanguageModelConfig
    inner: WindowSet
    outer: WindowSet
    reference: list[str]
    data: str
    provenance: dict[str, Any]


def prepare(config: ConfigDict, tokenizer: bytes | None = None) -> Experiment:
    """Opens the data and makes the tokenizer.

    Args:
        config: as in `meta_training/configs/default.py`, and as `settings.check` lets it pass.
        tokenizer: the serialised tokenizer of a run that goes on; without it, a BPE is trained.

    Raises:
        ConfigError: a value cannot be used; the message names it.
        DataError: the data cannot be used.
        NoInputError: no file matches.
        OSError: a file cannot be read.
    """
    data = config.data
    inner, outer = open_sets(
        data.inner, data.outer, data.outer_share, data.text_field, data.tfds_data_dir
    )
    made = (
        load_tokenizer(config.tokenizer.kind, tokenizer)
        if tokenizer
        else make_tokenizer(config, inner)
    )
    reference = inner.spread(config.export.reference_documents)
    identity = hashlib.sha256(
        f"{inner.source.identity}\n{outer.source.identity}".encode()
    ).hexdigest()
    windows = {texts.role: _windows(texts, made, config) for texts in (inner, outer)}
    return Experiment(
        config=config,
        tokenizer=made,
        rater=build.rater_config(config, made),
        language_model=build.language_model_config(config, made),
        inner=windows["inner"],
        outer=windows["outer"],
        reference=reference,
        data=identity,
        provenance={
            "config": plain(config),
            "data": {
                "identity": identity,
                **{role: found.describe() for role, found in windows.items()},
                # Files are counted whole when they are opened. A dataset counts what happens to
                # have been read so far, which a resumed run has other reasons to read than a fresh
                # one; what a digest covers must not differ.
                "rejected": {
                    texts.role: dict(texts.source.rejected)
                    for texts in (inner, outer)
                    if isinstance(texts.source, FileTexts)
                },
            },
            "versions": versions(),
        },
    )


def make_tokenizer(config: ConfigDict, inner: TextSet) -> Tokenizer:
    """Returns the tokenizer that a config asks for; a BPE is trained on documents from all over the inner set.

    Args:
        config: the whole config.
        inner: the inner set.

    Raises:
        ConfigError: the vocabulary is too small.
    """
    if config.tokenizer.kind == ByteTokenizer.kind:
        return ByteTokenizer()
    sample = inner.spread(config.tokenizer.training_documents)
    try:
        tokenizer = train_bpe(sample, config.tokenizer.vocabulary_size)
    except TokenizerError as error:
        raise errors.ConfigError(f"tokenizer.vocabulary_size: {error}") from error
    _LOG.info(
        "trained a BPE of %s ids on %s documents",
        f"{tokenizer.vocabulary_size:,}",
        f"{len(sample):,}",
    )
    return tokenizer


def _windows(texts: TextSet, tokenizer: Tokenizer, config: ConfigDict) -> WindowSet:
    options = (texts, tokenizer, config.length, config.data.windows, config.data.minimum_length)
    if isinstance(texts.source, FileTexts):
        return make_windows(*options)
    return StreamedWindows(*options, config.data.shuffle_buffer)


def plain(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as JSON has it: tuples as lists."""
    values: dict[str, Any] = json.loads(config.to_json())
    return values


def versions() -> dict[str, str]:
    """Returns the versions of what a run's numbers depend on."""
    return {name: metadata.version(name) for name in _RECORDED}
