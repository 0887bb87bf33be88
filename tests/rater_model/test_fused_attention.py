"""The fused attention of a rater gives the values and the gradient of plain attention."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarater.rater_model.fused_attention import attend_fused
from datarater.rater_model.rater import RaterConfig, initialise_rater, score_tokens
from datarater.rater_model.transformer import TransformerConfig, attend

LENGTH_B = np.array([3, 7])
MASK_BX1XL = (np.arange(7) < LENGTH_B[:, None])[:, None, :]


def arrays(dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v = 2 * jax.random.normal(jax.random.key(0), (3, 2, 7, 2, 4), dtype)
    return q, k, v


def test_a_rater_has_the_same_scores_and_gradient_with_fused_attention() -> None:
    def with_attention(kind: str) -> RaterConfig:
        return RaterConfig(8, 7, TransformerConfig(8, 2, 12, 2, attention=kind), (), 1)

    params = initialise_rater(with_attention("plain"), jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 8)

    def scores_and_gradient(kind: str) -> Any:
        def total(params: Any) -> tuple[jax.Array, jax.Array]:
            scores = score_tokens(with_attention(kind), params, tokens, jnp.asarray(LENGTH_B))
            return jnp.sum(jnp.sin(scores)), scores

        return jax.jit(jax.grad(total, has_aux=True))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        scores_and_gradient("fused"),
        scores_and_gradient("plain"),
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Pretends that the default device is a GPU; returns the options that the kernel is given."""
    calls: list[dict[str, Any]] = []

    def dot_product_attention(*arrays: jax.Array, **options: Any) -> jax.Array:
        calls.append(options)
        return arrays[2] if options["implementation"] == "cudnn" else jnp.zeros_like(arrays[2])

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
    return calls


def test_on_a_gpu_bfloat16_goes_to_cudnn_with_the_lengths(gpu: list[dict[str, Any]]) -> None:
    attend_fused(*arrays("bfloat16"), jnp.asarray(MASK_BX1XL))
    (options,) = gpu
    assert options["implementation"] == "cudnn"
    assert options["scale"] == 1.0
    assert options["key_value_seq_lengths"].tolist() == LENGTH_B.tolist()


def test_on_a_gpu_float32_does_not_go_to_cudnn(gpu: list[dict[str, Any]]) -> None:
    attend_fused(*arrays(), jnp.asarray(MASK_BX1XL))
    assert [options["implementation"] for options in gpu] == ["xla"]


def test_without_a_suitable_cudnn_a_warning_is_logged_and_the_values_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = jax.nn.dot_product_attention

    def without_cudnn(*arrays: jax.Array, **options: Any) -> jax.Array:
        if options["implementation"] == "cudnn":
            raise RuntimeError("cuDNN is not detected")
        return real(*arrays, **options)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", without_cudnn)
    q, k, v = arrays("bfloat16")
    with caplog.at_level(logging.WARNING):
        mixed = attend_fused(q, k, v, jnp.asarray(MASK_BX1XL))
    assert "cuDNN's attention is not used, which costs time: cuDNN is not detected" in caplog.text
    np.testing.assert_allclose(
        np.asarray(mixed, np.float32),
        np.asarray(attend(q, k, v, jnp.asarray(MASK_BX1XL)), np.float32),
        rtol=0.02,
        atol=0.02,
    )
