from __future__ import annotations

import jax
import pytest

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    initialise_language_model,
)
from datarater.meta_training.evaluate.gains import (
    break_even_parameters,
    compute_gain,
    fitted_curve,
    forward_flops,
    net_gain,
    net_gains,
    step_reaching,
    training_flops,
)
from datarater.meta_training.evaluate.protocol import MODELS

BASELINE = [(0, 5.0), (100, 4.0), (200, 3.0), (300, 2.5), (400, 2.0)]


def test_a_run_that_is_twice_as_fast_gains_half_of_the_compute() -> None:
    faster = [(step // 2, loss) for step, loss in BASELINE]
    faster += [(300, 1.9), (400, 1.8)]

    gain = compute_gain([faster, faster], [BASELINE, BASELINE])

    assert gain.mean == pytest.approx(0.5, abs=1e-6)
    assert (gain.reached, gain.seeds) == (2, 2)


def test_a_run_that_never_reaches_the_loss_is_counted_and_has_no_gain() -> None:
    slower = [(step, loss + 0.1) for step, loss in BASELINE]
    gain = compute_gain([slower, BASELINE], [BASELINE, BASELINE])
    assert (gain.reached, gain.seeds, gain.mean) == (1, 2, None)
    faster = [(step // 2, loss) for step, loss in BASELINE] + [(400, 1.9)]
    assert compute_gain([slower, faster], [BASELINE, BASELINE]).at_most == pytest.approx(0.25)
    nothing = compute_gain([slower], [BASELINE])
    assert (nothing.mean, nothing.low, nothing.reached) == (None, None, 0)


def test_a_dip_by_chance_does_not_count_as_reaching_the_loss() -> None:
    dip = [(0, 5.0), (100, 1.99), (200, 2.6), (300, 2.4), (400, 2.05)]
    assert step_reaching(dip, 2.0) is None


def test_the_fit_does_not_increase_and_meets_a_curve_that_does_not_either() -> None:
    fit = fitted_curve(BASELINE)
    values = [float(fit(step)) for step in range(401)]
    assert values == sorted(values, reverse=True)
    assert [float(fit(step)) for step, _ in BASELINE] == [loss for _, loss in BASELINE]
    assert step_reaching(BASELINE, 6.0) == 0


def test_flops_are_two_per_weight_of_a_product_and_attention_on_top() -> None:
    shape, length = MODELS["0.14M"].transformer, 128
    params = jax.eval_shape(
        lambda key: initialise_language_model(LanguageModelConfig(258, shape), key),
        jax.random.key(0),
    )
    products = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim > 1 and "embedding" not in str(path)
    )
    attention = 4 * shape.layers * length * shape.width
    assert forward_flops(shape, length, 258) == 2 * products + attention
    assert training_flops(shape, length, 258) == 3 * forward_flops(shape, length, 258)


def test_scoring_counts_the_oversampled_documents() -> None:
    # As the paper has it: fraction of steps x 2 N_rater / keep / (6 N_LLM).
    rater, model, steps, keep = 50e6, 1e9, 0.6, 0.25
    overhead = steps * 2 * rater / keep / (6 * model)
    assert net_gain(1 - steps, 2 * rater, 6 * model, keep) == pytest.approx(1 - steps - overhead)


def test_the_net_gain_is_zero_at_the_break_even_size() -> None:
    size = break_even_parameters(0.3, scoring=1e8, keep=0.5)
    assert size is not None
    assert net_gain(0.3, 1e8, 6 * size, 0.5) == pytest.approx(0, abs=1e-12)
    assert break_even_parameters(0.0, 1e8, 0.5) is None


def test_net_gains_grow_with_the_size_towards_the_gross_gain() -> None:
    gains = [gain for _, gain in net_gains(0.3, 1e6, 0.5)["by_parameters"]]
    assert gains == sorted(gains)
    assert gains[-1] == pytest.approx(0.3, abs=1e-4)
    assert gains[0] < 0
