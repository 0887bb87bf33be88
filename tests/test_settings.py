"""Configs become the parts of a run, or are refused by the field's name."""

import dataclasses
import importlib
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from meta_training import settings
from meta_training.configs import default
from meta_training.language_model import initialise_language_model
from meta_training.meta_gradient import MetaGradientConfig
from meta_training.population import PopulationConfig
from rater_model.rater import count_parameters, initialise_rater_shapes
from rater_model.tokenizer import ByteTokenizer

PAPER = ("pile", "c4", "c4_noclean")


def config_of(name: str) -> ConfigDict:
    config: ConfigDict = importlib.import_module(f"meta_training.configs.{name}").get_config()
    return config


def config_with(**changes: Any) -> ConfigDict:
    config = default.get_config()
    config.data.inner = "corpus/*.jsonl"
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def test_the_config_file_and_the_dataclass_have_the_same_defaults() -> None:
    config = default.get_config()
    assert settings.meta_gradient_config(config) == MetaGradientConfig()
    assert settings.population_config(config) == PopulationConfig()


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_configs_hold_the_papers_values(name: str) -> None:
    config = config_of(name)
    settings.check(config)
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
        "data.windows": "packed",
        "inner_optimiser.name": "adam",
        "meta_gradient.mode": "mixed",
    }
    for field, value in stated.items():
        found: Any = config
        for part in field.split("."):
            found = found[part]
        assert found == value, field

    class Tokenizer(ByteTokenizer):
        vocabulary_size = config.tokenizer.vocabulary_size

    rater = settings.rater_config(config, Tokenizer())
    model = dataclasses.replace(settings.language_model_config(config, Tokenizer()), loss_chunk=0)
    theta = jax.eval_shape(lambda: initialise_language_model(model, jax.random.key(0)))
    assert count_parameters(initialise_rater_shapes(rater)) == pytest.approx(50e6, rel=0.05)
    assert count_parameters(theta) == pytest.approx(400e6, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inner_model__attention": "cudnn"},
            r"config\.inner_model: attention 'cudnn' is a fused kernel without a jvp",
        ),
        ({"rater__attention": "flash"}, r"config\.rater: attention 'flash' is a fused kernel"),
        ({"inner_model__loss_chunk": -1}, r"config\.inner_model: loss_chunk must be at least 0"),
        ({"meta_gradient__mode": "forward"}, r"config\.meta_gradient: meta_gradient\.mode must be"),
        ({"meta_gradient__inner_micro_batch": -2}, r"meta_gradient\.inner_micro_batch must be at least 0, not -2"),
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
        ({"placement__data": -1}, r"placement\.data must be at least 0"),
        ({"inner_optimiser__eps_root": 0.0}, r"inner_optimiser\.eps_root must be above 0"),
        ({"inner_optimiser__name": "lion"}, r"inner_optimiser\.name must be adam, adamw or sgd, not 'lion'"),
        ({"population__size": 0}, r"config\.population: population\.size must be at least 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(settings.ConfigError, match=message):
        settings.check(config_with(**changes))


def test_micro_batches_are_checked_against_each_devices_part(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_with(placement__data=4, placement__population=1, meta_gradient__inner_micro_batch=16)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 4)
    with pytest.raises(settings.ConfigError, match=r"inner_micro_batch \(16\) must divide inner_batch / .* \(32 / 4\)"):
        settings.placement(config)
