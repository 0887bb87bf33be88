"""Attention for scoring gives what training's attention gives, whatever is computed at a time."""

from __future__ import annotations

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.rater_model.scoring_attention import attend_piecewise
from datarater.rater_model.transformer import attend

HEADS, HEAD_WIDTH = 2, 4
in_pieces = jax.jit(attend_piecewise, static_argnums=4)
as_in_training = jax.jit(attend)


# Few shapes, since each is compiled. A sequence and a head have 61^2 or 96^2 logits, so these are:
# a head as a whole, a block of queries, one or more heads of one or more sequences.
@settings(max_examples=60, deadline=None)
@given(
    batch=st.sampled_from([1, 3]),
    length=st.sampled_from([61, 96]),
    logits_at_a_time=st.sampled_from([1, 4_096, 20_000, 2**18]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_attention_in_pieces_equals_training_attention(
    batch: int, length: int, logits_at_a_time: int, scale: float, seed: int, data: st.DataObject
) -> None:
    # A window of no valid token too: its result is finite.
    valid_B = data.draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch))
    mask_Bx1xL = np.arange(length) < np.array(valid_B)[:, None, None]
    rng = np.random.default_rng(seed)
    shape = (batch, length, HEADS, HEAD_WIDTH)
    q, k, v = (scale * rng.standard_normal(shape).astype(np.float32) for _ in range(3))

    expected = as_in_training(q, k, v, mask_Bx1xL)
    swapped = (np.ascontiguousarray(np.swapaxes(x, 1, 2)) for x in (q, k, v))
    actual = in_pieces(*swapped, mask_Bx1xL, logits_at_a_time)
    np.testing.assert_allclose(np.swapaxes(actual, 1, 2), expected, rtol=1e-5, atol=1e-5 * scale)


def test_no_more_logits_than_asked_for_are_in_memory() -> None:
    def temporary_bytes(logits_at_a_time: int) -> int:
        shape = jax.ShapeDtypeStruct((1, 2, 1024, 8), "float32")
        attend = functools.partial(attend_piecewise, logits_at_a_time=logits_at_a_time)
        mask = jax.ShapeDtypeStruct((1, 1, 1024), bool)
        compiled = jax.jit(attend).lower(shape, shape, shape, mask).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)  # type: ignore[union-attr]

    # All logits of both heads are 8 MB.
    assert temporary_bytes(2**16) < 2**20
    assert temporary_bytes(2**21) > 2**23
