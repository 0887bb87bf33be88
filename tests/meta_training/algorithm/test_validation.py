"""The losses of a validation are those of models that a plain loop trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datarater.meta_training.algorithm.meta_gradient import MetaGradientConfig
from datarater.meta_training.algorithm.population import stack
from datarater.meta_training.algorithm.validation import make_validation_losses
from tests.support.small_models import inner_state, random_windows, small_problem

MODELS, UPDATES, BATCH, TEMPERATURE = 2, 3, 4, 0.5


def test_models_are_trained_on_rated_and_on_uniform_batches() -> None:
    models, optimiser = small_problem("float32"), optax.sgd(0.3)
    keys = jax.random.split(jax.random.key(1), 4)
    eta = models.initialise_rater(keys[0])
    states = [
        inner_state(models.initialise_model(key), optimiser)
        for key in jax.random.split(keys[1], MODELS)
    ]
    inner = random_windows(keys[2], MODELS, UPDATES, BATCH)
    held_out = random_windows(keys[3], 6)

    gradient_of = jax.jit(jax.grad(lambda theta, w, x: w @ models.losses(theta, x)))
    mean_loss = jax.jit(lambda theta: jnp.mean(models.losses(theta, held_out)))
    score = jax.jit(models.score)

    def expected(rated: bool) -> list[float]:
        losses = []
        for m, state in enumerate(states):
            theta = state.params
            for t in range(UPDATES):
                windows = jax.tree.map(lambda x, m=m, t=t: x[m, t], inner)
                weights = (
                    jax.nn.softmax(score(eta, windows) / TEMPERATURE)
                    if rated
                    else jnp.full(BATCH, 1 / BATCH)
                )
                gradient = gradient_of(theta, weights, windows)
                theta = jax.tree.map(lambda x, g: x - 0.3 * g, theta, gradient)
            losses.append(float(mean_loss(theta)))
        return losses

    config = MetaGradientConfig(inner_micro_batch=2, outer_micro_batch=4, rater_micro_batch=2)
    losses_of = make_validation_losses(models.score, models.losses, optimiser, config, TEMPERATURE)
    stacked = stack(states)
    np.testing.assert_allclose(losses_of(eta, stacked, inner, held_out), expected(True), rtol=1e-5)
    np.testing.assert_allclose(
        losses_of(None, stacked, inner, held_out), expected(False), rtol=1e-5
    )
