from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarater.meta_training.evaluate.protocol import MODELS, Model, Protocol
from datarater.meta_training.evaluate.runs import RunCache, RunResult, RunSpec
from datarater.meta_training.evaluate.walk import BatchTopK, KeptDocuments, Selection

EVERYTHING = KeptDocuments(np.ones(9, bool))
TOP_K = BatchTopK(np.arange(9), best=4, drawn=8)
SPEC = RunSpec(MODELS["0.05M"], Protocol(), 0, "pool", "validation", EVERYTHING.digest)
RESULT = RunResult([(0, 5.5), (10, 3.25)], 3.5, {"wiki": 3.0, "": 3.5}, 1, 12.5)


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
        {"kept": KeptDocuments(np.arange(9) != 4).digest},
        {"kept": TOP_K.digest},
        {"questions": "other"},
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


def test_another_version_of_the_code_has_another_digest() -> None:
    later = dataclasses.replace(SPEC, run_version=SPEC.run_version + 1)
    assert later.digest != SPEC.digest


def test_equal_specifications_have_one_digest() -> None:
    assert SPEC.digest == dataclasses.replace(SPEC).digest


def test_runs_without_questions_have_the_digest_of_those_before_there_were_any() -> None:
    assert "questions" not in SPEC.to_json()
    asked = dataclasses.replace(SPEC, questions="digest")
    assert asked.to_json() == {**SPEC.to_json(), "questions": "digest"}


def test_arms_that_select_the_same_share_runs() -> None:
    assert EVERYTHING.digest == KeptDocuments(np.arange(9) >= 0).digest
    assert EVERYTHING.digest != KeptDocuments(np.ones(10, bool)).digest
    nothing = KeptDocuments(np.zeros(8, bool))
    assert nothing.digest != KeptDocuments(np.zeros(9, bool)).digest
    assert TOP_K.digest == BatchTopK(np.argsort(np.arange(9)), best=4, drawn=8).digest


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(TOP_K, best=3),
        dataclasses.replace(TOP_K, drawn=9),
        dataclasses.replace(TOP_K, rank_N=np.arange(9)[::-1]),
        dataclasses.replace(TOP_K, rank_N=np.arange(10)),
    ],
    ids=["best", "drawn", "ranks", "documents"],
)
def test_batches_that_are_chosen_otherwise_have_another_digest(other: BatchTopK) -> None:
    assert other.digest != TOP_K.digest


@pytest.mark.parametrize("selection", [EVERYTHING, TOP_K])
def test_a_selection_is_the_same_in_a_worker_process(selection: Selection) -> None:
    assert pickle.loads(pickle.dumps(selection)).digest == selection.digest


@pytest.mark.parametrize("content", ["", "{", "{}", '{"spec": {}, "result": {}}', "[]"])
def test_a_damaged_file_is_a_run_that_has_not_finished(content: str, tmp_path: Path) -> None:
    cache = RunCache(tmp_path)
    cache.store(SPEC, RESULT)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert cache.load(SPEC) is None
    cache.store(SPEC, RESULT)
    assert cache.load(SPEC) == RESULT
