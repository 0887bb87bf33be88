"""Counts the cost of a training run in token positions and FLOPs."""

from __future__ import annotations

import dataclasses

import flax.traverse_util
from ml_collections import ConfigDict

from datarater.meta_training.algorithm.language_model import Params
from datarater.meta_training.config import build
from datarater.meta_training.run.prepared_run import Experiment
from datarater.rater_model.transformer import TransformerConfig

RATES = ("step_seconds", "tokens_per_second", "mfu")
"""Metrics of how fast a step was. They alone differ between two runs of the same command."""


@dataclasses.dataclass(frozen=True)
class Spending:
    """Tokens and FLOPs of a run up to a step, counted rather than measured.

    A backward pass costs two forward passes, and so does a tangent of one. A meta-step takes, for
    every inner model and token,

    - the inner gradient (3 forward passes) and its derivative, the tangent of both passes (6);
    - at the first of the T updates no more than the tangent of the forward pass (2), since the
      model before it does not depend on the rater, only the weights of the losses do;
    - the outer gradient (3), and the rater's scores and their gradient (3).

    Reverse mode counts the same: its backward pass through the inner gradient costs twice that
    gradient. What is recomputed to save memory is not counted, as is usual.

    Attributes:
        inner: Cost of an inner model.
        rater: Cost of the rater.
        warmup_tokens: Token positions of the whole warm-up.
        inner_tokens: Token positions of the inner batches of one meta-step, over all inner models
            and updates.
        inner_updates: T, the number of updates.
        outer_tokens: Token positions of the outer batches of one meta-step, over all inner models.
    """

    inner: ModelCost
    rater: ModelCost
    warmup_tokens: int
    inner_tokens: int
    inner_updates: int
    outer_tokens: int

    @property
    def step_tokens(self) -> int:
        """Token positions of one meta-step."""
        return self.inner_tokens + self.outer_tokens

    @property
    def step_flops(self) -> int:
        """FLOPs of one meta-step."""
        tokens_of_update = self.inner_tokens // self.inner_updates
        gradients = self.inner_tokens * 3 * (self.inner.flops + self.rater.flops)
        derivatives = tokens_of_update * (2 + 6 * (self.inner_updates - 1)) * self.inner.flops
        return gradients + derivatives + self.outer_tokens * 3 * self.inner.flops

    def at(self, step: int) -> dict[str, float | None]:
        """Returns the token positions read, padding included, and the FLOPs spent up to a step."""
        return {
            "tokens": float(self.warmup_tokens + step * self.step_tokens),
            "flops": float(self.warmup_tokens * 3 * self.inner.flops + step * self.step_flops),
        }

    def rates(self, seconds: float, peak: float | None) -> dict[str, float | None]:
        """Returns how fast a meta-step was, by the names of `RATES`.

        Args:
            seconds: Wall seconds of the step.
            peak: FLOPs per second that all devices together can do; None if unknown.

        Returns:
            The seconds, the token positions per second, and the model FLOPs utilization: the
            step's FLOPs as a share of what the devices could have done meanwhile.
        """
        seconds = max(seconds, 1e-9)
        utilization = self.step_flops / (seconds * peak) if peak else None
        return dict(zip(RATES, (seconds, self.step_tokens / seconds, utilization), strict=True))


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """FLOPs of one forward pass over one token; a multiplication and an addition count as two.

    Attributes:
        flops: 2 x parameters that multiply (embeddings are looked up, and do not, unless logits
            are read out with them) + 4 x layers x length x heads x width of a head for the products
            of attention.
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
        attention = 4 * shape.layers * length * shape.heads * shape.width_of_head
        return cls(2 * multiplying_parameters + attention)


def spending_of(experiment: Experiment, rater_params: Params, inner_shapes: Params) -> Spending:
    """Returns the cost of a run's steps in tokens and FLOPs.

    Args:
        experiment: Parts of the run, as `prepare` returns them.
        rater_params: Parameters of the rater, or their shapes.
        inner_shapes: Parameters of an inner model, or their shapes.
    """
    shapes = experiment.rater.transformer, experiment.language_model.transformer
    return spending_of_shapes(
        experiment.config, shapes, (rater_params, inner_shapes), experiment.outer.tokens
    )


def spending_of_shapes(
    config: ConfigDict,
    shapes: tuple[TransformerConfig, TransformerConfig],
    params: tuple[Params, Params],
    outer_tokens: int,
) -> Spending:
    """Returns the cost of a run's steps before there is any data.

    Args:
        config: The whole config.
        shapes: Shapes of the rater and of an inner model.
        params: Parameters of the rater and of an inner model, or their shapes.
        outer_tokens: Token positions of an outer window, of all outer sets.
    """
    length = config.length

    def multiplying(params: Params) -> int:
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return sum(
            leaf.size for name, leaf in flat.items() if not name.endswith("embedding/embedding")
        )

    inner_multiplying = multiplying(params[1])
    if config.inner_model.tied_embeddings:  # the table is the readout's matrix too
        inner_multiplying += params[1]["token_embedding"]["embedding"].size

    return Spending(
        rater=ModelCost.of(shapes[0], multiplying(params[0]), length),
        inner=ModelCost.of(shapes[1], inner_multiplying, length),
        warmup_tokens=config.population.warmup_steps
        * config.population.warmup_trajectories
        * build.warmup_batch(config)
        * length,
        inner_tokens=config.population.size * config.inner_updates * config.inner_batch * length,
        inner_updates=config.inner_updates,
        outer_tokens=config.population.size * config.outer_batch * outer_tokens,
    )
