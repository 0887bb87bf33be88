"""Several weighted outer sets, and multiple choice as an outer loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Windows,
    initialise_language_model,
)
from datarater.meta_training.algorithm.meta_gradient import MetaGradientConfig, make_meta_gradient
from datarater.meta_training.algorithm.outer_loss import Choices, OuterLoss, choice_losses
from datarater.meta_training.data.outer_sets import question_rows
from datarater.meta_training.evaluate import multiple_choice
from datarater.meta_training.evaluate.multiple_choice import choice_log_probabilities
from datarater.meta_training.evaluate.questions import Question
from datarater.rater_model.tokenizer import ByteTokenizer
from datarater.rater_model.transformer import TransformerConfig
from tests.support.small_models import (
    LENGTH,
    VOCABULARY,
    inner_state,
    random_windows,
    small_problem,
)

OPTIMISER = optax.adam(1e-2, eps=0.0, eps_root=1e-8)


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function compiled without optimizations, which takes longest here."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def choices_of(key: jax.Array, count: int, choices: int) -> Choices:
    """Returns random questions, the last of which has a choice fewer than the others."""
    keys = jax.random.split(key)
    bytes_QxC = jnp.full((count, choices), 3, jnp.int32).at[-1, -1].set(0)
    return Choices(
        jax.random.randint(keys[0], (count, choices, LENGTH), 0, VOCABULARY, jnp.int32),
        jnp.broadcast_to(jnp.arange(LENGTH) >= 3, (count, choices, LENGTH)),
        bytes_QxC,
        jax.random.randint(keys[1], (count,), 0, choices - 1, jnp.int32),
    )


def small_choice_losses(models: Any) -> Any:
    """Returns the loss of choices under the small model, by its losses of whole windows."""

    def losses(theta: Any, choices: Choices) -> jax.Array:
        count, each, length = choices.tokens_QxCxL.shape
        windows = Windows(
            choices.tokens_QxCxL.reshape(-1, length), jnp.full(count * each, length, jnp.int32)
        )
        scores = -models.losses(theta, windows).reshape(count, each)
        scores = jnp.where(choices.bytes_QxC > 0, scores, -jnp.inf)
        right = jnp.take_along_axis(scores, choices.label_Q[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(scores, axis=1) - right

    return losses


@pytest.mark.parametrize("outer_micro_batch", [0, 2])
def test_the_meta_gradient_of_weighted_sets_is_that_of_the_explicit_sum(
    float64: None, outer_micro_batch: int
) -> None:
    models, weights = small_problem("float64"), (0.5, 0.2, 0.3)
    keys = jax.random.split(jax.random.key(5), 6)
    eta = models.initialise_rater(keys[0])
    state = inner_state(models.initialise_model(keys[1]), OPTIMISER)
    inner = random_windows(keys[2], 2, 4)
    outer = (random_windows(keys[3], 4), random_windows(keys[4], 4), choices_of(keys[5], 4, 3))
    losses = (models.losses, models.losses, small_choice_losses(models))

    def explicit(eta: Any) -> jax.Array:
        """The outer loss after the inner updates, written out."""
        theta, moments = state.params, state.optimiser_state
        for t in range(2):
            windows = jax.tree.map(lambda x, t=t: x[t], inner)
            weights_B = jax.nn.softmax(models.score(eta, windows))
            gradient = jax.grad(lambda p, w=weights_B, x=windows: w @ models.losses(p, x))(theta)
            updates, moments = OPTIMISER.update(gradient, moments, theta)
            theta = optax.apply_updates(theta, updates)
        means = [jnp.mean(loss(theta, batch)) for loss, batch in zip(losses, outer, strict=True)]
        return jnp.asarray(weights) @ jnp.stack(means)

    expected_loss, expected = compiled(jax.value_and_grad(explicit))(eta)
    for mode in ("mixed", "reverse"):
        function = make_meta_gradient(
            models.score,
            models.losses,
            OPTIMISER,
            MetaGradientConfig(mode, outer_micro_batch=outer_micro_batch),
            outer_losses=[OuterLoss(w, x) for w, x in zip(weights, losses, strict=True)],
        )
        result = compiled(function)(eta, state, inner, outer)
        assert float(result.outer_loss) == pytest.approx(float(expected_loss), rel=1e-12)
        assert float(np.dot(weights, result.outer_losses_K)) == pytest.approx(
            float(expected_loss), rel=1e-12
        )
        actual = jax.flatten_util.ravel_pytree(result.gradient)[0]
        oracle = jax.flatten_util.ravel_pytree(expected)[0]
        assert float(jnp.linalg.norm(actual - oracle)) < 1e-12 * float(jnp.linalg.norm(oracle))


QUESTIONS = [
    Question("The sky is", ("blue", "a cow", "not here"), 0),
    Question("Two and two", ("are five", "are four"), 1),
]
MODEL = LanguageModelConfig(
    ByteTokenizer.vocabulary_size, TransformerConfig(width=8, heads=2, mlp_width=8, layers=1)
)


def test_the_loss_of_choices_is_the_cross_entropy_of_the_scores_that_the_harness_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multiple_choice, "_WINDOWS", 8)  # the harness compiles for 512
    tokenizer, length = ByteTokenizer(), 32
    theta = compiled(lambda key: initialise_language_model(MODEL, key))(jax.random.key(0))
    loss = compiled(lambda theta, choices: choice_losses(MODEL, theta, choices))
    losses_Q = loss(theta, question_rows(QUESTIONS, tokenizer, length).rows)

    # The second question has a choice fewer than the first, so its rows have one that is absent.
    scores = choice_log_probabilities(theta, QUESTIONS, MODEL, tokenizer, length)
    first = 0
    for question, actual in zip(QUESTIONS, losses_Q, strict=True):
        per_byte = scores[first : first + len(question.choices)] / [
            len(choice.encode()) for choice in question.choices
        ]
        first += len(question.choices)
        expected = np.log(np.exp(per_byte).sum()) - per_byte[question.label]
        assert float(actual) == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_of_the_loss_of_choices_is_finite_and_raises_the_right_choice() -> None:
    theta = compiled(lambda key: initialise_language_model(MODEL, key))(jax.random.key(0))
    choices = question_rows(QUESTIONS, ByteTokenizer(), 32).rows
    value_and_gradient = compiled(
        jax.value_and_grad(lambda theta: jnp.mean(choice_losses(MODEL, theta, choices)))
    )
    loss, gradient = value_and_gradient(theta)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    lower, _ = value_and_gradient(jax.tree.map(lambda x, g: x - 0.1 * g, theta, gradient))
    assert float(lower) < float(loss)
