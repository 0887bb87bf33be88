"""The rater's average over meta-steps equals its closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarater.meta_training.algorithm.meta_gradient import (
    MetaGradientConfig,
    make_meta_gradient,
)
from datarater.meta_training.algorithm.meta_step import initial_meta_state, make_meta_step
from datarater.meta_training.algorithm.population import stack
from datarater.meta_training.algorithm.rater_average import averaged_rater, make_rater_average
from tests.support.small_models import inner_state, random_windows, small_problem


@settings(deadline=None, max_examples=50)
@given(
    decay=st.floats(0.01, 0.999),
    values=st.lists(st.floats(-10, 10), min_size=1, max_size=12),
)
def test_the_average_weighs_each_step_by_a_power_of_the_decay(
    decay: float, values: list[float]
) -> None:
    average = make_rater_average(decay)
    state = average.init({"a": jnp.zeros(1)})
    for value in values:
        _, state = average.update({"a": jnp.full(1, value)}, state)

    weights = decay ** np.arange(len(values))[::-1]
    expected = float(np.average(values, weights=weights))
    actual = averaged_rater(decay, {"a": jnp.full(1, values[-1])}, state)
    assert float(actual["a"][0]) == pytest.approx(expected, abs=1e-4)


def test_without_a_step_or_a_decay_the_rater_itself_is_exported() -> None:
    eta = {"a": jnp.ones(1)}
    assert averaged_rater(0.9, eta, make_rater_average(0.9).init(eta)) is eta
    assert averaged_rater(0.0, eta, make_rater_average(0.0).init(eta)) is eta
    assert not jax.tree.leaves(make_rater_average(0.0).init(eta))  # nothing more in a checkpoint


def test_meta_steps_average_the_raters() -> None:
    models, decay, steps = small_problem("float32"), 0.6, 3
    keys = jax.random.split(jax.random.key(0), 4)
    meta_gradient = make_meta_gradient(
        models.score, models.losses, optax.sgd(0.1), MetaGradientConfig()
    )
    inner, outer = random_windows(keys[2], 1, 1, 4), random_windows(keys[3], 1, 4)
    model = inner_state(models.initialise_model(keys[1]), optax.sgd(0.1))
    average = make_rater_average(decay)
    state = initial_meta_state(
        models.initialise_rater(keys[0]), stack([model]), optax.sgd(1.0), average
    )
    meta_step = make_meta_step(meta_gradient, optax.sgd(1.0), average=average)

    seen = []
    for _ in range(steps):
        state, _ = meta_step(state, inner, outer)
        seen.append(jax.device_get(state.rater_params))

    weights = decay ** np.arange(steps)[::-1]
    jax.tree.map(
        lambda actual, *each: np.testing.assert_allclose(
            actual, np.average(each, axis=0, weights=weights), rtol=1e-5, atol=1e-7
        ),
        averaged_rater(decay, state.rater_params, state.average),
        *seen,
    )
