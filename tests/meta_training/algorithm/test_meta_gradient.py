"""The meta-gradient: mixed mode equals reverse mode, and reverse mode equals finite differences."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarater.meta_training.algorithm.language_model import (
    LanguageModelConfig,
    Params,
    Windows,
    initialise_language_model,
    sequence_losses,
)
from datarater.meta_training.algorithm.mesh import MeshAxis
from datarater.meta_training.algorithm.meta_gradient import (
    InnerState,
    MetaGradient,
    MetaGradientConfig,
    make_meta_gradient,
)
from datarater.meta_training.errors import ConfigError
from datarater.rater_model.rater import RaterConfig, initialise_rater, score_tokens
from datarater.rater_model.transformer import TransformerConfig
from tests.support.small_models import (
    inner_state,
    random_windows,
    small_problem,
    transformer_problem,
)

VOCABULARY, LENGTH, BATCH = 11, 7, 4
OPTIMISERS = {
    "adam": lambda: optax.adam(1e-2, eps=1e-8, eps_root=1e-8),
    "adamw": lambda: optax.adamw(1e-2, eps_root=1e-8, weight_decay=0.1),
    "momentum": lambda: optax.sgd(1e-1, momentum=0.9),
}


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def problem(
    config: MetaGradientConfig,
    steps: int,
    optimiser: str,
    dtype: str,
    rematerialise_blocks: bool,
    optimisation_level: int | None = 0,
) -> tuple[Callable[..., MetaGradient], Params, tuple[Any, ...]]:
    """Returns a small, fixed problem: its compiled meta-gradient, eta and the other arguments."""
    shape = TransformerConfig(
        width=8,
        heads=2,
        mlp_width=12,
        layers=1,
        dtype=dtype,
        param_dtype=dtype,
        rematerialise_blocks=rematerialise_blocks,
    )
    model = LanguageModelConfig(VOCABULARY, shape)
    rater = RaterConfig(VOCABULARY, LENGTH, shape, ngram_rows=16)

    keys = jax.random.split(jax.random.key(0), 4)
    theta, eta = initialise_language_model(model, keys[0]), initialise_rater(rater, keys[1])
    tokens = jax.random.randint(keys[2], (steps + 1, BATCH, LENGTH), 0, VOCABULARY, jnp.int32)
    lengths = jax.random.randint(keys[3], (steps + 1, BATCH), 3, LENGTH + 1, jnp.int32)
    inner, outer = Windows(tokens[:-1], lengths[:-1]), Windows(tokens[-1], lengths[-1])

    transformation = OPTIMISERS[optimiser]()
    # Non-zero moments: the first update of a fresh Adam is nearly the gradient's sign.
    moments = jax.tree.map(
        lambda x: jnp.full_like(x, 0.01) if x.ndim else x, transformation.init(theta)
    )

    function = make_meta_gradient(
        lambda params, windows: score_tokens(rater, params, *windows),
        lambda params, windows: sequence_losses(model, params, windows),
        transformation,
        config,
    )
    # The compiler's optimisations cost more here than they save.
    options = (
        {} if optimisation_level is None else {"xla_backend_optimization_level": optimisation_level}
    )
    compiled = jax.jit(function, compiler_options=options)
    return compiled, eta, (InnerState(theta, moments, jnp.int32(0)), inner, outer)


@functools.cache
def meta_gradient(
    config: MetaGradientConfig,
    *,
    steps: int,
    optimiser: str = "adam",
    dtype: str = "float64",
    rematerialise_blocks: bool = False,
    optimisation_level: int | None = 0,
) -> MetaGradient:
    function, eta, rest = problem(
        config, steps, optimiser, dtype, rematerialise_blocks, optimisation_level
    )
    return function(eta, *rest)


def relative_error(actual: Any, expected: Any) -> float:
    a, b = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (actual, expected))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


REVERSE = MetaGradientConfig("reverse")
RECOMPUTED = MetaGradientConfig(rematerialise_updates=True)
SAVED = MetaGradientConfig(rematerialise_updates=True, save_inner_gradients=True)
MIXED = [
    MetaGradientConfig("mixed", rematerialise, save, scan)
    for rematerialise, save in [(False, False), (True, False), (True, True)]
    for scan in (False, True)
]


TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
SAVING = {"kept": MetaGradientConfig(), "recomputed": RECOMPUTED, "saved": SAVED}
CHOICES = (tuple(SAVING), (False, True), (1, 2, 4), tuple(TOLERANCES))
"""What an update saves, whether blocks are recomputed, the number of updates, and the precision."""

PAIRWISE = [
    ("kept", False, 1, "float64"),
    ("kept", True, 2, "float32"),
    ("kept", True, 4, "float64"),
    ("recomputed", True, 1, "float32"),
    ("recomputed", False, 2, "float64"),
    ("recomputed", False, 4, "float32"),
    ("saved", True, 1, "float64"),
    ("saved", True, 2, "float32"),
    ("saved", False, 4, "float32"),
]
"""A few of the cases in which any two choices meet. The drills test all cases."""


def scans(rematerialise_blocks: bool, steps: int) -> bool:
    """Returns whether a case scans its updates: every choice meets scans and unrolled updates."""
    return rematerialise_blocks != (steps == 2)


def test_any_two_choices_meet_in_the_table() -> None:
    def pairs(cases: Iterable[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
        return {
            pair
            for case in cases
            for pair in itertools.combinations(enumerate((*case, scans(*case[1:3]))), 2)
        }

    assert pairs(PAIRWISE) == pairs(itertools.product(*CHOICES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saving", "rematerialise_blocks", "steps", "dtype"),
    [
        pytest.param(*case, marks=[] if case in PAIRWISE else pytest.mark.drill)
        for case in itertools.product(*CHOICES)
    ],
)
def test_mixed_mode_equals_reverse_mode(
    saving: str, rematerialise_blocks: bool, steps: int, dtype: str
) -> None:
    tolerance = TOLERANCES[dtype]
    config = dataclasses.replace(SAVING[saving], scan_updates=scans(rematerialise_blocks, steps))
    with jax.enable_x64(dtype == "float64"):
        expected = meta_gradient(REVERSE, steps=steps, dtype=dtype)
        actual = meta_gradient(
            config, steps=steps, dtype=dtype, rematerialise_blocks=rematerialise_blocks
        )
        assert relative_error(actual.gradient, expected.gradient) < tolerance
        assert relative_error(actual.inner_state.params, expected.inner_state.params) < tolerance
        assert float(actual.outer_loss) == pytest.approx(float(expected.outer_loss), rel=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(dtype, tolerance, marks=mark)
        for (dtype, tolerance), mark in zip(
            TOLERANCES.items(), (pytest.mark.slow, pytest.mark.drill), strict=True
        )
    ],
)
def test_the_program_as_it_is_optimised_for_use_too(dtype: str, tolerance: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        expected, actual = (
            meta_gradient(
                config,
                steps=2,
                dtype=dtype,
                rematerialise_blocks=config is SAVED,
                optimisation_level=None,
            )
            for config in (REVERSE, SAVED)
        )
        assert relative_error(actual.gradient, expected.gradient) < tolerance


@pytest.mark.parametrize(
    "optimiser",
    ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "momentum"))],
)
def test_mixed_mode_equals_reverse_mode_for_every_inner_optimiser(
    float64: None, optimiser: str
) -> None:
    expected = meta_gradient(REVERSE, steps=2, optimiser=optimiser)
    actual = meta_gradient(SAVED, steps=2, optimiser=optimiser)
    assert relative_error(actual.gradient, expected.gradient) < 1e-12


@pytest.mark.parametrize(
    "optimiser",
    ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "momentum"))],
)
def test_reverse_mode_equals_finite_differences(float64: None, optimiser: str) -> None:
    function, eta, rest = problem(REVERSE, 2, optimiser, "float64", False)
    flat_gradient = jax.flatten_util.ravel_pytree(function(eta, *rest).gradient)[0]
    flat_eta, unravel = jax.flatten_util.ravel_pytree(eta)
    generator = np.random.default_rng(0)
    for _ in range(3):
        # Half along the gradient, so that the slope is not lost in rounding.
        noise = generator.normal(size=flat_eta.shape)
        direction = flat_gradient / jnp.linalg.norm(flat_gradient) + noise / np.linalg.norm(noise)
        step = 1e-4
        up, down = (
            function(unravel(flat_eta + nudge * direction), *rest).outer_loss
            for nudge in (step, -step)
        )
        assert float((up - down) / (2 * step)) == pytest.approx(
            float(flat_gradient @ direction), rel=1e-5
        )


BATCH_OF_8 = 8


@functools.cache
def of_small_models(
    config: MetaGradientConfig, optimiser: str = "adam", dtype: str = "float64", steps: int = 2
) -> MetaGradient:
    """Returns the meta-gradient of models of a few lines, which compile in a second."""
    models = small_problem(dtype)
    keys = jax.random.split(jax.random.key(3), 4)
    transformation = OPTIMISERS[optimiser]()
    function = make_meta_gradient(models.score, models.losses, transformation, config)
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
    return compiled(
        models.initialise_rater(keys[0]),
        inner_state(models.initialise_model(keys[1]), transformation),
        random_windows(keys[2], steps, BATCH_OF_8),
        random_windows(keys[3], BATCH_OF_8),
    )


def assert_equal(actual: MetaGradient, expected: MetaGradient, tolerance: float = 1e-12) -> None:
    for name, a, b in zip(MetaGradient._fields, actual, expected, strict=True):
        assert relative_error(a, b) < tolerance, name


@pytest.mark.parametrize("mode", ["mixed", "reverse"])
def test_a_temperature_is_a_rater_whose_scores_are_divided_by_it(float64: None, mode: str) -> None:
    models, temperature = small_problem("float64"), 0.25
    keys = jax.random.split(jax.random.key(3), 4)
    transformation = OPTIMISERS["momentum"]()
    arguments = (
        models.initialise_rater(keys[0]),
        inner_state(models.initialise_model(keys[1]), transformation),
        random_windows(keys[2], 2, BATCH_OF_8),
        random_windows(keys[3], BATCH_OF_8),
    )

    def divided(eta: Params, windows: Windows) -> jax.Array:
        return models.score(eta, windows) / temperature

    config = MetaGradientConfig(mode)
    actual = make_meta_gradient(
        models.score, models.losses, transformation, config, temperature=temperature
    )(*arguments)
    expected = make_meta_gradient(divided, models.losses, transformation, config)(*arguments)
    assert relative_error(actual.gradient, expected.gradient) < 1e-12
    assert relative_error(actual.inner_state.params, expected.inner_state.params) < 1e-12
    np.testing.assert_allclose(actual.scores_TxB, temperature * expected.scores_TxB, rtol=1e-12)


@pytest.mark.parametrize(
    ("mode", "micro_batches"),
    [
        ("mixed", (2, 0, 0)),
        ("mixed", (0, 4, 0)),
        ("mixed", (0, 0, 4)),
        ("mixed", (1, 8, 16)),
        ("reverse", (2, 4, 4)),
    ],
    ids=str,
)
def test_micro_batches_change_nothing(
    float64: None, mode: str, micro_batches: tuple[int, int, int]
) -> None:
    inner, outer, rater = micro_batches
    config = MetaGradientConfig(
        mode, inner_micro_batch=inner, outer_micro_batch=outer, rater_micro_batch=rater
    )
    assert_equal(of_small_models(config), of_small_models(REVERSE))


@pytest.mark.parametrize(
    ("optimiser", "config"),
    [
        ("adam", MetaGradientConfig()),
        ("adam", RECOMPUTED),
        *((optimiser, SAVED) for optimiser in OPTIMISERS),
    ],
    ids=["adam nothing recomputed", "adam nothing saved", *OPTIMISERS],
)
def test_every_saving_choice_and_optimiser(
    float64: None, optimiser: str, config: MetaGradientConfig
) -> None:
    assert_equal(of_small_models(config, optimiser), of_small_models(REVERSE, optimiser))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps"),
    [
        # Scans and unrolled updates take turns; the drills test all cases.
        pytest.param(
            *(config, steps), marks=[] if config.scan_updates == (number % 2) else pytest.mark.drill
        )
        for number, steps in enumerate((1, 2, 4))
        for config in MIXED
    ],
    ids=str,
)
def test_every_saving_choice_in_float32(config: MetaGradientConfig, steps: int) -> None:
    actual, expected = (of_small_models(c, dtype="float32", steps=steps) for c in (config, REVERSE))
    assert relative_error(actual.gradient, expected.gradient) < 1e-5


def test_micro_batches_in_float32() -> None:
    config = MetaGradientConfig(inner_micro_batch=2, outer_micro_batch=2, rater_micro_batch=2)
    assert_equal(
        of_small_models(config, dtype="float32"), of_small_models(REVERSE, dtype="float32"), 1e-5
    )


def test_reverse_mode_over_several_devices_is_refused() -> None:
    models = small_problem("float32")
    with pytest.raises(
        ConfigError,
        match=r"'reverse' needs each inner model on one device: set placement\.data to 1",
    ):
        make_meta_gradient(models.score, models.losses, OPTIMISERS["adam"](), REVERSE, MeshAxis(2))


@pytest.mark.slow
def test_a_transformer_in_every_economy_at_once(float64: None) -> None:
    """Attention in blocks, loss in chunks, rematerialized blocks, micro-batches and a scan."""
    config = dataclasses.replace(
        SAVED, scan_updates=True, inner_micro_batch=2, outer_micro_batch=2, rater_micro_batch=4
    )
    expected = of_transformers(REVERSE, "float64", 0)
    frugal = {
        "attention": "blocks",
        "attention_block": 3,
        "rematerialise_blocks": True,
        "scan_blocks": True,
    }
    for save_products in (False, True):
        assert_equal(
            of_transformers(config, "float64", 4, **frugal, save_products=save_products), expected
        )


@pytest.mark.slow
def test_bfloat16_computes_roughly_the_same_with_float32_sums() -> None:
    config = MetaGradientConfig(inner_micro_batch=2, outer_micro_batch=2, rater_micro_batch=4)
    actual = of_transformers(
        config, "bfloat16", 4, param_dtype="float32", attention="blocks", attention_block=3
    )
    expected = of_transformers(MetaGradientConfig(), "float32", 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(actual.gradient)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(actual.inner_state.params)} == {
        jnp.dtype("float32")
    }
    assert relative_error(actual.gradient, expected.gradient) < 0.1


def of_transformers(
    config: MetaGradientConfig, dtype: str, loss_chunk: int, **changes: Any
) -> MetaGradient:
    models = transformer_problem(dtype, loss_chunk, **changes)
    keys = jax.random.split(jax.random.key(3), 4)
    transformation = OPTIMISERS["adam"]()
    function = make_meta_gradient(models.score, models.losses, transformation, config)
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(
        models.initialise_rater(keys[0]),
        inner_state(models.initialise_model(keys[1]), transformation),
        random_windows(keys[2], 2, BATCH_OF_8),
        random_windows(keys[3], BATCH_OF_8),
    )
