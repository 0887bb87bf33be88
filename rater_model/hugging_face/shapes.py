"""Says which models of Hugging Face have the shape of ours, and what does not fit in others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.transformer import TransformerConfig

LLAMA, EUROBERT = "llama", "eurobert"
_FITTING = (LLAMA, EUROBERT)

_WHOLE_NUMBERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_NUMBERS = (
    "rms_norm_eps",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)

# What other well-known families have that our blocks do not have.
_BERT = "LayerNorm after each part, learned positions and biases"
_DIFFERENCES = {
    "albert": _BERT,
    "bert": _BERT,
    "camembert": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT,
    "distilbert": _BERT,
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "modernbert": "LayerNorm and, in most layers, local attention",
    "gpt2": "LayerNorm, learned positions, biases and an MLP without a gate",
    "gpt_neox": "LayerNorm, biases and an MLP without a gate",
    "gemma": "norms with a scale of 1 + w and scaled embeddings",
    "gemma2": "norms after each part and capped logits",
    "gemma3_text": "norms after each part and local attention",
    "mistral": "attention in sliding windows",
    "mixtral": "experts",
    "phi3": "rotary positions of a part of each head",
    "qwen2": "biases of queries, keys and values",
    "qwen3": "norms of queries and keys",
    "t5": "relative positions",
}


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The shape of a model.

    Attributes:
        model_type: Family of the model, "llama" or "eurobert".
        vocabulary_size: Rows of the embedding, which may be more than the tokenizer has ids.
        transformer: Shape of the blocks.
        tied_embeddings: Whether logits are read out with the token embeddings.
        length: Longest text that the model was trained for, in tokens.
    """

    model_type: str
    vocabulary_size: int
    transformer: TransformerConfig
    tied_embeddings: bool
    length: int


def shape_of(
    config: dict[str, Any], path: str, needed: Literal["causal", "any"] = "any"
) -> ModelShape:
    """Returns the shape that a `config.json` describes.

    Args:
        config: Content of the file.
        path: Folder of the model, for errors.
        needed: "causal" for a model that predicts the next token.

    Raises:
        HuggingFaceError: The model does not have our shape; the message names all that differs.
    """
    model_type = config.get("model_type")
    fitting = (LLAMA,) if needed == "causal" else _FITTING
    if model_type not in fitting:
        difference = _DIFFERENCES.get(str(model_type), "")
        has = f", which has {difference}" if difference else ""
        if model_type == EUROBERT:
            has = ", an encoder, which does not predict the next token"
        raise HuggingFaceError(
            f"{path} is a model of type {model_type!r}{has}; types that fit are "
            f"{' and '.join(fitting)}: RMSNorm before each part, rotary positions, a gated MLP and "
            "no biases"
        )

    _check_types(config, path)
    differing = _differing(config)
    if differing:
        raise HuggingFaceError(f"{path} has another shape than our models: {'; '.join(differing)}")

    rope = _rope(config)
    scaling: tuple[float, ...] = ()
    try:
        if rope.get("rope_type") == "llama3":
            scaling = (
                float(rope["factor"]),
                float(rope["low_freq_factor"]),
                float(rope["high_freq_factor"]),
                float(rope["original_max_position_embeddings"]),
            )
        heads = config["num_attention_heads"]
        transformer = TransformerConfig(
            width=config["hidden_size"],
            heads=heads,
            mlp_width=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            head_width=_or_zero(config.get("head_dim"), config["hidden_size"] // heads),
            key_value_heads=_or_zero(config.get("num_key_value_heads"), heads),
            rotary_base=float(rope.get("rope_theta", 10_000.0)),
            rotary_scaling=scaling,
            norm_epsilon=float(config["rms_norm_eps"]),
        )
        return ModelShape(
            model_type=str(model_type),
            vocabulary_size=int(config["vocab_size"]),
            transformer=transformer,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            length=int(config["max_position_embeddings"]),
        )
    except KeyError as error:
        raise HuggingFaceError(f"{path}/config.json has no {error.args[0]}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise HuggingFaceError(f"{path}/config.json cannot be used: {error}") from error


def _check_types(config: dict[str, Any], path: str) -> None:
    """Refuses fields that are not the numbers that they should be; a missing one is left alone."""
    for name in _WHOLE_NUMBERS:
        value = config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise HuggingFaceError(
                f"{path}/config.json cannot be used: {name} is {value!r}, not a whole number of at "
                "least 1"
            )

    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(name) or {}, dict):
            raise HuggingFaceError(
                f"{path}/config.json cannot be used: {name} is {config[name]!r}, not an object"
            )
    for name, value in {**_rope(config), "rms_norm_eps": config.get("rms_norm_eps")}.items():
        is_number = type(value) in (int, float) and math.isfinite(value)
        if name in _NUMBERS and value is not None and not is_number:
            raise HuggingFaceError(
                f"{path}/config.json cannot be used: {name} is {value!r}, not a number"
            )


def config_of(shape: ModelShape) -> dict[str, Any]:
    """Returns the `config.json` of a model, as far as its shape says; `shape_of` reads it."""
    transformer = shape.transformer
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": transformer.rotary_base}
    if transformer.rotary_scaling:
        factor, low, high, length = transformer.rotary_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(length),
        }

    return {
        "model_type": shape.model_type,
        "vocab_size": shape.vocabulary_size,
        "hidden_size": transformer.width,
        "intermediate_size": transformer.mlp_width,
        "num_hidden_layers": transformer.layers,
        "num_attention_heads": transformer.heads,
        "num_key_value_heads": transformer.key_value_heads or transformer.heads,
        "head_dim": transformer.width_of_head,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": shape.length,
        "rms_norm_eps": transformer.norm_epsilon,
        "rope_parameters": rope,
        "tie_word_embeddings": shape.tied_embeddings,
    }


def _or_zero(value: Any, usual: int) -> int:
    """Returns a number, or 0 if it is the usual one, as a default config has it."""
    return 0 if value is None or value == usual else int(value)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of rotary positions, of old and new versions of transformers."""
    scaling = config.get("rope_scaling") or {}
    values = {
        "rope_theta": config.get("rope_theta", 10_000.0),
        **scaling,
        **(config.get("rope_parameters") or {}),
    }
    values.setdefault("rope_type", values.get("type", "default"))
    return values


def _differing(config: dict[str, Any]) -> list[str]:
    """Returns what our blocks do not have, in words."""
    rope = _rope(config)
    checks = {
        f"the activation is {config.get('hidden_act')!r}, not 'silu'": config.get(
            "hidden_act", "silu"
        )
        not in ("silu", "swish"),
        "attention has biases (attention_bias)": bool(config.get("attention_bias")),
        "the MLP has biases (mlp_bias)": bool(config.get("mlp_bias")),
        f"rotary positions are scaled by {rope['rope_type']!r}, not 'llama3'": rope["rope_type"]
        not in ("default", "llama3"),
        "only a part of each head is rotated (partial_rotary_factor)": rope.get(
            "partial_rotary_factor", config.get("partial_rotary_factor", 1.0)
        )
        != 1.0,
        "weights are quantized (quantization_config)": "quantization_config" in config,
    }
    return [words for words, differs in checks.items() if differs]
