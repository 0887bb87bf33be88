"""Ends a run whose losses, gradients or parameters are not finite, before it saves any of them."""

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
    "Lower inner_optimiser.learning_rate or meta_optimiser.learning_rate, or raise "
    "inner_optimiser.eps_root, and start again in another --workdir"
)
_ORDER_WITHIN_A_STEP = (
    "score_spread",
    "effective_sample_share",
    "inner_loss",
    "outer_loss",
    "meta_gradient_norm",
    "update_norm",
)


def check_finite(
    step: int, scalars: Mapping[str, float | None], last_checkpoint: Callable[[], int | None]
) -> None:
    """Stops a run whose metrics are no longer finite.

    Args:
        step: Meta-step of the metrics.
        scalars: Metrics of the step, by name.
        last_checkpoint: Waits for the last training checkpoint and returns its step, or None.

    Raises:
        NonFiniteError: A metric is not finite. The message names the step and the metrics, the one
            computed first in front.
    """
    bad = [name for name, value in scalars.items() if value is not None and not np.isfinite(value)]
    if not bad:
        return
    cause = next((name for name in _ORDER_WITHIN_A_STEP if name in bad), bad[0])
    raise NonFiniteError(
        f"meta-step {step}: {cause.replace('_', ' ')} is not finite "
        f"(all that are not finite: {', '.join(bad)}); {what_remains(last_checkpoint())}"
    )


def check_state(step: int, state: MetaState, last_checkpoint: Callable[[], int | None]) -> None:
    """Stops a run before it saves a state that is not finite, so that no checkpoint has one.

    Args:
        step: Meta-step that led to the state.
        state: State to be saved.
        last_checkpoint: Waits for the last training checkpoint and returns its step, or None.

    Raises:
        NonFiniteError: A part of the state is not finite; the message names the step and the parts.
    """
    bad = not_finite(
        {
            "the rater's parameters": state.rater_params,
            "the meta-optimizer's moments": state.meta_optimiser_state,
            "the inner models' parameters": state.inner.params,
            "the inner optimizers' moments": state.inner.optimiser_state,
        }
    )
    if bad:
        raise NonFiniteError(
            f"meta-step {step}: after its updates {' and '.join(bad)} are not finite; "
            f"{what_remains(last_checkpoint())}"
        )


def check_warmup_state(step: int, state: InnerState) -> None:
    """Stops a warm-up before it saves an inner model that is not finite.

    Args:
        step: Warm-up step that led to the model.
        state: State of the inner model.

    Raises:
        NonFiniteError: The message names the step and what is not finite.
    """
    bad = not_finite({"parameters": state.params, "optimizer moments": state.optimiser_state})
    if bad:
        raise NonFiniteError(
            f"warm-up step {step}: the inner model's {' and '.join(bad)} are not finite after its "
            f"update, and it was not saved. {_REMEDY}"
        )


def check_warmup_losses(first_step: int, losses: Sequence[float]) -> None:
    """Stops a warm-up whose losses are no longer finite.

    Args:
        first_step: Warm-up step of the first loss.
        losses: Losses of that step and of those after it.

    Raises:
        NonFiniteError: A loss is not finite; the message names its step.
    """
    bad = np.flatnonzero(~np.isfinite(np.asarray(losses, np.float64)))
    if len(bad):
        raise NonFiniteError(
            f"warm-up step {first_step + int(bad[0])}: the inner loss is not finite. {_REMEDY}"
        )


def what_remains(last_checkpoint: int | None) -> str:
    """Returns what a run leaves behind that stops for values that are not finite, and what to do.

    Args:
        last_checkpoint: Step of the last complete training checkpoint; None if there is none.
    """
    remains = (
        "there is no checkpoint yet, only the raters exported so far"
        if last_checkpoint is None
        else f"the checkpoint of step {last_checkpoint} and the raters exported so far remain"
    )
    return f"{remains}. {_REMEDY}"


def not_finite(parts: Mapping[str, Any]) -> list[str]:
    """Returns the names of the trees of arrays with a value that is not finite."""
    finite = jax.device_get(_finite(dict(parts)))
    return [name for name in parts if not finite[name]]


@jax.jit
def _finite(parts: dict[str, Any]) -> dict[str, jax.Array]:
    def is_finite(tree: Any) -> jax.Array:
        return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))

    return {name: is_finite(tree) for name, tree in parts.items()}
