"""Tokenizes the documents of all sets, unit by unit, and compares them with held-out documents.

A unit is a range of a source's documents. A worker writes its tokens, then its table; with the
table the unit is done, and a preparation that was killed does not repeat it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datarater.meta_training.data.near_duplicates import (
    HeldOutSequences,
    Sequences,
    sequences_of,
)
from datarater.meta_training.data.plan import Plan
from datarater.meta_training.data.texts import TextReader
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.rater_model.atomic_files import rename_durably
from datarater.rater_model.tokenizer import Tokenizer, in_chunks

_LOG = logging.getLogger("datarater")
_COMPARED_CHARACTERS = 2**20


class _Documents(NamedTuple):
    """Documents of a source that a worker reads."""

    reader: TextReader
    index_D: np.ndarray
    set_D: np.ndarray

    def texts(self) -> Iterator[str]:
        """Yields the texts; they were usable when their sets were decided.

        Raises:
            OSError: One is unusable now.
        """
        for index in self.index_D:
            text, reason = self.reader.read(int(index))
            if text is None:
                raise OSError(f"document {index} changed while it was prepared: {reason}")
            yield text


def _documents(plan: Plan, roles: Sequence[str]) -> list[_Documents]:
    """Returns the documents of sets, source by source and unit by unit."""
    numbers = {role: number for number, role in enumerate(plan.sets)}
    sources = {id(texts.source): texts.source for texts in plan.sets.values()}
    units = []
    for source in sources.values():
        set_N = np.full(len(source), -1, np.int8)
        for role in roles:
            if plan.sets[role].source is source:
                set_N[plan.sets[role].member_N] = numbers[role]
        for start, stop in source.units(plan.unit_bytes):
            index_D = start + np.flatnonzero(set_N[start:stop] >= 0)
            if len(index_D):
                units.append(_Documents(source.reader, index_D, set_N[index_D]))
    return units


def held_out_sequences(plan: Plan, ranks: dict[str, int], pool: WorkerPool) -> HeldOutSequences:
    """Collects the word sequences of all sets but the last."""
    held_out = [role for role in plan.sets if ranks[role] < len(ranks) - 1]
    rank_K = np.array([ranks[role] for role in plan.sets], np.int64)
    units = _documents(plan, held_out)
    found = pool.run(
        [_Collecting(unit) for unit in units],
        "held-out documents",
        [len(unit.index_D) for unit in units],
    )
    return HeldOutSequences.of(
        [(sequences, rank_K[unit.set_D]) for unit, sequences in zip(units, found, strict=True)]
    )


@dataclasses.dataclass(frozen=True)
class _Collecting:
    """The work on a unit of held-out documents."""

    documents: _Documents

    def __call__(self) -> Sequences:
        """Returns the documents' word sequences."""
        return sequences_of(list(self.documents.texts()))


@dataclasses.dataclass(frozen=True)
class _Tokenizing:
    """The work on one unit. R is the rank of each set, by its number."""

    documents: _Documents
    tokenizer: Tokenizer
    separated: bool
    dtype: np.dtype[Any]
    held_out: str
    rank_R: np.ndarray
    path: str

    def __call__(self) -> str:
        """Writes the tokens and what the documents share with held-out sets, at once or not."""
        separator = np.full(int(self.separated), self.tokenizer.separator_id, self.dtype)
        held_out = _load_held_out(self.held_out) if self.held_out else None
        tokens, shared, equal = [], [np.zeros((0, 2), np.int64)], []
        done = 0
        with open(f"{self.path}.new", "wb") as file:
            for texts in in_chunks(self.documents.texts(), _COMPARED_CHARACTERS):
                for ids in self.tokenizer.encode_batch(texts):
                    file.write(ids.astype(self.dtype).tobytes() + separator.tobytes())
                    tokens.append(len(ids) + len(separator))
                if held_out:
                    rank_N = self.rank_R[self.documents.set_D[done : done + len(texts)]]
                    rows, equal_N = held_out.matches(sequences_of(texts), rank_N)
                    shared.append(_moved(rows, done))
                    equal.append(equal_N)
                done += len(texts)

        rename_durably(f"{self.path}.new", f"{self.path}.tokens")
        with open(f"{self.path}.new", "wb") as file:
            np.savez(
                file,
                index_D=self.documents.index_D,
                set_D=self.documents.set_D,
                tokens_D=np.array(tokens, np.int64),
                shared=np.concatenate(shared),
                equal_D=np.concatenate(equal) if equal else np.zeros(done, bool),
            )
        # The table comes last: with it the unit is done.
        rename_durably(f"{self.path}.new", f"{self.path}.npz")
        return self.path


