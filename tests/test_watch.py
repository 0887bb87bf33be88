"""What is said of a run while it goes and at its end."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from meta_training.errors import NonFiniteError
from meta_training.population import MetaStepMetrics
from meta_training.watch import (
    ModelCost,
    Progress,
    Spending,
    check_finite,
    check_warmup_losses,
    run_summary,
    score_correlation,
    summarise,
)
from rater_model.transformer import TransformerConfig


def metrics(**changed: object) -> MetaStepMetrics:
    values: dict[str, object] = {
        "outer_loss_P": jnp.asarray([2.0, 3.0]),
        "inner_loss": jnp.float32(4.0),
        "age_P": jnp.asarray([10, 30]),
        "gradient_norm_P": jnp.asarray([0.5, 2.0]),
        "gradient_rms_P": jnp.asarray([1e-6, 3e-6]),
        "effective_sample_share": jnp.float32(0.5),
        "weight_entropy_share": jnp.float32(0.75),
        "score_spread": jnp.float32(0.25),
        "update_norm": jnp.float32(0.125),
    }
    return MetaStepMetrics(**{**values, **changed})  # type: ignore[arg-type]


def test_the_meta_gradient_is_told_before_and_after_clipping() -> None:
    scalars = summarise(metrics(), clip_norm=1.0, epsilon=1e-8)
    assert scalars["meta_gradient_norm"] == 1.25
    assert scalars["meta_gradient_norm_clipped"] == 0.75
    assert scalars["meta_gradient_clipped_share"] == 0.5
    assert scalars["meta_gradient_rms_to_epsilon"] == pytest.approx(200)


def test_outer_losses_are_told_with_the_ages_of_their_models() -> None:
    scalars = summarise(metrics(), clip_norm=1.0, epsilon=1e-8)
    assert (scalars["age_of_inner_model_0"], scalars["outer_loss_of_inner_model_0"]) == (10, 2)
    assert (scalars["age_of_inner_model_1"], scalars["outer_loss_of_inner_model_1"]) == (30, 3)


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"score_spread": jnp.float32(jnp.nan), "inner_loss": jnp.float32(jnp.nan)}, "score spread is not finite"),
        ({"inner_loss": jnp.float32(jnp.inf)}, "inner loss is not finite"),
        ({"outer_loss_P": jnp.asarray([1.0, jnp.nan])}, "outer loss is not finite .*outer_loss_of_inner_model_1"),
        ({"gradient_norm_P": jnp.asarray([jnp.inf, 1.0])}, "meta gradient norm is not finite"),
    ],
)
def test_a_number_that_is_not_finite_is_named_with_its_step(changed: dict[str, object], cause: str) -> None:
    scalars = summarise(metrics(**changed), clip_norm=1.0, epsilon=1e-8)
    with pytest.raises(NonFiniteError, match=rf"meta-step 7: {cause}.*the checkpoint of step 5 stands"):
        check_finite(7, scalars, 5)
    with pytest.raises(NonFiniteError, match="no checkpoint yet"):
        check_finite(7, scalars, None)


def test_finite_numbers_pass() -> None:
    check_finite(1, summarise(metrics(), 1.0, 1e-8) | {"score_autocorrelation": None}, None)
    check_warmup_losses(1, [1.0, 2.0])


def test_a_warm_up_loss_that_is_not_finite_is_named_with_its_step() -> None:
    with pytest.raises(NonFiniteError, match="warm-up step 13: the inner loss"):
        check_warmup_losses(11, [1.0, 2.0, float("inf"), float("nan")])


def test_score_correlation_looks_at_the_ranking_not_at_the_scale() -> None:
    scores_N = np.random.default_rng(0).normal(size=50).astype(np.float32)
    assert score_correlation(scores_N, 3 * scores_N + 7) == pytest.approx(1)
    assert score_correlation(scores_N, -scores_N) == pytest.approx(-1)
    assert score_correlation(scores_N, np.zeros(50, np.float32)) is None
    assert score_correlation(scores_N[:1], scores_N[:1]) is None


def test_spending_counts_every_model_and_every_update() -> None:
    cost = ModelCost.of(TransformerConfig(width=8, heads=1, mlp_width=8, layers=2), 1000, length=16)
    assert cost.flops == 2 * 1000 + 4 * 2 * 16 * 8
    spending = Spending(ModelCost(10), ModelCost(1), warmup_tokens=100, inner_tokens=8, outer_tokens=4)
    assert spending.at(0) == {"tokens": 100, "flops": 100 * 3 * 10}
    assert spending.at(2)["tokens"] == 100 + 2 * 12
    assert spending.at(2)["flops"] == 3000 + 2 * (8 * (9 * 10 + 3 * 1) + 4 * 3 * 10)


def test_progress_tells_rate_and_time_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("meta_training.watch.time.monotonic", lambda: now[0])
    progress = Progress("step", 110)
    with caplog.at_level(logging.INFO, logger="datarater"):
        progress.report(10, "loss 3.0")
        now[0] = 5.0
        progress.report(20, "loss 2.0")
    assert caplog.messages == ["step 10/110  loss 3.0", "step 20/110  loss 2.0  2.00 steps/s, 0m 45s left"]


def row(step: int, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "outer_loss": 3 - step / 100,
        "effective_sample_share": 0.5,
        "score_spread": 0.25,
        "tokens": 1000.0 * step,
        "flops": 1e6 * step,
        "age_of_inner_model_0": step % 10,
        "outer_loss_of_inner_model_0": 3 - (step % 10) / 10,
        **more,
    }


def test_the_summary_of_a_run() -> None:
    rows = [
        row(step, **({"score_autocorrelation": 0.9 + step / 1000} if step % 25 == 0 else {})) for step in range(1, 101)
    ]
    text = "\n".join(run_summary(rows))
    assert "2.945 over the first 10 meta-steps, 2.045 over the last" in text
    assert "0 to 3 updates: 2.9" in text
    assert "6 to 9 updates: 2.2" in text
    assert "1.000 at step 100, above 0.95: the scores have settled" in text
    assert "1e+05 token positions, 1e+08 FLOPs" in text
    assert "not yet above 0.95" in "\n".join(run_summary(rows[:26]))
    assert run_summary([]) == []
    assert "1 updates: 2.900" in "\n".join(run_summary(rows[:1]))
