"""Summarizes a run: the metrics of a step, the progress line, and the closing lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from datarater.meta_training.algorithm.meta_step import MetaStepMetrics

_LOG = logging.getLogger("datarater")
SETTLED_AUTOCORRELATION = 0.95
"""Autocorrelation of scores between exports above which, in the paper, meta-training may stop."""
SETTLED_CHANGE = 0.05
"""Relative change between exports of the scores' spread and of the effective sample share, up to
which weights count as settled."""


def summarise(
    metrics: MetaStepMetrics, clip_norm: float, epsilon: float, outer_sets: Sequence[str] = ()
) -> dict[str, float | None]:
    """Returns a step's metrics as named numbers.

    Args:
        metrics: Metrics of the step, on the host.
        clip_norm: Norm at which each inner model's meta-gradient is clipped.
        epsilon: Epsilon of the meta-Adam.
        outer_sets: Names of the outer sets; one that is alone needs no column of its own.
    """
    losses_K = np.asarray(metrics.outer_losses_PxK).mean(axis=0)
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
        **{
            f"outer_loss_of_inner_model_{i}": float(loss)
            for i, loss in enumerate(metrics.outer_loss_P)
        },
        **{
            f"outer_loss_of_set_{name}": float(loss)
            for name, loss in zip(outer_sets, losses_K, strict=bool(outer_sets))
            if len(outer_sets) > 1
        },
        **{f"age_of_inner_model_{i}": float(age) for i, age in enumerate(metrics.age_P)},
    }


def score_correlation(before_N: np.ndarray, now_N: np.ndarray) -> float | None:
    """Returns Pearson's correlation of two raters' scores on the same documents.

    Scores settle before the meta-gradient vanishes: above 0.95 between checkpoints, the paper found
    that more meta-steps change little. Correlations are comparable only between raters that are
    equally many meta-steps apart: over few steps any two raters agree.

    Returns:
        The correlation; None if one rater's scores are constant or there are fewer than two.
    """
    if len(before_N) < 2 or before_N.std() == 0 or now_N.std() == 0:
        return None
    return float(np.corrcoef(before_N.astype(np.float64), now_N.astype(np.float64))[0, 1])


class Progress:
    """Logs how far a run is, how fast, and how much time is left.

    Args:
        label: Name of what is counted, such as "step".
        total: Number of them in the whole run.
        clock: Returns seconds.
    """

    def __init__(self, label: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._total, self._clock = label, total, clock
        self._started: tuple[int, float] | None = None

    def report(self, step: int, text: str) -> None:
        """Logs one line. The rate is that since the first report, without compilation."""
        now = self._clock()
        rate = ""
        if self._started is None:
            self._started = (step, now)
        elif step > self._started[0]:
            per_second = (step - self._started[0]) / max(now - self._started[1], 1e-9)
            left = duration((self._total - step) / per_second)
            rate = f"  {per_second:.2f} steps/s, {left} left"
        _LOG.info("%s %d/%d  %s%s", self._label, step, self._total, text, rate)


def duration(seconds: float) -> str:
    """Returns a readable duration.

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
    """Returns the metrics of a meta-step that its progress line shows.

    The model FLOPs utilization is shown where it is known.
    """
    mfu = scalars["mfu"]
    return "  ".join(
        (
            f"outer loss {scalars['outer_loss']:.3f}",
            f"effective sample {scalars['effective_sample_share']:.2f}",
            f"score spread {scalars['score_spread']:.2f}",
            f"meta-gradient {scalars['meta_gradient_norm']:.1e}",
            f"{scalars['step_seconds']:.3g} s  {scalars['tokens_per_second']:,.0f} tokens/s",
            *([] if mfu is None else [f"MFU {mfu:.1%}"]),
        )
    )


def run_summary(rows: Sequence[dict[str, float]]) -> list[str]:
    """Returns the closing lines of a run, each about one kind of metric.

    Args:
        rows: Rows of `metrics.csv`, in order.
    """
    if not rows:
        return []

    # The last tenth of the run: single steps are noisy.
    last = rows[-max(1, len(rows) // 10) :]

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in last]))

    # Over the whole run, as clipping may act only at its beginning.
    clipped = float(np.mean([row["meta_gradient_clipped_share"] for row in rows]))
    lines = [
        f"outer loss by age     {_loss_by_age(rows)}",
        f"weights               effective sample share {mean('effective_sample_share'):.2f}, "
        f"entropy share {mean('weight_entropy_share'):.2f}, "
        f"score spread {mean('score_spread'):.2f}",
        f"meta-gradient norm    {mean('meta_gradient_norm'):.1e} before clipping, "
        f"{mean('meta_gradient_norm_clipped'):.1e} after; {clipped:.0%} were clipped",
    ]
    lines += [*_validations(rows), *_settling(rows)]
    tokens, flops = rows[-1]["tokens"], rows[-1]["flops"]
    lines.append(f"spent                 {tokens:.2g} token positions, {flops:.2g} FLOPs")
    return lines


