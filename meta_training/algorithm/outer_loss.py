"""The outer loss: a weighted sum over several target sets.

With sets k = 1..K of weights w_k that sum to 1, and a batch y_k1..y_kB of each, the outer loss is

    L(theta) = sum over k of w_k 1/B sum over j of l_k(y_kj; theta)

so its gradient, and with it the meta-gradient, is exactly the weighted sum of those of the sets.
Every set has a batch of its own in each meta-step. One batch shared in proportion to the weights
would be cheaper, but its shares would be rounded to whole windows, and a set of a small weight
would have no window in it.

Dimension letters as in `datarater.meta_training.algorithm`, K the target sets, and Q questions with
C choices each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Params,
    token_log_probabilities,
)

BatchLosses = Callable[[Params, Any], jax.Array]  # (theta, batch) -> losses_B


@dataclasses.dataclass(frozen=True)
class OuterLoss:
    """The loss of one target set.

    Attributes:
        weight: w_k, at least 0. A set of weight 0 is measured and has no part in the gradient.
        losses: l_k: (theta, batch) -> losses_B, where all arrays of a batch have a leading axis B.
    """

    weight: float
    losses: BatchLosses


class Choices(NamedTuple):
    """A batch of multiple-choice questions, one row of tokens for each choice.

    Attributes:
        tokens_QxCxL: The context and the choice after it, padded; int32.
        counted_QxCxL: True at the tokens of the choice.
        bytes_QxC: UTF-8 bytes of each choice, 0 where a question has fewer than C; int32.
        label_Q: Index of the right choice; int32.
    """

    tokens_QxCxL: jax.Array
    counted_QxCxL: jax.Array
    bytes_QxC: jax.Array
    label_Q: jax.Array


def choice_losses(config: LanguageModelConfig, params: Params, choices: Choices) -> jax.Array:
    """Returns losses_Q, the cross-entropy of choosing among each question's answers, in nats.

    With s_c the log-probability of choice c after its context, divided by its UTF-8 bytes,

        l = - log ( exp s_right / sum over c of exp s_c )

    The argument of the softmax is the score by which the evaluation harness ranks choices
    (`accuracy_per_byte`), so lowering this loss raises the right choice where accuracy would count
    it. Bytes do not depend on the tokenizer. Where the scores are close, the loss is log C minus
    about the mean margin of the right choice.

    Args:
        config: Shape of the model.
        params: theta, the model's parameters.
        choices: Q questions.
    """
    count, choices_each, length = choices.tokens_QxCxL.shape
    log_probabilities = token_log_probabilities(
        config, params, choices.tokens_QxCxL.reshape(-1, length)
    )
    counted = choices.counted_QxCxL.reshape(-1, length)[:, 1:]
    sums_QxC = jnp.sum(log_probabilities * counted, axis=-1).reshape(count, choices_each)

    scores_QxC = sums_QxC / jnp.maximum(choices.bytes_QxC, 1)
    present_QxC = choices.bytes_QxC > 0
    chosen_QxC = jax.nn.log_softmax(jnp.where(present_QxC, scores_QxC, -jnp.inf), axis=-1)
    return -jnp.take_along_axis(chosen_QxC, choices.label_Q[:, None], axis=-1)[:, 0]
