"""Compute gains: how much sooner a filtered run reaches the unfiltered run's final loss.

    gross gain = 1 - t* / T
    net gain   = 1 - (t* / T) (1 + scoring FLOPs / training FLOPs, both per trained token)

with T the steps of a run and t* the step at which the filtered run's loss first reaches the final
loss of the unfiltered run of the same seed. Both are read off fitted curves: the evaluated losses
of a run are made non-increasing by isotonic regression and joined by a monotone cubic (PCHIP). A
run that never reaches the loss has no gain and is counted as such: the mean over the others alone
would flatter an arm that fails sometimes.

Scoring covers the oversampled documents: to train on one token, 1 / keep tokens are scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import interpolate

from datarater.meta_training.evaluate.statistics import isotonic, paired_difference
from datarater.rater_model.transformer import TransformerConfig

Curve = Sequence[tuple[int, float]]
"""The (step, loss) pairs of a run, in ascending order of the step."""

NET_SIZES = tuple(float(f"{mantissa}e{power}") for power in range(5, 12) for mantissa in (1, 3))
"""Parameters of the language models for which net gains are listed."""


@dataclasses.dataclass(frozen=True)
class Gain:
    """The compute gain of an arm over its seeds.

    Attributes:
        mean: Mean gain; None unless every run reached the unfiltered run's final loss.
        low: Lower end of its 95% interval; None with a single seed or without a mean.
        high: Upper end of its 95% interval.
        at_most: Upper bound of the mean: a run that never reached the loss gains nothing.
        reached: Number of runs that reached it.
        seeds: Number of runs.
    """

    mean: float | None
    low: float | None
    high: float | None
    at_most: float
    reached: int
    seeds: int


def fitted_curve(curve: Curve) -> interpolate.PchipInterpolator:
    """Returns the monotone fit of a run's losses, a function of the step.

    Args:
        curve: At least two evaluations of a run.
    """
    steps, losses = zip(*curve, strict=True)
    return interpolate.PchipInterpolator(np.asarray(steps, np.float64), isotonic(losses))


def step_reaching(curve: Curve, loss: float) -> float | None:
    """Returns the first step at which the fitted curve reaches a loss; None if it never does.

    Args:
        curve: At least two evaluations of a run.
        loss: Loss to reach.

    Example:
        >>> step_reaching([(0, 4.0), (100, 3.0), (200, 2.0)], 2.5)
        150.0
    """
    fit = fitted_curve(curve)
    first, last = curve[0][0], curve[-1][0]
    if fit(first) <= loss:
        return float(first)
    if fit(last) > loss:
        return None

    # Bisection: the fit does not increase, but it may be flat, where roots are not unique.
    low, high = float(first), float(last)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fit(middle) > loss else (low, middle)
    return round(high, 6)


def compute_gain(curves_S: Sequence[Curve], baselines_S: Sequence[Curve]) -> Gain:
    """Returns the gross gain of an arm against the unfiltered runs of the same seeds.

    Args:
        curves_S: Curves of the arm, by seed.
        baselines_S: Curves of the unfiltered arm, in the same order of seeds.
    """
    gains: list[float] = []
    for curve, baseline in zip(curves_S, baselines_S, strict=True):
        total = baseline[-1][0]
        reached = step_reaching(curve, float(fitted_curve(baseline)(total)))
        if reached is not None:
            gains.append(1 - reached / total)
    seeds = len(curves_S)
    at_most = sum(gains) / seeds
    if len(gains) < seeds:
        return Gain(None, None, None, at_most, len(gains), seeds)
    spread = paired_difference(gains, np.zeros(seeds))
    return Gain(spread.mean, spread.low, spread.high, at_most, seeds, seeds)


def forward_flops(shape: TransformerConfig, length: int, readout: int = 0) -> float:
    """Returns the floating-point operations per token of a forward pass.

    Two per weight of a matrix product, and 4 L D per layer for the products of queries with keys
    and of weights with values. Look-ups in embedding tables count nothing.

    Args:
        shape: Shape of the transformer.
        length: L, tokens of a window.
        readout: Vocabulary of a language model's readout; 0 for a rater.
    """
    width, heads = shape.width, shape.heads
    projections = 2 * width * shape.width_of_head * (heads + (shape.key_value_heads or heads))
    weights = shape.layers * (projections + 3 * width * shape.mlp_width) + width * readout
    return 2.0 * weights + 4.0 * shape.layers * length * heads * shape.width_of_head


def training_flops(shape: TransformerConfig, length: int, vocabulary_size: int) -> float:
    """Returns the floating-point operations per token of a training step: 3 forward passes."""
    return 3 * forward_flops(shape, length, vocabulary_size)


def net_gain(gross: float, scoring: float, training: float, keep: float) -> float:
    """Returns a gain with the scoring of the oversampled documents counted.

    Args:
        gross: Gross gain, 1 - t* / T.
        scoring: FLOPs per scored token.
        training: FLOPs per trained token.
        keep: Share that is kept, above 0.

    Example:
        >>> round(net_gain(0.4, scoring=1e5, training=6e6, keep=0.5), 3)
        0.38
    """
    return 1 - (1 - gross) * (1 + scoring / (training * keep))


def break_even_parameters(gross: float, scoring: float, keep: float) -> float | None:
    """Returns the size of the smallest language model for which a filter saves compute.

    Training costs 6 FLOPs per parameter and token. The net gain is 0 where

        6 N = (1 - gross) / gross x scoring / keep

    Args:
        gross: Gross gain, taken as the same at every size.
        scoring: FLOPs per scored token.
        keep: Share that is kept, above 0.

    Returns:
        N in parameters; None if the gross gain is not above 0.
    """
    if gross <= 0:
        return None
    return (1 - gross) / gross * scoring / (6 * keep)


def net_gains(gross: float, scoring: float, keep: float) -> dict[str, Any]:
    """Returns net gains over sizes of language models with the break-even size, for the report.

    Args:
        gross: Gross gain, taken as the same at every size.
        scoring: FLOPs per scored token.
        keep: Share that is kept.
    """
    return {
        "scoring_flops_per_token": scoring,
        "break_even_parameters": break_even_parameters(gross, scoring, keep),
        "by_parameters": [[size, net_gain(gross, scoring, 6 * size, keep)] for size in NET_SIZES],
    }
