"""Counts the cost of a training run in token positions and FLOPs."""

from __future__ import annotations

import dataclasses

from datarater.meta_training.algorithm.population import PopulationConfig
from datarater.rater_model.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Spending:
    """Tokens and FLOPs of a run up to a step, counted rather than measured.

    A backward pass costs two forward passes. A meta-step takes, for every inner model and token,
    the inner gradient (3 forward passes) and its derivative (the gradient's tangent and value: 6),
    the outer gradient (3), and the rater's scores and their gradient (3). Reverse mode counts the
    same: its backward pass through the inner gradient costs twice that gradient, 6 as well. What is
    recomputed to save memory is not counted, as is usual.

    Attributes:
        inner: Cost of an inner model.
        rater: Cost of the rater.
        warmup_tokens: Token positions of the whole warm-up.
        inner_tokens: Token positions of the inner batches of one meta-step, over all inner models
            and updates.
        outer_tokens: Token positions of the outer batches of one meta-step, over all inner models.
    """

    inner: ModelCost
    rater: ModelCost
    warmup_tokens: int
    inner_tokens: int
    outer_tokens: int

    def at(self, step: int) -> dict[str, float | None]:
        """Returns the token positions read, padding included, and the FLOPs spent up to a step."""
        flops_of_a_step = self.inner_tokens * (9 * self.inner.flops + 3 * self.rater.flops)
        flops_of_a_step += self.outer_tokens * 3 * self.inner.flops
        return {
            "tokens": float(self.warmup_tokens + step * (self.inner_tokens + self.outer_tokens)),
            "flops": float(self.warmup_tokens * 3 * self.inner.flops + step * flops_of_a_step),
        }


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """FLOPs of one forward pass over one token; a multiplication and an addition count as two.

    Attributes:
        flops: 2 x parameters that multiply (embeddings are looked up, and do not) + 4 x layers x
            length x width for the products of attention.
    """

    flops: int

    @classmethod
    def of(cls, shape: TransformerConfig, multiplying_parameters: int, length: int) -> ModelCost:
        """Returns the cost of a transformer.

        Args:
            shape: Shape of the stack.
            multiplying_parameters: Number of parameters outside embedding tables.
            length: Tokens per window.
        """
        return cls(2 * multiplying_parameters + 4 * shape.layers * length * shape.width)


def warmup_tokens(population: PopulationConfig, batch: int, length: int) -> int:
    """Returns the token positions that warm-up reads."""
    return population.warmup_steps * population.warmup_trajectories * batch * length
