"""A rater as a model of `transformers`."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from datarater.rater_model.checkpoint import RaterCheckpoint, ScoreStatistics
from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.hugging_face.exporting import export_to_transformers
from datarater.rater_model.hugging_face.model_folder import ModelFolder
from datarater.rater_model.hugging_face.shapes import shape_of
from datarater.rater_model.hugging_face.weights import stack_params
from datarater.rater_model.rater import RaterConfig, initialise_rater
from datarater.rater_model.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from datarater.rater_model.transformer import TransformerConfig
from tests.support.hugging_face import MODELS
from tests.support.raters import random_student

TEXTS = ["then <pad> there </s>", "naïve 🙂\n\tother\x00", " the then there other " * 3]


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        return train_bpe(TEXTS, 270)
    return ModelFolder(f"{MODELS}/llama").tokenizer()


def exportable(tokenizer: Tokenizer) -> RaterCheckpoint:
    """A random rater without n-gram tables, of grouped queries and longer windows than TEXTS."""
    shape = TransformerConfig(
        16, 4, 24, 2, head_width=6, key_value_heads=2, rotary_base=500.0, norm_epsilon=1e-3
    )
    config = RaterConfig(tokenizer.vocabulary_size, 128, shape, ngram_orders=())
    params = jax.device_get(initialise_rater(config, jax.random.key(0)))
    return RaterCheckpoint(config, params, tokenizer, ScoreStatistics(center=0.25))


@pytest.mark.parametrize("kind", ["byte", "bpe", "file"])
def test_an_export_has_the_parameters_and_the_tokens_of_the_rater(
    kind: str, tmp_path: Path
) -> None:
    rater = exportable(tokenizer_of(kind))
    export_to_transformers(rater, tmp_path / "out")

    folder = ModelFolder(str(tmp_path / "out"))
    shape = shape_of(folder.config, folder.path)
    assert isinstance(rater.config, RaterConfig)
    assert shape.transformer == rater.config.transformer
    params = stack_params(folder.weights(), shape, folder.path, readout=False)
    for name, tree in params.items():
        jax.tree.map(np.testing.assert_array_equal, tree, rater.params[name])

    library = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    library.encode_special_tokens = True
    for text in TEXTS:
        assert library.encode(text).ids == rater.tokenizer.encode(text).tolist()


def test_the_layers_behind_the_pooling_give_the_score(tmp_path: Path) -> None:
    rater = exportable(ByteTokenizer())
    export_to_transformers(rater, tmp_path / "out")
    weights = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    pooled_D = np.random.default_rng(0).standard_normal(16)

    hidden_D = weights["dense.weight"] @ pooled_D + weights["dense.bias"]
    gelu_D = np.array([s * 0.5 * (1 + math.erf(s / math.sqrt(2))) for s in hidden_D])
    (logit,) = weights["classifier.weight"] @ gelu_D + weights["classifier.bias"]
    assert logit == pytest.approx(float(rater.params["head"] @ pooled_D) - 0.25, abs=1e-6)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["classifier_pooling"] == "mean"
    assert config["pad_token_id"] == 256


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    rater = exportable(ByteTokenizer())
    assert isinstance(rater.config, RaterConfig)
    config = dataclasses.replace(rater.config, ngram_orders=(2, 3), pooling="attention")
    with pytest.raises(HuggingFaceError) as refused:
        export_to_transformers(dataclasses.replace(rater, config=config), tmp_path / "out")
    assert "--config.rater.ngram_orders='()'" in str(refused.value)
    assert "--config.rater.pooling=mean" in str(refused.value)
    with pytest.raises(HuggingFaceError, match="n-gram student"):
        export_to_transformers(random_student(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(HuggingFaceError, match="not an empty folder"):
        export_to_transformers(exportable(ByteTokenizer()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_export_that_ends_early_leaves_nothing(
    error: BaseException, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    write = Path.write_bytes

    def stop(path: Path, content: bytes) -> int:
        if path.name != "tokenizer.json":
            return write(path, content)
        write(path, content[:10])
        raise error

    rater = exportable(ByteTokenizer())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", stop)
        with pytest.raises(type(error)):
            export_to_transformers(rater, out)
    assert out.exists() == exists
    export_to_transformers(rater, out)
    assert (out / "tokenizer_config.json").exists()


def test_an_export_to_a_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HuggingFaceError, match="gs://bucket/out is not a local folder"):
        export_to_transformers(exportable(ByteTokenizer()), "gs://bucket/out")
    assert not list(tmp_path.iterdir())
