"""Reads the rater of `start.rater` and checks that a run can start from it."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
from ml_collections import ConfigDict

from datarater.meta_training.errors import ConfigError
from datarater.rater_model.checkpoint import CheckpointError, RaterCheckpoint, load_rater
from datarater.rater_model.rater import RaterConfig
from datarater.rater_model.tokenizer import Tokenizer

# Fields of a rater's shape that change how scores are computed, but neither which scores (apart
# from rounding) nor the arrays of the parameters.
_COMPUTATION = {
    f"transformer.{field}"
    for field in (
        "rematerialise_blocks",
        "save_products",
        "scan_blocks",
        "dtype",
        "attention",
        "attention_block",
    )
}


def start_checkpoint(config: ConfigDict) -> RaterCheckpoint | None:
    """Returns the rater of `start.rater`; None if the field is empty.

    It is the folder of a rater checkpoint: local, or any fsspec URL.

    Args:
        config: The whole config.

    Raises:
        ConfigError: There is no usable rater; the message names the folder.
        OSError: The file system fails.
    """
    if not config.start.rater:
        return None
    try:
        return load_rater(config.start.rater)
    except CheckpointError as error:
        raise ConfigError(f"start.rater: {error}") from error


def start_tokenizer(config: ConfigDict, checkpoint: RaterCheckpoint) -> Tokenizer:
    """Returns the tokenizer of a rater to start from, which the run takes over.

    Raises:
        ConfigError: The config asks for a tokenizer of another kind or size.
    """
    asked, tokenizer = config.tokenizer, checkpoint.tokenizer
    if tokenizer.kind != asked.kind:
        raise ConfigError(
            f"start.rater: {config.start.rater} reads {tokenizer.kind} tokens, but tokenizer.kind "
            f"is {asked.kind!r}; set tokenizer.kind={tokenizer.kind}"
        )
    if asked.kind == "bpe" and tokenizer.vocabulary_size != asked.vocabulary_size:
        raise ConfigError(
            f"start.rater: {config.start.rater} has a BPE of {tokenizer.vocabulary_size} ids, but "
            f"tokenizer.vocabulary_size is {asked.vocabulary_size}; set "
            f"tokenizer.vocabulary_size={tokenizer.vocabulary_size}"
        )
    return tokenizer


def check_fits(checkpoint: RaterCheckpoint, shape: RaterConfig, tokenizer: Tokenizer) -> None:
    """Refuses a rater that a run cannot start from.

    It must have the run's shape and tokenizer. Its windows may be longer than the run's, but not
    shorter: positions that it has never seen would have scores of no meaning.

    Args:
        checkpoint: The rater.
        shape: Shape of the run's rater.
        tokenizer: Tokenizer of the run.

    Raises:
        ConfigError: It does not fit; the message names every field that differs.
    """
    if not isinstance(checkpoint.config, RaterConfig):
        raise ConfigError(
            "start.rater: an n-gram student has no parameters that a rater could start from; give "
            "a checkpoint that datarater train wrote"
        )

    before, now = _fields(checkpoint.config), _fields(shape)
    differing = [
        f"{_field_name(name)} is {before.get(name)!r} there and {now.get(name)!r} here"
        for name in before | now
        if name != "window" and before.get(name) != now.get(name)
    ]
    if before["window"] < now["window"]:
        differing.append(f"length is {before['window']} there and {now['window']} here")
    if differing:
        raise ConfigError(
            f"start.rater: the rater does not fit this run: {'; '.join(differing)}. Give the "
            "run the fields of the rater, or start from another one"
        )
    if checkpoint.tokenizer.serialise() != tokenizer.serialise():
        raise ConfigError("start.rater: the rater reads another tokenizer's tokens than this run")


def _fields(shape: RaterConfig) -> dict[str, Any]:
    """Returns the fields of a shape that scores depend on, by their dotted names."""
    values = {"pooling": shape.pooling, **shape.to_json()}
    flat = flax.traverse_util.flatten_dict(values, sep=".")
    return {name: value for name, value in flat.items() if name not in _COMPUTATION}


def _field_name(name: str) -> str:
    """Returns the name in the config of a field of a rater's shape."""
    if name == "vocabulary_size":
        return "tokenizer.vocabulary_size"
    return "rater." + name.removeprefix("transformer.")
