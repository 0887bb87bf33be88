"""Configs with a time budget spend the FLOPs of that time, and say so."""

from __future__ import annotations

import importlib
import re

import jax
import pytest

from datarater.meta_training.algorithm.language_model import initialise_language_model
from datarater.meta_training.config import build
from datarater.meta_training.run.cost import Spending, spending_of_shapes
from datarater.rater_model.rater import initialise_rater_shapes
from datarater.rater_model.tokenizer import ByteTokenizer


def spending(name: str) -> tuple[Spending, int]:
    """Returns the cost of a shipped config and its meta-steps."""
    config = importlib.import_module(f"datarater.meta_training.configs.{name}").get_config()

    class Tokenizer(ByteTokenizer):
        vocabulary_size = (
            config.tokenizer.vocabulary_size
            if config.tokenizer.kind == "bpe"
            else ByteTokenizer.vocabulary_size
        )

    rater = build.rater_config(config, Tokenizer())
    model = build.language_model_config(config, Tokenizer())
    theta = jax.eval_shape(lambda: initialise_language_model(model, jax.random.key(0)))
    shapes = rater.transformer, model.transformer
    params = initialise_rater_shapes(rater), theta
    return spending_of_shapes(config, shapes, params, config.length), config.meta_steps


@pytest.mark.parametrize("name", ["cpu_minutes", "cpu_hour", "gpu_hour", "gpu_day"])
def test_a_config_spends_its_time_budget_and_not_more(name: str) -> None:
    module = importlib.import_module(f"datarater.meta_training.configs.{name}")
    cost, steps = spending(name)
    flops = cost.at(steps)["flops"]
    assert flops is not None
    assert 0.9 * module.BUDGET.flops < flops <= module.BUDGET.flops

    # The figures in the config's docstring, which a change of its sizes must update.
    text = " ".join((module.__doc__ or "").split())
    total, available = f"{flops:.2e}".replace("e+", "e"), f"{module.BUDGET.flops:.2e}"
    assert f"{total}." in text, total
    assert f"{available.replace('e+', 'e')} FLOPs" in text
    assert f"{module.BUDGET.utilization:.0%} is assumed" in text
    assert re.search(r"Expected gain: \S", text)
