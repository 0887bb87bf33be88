"""Configs with a time budget spend the FLOPs of that time, and say so."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.support.configs import spending_of_config


@pytest.mark.parametrize("name", ["cpu_minutes", "cpu_hour", "gpu_hour", "gpu_day"])
def test_a_config_spends_its_time_budget_and_not_more(name: str) -> None:
    module = importlib.import_module(f"datarater.meta_training.configs.{name}")
    config = module.get_config()
    flops = spending_of_config(config).at(config.meta_steps)["flops"]
    assert flops is not None
    assert 0.9 * module.BUDGET.flops < flops <= module.BUDGET.flops

    # The figures in the config's docstring, which a change of its sizes must update.
    text = " ".join((module.__doc__ or "").split())
    total, available = f"{flops:.2e}".replace("e+", "e"), f"{module.BUDGET.flops:.2e}"
    assert f"{total}." in text, total
    assert f"{available.replace('e+', 'e')} FLOPs" in text
    assert f"{module.BUDGET.utilization:.0%} is assumed" in text
    assert re.search(r"Expected gain: \S", text)
