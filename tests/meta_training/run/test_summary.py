"""The metrics, progress lines, health checks and closing lines of a run."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from datarater.meta_training.algorithm.meta_gradient import InnerState
from datarater.meta_training.algorithm.meta_step import MetaState, MetaStepMetrics
from datarater.meta_training.errors import NonFiniteError
from datarater.meta_training.run.cost import ModelCost, Spending
from datarater.meta_training.run.health import (
    check_finite,
    check_state,
    check_warmup_losses,
    check_warmup_state,
)
from datarater.meta_training.run.summary import Progress, run_summary, score_correlation, summarise
from datarater.rater_model.transformer import TransformerConfig


def metrics(**changed: object) -> MetaStepMetrics:
    values: dict[str, object] = {
        "outer_loss_P": jnp.asarray([2.0, 3.0]),
        "outer_losses_PxK": jnp.asarray([[1.0, 4.0], [2.0, 6.0]]),
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


def test_the_meta_gradient_is_reported_before_and_after_clipping() -> None:
    scalars = summarise(metrics(), clip_norm=1.0, epsilon=1e-8)
    assert scalars["meta_gradient_norm"] == 1.25
    assert scalars["meta_gradient_norm_clipped"] == 0.75
    assert scalars["meta_gradient_clipped_share"] == 0.5
    assert scalars["meta_gradient_rms_to_epsilon"] == pytest.approx(200)


def test_outer_losses_are_reported_with_the_ages_of_their_models() -> None:
    scalars = summarise(metrics(), clip_norm=1.0, epsilon=1e-8)
    assert (scalars["age_of_inner_model_0"], scalars["outer_loss_of_inner_model_0"]) == (10, 2)
    assert (scalars["age_of_inner_model_1"], scalars["outer_loss_of_inner_model_1"]) == (30, 3)


def test_each_of_several_outer_sets_has_a_column_and_one_alone_has_none() -> None:
    scalars = summarise(metrics(), 1.0, 1e-8, ("web", "books"))
    assert (scalars["outer_loss_of_set_web"], scalars["outer_loss_of_set_books"]) == (1.5, 5)
    alone = metrics(outer_losses_PxK=jnp.asarray([[2.0], [3.0]]))
    assert summarise(alone, 1.0, 1e-8, ("outer",)).keys() == summarise(alone, 1.0, 1e-8).keys()


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (
            {"score_spread": jnp.float32(jnp.nan), "inner_loss": jnp.float32(jnp.nan)},
            "score spread is not finite",
        ),
        ({"inner_loss": jnp.float32(jnp.inf)}, "inner loss is not finite"),
        (
            {"outer_loss_P": jnp.asarray([1.0, jnp.nan])},
            "outer loss is not finite .*outer_loss_of_inner_model_1",
        ),
        ({"gradient_norm_P": jnp.asarray([jnp.inf, 1.0])}, "meta gradient norm is not finite"),
    ],
)
def test_a_number_that_is_not_finite_is_named_with_its_step(
    changed: dict[str, object], cause: str
) -> None:
    scalars = summarise(metrics(**changed), clip_norm=1.0, epsilon=1e-8)
    with pytest.raises(
        NonFiniteError, match=rf"meta-step 7: {cause}.*the checkpoint of step 5 and"
    ):
        check_finite(7, scalars, lambda: 5)
    with pytest.raises(
        NonFiniteError,
        match=r"; there is no checkpoint yet, only the raters exported so far\. Lower",
    ):
        check_finite(7, scalars, lambda: None)


def wait_for_nothing() -> int | None:
    raise AssertionError("there is no need to wait for a checkpoint")


def state(**changed: object) -> MetaState:
    inner = InnerState(
        {"a": jnp.ones((2, 3))}, {"moments": jnp.zeros((2, 3)), "count": jnp.int32(1)}, jnp.int32(7)
    )
    values: dict[str, object] = {
        "step": jnp.int32(7),
        "rater_params": {"b": jnp.ones(3)},
        "meta_optimiser_state": {"moments": jnp.zeros((2, 3))},
        "inner": inner,
    }
    return MetaState(**{**values, **changed})  # type: ignore[arg-type]


def test_finite_numbers_pass() -> None:
    check_finite(
        1, summarise(metrics(), 1.0, 1e-8) | {"score_autocorrelation": None}, wait_for_nothing
    )
    check_warmup_losses(1, [1.0, 2.0])
    check_state(7, state(), wait_for_nothing)
    check_warmup_state(7, state().inner)


def test_a_state_that_is_not_finite_is_named_before_it_is_saved() -> None:
    broken = state(rater_params={"b": jnp.asarray([1.0, jnp.inf, 1.0])})
    with pytest.raises(
        NonFiniteError,
        match=r"meta-step 7: after its updates the rater's parameters are not finite; "
        r"the checkpoint of step 5",
    ):
        check_state(7, broken, lambda: 5)
    inner = state().inner
    broken = state(inner=inner._replace(optimiser_state={"moments": jnp.full((2, 3), jnp.nan)}))
    with pytest.raises(
        NonFiniteError, match=r"the inner optimizers' moments .*there is no checkpoint yet"
    ):
        check_state(7, broken, lambda: None)


def test_a_warmed_up_model_that_is_not_finite_is_named_before_it_is_saved() -> None:
    inner = state().inner
    for broken, cause in (
        (inner._replace(params={"a": jnp.asarray([jnp.nan])}), "parameters"),
        (inner._replace(optimiser_state={"moments": jnp.asarray([jnp.inf])}), "optimizer moments"),
    ):
        with pytest.raises(
            NonFiniteError,
            match=f"warm-up step 12: the inner model's {cause} are not finite.* Lower",
        ):
            check_warmup_state(12, broken)


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
    spending = Spending(
        *(ModelCost(10), ModelCost(1)),
        warmup_tokens=100,
        inner_tokens=8,
        inner_updates=2,
        outer_tokens=4,
    )
    assert spending.at(0) == {"tokens": 100, "flops": 100 * 3 * 10}
    assert spending.at(2)["tokens"] == 100 + 2 * 12
    of_inner = 4 * (3 + 2) * 10 + 4 * (3 + 6) * 10 + 8 * 3 * 1
    assert spending.at(2)["flops"] == 3000 + 2 * (of_inner + 4 * 3 * 10)


def test_progress_tells_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("step", 110, iter([0.0, 5.0]).__next__)
    with caplog.at_level(logging.INFO, logger="datarater"):
        progress.report(10, "loss 3.0")
        progress.report(20, "loss 2.0")
    assert caplog.messages == [
        "step 10/110  loss 3.0",
        "step 20/110  loss 2.0  2.00 steps/s, 0m 45s left",
    ]


def row(step: int, **more: float) -> dict[str, float]:
    """Returns a step of two models, reset every 10 steps in turn, whose losses keep falling."""
    ages = (step % 10, (step + 5) % 10)
    return {
        "step": step,
        "effective_sample_share": 0.5,
        "weight_entropy_share": 0.75,
        "score_spread": 0.25,
        "meta_gradient_norm": 2.5e-3,
        "meta_gradient_norm_clipped": 1e-3,
        "meta_gradient_clipped_share": 0.25,
        "tokens": 1000.0 * step,
        "flops": 1e6 * step,
        **{f"age_of_inner_model_{i}": float(age) for i, age in enumerate(ages)},
        **{
            f"outer_loss_of_inner_model_{i}": 3 - age / 10 - step / 1000
            for i, age in enumerate(ages)
        },
        **more,
    }


def test_the_summary_of_a_run() -> None:
    def correlated(step: int) -> dict[str, float]:
        return {
            "score_autocorrelation": 0.9 + step / 1000,
            "score_autocorrelation_since": step - 25,
        }

    rows = [row(step, **(correlated(step) if step % 25 == 0 else {})) for step in range(1, 102)]
    text = "\n".join(run_summary(rows))
    assert "0 to 2 updates: 2.875, then 2.824; 3 to 5 updates" in text
    assert "; 6 to 9 updates: 2.225, then 2.174 (first, then second half of the run)" in text
    assert "effective sample share 0.50, entropy share 0.75, score spread 0.25" in text
    assert "2.5e-03 before clipping, 1.0e-03 after; 25% were clipped" in text
    assert "1.000 between the exports of steps 75 and 100" in text
    assert "settled               yes: the autocorrelation is above 0.95" in text
    assert "1e+05 token positions, 1e+08 FLOPs" in text
    early = "\n".join(run_summary(rows[:26]))
    assert "0.925 between the exports of steps 0 and 25" in early
    assert "settled               no: the autocorrelation is not above 0.95" in early
    assert run_summary([]) == []


@pytest.mark.parametrize("name", ["score_spread", "effective_sample_share"])
def test_scores_that_keep_their_order_have_not_settled_while_weights_move(name: str) -> None:
    rows = [row(step, **{name: 0.2 + step / 500}) for step in range(1, 51)]
    rows[-1] |= {"score_autocorrelation": 0.99, "score_autocorrelation_since": 25}
    text = "\n".join(run_summary(rows))
    assert f"{name.replace('_', ' ')} 0.26, then 0.30" in text
    assert "settled               no: the scores keep their order, but their spread or" in text
    assert "moved by 15%, more than 5%" in text


def test_a_run_whose_last_validation_is_clearly_the_best_has_not_settled() -> None:
    def validated(step: int) -> dict[str, float]:
        gain = 0.2 if step == 50 else 0.1
        return {"validation_gain": gain, "validation_gain_error": 0.02}

    rows = [row(step, **(validated(step) if step % 10 == 0 else {})) for step in range(1, 51)]
    rows[-1] |= {"score_autocorrelation": 0.99, "score_autocorrelation_since": 25}
    text = "\n".join(run_summary(rows))
    assert "best +0.2000 +- 0.0200 at step 50, last +0.2000 +- 0.0200 at step 50" in text
    assert "settled               no: the last validation beat all before it by more than" in text

    rows[-1]["validation_gain"] = 0.11  # within the noise
    assert "settled               yes" in "\n".join(run_summary(rows))


def test_the_summary_compares_inner_models_of_equal_ages_only() -> None:
    assert "  1 updates: 2.899; 6 updates: 2.399 (" in run_summary([row(1)])[0]

    ages = [1, 2, 3, 4, 5, 6, 7, 8]  # never reset
    growing = [row(age, age_of_inner_model_0=age, age_of_inner_model_1=age) for age in ages]
    assert "then" not in run_summary(growing)[0].removesuffix(
        "(first, then second half of the run)"
    )

    # As good at every age, but older in the first half.
    late = [
        row(
            step,
            **{f"{name}_inner_model_{i}": value for i in (0, 1) for name, value in pair.items()},
        )
        for step, age in enumerate([3, 4, 5, 5, 5, 5, 3, 3, 3, 3, 4, 5])
        for pair in [{"age_of": age, "outer_loss_of": 3 - age / 10}]
    ]
    assert "3 to 4 updates: 2.650, then 2.650; 5 updates: 2.500, then 2.500" in run_summary(late)[0]
