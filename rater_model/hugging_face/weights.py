"""Turns the weights of a Llama or EuroBERT into parameters of our transformer, and back.

A linear layer of `torch` computes x W^T, so its weight [out, in] is our kernel [in, out]
transposed; kernels of attention have an axis of heads besides. Rotary positions pair the same
numbers of a head in both: the first half with the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import flax.traverse_util
import numpy as np

from datarater.rater_model.hugging_face.errors import HuggingFaceError
from datarater.rater_model.hugging_face.shapes import ModelShape

Params = dict[str, Any]  # a nested dict of arrays, as Flax makes it

_READOUT = "lm_head.weight"
# Weights beyond the stack: heads of other tasks, and a constant of each block in old files.
_HEADS = ("lm_head.", "classifier.", "dense.", "score.")
_CONSTANT = ".rotary_emb."


class _Array(NamedTuple):
    """An array of both sides.

    Attributes:
        name: Name in a file, without the prefix of a model with a head.
        place: Place in our parameters.
        dims: Shape there.
        inputs: Number of its leading axes that are the input of a product; 0 for no product.
    """

    name: str
    place: str
    dims: tuple[int, ...]
    inputs: int = 0

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape in a file."""
        if not self.inputs:
            return self.dims
        return (math.prod(self.dims[self.inputs :]), math.prod(self.dims[: self.inputs]))

    def to_params(self, stored: np.ndarray) -> np.ndarray:
        """Returns our array of one in a file, float32."""
        array = stored.T.reshape(self.dims) if self.inputs else stored
        return np.ascontiguousarray(array, np.float32)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Returns the array in a file of one of ours, float32."""
        stored = array.reshape(self.stored[::-1]).T if self.inputs else array
        return np.ascontiguousarray(stored, np.float32)


def stack_params(
    weights: Iterable[tuple[str, np.ndarray]], shape: ModelShape, path: str, readout: bool
) -> Params:
    """Returns the parameters of the embedding and the blocks, float32.

    Args:
        weights: Name and values of each array.
        shape: Shape of the model.
        path: Folder of the model, for errors.
        readout: Whether to return the matrix of the logits too, unless it is the embedding.

    Returns:
        A nested dict with `token_embedding`, `transformer` and, if asked for, `readout`.

    Raises:
        HuggingFaceError: An array is missing, unknown, of another shape or not finite; the message
            names it.
    """
    expected = {array.name: array for array in _stack(shape)}
    if readout and not shape.tied_embeddings:
        size = (shape.transformer.width, shape.vocabulary_size)
        expected[_READOUT] = _Array(_READOUT, "readout/kernel", size, 1)

    flat: dict[str, np.ndarray] = {}
    unknown = []
    for full_name, values in weights:
        name = full_name.removeprefix("model.")
        array = expected.get(name)
        if array is None:
            if not (name.startswith(_HEADS) or _CONSTANT in f".{name}"):
                unknown.append(full_name)
        elif values.shape != array.stored:
            raise HuggingFaceError(
                f"{path}: {full_name} has the shape {values.shape}, but config.json says "
                f"{array.stored}"
            )
        else:
            ours = array.to_params(values)
            if not np.isfinite(ours).all():
                raise HuggingFaceError(
                    f"{path}: {full_name} has values that are not finite in float32; give a model "
                    "without them"
                )
            flat[array.place] = ours

    missing = [array.name for array in expected.values() if array.place not in flat]
    if unknown or missing:
        parts = [f"unknown: {_few(unknown)}"] * bool(unknown)
        parts += [f"missing: {_few(missing)}"] * bool(missing)
        raise HuggingFaceError(
            f"{path} does not have the weights of a {shape.model_type}; {'; '.join(parts)}"
        )
    return cast(Params, flax.traverse_util.unflatten_dict(flat, sep="/"))


def stack_weights(params: Params, shape: ModelShape, prefix: str) -> dict[str, np.ndarray]:
    """Returns the weights of the embedding and the blocks: the inverse of `stack_params`.

    Args:
        params: Parameters with `token_embedding` and `transformer`.
        shape: Shape of the model.
        prefix: What names begin with, such as "model.".
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {
        prefix + array.name: array.to_file(np.asarray(flat[array.place])) for array in _stack(shape)
    }


def _stack(shape: ModelShape) -> list[_Array]:
    """Returns the arrays of the embedding and the blocks."""
    config = shape.transformer
    width, mlp = config.width, config.mlp_width
    queries = (width, config.heads, config.width_of_head)
    keys = (width, config.key_value_heads or config.heads, config.width_of_head)

    arrays = [
        _Array("embed_tokens.weight", "token_embedding/embedding", (shape.vocabulary_size, width)),
        _Array("norm.weight", "transformer/norm/scale", (width,)),
    ]
    for layer in range(config.layers):
        theirs, ours = f"layers.{layer}", f"transformer/block_{layer}"
        for name, place, dims, inputs in (
            ("input_layernorm", "attention_norm/scale", (width,), 0),
            ("self_attn.q_proj", "attention/query/kernel", queries, 1),
            ("self_attn.k_proj", "attention/key/kernel", keys, 1),
            ("self_attn.v_proj", "attention/value/kernel", keys, 1),
            ("self_attn.o_proj", "attention/output/kernel", (*queries[1:], width), 2),
            ("post_attention_layernorm", "mlp_norm/scale", (width,), 0),
            ("mlp.gate_proj", "mlp/gate/kernel", (width, mlp), 1),
            ("mlp.up_proj", "mlp/up/kernel", (width, mlp), 1),
            ("mlp.down_proj", "mlp/down/kernel", (mlp, width), 1),
        ):
            arrays.append(_Array(f"{theirs}.{name}.weight", f"{ours}/{place}", dims, inputs))
    return arrays


def _few(names: list[str]) -> str:
    """Returns the first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
