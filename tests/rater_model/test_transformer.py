"""Attention in blocks gives the values and the first and second derivatives of plain attention."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarater.rater_model.transformer import (
    FUSED_ATTENTION,
    Embedding,
    Transformer,
    TransformerConfig,
    attend,
    attend_in_blocks,
)

BATCH, LENGTH, HEADS, HEAD_WIDTH = 2, 7, 2, 4
MASKS = {
    "causal": np.tril(np.ones((LENGTH, LENGTH), bool))[None],
    "padding": (np.arange(LENGTH) < np.array([[3], [LENGTH]]))[:, None, :],
    # A window of padding alone: its rows may attend to nothing.
    "nothing": (np.arange(LENGTH) < np.array([[0], [5]]))[:, None, :],
}
Attend = Callable[..., jax.Array]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def inputs(dtype: str = "float64") -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    keys = jax.random.split(jax.random.key(0), 6)
    arrays = [2 * jax.random.normal(key, (BATCH, LENGTH, HEADS, HEAD_WIDTH), dtype) for key in keys]
    return tuple(arrays[:3]), tuple(arrays[3:])


def derivatives(function: Attend, mask: np.ndarray) -> Callable[..., tuple[jax.Array, ...]]:
    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(function(q, k, v, jnp.asarray(mask))))

    def all_of_them(
        arguments: tuple[jax.Array, ...], directions: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        gradient = jax.grad(loss, (0, 1, 2))
        # Forward over reverse, as mixed mode does.
        first, second = jax.jvp(gradient, arguments, directions)
        _, pull_back = jax.vjp(gradient, *arguments)
        return function(*arguments, jnp.asarray(mask)), first, second, pull_back(directions)

    return jax.jit(all_of_them, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("block", [3, 7, 100])
def test_blocks_equal_plain_attention_and_so_do_their_derivatives(mask: str, block: int) -> None:
    expected = derivatives(attend, MASKS[mask])(*inputs())
    actual = derivatives(lambda q, k, v, m: attend_in_blocks(q, k, v, m, block), MASKS[mask])(
        *inputs()
    )
    assert_close(actual, expected)


def test_causal_blocks_equal_a_causal_mask() -> None:
    padding = jnp.asarray(MASKS["padding"])
    both = MASKS["padding"] & MASKS["causal"]
    expected = derivatives(attend, both)(*inputs())
    actual = derivatives(lambda q, k, v, m: attend_in_blocks(q, k, v, padding, 3, True), both)(
        *inputs()
    )
    assert_close(actual, expected)


def assert_close(actual: tuple[jax.Array, ...], expected: tuple[jax.Array, ...]) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "function", [attend, functools.partial(attend_in_blocks, block=2)], ids=["plain", "blocks"]
)
def test_bfloat16_keeps_the_dtype_and_the_softmax_in_float32(function: Attend) -> None:
    arguments, _ = inputs("bfloat16")
    q, k, v = (x.astype(jnp.float64) for x in arguments)
    mask = jnp.asarray(MASKS["causal"])
    exact = attend(q, k, v, mask)
    mixed = function(*arguments, mask)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(mixed, np.float64), exact, atol=0.03)


def test_an_embeddings_derivatives_are_summed_in_the_precision_of_its_parameters() -> None:
    table = Embedding(3, TransformerConfig(8, dtype="bfloat16"), 1.0)
    ids = jnp.zeros((1, 5000), jnp.int32)
    params = table.init(jax.random.key(0), ids)

    def rows(params: Any) -> jax.Array:
        return cast(jax.Array, table.apply(params, ids))

    def gradient(params: Any) -> Any:
        return jax.grad(lambda params: jnp.sum(rows(params).astype(jnp.float32) ** 2))(params)

    assert rows(params).dtype == jnp.bfloat16

    direction = jax.tree.map(jnp.ones_like, params)
    first, second = jax.jvp(gradient, (params,), (direction,))
    row = params["params"]["embedding"][0].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(first["params"]["embedding"][0], 2 * 5000 * row, rtol=1e-5)
    np.testing.assert_allclose(second["params"]["embedding"][0], np.full(8, 2 * 5000.0), rtol=1e-5)


def test_memory_grows_with_the_length_not_with_its_square() -> None:
    def gradient_bytes(length: int, function: Attend) -> int:
        shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        mask = np.tril(np.ones((length, length), bool))[None]

        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(function(q, k, v, jnp.asarray(mask)) ** 2)

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)  # type: ignore[union-attr]

    def in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return attend_in_blocks(q, k, v, mask, 32)

    # The mask itself, a byte for each of L x L, is cut into blocks too.
    assert gradient_bytes(1024, in_blocks) < 4 * 1024 * 1024
    assert gradient_bytes(1024, attend) > 8 * 1024 * 1024


@pytest.mark.parametrize(
    "changes",
    [
        {"scan_blocks": True},
        {"scan_blocks": True, "rematerialise_blocks": True},
        {"scan_blocks": True, "rematerialise_blocks": True, "save_products": True},
        {"rematerialise_blocks": True, "save_products": True},
    ],
    ids=", ".join,
)
def test_blocks_in_every_economy_have_the_same_parameters_and_the_same_numbers(
    changes: dict[str, Any],
) -> None:
    plain = TransformerConfig(8, 2, 12, 3, dtype="float64", param_dtype="float64")
    scanned = dataclasses.replace(plain, **changes)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8), "float64")
    mask = jnp.ones((1, 1, 5), bool)
    params = jax.jit(Transformer(plain, True).init)(jax.random.key(1), x, mask)
    of_scanned = jax.jit(Transformer(scanned, True).init)(jax.random.key(1), x, mask)
    jax.tree.map(np.testing.assert_array_equal, params, of_scanned)

    def loss(params: Any, config: TransformerConfig) -> jax.Array:
        return jnp.sum(jnp.sin(cast(jax.Array, Transformer(config, True).apply(params, x, mask))))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
        gradient(params, scanned),
        gradient(params, plain),
    )


def test_saved_products_are_not_computed_again() -> None:
    def products(**changes: Any) -> int:
        config = TransformerConfig(8, 2, 12, 1, rematerialise_blocks=True, **changes)
        x, mask = jnp.ones((1, 5, 8)), jnp.ones((1, 1, 5), bool)
        params = Transformer(config).init(jax.random.key(0), x, mask)

        def loss(params: Any) -> jax.Array:
            return jnp.sum(cast(jax.Array, Transformer(config).apply(params, x, mask)))

        return jax.jit(jax.grad(loss)).lower(params).as_text().count("dot_general")

    # Gate, up and the attention's mixed values; queries, keys, values, logits and the output are
    # recomputed.
    assert products() - products(save_products=True) == 3


@pytest.mark.parametrize("name", FUSED_ATTENTION)
def test_a_fused_kernel_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"attention '{name}' is a fused kernel, which the device chooses"
    ):
        TransformerConfig(attention=name)


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="'plain', 'blocks' or 'fused', not 'linear'"):
        TransformerConfig(attention="linear")
