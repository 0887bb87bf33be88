"""Health of a training run: values that must stay finite, and remedies when they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarater.meta_training.algorithm.meta_gradient import InnerState
from datarater.meta_training.algorithm.meta_step import MetaState
from datarater.meta_training.errors import NonFiniteError

_REMEDY = (
    "Lower inner_optimiser.learning_rate or meta_optimiser.learning_rate, or raise inner_optimiser.eps_root, "
    "and begin in another --workdir"
)


def what_stands(last_checkpoint: int | None) -> str:
    """Returns what a run that stops for numbers that are not finite leaves behind, and what to do.

    Args:
        last_checkpoint: the step of the last training checkpoint, wholly written; None where there
            is none.
    """
    stands = (
        "there is no checkpoint yet, only the raters exported so far"
        if last_checkpoint is None
        else f"the checkpoint of step {last_checkpoint} stands, and the raters exported so far"
    )
    return f"{stands}. {_REMEDY}"


def check_finite(
    step: int, scalars: Mapping[str, float | None], last_checkpoint: Callable[[], int | None]
) -> None:
    """Stops a run whose numbers are no longer finite.

    Args:
        step: the meta-step that they belong to.
        scalars: its metrics.
        last_checkpoint: waits for the last training checkpoint and returns its step, or None.

    Raises:
        NonFiniteError: a metric is not finite. The message names the step and the causes, first
            what went wrong first within the step.
    """
    bad = [name for name, value in scalars.items() if value is not None and not np.isfinite(value)]
    if not bad:
        return
    # In the order in which one step computes them.
    order = [
        "score_spread",
        "effective_sample_share",
        "inner_loss",
        "outer_loss",
        "meta_gradient_norm",
        "update_norm",
    ]
    cause = next((name for name in order if name in bad), bad[0])
    raise NonFiniteError(
        f"meta-step {step}: {cause.replace('_', ' ')} is not finite (not finite in all: {', '.join(bad)}); "
        f"{what_stands(last_checkpoint())}"
    )


def not_finite(parts: Mapping[str, Any]) -> list[str]:
    """Returns the names of the trees of arrays that hold a number that is not finite."""
    finite = jax.device_get(_finite(dict(parts)))
    return [name for name in parts if not finite[name]]


@jax.jit
def _finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    def whole(tree: Any) -> jax.Array:
        return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))

    return {name: whole(tree) for name, tree in parts.items()}


def check_state(step: int, state: MetaState, last_checkpoint: Callable[[], int | None]) -> None:
    """Stops a run before a state that is not finite is saved: no checkpoint of a run holds one.

    Args:
        step: the meta-step that led to it.
        state: the state to be saved.
        last_checkpoint: as for `check_finite`.

    Raises:
        NonFiniteError: a part of the state is not finite; the message names the step and the parts.
    """
    bad = not_finite(
        {
            "the rater's parameters": state.rater_params,
            "the meta-optimiser's moments": state.meta_optimiser_state,
            "the inner models' parameters": state.inner.params,
            "the inner optimisers' moments": state.inner.optimiser_state,
        }
    )
    if bad:
        raise NonFiniteError(
            f"meta-step {step}: after its updates {' and '.join(bad)} are not finite; {what_stands(last_checkpoint())}"
        )


def check_warmup_state(step: int, state: InnerState) -> None:
    """Stops a warm-up before an inner model that is not finite is saved.

    Args:
        step: the warm-up step that led to it.
        state: the inner model.

    Raises:
        NonFiniteError: the message names the step and what is not finite.
    """
    bad = not_finite({"parameters": state.params, "optimiser moments": state.optimiser_state})
    if bad:
        raise NonFiniteError(
            f"warm-up step {step}: the inner model's {' and '.join(bad)} are not finite after its update, and it was "
            f"not saved. {_REMEDY}"
        )


def check_warmup_losses(first_step: int, losses: Sequence[float]) -> None:
    """Stops a warm-up whose losses are no longer finite.

    Args:
        first_step: the warm-up step of the first loss.
        losses: of that step and those after it.

    Raises:
        NonFiniteError: one is not finite; the message names the first step.
    """
    bad = np.flatnonzero(~np.isfinite(np.asarray(losses, np.float64)))
    if len(bad):
        raise NonFiniteError(
            f"warm-up step {first_step + int(bad[0])}: the inner loss is not finite. {_REMEDY}"
        )
