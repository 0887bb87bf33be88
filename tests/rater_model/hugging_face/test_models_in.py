"""Models that `transformers` wrote compute the same here."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from datarater.meta_training.algorithm.language_model import (
    LanguageModel,
    LanguageModelConfig,
    Windows,
    sequence_losses,
)
from datarater.rater_model.file_tokenizer import FileTokenizer
from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.hugging_face.model_folder import ModelFolder
from datarater.rater_model.hugging_face.shapes import config_of, shape_of
from datarater.rater_model.hugging_face.weights import stack_params, stack_weights
from datarater.rater_model.tokenizer import TokenizerError, load_tokenizer
from datarater.rater_model.transformer import Transformer
from tests.support.hugging_face import MODELS, changed_model, expected

CAUSAL = ("llama", "llama_tied")


def loaded(path: Path, readout: bool = False) -> tuple[Any, Any]:
    folder = ModelFolder(str(path))
    shape = shape_of(folder.config, folder.path)
    return shape, stack_params(folder.weights(), shape, folder.path, readout)


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_of_a_causal_model_are_equal(name: str) -> None:
    shape, params = loaded(MODELS / name, readout=True)
    model = LanguageModelConfig(
        shape.vocabulary_size, shape.transformer, tied_embeddings=shape.tied_embeddings
    )
    answer = expected(name)
    logits_BxLxV = jax.jit(LanguageModel(model).apply)({"params": params}, answer["tokens"])

    spread = np.std(answer["computed"])
    assert spread > 0.5  # not all alike
    # A causal model sees no padding before its own position.
    for row, length in enumerate(answer["lengths"]):
        np.testing.assert_allclose(
            logits_BxLxV[row, :length], answer["computed"][row, :length], atol=1e-5
        )


def test_hidden_states_of_an_encoder_are_equal() -> None:
    shape, params = loaded(MODELS / "eurobert")
    answer = expected("eurobert")
    mask_BxL = np.arange(answer["tokens"].shape[1]) < answer["lengths"][:, None]
    x_BxLxD = jnp.take(params["token_embedding"]["embedding"], answer["tokens"], axis=0)
    hidden_BxLxD = jax.jit(Transformer(shape.transformer).apply)(
        {"params": params["transformer"]}, x_BxLxD, mask_BxL[:, None, :]
    )

    assert np.std(answer["computed"]) > 0.5
    np.testing.assert_allclose(
        np.asarray(hidden_BxLxD)[mask_BxL], answer["computed"][mask_BxL], atol=1e-5
    )


def test_the_loss_in_chunks_of_a_tied_model_is_that_of_all_positions() -> None:
    shape, params = loaded(MODELS / "llama_tied", readout=True)
    answer = expected("llama_tied")
    windows = Windows(jnp.asarray(answer["tokens"]), jnp.asarray(answer["lengths"]))
    whole, chunked = (
        sequence_losses(
            LanguageModelConfig(shape.vocabulary_size, shape.transformer, chunk, True),
            params,
            windows,
        )
        for chunk in (0, 5)
    )
    np.testing.assert_allclose(whole, chunked, rtol=1e-6)


@pytest.mark.parametrize("name", [*CAUSAL, "eurobert"])
def test_weights_go_out_as_they_came_in(name: str) -> None:
    shape, params = loaded(MODELS / name)
    out = stack_weights(params, shape, "")
    before = {key.removeprefix("model."): v for key, v in ModelFolder(f"{MODELS}/{name}").weights()}
    before.pop("lm_head.weight", None)
    assert out.keys() == before.keys()
    for key, values in out.items():
        np.testing.assert_array_equal(values, before[key])
    assert shape_of(config_of(shape), "there") == shape


def test_a_tokenizer_serializes_itself() -> None:
    tokenizer = ModelFolder(f"{MODELS}/llama").tokenizer()
    text = "then </s> there, naïve 🙂"
    for copy in (
        load_tokenizer("file", tokenizer.serialise()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.serialise() == tokenizer.serialise()
        assert copy.encode(text).tolist() == tokenizer.encode_batch([text])[0].tolist()
    with pytest.raises(TokenizerError, match="does not describe a tokenizer's file"):
        load_tokenizer("file", b"{}")
    with pytest.raises(TokenizerError, match="no token of the separator_id 9999"):
        FileTokenizer(tokenizer.content, 0, 9999)


def test_a_tokenizer_comes_with_the_model() -> None:
    tokenizer = ModelFolder(f"{MODELS}/llama").tokenizer()
    assert (tokenizer.pad_id, tokenizer.separator_id) == (0, 2)
    assert tokenizer.vocabulary_size <= 272
    # Neither the special token that starts a text nor one that its text names.
    assert not set(tokenizer.encode("then </s> there").tolist()) & {0, 1, 2, 3}


def test_the_token_that_ends_a_text_pads_where_there_is_no_other(tmp_path: Path) -> None:
    path = changed_model(tmp_path / "model", "llama", pad_token_id=None, eos_token_id=[2, 3])
    tokenizer = ModelFolder(str(path)).tokenizer()
    assert (tokenizer.pad_id, tokenizer.separator_id) == (2, 2)


def test_configs_of_older_versions_say_the_same(tmp_path: Path) -> None:
    new = changed_model(tmp_path / "new", "llama_tied")
    rope = json.loads((new / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    old = changed_model(
        tmp_path / "old", "llama_tied", rope_parameters=None, rope_theta=theta, rope_scaling=rope
    )
    assert loaded(old)[0] == loaded(new)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "'bert', which has LayerNorm after each part"),
        ({"model_type": "novel"}, "'novel'; types that fit are llama and eurobert"),
        ({"hidden_act": "gelu"}, "the activation is 'gelu', not 'silu'"),
        ({"attention_bias": True, "mlp_bias": True}, r"\(attention_bias\); the MLP has biases"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "scaled by 'yarn'"),
        ({"quantization_config": {}}, "quantized"),
        ({"rms_norm_eps": None}, "has no rms_norm_eps"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a whole number"),
        ({"hidden_size": "16"}, "hidden_size is '16', not a whole number"),
        ({"num_hidden_layers": 2.5}, r"num_hidden_layers is 2\.5, not a whole number"),
        ({"max_position_embeddings": float("inf")}, "max_position_embeddings is inf"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', not a number"),
        ({"rope_parameters": {"rope_theta": [1]}}, r"rope_theta is \[1\], not a number"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3', not an object"),
        ({"num_key_value_heads": 3}, r"key_value_heads \(3\)"),
        ({"num_hidden_layers": 3}, "missing: layers.2.input_layernorm.weight, .* and 6 more"),
        ({"num_hidden_layers": 1}, "unknown: model.layers.1"),
        ({"intermediate_size": 20}, "has the shape .* but config.json says"),
    ],
)
def test_another_shape_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HuggingFaceError, match=message):
        loaded(changed_model(tmp_path / "model", "llama", **changes))


@pytest.mark.parametrize("head", ["score.weight", "lm_head.dense.bias", "model.dense.weight"])
def test_heads_are_left_out_but_no_weight_of_a_block(head: str) -> None:
    folder = ModelFolder(f"{MODELS}/llama")
    shape = shape_of(folder.config, folder.path)
    extra = np.zeros(3, np.float32)
    constant = "model.layers.0.self_attn.rotary_emb.inv_freq"
    stack_params([*folder.weights(), (head, extra), (constant, extra)], shape, "there", False)

    of_a_block = f"model.layers.0.{head.removeprefix('model.')}"
    with pytest.raises(HuggingFaceError, match=f"unknown: {of_a_block}"):
        stack_params([*folder.weights(), (of_a_block, extra)], shape, "there", False)


def test_an_encoder_is_no_causal_model() -> None:
    folder = ModelFolder(f"{MODELS}/eurobert")
    with pytest.raises(HuggingFaceError, match="an encoder, which does not predict"):
        shape_of(folder.config, folder.path, "causal")


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HuggingFaceError, match=r"not a model .* no config\.json"):
        ModelFolder(str(tmp_path))

    path = changed_model(tmp_path / "model", "llama", eos_token_id=None)
    with pytest.raises(HuggingFaceError, match="no eos_token_id"):
        ModelFolder(str(path)).tokenizer()

    (path / "tokenizer.json").unlink()
    with pytest.raises(HuggingFaceError, match=r"has no tokenizer\.json"):
        ModelFolder(str(path)).tokenizer()

    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(HuggingFaceError, match=r"model\.safetensors is damaged"):
        list(ModelFolder(str(path)).weights())

    weights.write_bytes(safetensors.numpy.save({"a": np.zeros(2, np.int8)}))
    with pytest.raises(HuggingFaceError, match="a has the dtype I8; quantized"):
        list(ModelFolder(str(path)).weights())

    weights.unlink()
    with pytest.raises(HuggingFaceError, match="pickled weights are not read"):
        list(ModelFolder(str(path)).weights())

    for name in ("../b", "..", "/b", ""):
        index = json.dumps({"weight_map": {"a": name}})
        (path / "model.safetensors.index.json").write_text(index)
        with pytest.raises(HuggingFaceError, match="files outside the folder"):
            list(ModelFolder(str(path)).weights())

    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": ["b"]}}')
    with pytest.raises(HuggingFaceError, match="has no weight_map of names"):
        list(ModelFolder(str(path)).weights())


@pytest.mark.parametrize("pad", [-1, 2**40, 9999])
def test_an_id_of_no_token_is_refused(tmp_path: Path, pad: int) -> None:
    path = changed_model(tmp_path / "model", "llama", pad_token_id=pad)
    with pytest.raises(HuggingFaceError, match=f"no token of the pad_id {pad}"):
        ModelFolder(str(path)).tokenizer()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    path = changed_model(tmp_path / "model", "llama")
    weights = safetensors.numpy.load_file(path / "model.safetensors")
    weights["model.norm.weight"][3] = value
    safetensors.numpy.save_file(weights, path / "model.safetensors")
    with pytest.raises(HuggingFaceError, match=r"model\.norm\.weight has values that are not fin"):
        loaded(path)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_copy_is_the_same_model(tmp_path: Path, name: str) -> None:
    ModelFolder(f"{MODELS}/{name}").copy_to(tmp_path / "copy")
    shape, params = loaded(tmp_path / "copy")
    assert shape == loaded(MODELS / name)[0]
    np.testing.assert_array_equal(
        params["token_embedding"]["embedding"],
        loaded(MODELS / name)[1]["token_embedding"]["embedding"],
    )
