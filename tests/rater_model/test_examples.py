"""The examples in the docstrings of `rater_model` run and give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from datarater import rater_model

MODULES = [
    module.name
    for module in pkgutil.walk_packages(rater_model.__path__, f"{rater_model.__name__}.")
    if not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
