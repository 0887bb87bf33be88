"""Configs become the parts of a run, or are refused by the field's name."""

import dataclasses
import importlib
import math
import pkgutil
import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from datarater.meta_training import configs, errors
from datarater.meta_training.algorithm.language_model import initialise_language_model
from datarater.meta_training.algorithm.meta_gradient import MetaGradientConfig
from datarater.meta_training.algorithm.population import PopulationConfig
from datarater.meta_training.config import build, checks
from datarater.meta_training.configs import default
from datarater.rater_model.rater import count_parameters, initialise_rater_shapes
from datarater.rater_model.tokenizer import ByteTokenizer
from tests.support.configs import default_with

PAPER = ("pile", "c4", "c4_noclean")
SHIPPED = [module.name for module in pkgutil.iter_modules(configs.__path__)]
NEEDS_A_POOL = (
    "default",
    "mixed_corpus",
    "cpu_minutes",
    "cpu_hour",
    "gpu_hour",
    "gpu_day",
)  # whose data.inner the command line gives


def config_of(name: str) -> ConfigDict:
    config: ConfigDict = importlib.import_module(
        f"datarater.meta_training.configs.{name}"
    ).get_config()
    return config


def config_with(**changes: Any) -> ConfigDict:
    return default_with(**{"data__inner": "corpus/*.jsonl", **changes})


def test_the_config_file_and_the_dataclass_have_the_same_defaults() -> None:
    config = default.get_config()
    assert build.meta_gradient_config(config) == MetaGradientConfig()
    assert build.population_config(config) == PopulationConfig()


def flat(config: ConfigDict) -> dict[str, Any]:
    fields: dict[str, Any] = flax.traverse_util.flatten_dict(config.to_dict(), sep=".")
    return fields


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_accepted(name: str) -> None:
    config = config_of(name)
    assert bool(config.data.inner) == (name not in NEEDS_A_POOL)
    config.data.inner = config.data.inner or "corpus/*.jsonl"
    checks.check(config)
    assert flat(config).keys() == flat(default.get_config()).keys()


