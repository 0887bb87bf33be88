"""Prepares data for tests: from lists of texts, or as a run does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from datarater.meta_training.data.cutting import CutOptions
from datarater.meta_training.data.plan import Plan
from datarater.meta_training.data.prepare import write_prepared
from datarater.meta_training.data.prepared import Index, PreparedWindows
from datarater.meta_training.data.sets import TextSet
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.meta_training.run import preparation
from datarater.meta_training.run.prepared_run import Experiment, open_experiment
from datarater.meta_training.run.start_models import Models
from datarater.rater_model.tokenizer import ByteTokenizer, Tokenizer


class ListedTexts:
    """Texts of a list, of the sources that a function of them names."""

    def __init__(self, texts: Sequence[str], source_N: Sequence[int] | None = None) -> None:
        self.name, self.identity = "listed", repr(texts)
        self.fingerprint = self.identity
        self.rejected: dict[str, int] = {}
        self.source_N = None if source_N is None else np.asarray(source_N, np.int32)
        self.source_names = [str(number) for number in range(max(source_N or [0]) + 1)]
        self._texts = list(texts)
        self.reader = self

    def units(self, target_bytes: int) -> list[tuple[int, int]]:
        """Returns a unit for each few texts, or one for all."""
        size = max(1, min(len(self), target_bytes))
        return [(start, min(len(self), start + size)) for start in range(0, len(self), size)]

    def read(self, index: int) -> tuple[str | None, str]:
        """Returns a text, and no reason against it."""
        return self._texts[index], ""

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:
        return self._texts[index]


def all_of(role: str, source: ListedTexts) -> TextSet:
    """Returns the set of all texts of a source."""
    return TextSet(role, source, np.ones(len(source), bool))


def plan_of(
    sets: dict[str, TextSet], cutting: CutOptions, tokenizer: Tokenizer, **more: object
) -> Plan:
    """Returns a plan with defaults."""
    values: dict[str, object] = {
        "exclude_near_duplicates": False,
        "reference_documents": 4,
        "made_with": {"data.within_source_share": cutting.within_sources},
        "data": "data",
        **more,
    }
    return Plan(sets=sets, tokenizer=tokenizer, cutting=cutting, **values)  # type: ignore[arg-type]


def windows_of(
    folder: Path,
    texts: Sequence[str],
    length: int,
    mode: str,
    minimum_length: int = 2,
    *,
    role: str = "inner",
    source_N: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    **more: object,
) -> PreparedWindows:
    """Prepares the windows of a list of texts; with the sources of texts, each by itself."""
    source = ListedTexts(texts, source_N)
    cutting = CutOptions(
        length=length,
        mode=mode,
        minimum_length=minimum_length,
        within_sources=source_N is not None,
    )
    sets = {"inner": all_of("inner", source)}
    if role != "inner":
        sets = {
            "inner": all_of("inner", ListedTexts(["a pool " * length])),
            role: all_of(role, source),
        }
    write_prepared(
        plan_of(sets, cutting, tokenizer or ByteTokenizer(), **more), folder, WorkerPool(0)
    )
    return PreparedWindows(folder, role)


def prepare(config: ConfigDict, folder: Path, tokenizer: bytes | None = None) -> Index:
    """Prepares the data of a config in this process."""
    return preparation.prepare(config, folder, tokenizer, processes=0)


def experiment_of(
    config: ConfigDict, tokenizer: bytes | None = None, models: Models | None = None
) -> Experiment:
    """Returns the parts of a run; its shards are gone."""
    with tempfile.TemporaryDirectory() as folder:
        preparation.prepare(config, Path(folder), tokenizer, processes=0, models=models)
        return open_experiment(config, Path(folder), models)
