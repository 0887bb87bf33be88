"""What to watch in a run: metrics by step, tokens and FLOPs spent, the progress line, the summary at the end."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence

import numpy as np

from meta_training.errors import NonFiniteError
from meta_training.population import MetaStepMetrics, PopulationConfig
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


def check_finite(step: int, scalars: dict[str, float | None], last_checkpoint: int | None) -> None:
    """Stops a run whose numbers are no longer finite.

    Args:
        step: the meta-step that they belong to.
        scalars: its metrics.
        last_checkpoint: the step of the last training checkpoint, or None.

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
    kept = (
        "there is no checkpoint yet" if last_checkpoint is None else f"the checkpoint of step {last_checkpoint} stands"
    )
    raise NonFiniteError(
        f"meta-step {step}: {cause.replace('_', ' ')} is not finite (not finite in all: {', '.join(bad)}); "
        f"{kept}, and the raters exported so far. {_REMEDY}"
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
    to change little.
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
    rater's scores and their gradient (3). What is recomputed to save memory is not counted, as is usual.

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
    first, last = rows[:part], rows[-part:]

    def mean(of: Sequence[dict[str, float]], name: str) -> float:
        return float(np.mean([row[name] for row in of]))

    lines = [
        f"outer loss            {mean(first, 'outer_loss'):.3f} over the first {part} meta-steps, "
        f"{mean(last, 'outer_loss'):.3f} over the last",
        f"by inner model's age  {_loss_by_age(rows[-max(part, len(rows) // 2) :])}",
        f"weights               effective sample share {mean(last, 'effective_sample_share'):.2f}, "
        f"score spread {mean(last, 'score_spread'):.2f}",
    ]
    correlations = [(row["step"], row["score_autocorrelation"]) for row in rows if "score_autocorrelation" in row]
    if correlations:
        step, value = correlations[-1]
        meaning = (
            f"above {SETTLED_AUTOCORRELATION}: the scores have settled"
            if value > SETTLED_AUTOCORRELATION
            else f"not yet above {SETTLED_AUTOCORRELATION}, where scores have settled: more meta_steps may change them"
        )
        lines.append(f"score autocorrelation {value:.3f} at step {int(step)}, {meaning}")
    lines.append(f"spent                 {rows[-1]['tokens']:.2g} token positions, {rows[-1]['flops']:.2g} FLOPs")
    return lines


def _loss_by_age(rows: Sequence[dict[str, float]]) -> str:
    names = [name.removeprefix("age_of_") for name in rows[0] if name.startswith("age_of_")]
    age_N = np.asarray([row[f"age_of_{name}"] for row in rows for name in names])
    loss_N = np.asarray([row[f"outer_loss_of_{name}"] for row in rows for name in names])
    edges = np.unique(np.quantile(age_N, [0, 1 / 3, 2 / 3, 1]).astype(np.int64))
    if len(edges) < 2:
        return f"{int(age_N[0])} updates: {loss_N.mean():.3f}"
    bins_N = np.clip(np.searchsorted(edges, age_N, side="right") - 1, 0, len(edges) - 2)
    shown = [
        f"{edges[i]} to {edges[i + 1]} updates: {loss_N[bins_N == i].mean():.3f}"
        for i in range(len(edges) - 1)
        if (bins_N == i).any()
    ]
    return ", ".join(shown)
