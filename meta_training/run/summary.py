"""What to watch in a run: metrics by step, tokens and FLOPs spent, the progress line, the summary at the end."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_training.errors import NonFiniteError
from meta_training.meta_gradient import InnerState
from meta_training.population import MetaState, MetaStepMetrics, PopulationConfig
from rater_model.transformer import TransformerConfig

_LOG = logging.getLogger("datarater")
SETTLED_AUTOCORRELATION = 0.95  # of scores between checkpoints; the paper's sign that meta-training may stop
_REMEDY = (
    "Lower inner_optimiser.learning_rate or meta_optimiser.learning_rate, or raise inner_optimiser.eps_root, "
    "and begin in another --workdir"
)


def summarise(metrics: MetaStepMetrics, clip_norm: float, epsilon: float) -> dict[str, float | None]:
    """Returns a step's metrics as named numbers.

    Args:
        metrics: of the step, on the host.
        clip_norm: at which each inner model's meta-gradient is clipped.
        epsilon: of the meta-Adam.
    """
    norm_P = np.asarray(metrics.gradient_norm_P)
    return {
        "outer_loss": float(metrics.outer_loss_P.mean()),
        "inner_loss": float(metrics.inner_loss),
        "effective_sample_share": float(metrics.effective_sample_share),
        "weight_entropy_share": float(metrics.weight_entropy_share),
        "score_spread": float(metrics.score_spread),
        "meta_gradient_norm": float(norm_P.mean()),
        "meta_gradient_norm_clipped": float(np.minimum(norm_P, clip_norm).mean()),
        "meta_gradient_clipped_share": float((norm_P > clip_norm).mean()),
        "meta_gradient_rms_to_epsilon": float(metrics.gradient_rms_P.mean() / epsilon),
        "update_norm": float(metrics.update_norm),
        "inner_age": float(metrics.age_P.mean()),
        **{f"outer_loss_of_inner_model_{i}": float(loss) for i, loss in enumerate(metrics.outer_loss_P)},
        **{f"age_of_inner_model_{i}": float(age) for i, age in enumerate(metrics.age_P)},
    }


def what_stands(last_checkpoint: int | None) -> str:
    """Returns what a run that stops for numbers that are not finite leaves behind, and what to do.

    Args:
        last_checkpoint: the step of the last training checkpoint, wholly written; None where there is none.
    """
    stands = (
        "there is no checkpoint yet, only the raters exported so far"
        if last_checkpoint is None
        else f"the checkpoint of step {last_checkpoint} stands, and the raters exported so far"
    )
    return f"{stands}. {_REMEDY}"


def check_finite(step: int, scalars: Mapping[str, float | None], last_checkpoint: Callable[[], int | None]) -> None:
    """Stops a run whose numbers are no longer finite.

    Args:
        step: the meta-step that they belong to.
        scalars: its metrics.
        last_checkpoint: waits for the last training checkpoint and returns its step, or None.

    Raises:
        NonFiniteError: a metric is not finite. The message names the step and the causes, first what went wrong first
            within the step.
    """
    bad = [name for name, value in scalars.items() if value is not None and not np.isfinite(value)]
    if not bad:
        return
    # In the order in which one step computes them.
    order = ["score_spread", "effective_sample_share", "inner_loss", "outer_loss", "meta_gradient_norm", "update_norm"]
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
        raise NonFiniteError(f"warm-up step {first_step + int(bad[0])}: the inner loss is not finite. {_REMEDY}")


def score_correlation(before_N: np.ndarray, now_N: np.ndarray) -> float | None:
    """Returns Pearson's correlation of two raters' scores on the same documents; None where one of them is constant.

    Scores settle before the meta-gradient vanishes: above 0.95 between checkpoints, the paper found more meta-steps
    to change little. Only between raters equally many meta-steps apart are correlations comparable: over few steps
    any two raters agree.
    """
    if len(before_N) < 2 or before_N.std() == 0 or now_N.std() == 0:
        return None
    return float(np.corrcoef(before_N.astype(np.float64), now_N.astype(np.float64))[0, 1])


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """The FLOPs of one forward pass over one token, a multiplication and an addition counted as two.

    Attributes:
        flops: 2 x parameters that multiply (embeddings are looked up, and do not) + 4 x layers x length x width for
            the products of attention.
    """

    flops: int

    @classmethod
    def of(cls, shape: TransformerConfig, multiplying_parameters: int, length: int) -> ModelCost:
        """Returns the cost of a transformer.

        Args:
            shape: the stack's shape.
            multiplying_parameters: parameters without those of embedding tables.
            length: tokens of a window.
        """
        return cls(2 * multiplying_parameters + 4 * shape.layers * length * shape.width)


@dataclasses.dataclass(frozen=True)
class Spending:
    """Tokens and FLOPs of a run up to a step, by count, not by measurement.

    A backward pass costs two forward passes. A meta-step takes, for every inner model and token, the inner gradient
    (3 forward passes) and its derivative (the tangent and the value of the same: 6), the outer gradient (3), and the
    rater's scores and their gradient (3). Reverse mode counts the same: its backward pass through the inner gradient
    costs twice that gradient, 6 as well. What is recomputed to save memory is not counted, as is usual.

    Attributes:
        inner: cost of an inner model.
        rater: cost of the rater.
        warmup_tokens: token positions of the whole warm-up.
        inner_tokens: token positions of the inner batches of one meta-step, over all inner models and updates.
        outer_tokens: the same of the outer batches.
    """

    inner: ModelCost
    rater: ModelCost
    warmup_tokens: int
    inner_tokens: int
    outer_tokens: int

    def at(self, step: int) -> dict[str, float | None]:
        """Returns the token positions read, padding among them, and the FLOPs spent up to a step."""
        a_step = self.inner_tokens * (9 * self.inner.flops + 3 * self.rater.flops)
        a_step += self.outer_tokens * 3 * self.inner.flops
        return {
            "tokens": float(self.warmup_tokens + step * (self.inner_tokens + self.outer_tokens)),
            "flops": float(self.warmup_tokens * 3 * self.inner.flops + step * a_step),
        }


def warmup_tokens(population: PopulationConfig, batch: int, length: int) -> int:
    """Returns the token positions that warm-up reads."""
    return population.warmup_steps * population.warmup_trajectories * batch * length


class Progress:
    """Says how far a run is, how fast, and how long it still takes.

    Args:
        label: what is counted, such as "step".
        total: how many in all.
    """

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._started: tuple[int, float] | None = None

    def report(self, step: int, text: str) -> None:
        """Logs one line; the rate counts from the first report on, so that compilation is left out."""
        now = time.monotonic()
        rate = ""
        if self._started is None:
            self._started = (step, now)
        elif step > self._started[0]:
            a_second = (step - self._started[0]) / max(now - self._started[1], 1e-9)
            rate = f"  {a_second:.2f} steps/s, {duration((self._total - step) / a_second)} left"
        _LOG.info("%s %d/%d  %s%s", self._label, step, self._total, text, rate)


def duration(seconds: float) -> str:
    """Returns a duration for people.

    Example:
        >>> duration(3725)
        '1h 02m'
        >>> duration(65)
        '1m 05s'
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 60}m {whole % 60:02d}s"