@pytest.mark.parametrize("field", sorted(flat(default.get_config())))
def test_no_field_takes_whatever_is_given(field: str) -> None:
    """A new field needs a range; a switch has one by its type."""
    if isinstance(flat(default.get_config())[field], bool):
        with pytest.raises(TypeError):
            config_with(**{field: "nonsense"})
        return
    config = config_with(tokenizer__kind="bpe", inner_optimiser__name="adamw")
    if field == "inner_optimiser.momentum":
        config.inner_optimiser.name = "sgd"
    config.update_from_flattened_dict({field: None})
    with pytest.raises(errors.ConfigError, match=rf"^{re.escape(field)} must .*, not None"):
        checks.check(config)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_configs_hold_the_papers_values(name: str) -> None:
    config = config_of(name)
    checks.check(config)
    stated = {
        "inner_updates": 2,
        "inner_batch": 128,
        "outer_batch": 128,
        "length": 2048,
        "meta_steps": 8000,
        "population.size": 8,
        "population.warmup_steps": 0,
        "meta_optimiser.warmup_steps": 100,
        "meta_optimiser.clip_norm": 0.01,
        "meta_optimiser.weight_decay": 0.1,
        "data.inner": {"pile": "pile/train/*.jsonl.zst", "c4": "tfds:c4/en:train"}.get(
            name, "tfds:c4/en.noclean:train"
        ),
        "data.outer": "",
        "data.windows": "packed",
        "inner_optimiser.name": "adam",
        "meta_gradient.mode": "mixed",
        "rater.ngram_orders": (),
    }
    ours = {
        "data.outer_share": 0.01,
        "data.text_field": "text",
        "rater.heads": 8,
        "rater.dtype": "bfloat16",
        "inner_model.heads": 10,
        "inner_model.dtype": "bfloat16",
    }
    values = flat(config)
    assert {field: values[field] for field in stated | ours} == stated | ours

    class Tokenizer(ByteTokenizer):
        vocabulary_size = config.tokenizer.vocabulary_size

    rater = build.rater_config(config, Tokenizer())
    model = dataclasses.replace(build.language_model_config(config, Tokenizer()), loss_chunk=0)
    theta = jax.eval_shape(lambda: initialise_language_model(model, jax.random.key(0)))
    assert count_parameters(initialise_rater_shapes(rater)) == pytest.approx(50e6, rel=0.05)
    assert count_parameters(theta) == pytest.approx(400e6, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inner_model__attention": "fused"},
            r"^inner_model\.attention 'fused' has no derivative of its gradient",
        ),
        ({"rater__attention": "flash"}, r"^rater\.attention 'flash' is a fused kernel"),
        ({"inner_model__loss_chunk": -1}, r"inner_model\.loss_chunk must be at least 0, not -1"),
        ({"meta_gradient__mode": "forward"}, r"^meta_gradient\.mode must be"),
        (
            {"meta_gradient__inner_micro_batch": -2},
            r"meta_gradient\.inner_micro_batch must be at least 0, not -2",
        ),
        (
            {"meta_gradient__inner_micro_batch": 5},
            r"meta_gradient\.inner_micro_batch \(5\) must divide inner_batch \(32\)",
        ),
        (
            {"meta_gradient__outer_micro_batch": 3},
            r"meta_gradient\.outer_micro_batch \(3\) must divide outer_batch \(16\)",
        ),
        (
            {"meta_gradient__rater_micro_batch": 7},
            r"meta_gradient\.rater_micro_batch \(7\) must divide inner_updates x",
        ),
        ({"placement__data": -1}, r"placement\.data must be at least 0, not -1"),
        (
            {"inner_model__width": 66},
            r"^inner_model\.width 66 must be a multiple of 2 x heads \(2\)",
        ),
        (
            {"data__windows": "document", "data__minimum_length": 300},
            r"data\.minimum_length \(300\) must be at most length \(256\)",
        ),
        (
            {"inner_model__save_products": True},
            r"inner_model\.save_products must be False, not True: .* "
            r"set inner_model\.rematerialise_blocks too",
        ),
        (
            {"meta_gradient__save_inner_gradients": True},
            r"meta_gradient\.save_inner_gradients must be False, not True: .* "
            r"set meta_gradient\.rematerialise_updates",
        ),
        (
            {"inner_optimiser__eps_root": 0.0},
            r"inner_optimiser\.eps_root must be above 0 and finite in float32, not 0\.0: Adam is",
        ),
        (
            {"inner_optimiser__name": "lion"},
            r"inner_optimiser\.name must be .*'adamw', 'sgd'.*, not 'lion'",
        ),
        (
            {"meta_optimiser__schedule": "linear", "meta_steps": 10},
            r"^meta_optimiser\.schedule 'linear' has no step to decay over: meta_steps \(10\) must",
        ),
        ({"validate_every": 5}, r"^validate_every \(5\) needs a validation set: give data\.valid"),
        (
            {"validate_every": 20, "meta_steps": 10, "data__validation": "v"},
            r"^validate_every \(20\) must be at most meta_steps \(10\): no rater would be valid",
        ),
        (
            {"data__outer": "a=a;b=b", "data__validation_share": 0.1},
            r"^data\.validation_share \(0\.1\) cannot be a share of several outer sets: give files",
        ),
        (
            {"data__outer_share": 0.6, "data__validation_share": 0.4},
            r"^data\.outer_share \(0\.6\) \+ data\.validation_share \(0\.4\) must be below 1: the",
        ),
        (
            {"data__outer": "t", "data__validation_share": 0.6, "data__test_share": 0.4},
            r"^data\.validation_share \(0\.6\) \+ data\.test_share \(0\.4\) must be below 1: the",
        ),
        ({"early_stopping__patience": 2}, r"^early_stopping\.patience 2 needs validations: set"),
        ({"choose_checkpoint": "validation"}, r"^choose_checkpoint 'validation' needs validations"),
        (
            {
                "validate_every": 5,
                "data__validation": "v",
                "placement__shard_parameters": True,
            },
            r"^validate_every needs models that fit on one device, so it cannot be used with",
        ),
        ({"population__size": 0}, r"^population\.size must be at least 1, not 0$"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        checks.check(config_with(**changes))


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("field", "values", "others"),
    [
        ("seed", (-1, 2**32 - 2), {}),
        ("inner_batch", (0, 1), {}),
        ("outer_batch", (0,), {}),
        ("length", (1,), {}),
        ("checkpoint_every", (0,), {}),
        ("keep_checkpoints", (0,), {}),
        ("data.outer_share", (0.0, 1.0, NAN), {}),
        ("data.windows", ("rows",), {}),
        ("data.validation_share", (-0.1, 1.0), {}),
        ("data.test_share", (-0.1, 1.0), {}),
        ("data.minimum_length", (-3,), {}),
        ("data.reader_processes", (-1,), {}),
        ("tokenizer.kind", ("words",), {}),
        ("tokenizer.vocabulary_size", (0, 257), {"tokenizer.kind": "bpe"}),
        ("tokenizer.training_documents", (0,), {"tokenizer.kind": "bpe"}),
        ("rater.width", (0, -64), {}),
        ("rater.heads", (0,), {}),
        ("rater.layers", (0,), {}),
        ("rater.ngram_orders", ((1,), (2, 2), (2.5,), ("two",)), {}),
        ("rater.ngram_rows", (0,), {}),
        ("rater.dtype", ("bf16", "int8", "float16", "float64", ""), {}),
        ("inner_model.dtype", ("bf16", "int8", "float16", "float64", ""), {}),
        ("inner_model.mlp_width", (0,), {}),
        ("inner_model.attention_block", (0,), {}),
        ("inner_model.attention", ("linear",), {}),
        ("inner_model.loss_chunk", (-1,), {}),
        ("inner_optimiser.learning_rate", (0.0, -1e-3, INF, NAN), {}),
        ("inner_optimiser.b1", (1.0, -0.1, 1 - 1e-9, NAN), {}),
        ("inner_optimiser.b2", (1.0, 1.5), {}),
        ("inner_optimiser.eps_root", (NAN, -1e-8, 1e-40), {}),
        ("inner_optimiser.weight_decay", (-1.0, INF), {"inner_optimiser.name": "adamw"}),
        ("inner_optimiser.momentum", (-2.0, 1.0), {"inner_optimiser.name": "sgd"}),
        ("meta_optimiser.learning_rate", (0.0, INF, NAN), {}),
        ("meta_optimiser.warmup_steps", (-5,), {}),
        ("meta_optimiser.schedule", ("exponential",), {}),
        ("meta_optimiser.final_share", (-0.1, 1.1, NAN), {}),
        ("data.validation_share", (-0.1, 1.0, NAN), {}),
        ("validate_every", (-1,), {}),
        ("validation.models", (0,), {}),
        ("validation.updates", (0,), {}),
        ("validation.windows", (0,), {}),
        ("early_stopping.patience", (-1,), {}),
        ("choose_checkpoint", ("best",), {}),
        ("rater_average.decay", (-0.1, 1.0, NAN), {}),
        ("meta_optimiser.clip_norm", (0.0, -1.0, INF, NAN), {}),
        ("meta_optimiser.weight_decay", (-1.0, NAN), {}),
        ("meta_optimiser.b1", (1.0,), {}),
        ("meta_optimiser.b2", (1.0,), {}),
        ("meta_optimiser.epsilon", (0.0, -1e-8, INF), {}),
        ("population.lifetime", (-1,), {}),
        ("population.warmup_steps", (-1,), {}),
        ("population.warmup_batch", (-1,), {}),
        ("population.warmup_trajectories", (0,), {}),
        ("population.warmup_entries", (0,), {}),
        ("population.warmup_first_share", (0.0, 1.1, NAN), {}),
        ("meta_gradient.mode", ("forward",), {}),
        ("meta_gradient.outer_micro_batch", (-1,), {}),
        ("placement.population", (-1,), {}),
        ("export.max_windows", (0,), {}),
        ("minimum_effective_sample_share", (-0.1, 1.1, NAN), {}),
    ],
)
def test_a_value_out_of_range_is_refused_by_field_and_value(
    field: str, values: tuple[Any, ...], others: dict[str, Any]
) -> None:
    checks.check(config_with(**others))
    for value in values:
        with pytest.raises(
            errors.ConfigError, match=rf"^{re.escape(field)} must .*, not {re.escape(repr(value))}"
        ):
            checks.check(config_with(**others, **{field: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2**32 - 3},
        # Absurd but a number: the run reports what comes of it.
        {"meta_optimiser.learning_rate": 1e30},
        {"inner_optimiser.b1": 0.0, "inner_optimiser.b2": 0.0},
        {
            "inner_optimiser.name": "sgd",
            "inner_optimiser.momentum": 0.0,
            "inner_optimiser.eps_root": 0.0,
        },
        {"inner_optimiser.momentum": 1.5, "inner_optimiser.weight_decay": -1.0},  # not of Adam
        {"data.outer": "target/*.jsonl", "data.outer_share": 0.0},
        {"data.minimum_length": 0, "data.windows": "document"},
        {"data.minimum_length": 300},  # not of packed windows
        {"tokenizer.vocabulary_size": 0},  # not of bytes
        {"tokenizer.kind": "bpe", "tokenizer.vocabulary_size": 258},
        {"rater.ngram_orders": (), "rater.ngram_rows": 0},
        {"rater.dtype": "bfloat16", "inner_model.dtype": "bfloat16"},
        {"meta_optimiser.warmup_steps": 0, "meta_optimiser.weight_decay": 0.0},
        {"population.lifetime": 0},
        {
            "population.warmup_steps": 0,
            "population.warmup_entries": 0,
            "population.warmup_trajectories": 0,
        },
        {"population.warmup_first_share": 1.0},
        {"minimum_effective_sample_share": 0.0},
        {"inner_model.save_products": True, "inner_model.rematerialise_blocks": True},
        {"meta_gradient.save_inner_gradients": True, "meta_gradient.rematerialise_updates": True},
    ],
)
def test_values_at_the_edge_and_values_that_count_for_nothing_pass(changes: dict[str, Any]) -> None:
    config = config_with(**changes)
    checks.check(config)
    build.inner_optimiser(config)
    build.meta_optimiser(config)