_loaded: dict[str, HeldOutSequences] = {}


def _load_held_out(folder: str) -> HeldOutSequences:
    """Returns the held-out sequences, mapped once for all units of a process."""
    if folder not in _loaded:
        _loaded.clear()
        arrays = [
            np.load(f"{folder}/{field.name}.npy", mmap_mode="r")
            for field in dataclasses.fields(HeldOutSequences)
        ]
        _loaded[folder] = HeldOutSequences(*arrays)
    return _loaded[folder]


class Unit(NamedTuple):
    """A tokenized unit: its documents, and what they share with held-out sets."""

    path: str
    index_D: np.ndarray
    set_D: np.ndarray
    tokens_D: np.ndarray
    shared: np.ndarray
    equal_D: np.ndarray


def tokenized_units(
    plan: Plan,
    ranks: dict[str, int],
    held_out: HeldOutSequences | None,
    work: Path,
    pool: WorkerPool,
) -> list[Unit]:
    """Tokenizes what an earlier, killed preparation has not; returns all units in order."""
    folder = work.parent / "held_out"
    if held_out:
        folder.mkdir(exist_ok=True)
        for field in dataclasses.fields(held_out):
            np.save(folder / f"{field.name}.npy", getattr(held_out, field.name))
    _loaded.clear()

    units = _documents(plan, list(plan.sets))
    tasks = [
        _Tokenizing(
            unit,
            plan.tokenizer,
            plan.cutting.mode == "packed",
            plan.dtype,
            str(folder) if held_out else "",
            np.array([ranks[role] for role in plan.sets], np.int64),
            str(work / f"{number:06d}"),
        )
        for number, unit in enumerate(units)
    ]
    missing = [task for task in tasks if not Path(f"{task.path}.npz").exists()]
    if len(missing) < len(tasks):
        _LOG.info("continuing: %d of %d units are done", len(tasks) - len(missing), len(tasks))
    sizes = [len(task.documents.index_D) for task in missing]
    for _ in pool.run(missing, "documents", sizes):
        pass
    return [_read_unit(task.path) for task in tasks]


def _read_unit(path: str) -> Unit:
    with np.load(f"{path}.npz") as arrays:
        return Unit(f"{path}.tokens", *(arrays[name] for name in Unit._fields[1:]))


def _moved(shared: np.ndarray, first: int) -> np.ndarray:
    """Returns rows of (document, sequence) with documents counted from another first one."""
    moved: np.ndarray = shared + np.array([first, 0])
    return moved


def near_duplicates(units: Sequence[Unit], held_out: HeldOutSequences | None) -> list[np.ndarray]:
    """Returns which documents of each unit leave their sets as near-duplicates."""
    if not held_out:
        return [np.zeros(len(unit.index_D), bool) for unit in units]
    first_U = np.cumsum([0, *(len(unit.index_D) for unit in units)])
    shared = [
        _moved(unit.shared, int(first)) for unit, first in zip(units, first_U[:-1], strict=True)
    ]
    left_out = held_out.near_duplicates(
        np.concatenate([np.zeros((0, 2), np.int64), *shared]),
        np.concatenate([np.zeros(0, bool), *(unit.equal_D for unit in units)]),
    )
    return np.split(left_out, first_U[1:-1])