def _validations(rows: Sequence[dict[str, float]]) -> list[str]:
    """Returns the gains over uniform weights of the best and of the last validation."""
    validated = [row for row in rows if "validation_gain" in row]
    if not validated:
        return []

    def text(row: dict[str, float]) -> str:
        gain, error = row["validation_gain"], row["validation_gain_error"]
        return f"{gain:+.4f} +- {error:.4f} at step {int(row['step'])}"

    best = max(validated, key=lambda row: row["validation_gain"])
    return [
        f"validation gain       best {text(best)}, last {text(validated[-1])} (nats per token over "
        "uniform weights)"
    ]


def _still_improves(rows: Sequence[dict[str, float]]) -> bool:
    """Returns whether the last validation beat all before by more than its standard error."""
    gains = [row["validation_gain"] for row in rows if "validation_gain" in row]
    error = next(
        (row["validation_gain_error"] for row in reversed(rows) if "validation_gain" in row), 0.0
    )
    return len(gains) > 1 and gains[-1] > max(gains[:-1]) + error


def _settling(rows: Sequence[dict[str, float]]) -> list[str]:
    """Returns how far scores and weights moved between the last two exports, and what that means.

    Correlated scores are not enough: their order may stay while their spread, and with it the
    softmax weights, still grows or shrinks.
    """
    exports = [row for row in rows if "score_autocorrelation" in row]
    if not exports:
        return []
    first, last = (int(exports[-1][name]) for name in ("score_autocorrelation_since", "step"))
    correlation = exports[-1]["score_autocorrelation"]

    # Means over a quarter of the interval at both of its ends: single steps are noisy.
    between = [row for row in rows if first < row["step"] <= last]
    quarter = max(1, len(between) // 4)
    moved, texts = 0.0, []
    for name in ("score_spread", "effective_sample_share"):
        early, late = (
            float(np.mean([row[name] for row in part]))
            for part in (between[:quarter], between[-quarter:])
        )
        moved = max(moved, abs(late - early) / max(abs(early), 1e-12))
        texts.append(f"{name.replace('_', ' ')} {early:.2f}, then {late:.2f}")

    lines = [
        f"score autocorrelation {correlation:.3f} between the exports of steps {first} and {last}",
        f"weights meanwhile     {'; '.join(texts)}",
    ]
    if correlation <= SETTLED_AUTOCORRELATION:
        meaning = f"no: the autocorrelation is not above {SETTLED_AUTOCORRELATION}"
    elif moved > SETTLED_CHANGE:
        meaning = (
            f"no: the scores keep their order, but their spread or the weights moved by "
            f"{moved:.0%}, more than {SETTLED_CHANGE:.0%}"
        )
    elif _still_improves(rows):
        meaning = "no: the last validation beat all before it by more than its standard error"
    else:
        meaning = (
            f"yes: the autocorrelation is above {SETTLED_AUTOCORRELATION}, and spread and weights "
            f"moved by at most {SETTLED_CHANGE:.0%}"
        )
    return [*lines, f"settled               {meaning}"]


def _loss_by_age(rows: Sequence[dict[str, float]]) -> str:
    """Returns the outer loss of inner models by age, in both halves of the run where possible.

    The mean over all ages rises and falls with the resets, whatever the rater learns.
    """
    names = [name.removeprefix("age_of_") for name in rows[0] if name.startswith("age_of_")]
    age_N = np.asarray([row[f"age_of_{name}"] for row in rows for name in names]).astype(np.int64)
    loss_N = np.asarray([row[f"outer_loss_of_{name}"] for row in rows for name in names])
    late_N = np.repeat(np.arange(len(rows)) >= len(rows) // 2, len(names))

    # Three ranges of ages with about equally many losses, each beginning with an age that occurs.
    starts = np.unique(np.quantile(age_N, [0, 1 / 3, 2 / 3], method="higher"))
    texts = []
    for start, stop in zip(starts, [*starts[1:], age_N.max() + 1], strict=True):
        within_N = (start <= age_N) & (age_N < stop)
        end = age_N[within_N].max()
        ages = f"{start} to {end}" if start < end else f"{start}"

        # The halves are compared at ages that occur in both.
        in_both = np.intersect1d(age_N[within_N & ~late_N], age_N[within_N & late_N])
        if len(in_both):
            early, late = (
                np.mean([loss_N[(age_N == age) & half_N].mean() for age in in_both])
                for half_N in (~late_N, late_N)
            )
            texts.append(f"{ages} updates: {early:.3f}, then {late:.3f}")
        else:
            texts.append(f"{ages} updates: {loss_N[within_N].mean():.3f}")
    return "; ".join(texts) + " (first, then second half of the run)"
