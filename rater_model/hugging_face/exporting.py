r"""Writes a rater as a model that `transformers` loads without code of ours.

It becomes an `EuroBertForSequenceClassification` with mean pooling and one label, whose logit is
the score of one window. That class has a layer and a GELU between the pooled vector x and the
classifier; since GELU(s) = s \Phi(s) and \Phi(s) + \Phi(-s) = 1,

    GELU(s) - GELU(-s) = s

so rows h and -h of the layer and a classifier (1, -1, 0, ...) give h . x exactly; the classifier's
bias is minus the center of the scores.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

from datarater.rater_model.checkpoint import RaterCheckpoint
from datarater.rater_model.documents.store_errors import protocol_of
from datarater.rater_model.file_tokenizer import FileTokenizer
from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.hugging_face.shapes import EUROBERT, ModelShape, config_of
from datarater.rater_model.hugging_face.weights import stack_weights
from datarater.rater_model.ngram_rater import NgramConfig
from datarater.rater_model.tokenizer import (
    PAD_TOKEN,
    SEPARATOR_TOKEN,
    ByteTokenizer,
    Tokenizer,
)


def export_to_transformers(checkpoint: RaterCheckpoint, folder: str | os.PathLike[str]) -> None:
    """Writes a rater as a model of `transformers` into a new folder, or nothing if that fails.

    Args:
        checkpoint: Rater to write.
        folder: Local folder, new or empty.

    Raises:
        HuggingFaceError: The rater does not have such a model's shape, or the folder has files or
            is not local.
        OSError: The folder cannot be written.
    """
    files = transformers_files(checkpoint)
    if protocol_of(os.fspath(folder)):
        raise HuggingFaceError(
            f"{folder} is not a local folder; export into one, and copy it there with the store's "
            "own tool"
        )
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise HuggingFaceError(f"{path} exists and is not an empty folder; choose another one")
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)

    # In place, since the folder may be the root of a mount, which cannot be replaced.
    try:
        for name, content in files.items():
            (path / name).write_bytes(content)
    except BaseException:
        for name in files:
            (path / name).unlink(missing_ok=True)
        if is_new:
            path.rmdir()
        raise


def transformers_files(checkpoint: RaterCheckpoint) -> dict[str, bytes]:
    """Returns the content of each file of a rater as a model of `transformers`.

    Raises:
        HuggingFaceError: The rater does not have such a model's shape; the message names all that
            does not fit, and how to train a rater that does.
    """
    config = checkpoint.config
    if isinstance(config, NgramConfig):
        raise HuggingFaceError(
            "an n-gram student is not a transformer; export the rater that it learned from"
        )
    unfit = []
    if config.ngram_orders:
        unfit.append(
            f"tables of n-grams of the orders {config.ngram_orders}, which no model of "
            "transformers has: train with --config.rater.ngram_orders='()'"
        )
    if config.pooling != "mean":
        unfit.append(
            f"pooling by {config.pooling}, where transformers takes the mean: train with "
            "--config.rater.pooling=mean"
        )
    if unfit:
        raise HuggingFaceError(f"the rater has {'; and '.join(unfit)}")

    # The stack of blocks, and the score read out of the mean of its hidden states.
    shape = ModelShape(
        EUROBERT, config.vocabulary_size, config.transformer, False, length=config.window
    )
    weights = stack_weights(checkpoint.params, shape, "model.")
    head_D = np.asarray(checkpoint.params["head"], np.float32)
    weights |= _readout(head_D, checkpoint.statistics.center)

    tokenizer = checkpoint.tokenizer
    values = {
        **config_of(shape),
        "architectures": ["EuroBertForSequenceClassification"],
        "classifier_pooling": "mean",
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "problem_type": "regression",
        "dtype": "float32",
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.separator_id,
        "eos_token_id": tokenizer.separator_id,
        "mask_token_id": tokenizer.pad_id,
    }
    library = _library_tokenizer(tokenizer)
    return {
        "config.json": _json(values),
        "model.safetensors": safetensors.numpy.save(weights, {"format": "pt"}),
        "tokenizer.json": library.to_str(pretty=True).encode("utf-8"),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": config.window,
                "pad_token": library.id_to_token(tokenizer.pad_id),
                "clean_up_tokenization_spaces": False,
                # A special token's name in a document is plain text.
                "split_special_tokens": True,
            }
        ),
    }


def _readout(head_D: np.ndarray, center: float) -> dict[str, np.ndarray]:
    """Returns the weights behind the pooling, which give head . x - center."""
    width = len(head_D)
    dense, classifier = np.zeros((width, width), np.float32), np.zeros((1, width), np.float32)
    dense[0], dense[1] = head_D, -head_D
    classifier[0, :2] = 1, -1
    return {
        "dense.weight": dense,
        "dense.bias": np.zeros(width, np.float32),
        "classifier.weight": classifier,
        "classifier.bias": np.array([-center], np.float32),
    }


def _library_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Returns a tokenizer of the library that gives the same ids, and adds no special tokens."""
    if isinstance(tokenizer, ByteTokenizer):
        return _byte_tokenizer()
    content = tokenizer.content if isinstance(tokenizer, FileTokenizer) else tokenizer.serialise()
    values = json.loads(content)
    values |= {"post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def _byte_tokenizer() -> tokenizers.Tokenizer:
    """Returns a BPE without merges, whose ids are the bytes."""
    # The library writes bytes as characters: those that print as themselves, the others in turn
    # from U+0100 (GPT-2's table).
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    characters = {byte: chr(byte) for byte in printed}
    characters |= {byte: chr(256 + number) for number, byte in enumerate(others)}

    vocabulary = {characters[byte]: byte for byte in range(256)}
    vocabulary |= {
        PAD_TOKEN: ByteTokenizer.pad_id,
        SEPARATOR_TOKEN: ByteTokenizer.separator_id,
    }
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens([PAD_TOKEN, SEPARATOR_TOKEN])
    return library


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
