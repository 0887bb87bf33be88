from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarater.meta_training.evaluate import runs
from datarater.meta_training.evaluate.protocol import MODELS, Model, Protocol
from datarater.meta_training.evaluate.runs import RunCache, RunResult, RunSpec, kept_digest

SPEC = RunSpec(MODELS["0.05M"], Protocol(), 0, "pool", "validation", kept_digest(np.ones(9, bool)))
RESULT = RunResult([(0, 5.5), (10, 3.25)], {"wiki": 3.0, "": 3.5}, 1, 12.5)


def test_a_stored_run_is_loaded_as_it_was(tmp_path: Path) -> None:
    cache = RunCache(tmp_path / "runs")
    assert cache.load(SPEC) is None
    cache.store(SPEC, RESULT)
    assert cache.load(SPEC) == RESULT
    assert [path.suffix for path in cache.folder.iterdir()] == [".json"]


def changes(of: Model | Protocol) -> list[Any]:
    """Returns copies of a dataclass with one field changed, for each field."""
    return [
        dataclasses.replace(
            of,
            **{field.name: "bfloat16" if field.name == "dtype" else 7},  # type: ignore[arg-type]
        )
        for field in dataclasses.fields(of)
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"pool": "other"},
        {"validation": "other"},
        {"kept": kept_digest(np.arange(9) != 4)},
        *({"model": model} for model in changes(SPEC.model)),
        *({"protocol": protocol} for protocol in changes(SPEC.protocol)),
    ],
    ids=str,
)
def test_whatever_determines_a_run_changes_its_digest(
    changed: dict[str, object], tmp_path: Path
) -> None:
    other = dataclasses.replace(SPEC, **changed)  # type: ignore[arg-type]
    assert other.digest != SPEC.digest
    cache = RunCache(tmp_path)
    cache.store(SPEC, RESULT)
    assert cache.load(other) is None


def test_another_version_of_the_code_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SPEC.digest
    monkeypatch.setattr(runs, "RUN_VERSION", runs.RUN_VERSION + 1)
    assert SPEC.digest != before


def test_equal_specifications_have_one_digest() -> None:
    assert SPEC.digest == dataclasses.replace(SPEC).digest


def test_arms_that_keep_the_same_documents_share_runs() -> None:
    assert kept_digest(np.ones(9, bool)) == kept_digest(np.arange(9) >= 0)
    assert kept_digest(np.ones(9, bool)) != kept_digest(np.ones(10, bool))
    assert kept_digest(np.zeros(8, bool)) != kept_digest(np.zeros(9, bool))


@pytest.mark.parametrize("content", ["", "{", "{}", '{"spec": {}, "result": {}}', "[]"])
def test_a_damaged_file_is_a_run_that_has_not_finished(content: str, tmp_path: Path) -> None:
    cache = RunCache(tmp_path)
    cache.store(SPEC, RESULT)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert cache.load(SPEC) is None
    cache.store(SPEC, RESULT)
    assert cache.load(SPEC) == RESULT
