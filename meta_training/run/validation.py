"""Validates raters during a run, and decides when it stops and which rater it exports."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
import numpy as np

from datarater.meta_training.algorithm.language_model import Params
from datarater.meta_training.algorithm.meta_gradient import InnerState
from datarater.meta_training.algorithm.population import stack
from datarater.meta_training.algorithm.validation import make_validation_losses
from datarater.meta_training.config import build
from datarater.meta_training.data.windows import draw_batches
from datarater.meta_training.run.prepared_run import Experiment
from datarater.meta_training.run.processes import gather_texts
from datarater.rater_model.counted import counted
from datarater.rater_model.rater import score_tokens

_LOG = logging.getLogger("datarater")
NO_VALIDATION: dict[str, float | None] = {
    "validation_gain": None,
    "validation_gain_error": None,
    "validation_loss": None,
    "validation_loss_uniform": None,
}
"""Metrics of a step without a validation, in a run that has some."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """What the validations of a run have shown so far, as training checkpoints store it.

    Attributes:
        best_step: Meta-step of the best rater; None before the first validation.
        best_gain: Its gain over uniform weights, in nats per token.
        best_error: Standard error of that gain over the models.
        since_best: Validations after the best one.
    """

    best_step: int | None = None
    best_gain: float = 0.0
    best_error: float = 0.0
    since_best: int = 0

    def after(self, step: int, gain: float, error: float) -> Standing:
        """Returns the standing after one more validation.

        A gain counts as an improvement if it is above the best one so far; of equal gains the
        first counts. A gain that is not a number never does.

        Example:
            >>> Standing().after(10, 0.2, 0.1).after(20, 0.1, 0.1)
            Standing(best_step=10, best_gain=0.2, best_error=0.1, since_best=1)
        """
        if math.isfinite(gain) and (self.best_step is None or gain > self.best_gain):
            return Standing(step, gain, error)
        return dataclasses.replace(self, since_best=self.since_best + 1)

    def ends_run(self, patience: int) -> bool:
        """Returns whether a run with this patience stops here; never with a patience of 0."""
        return 0 < patience <= self.since_best


class Validation:
    """The validations of a run; see `algorithm.validation` for what they measure.

    Models, batches and windows are drawn once, from the config's seed alone, so a resumed run
    measures the same as an undisturbed one. Every process computes on one device of its own, and
    the first process's numbers count in all of them.

    Args:
        experiment: Parts of the run, with a validation set.
        newcomer: Makes the inner model that starts at (meta-step, member).
    """

    def __init__(self, experiment: Experiment, newcomer: Callable[[int, int], InnerState]) -> None:
        config = experiment.config
        count = config.validation.models
        self._losses = make_validation_losses(
            lambda params, windows: score_tokens(experiment.rater, params, *windows),
            experiment.losses,
            build.inner_optimiser(config),
            build.meta_gradient_config(config),
            config.softmax_temperature,
        )
        # The first members of a population start from different entries of the pool.
        self._models = jax.device_get(stack([newcomer(0, member) for member in range(count)]))

        assert experiment.validation is not None
        shape = (count, config.validation.updates, config.inner_batch)
        seed = (config.seed + 3) % 2**32
        with closing(draw_batches(experiment.inner, shape, seed)) as batches:
            self._inner = jax.device_get(next(batches))
        held_out = (config.validation.windows,)
        with closing(draw_batches(experiment.validation, held_out, seed)) as batches:
            self._held_out = jax.device_get(next(batches))
        self._uniform_M: np.ndarray | None = None

    def measure(self, rater_params: Params) -> dict[str, float | None]:
        """Returns the metrics of a rater, by the names of `NO_VALIDATION`."""
        if self._uniform_M is None:
            self._uniform_M = self._trained_losses(None)
        rated_M = self._trained_losses(jax.device_get(rater_params))

        gain_M = self._uniform_M - rated_M
        spread = float(gain_M.std(ddof=1)) if len(gain_M) > 1 else 0.0
        own = {
            "validation_gain": float(gain_M.mean()),
            "validation_gain_error": spread / math.sqrt(len(gain_M)),
            "validation_loss": float(rated_M.mean()),
            "validation_loss_uniform": float(self._uniform_M.mean()),
        }
        agreed: dict[str, float | None] = json.loads(gather_texts(json.dumps(own))[0])
        return agreed

    def _trained_losses(self, rater_params: Params | None) -> np.ndarray:
        losses_M = self._losses(rater_params, self._models, self._inner, self._held_out)
        return np.asarray(losses_M, np.float64)


def log_validation(step: int, scalars: Mapping[str, float | None], standing: Standing) -> None:
    """Logs one line about a validation."""
    if standing.best_step is None:
        place = "and no gain so far is a number"
    elif standing.best_step == step:
        place = "the best so far"
    else:
        since = counted(standing.since_best, "validation")
        place = f"the best, {since} ago, was {standing.best_gain:+.4f} at step {standing.best_step}"
    _LOG.info(
        "validation at step %d: gain %+.4f +- %.4f nats per token over uniform weights, %s",
        step,
        scalars["validation_gain"],
        scalars["validation_gain_error"],
        place,
    )


def chosen_by(choice: str, step: int, standing: Standing) -> dict[str, Any]:
    """Returns what a finished run's rater records about how it was chosen.

    Args:
        choice: `choose_checkpoint`: "last" or "validation".
        step: Meta-step of the last rater.
        standing: What the validations have shown. Where no gain is a number, the last rater is
            chosen.
    """
    best = standing.best_step if choice == "validation" else None
    return {
        "by": "last" if best is None else choice,
        "step": step if best is None else best,
        "last_step": step,
        "best_validation": dataclasses.asdict(standing),
    }


def choice_lines(chosen: Mapping[str, Any], meta_steps: int) -> list[str]:
    """Returns the closing lines about which rater a run exports, and why it ended.

    Args:
        chosen: What `chosen_by` returned; empty in a run without validations.
        meta_steps: Meta-steps that were asked for.
    """
    if not chosen:
        return []
    why = "by validation" if chosen["by"] == "validation" else "as the last one"
    lines = [f"exported              the rater of step {chosen['step']}, chosen {why}"]
    if chosen["last_step"] < meta_steps:
        since = counted(chosen["best_validation"]["since_best"], "validation")
        lines.append(
            f"stopped early         at step {chosen['last_step']} of {meta_steps}: no improvement "
            f"in {since}"
        )
    return lines