def step_text(scalars: dict[str, float | None]) -> str:
    """Returns what the progress line says of a meta-step."""
    return (
        f"outer loss {scalars['outer_loss']:.3f}  effective sample {scalars['effective_sample_share']:.2f}  "
        f"score spread {scalars['score_spread']:.2f}  meta-gradient {scalars['meta_gradient_norm']:.1e}"
    )


def run_summary(rows: Sequence[dict[str, float]]) -> list[str]:
    """Returns what the metrics of a whole run amount to, a line each.

    Args:
        rows: of `metrics.csv`, in order.
    """
    if not rows:
        return []
    part = max(1, len(rows) // 10)
    last = rows[-part:]

    def mean(of: Sequence[dict[str, float]], name: str) -> float:
        return float(np.mean([row[name] for row in of]))

    clipped = f"{mean(last, 'meta_gradient_norm'):.1e} before clipping, {mean(last, 'meta_gradient_norm_clipped'):.1e}"
    lines = [
        f"outer loss by age     {_loss_by_age(rows)}",
        f"weights               effective sample share {mean(last, 'effective_sample_share'):.2f}, entropy share "
        f"{mean(last, 'weight_entropy_share'):.2f}, score spread {mean(last, 'score_spread'):.2f}",
        f"meta-gradient norm    {clipped} after",
    ]
    correlated = [row for row in rows if "score_autocorrelation" in row]
    if correlated:
        value = correlated[-1]["score_autocorrelation"]
        between = f"{int(correlated[-1]['score_autocorrelation_since'])} and {int(correlated[-1]['step'])}"
        meaning = (
            f"above {SETTLED_AUTOCORRELATION}: the scores have settled"
            if value > SETTLED_AUTOCORRELATION
            else f"not yet above {SETTLED_AUTOCORRELATION}, where scores have settled: more meta_steps may change them"
        )
        lines.append(f"score autocorrelation {value:.3f} between steps {between}, {meaning}")
    lines.append(f"spent                 {rows[-1]['tokens']:.2g} token positions, {rows[-1]['flops']:.2g} FLOPs")
    return lines


def _loss_by_age(rows: Sequence[dict[str, float]]) -> str:
    """Returns the outer loss of inner models by age, in the run's first half and in its second where both had that age.

    Over all ages it rises and falls with the resets, whatever the rater learns.
    """
    names = [name.removeprefix("age_of_") for name in rows[0] if name.startswith("age_of_")]
    age_N = np.asarray([row[f"age_of_{name}"] for row in rows for name in names]).astype(np.int64)
    loss_N = np.asarray([row[f"outer_loss_of_{name}"] for row in rows for name in names])
    late_N = np.repeat(np.arange(len(rows)) >= len(rows) // 2, len(names))
    starts = np.unique(np.quantile(age_N, [0, 1 / 3, 2 / 3], method="higher"))  # ages that there are
    shown = []
    for start, behind in zip(starts, [*starts[1:], age_N.max() + 1], strict=True):
        within_N = (start <= age_N) & (age_N < behind)
        end = age_N[within_N].max()
        ages = f"{start} to {end}" if start < end else f"{start}"
        in_both = np.intersect1d(age_N[within_N & ~late_N], age_N[within_N & late_N])
        if len(in_both):
            early, late = (
                np.mean([loss_N[(age_N == age) & half_N].mean() for age in in_both]) for half_N in (~late_N, late_N)
            )
            shown.append(f"{ages} updates: {early:.3f}, then {late:.3f}")
        else:
            shown.append(f"{ages} updates: {loss_N[within_N].mean():.3f}")
    return "; ".join(shown) + " (first, then second half of the run)"