def test_float64_passes_where_jax_has_it() -> None:
    with jax.enable_x64(True):
        checks.check(config_with(**{"rater.dtype": "float64", "inner_model.dtype": "float64"}))


def test_a_missing_field_is_named() -> None:
    config = config_with()
    del config.meta_optimiser.epsilon
    with pytest.raises(
        errors.ConfigError, match=r"has no field meta_optimiser\.epsilon: start from"
    ):
        checks.check(config)


def test_micro_batches_are_checked_against_each_devices_part() -> None:
    config = config_with(
        placement__data=4, placement__population=1, meta_gradient__inner_micro_batch=16
    )
    with pytest.raises(
        errors.ConfigError,
        match=r"inner_micro_batch \(16\) must divide inner_batch / .* \(32 / 4\)",
    ):
        build.placement(config, [jax.local_devices()[0]] * 4)


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_its_formula(schedule: str, warmup_steps: int) -> None:
    steps, peak, share = 21, 0.5, 0.1
    config = config_with(
        meta_steps=steps,
        meta_optimiser__learning_rate=peak,
        meta_optimiser__warmup_steps=warmup_steps,
        meta_optimiser__schedule=schedule,
        meta_optimiser__final_share=share,
    )
    checks.check(config)
    first = max(0, warmup_steps - 1)

    def expected(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        progress = (step - first) / (steps - 1 - first)
        factor = {
            "constant": 1.0,
            "linear": 1 - (1 - share) * progress,
            "cosine": share + (1 - share) * (1 + math.cos(math.pi * progress)) / 2,
        }[schedule]
        return peak * factor

    rate = build.meta_learning_rate(config)
    assert [float(rate(step)) for step in range(steps)] == pytest.approx(
        [expected(step) for step in range(steps)], rel=1e-6
    )

    # Adam's first update is -rate x sign(gradient), and so is each one of a constant gradient.
    optimiser = build.meta_optimiser(config)
    params = {"a": jnp.zeros(1)}
    state = optimiser.init(params)
    for step in range(steps):
        update, state = optimiser.update({"a": jnp.ones(1)}, state, params)
        assert float(update["a"][0]) == pytest.approx(-expected(step), rel=1e-4)


@pytest.mark.parametrize(("first", "last"), [(2, 1), (0, 3), (190, 201)])
def test_a_trace_of_steps_that_a_run_does_not_have_is_refused(first: int, last: int) -> None:
    checks.check(config_with(profile__first_step=190, profile__last_step=200))
    with pytest.raises(errors.ConfigError, match=r"profile\.last_step"):
        checks.check(config_with(profile__first_step=first, profile__last_step=last))
