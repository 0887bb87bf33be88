"""Tokenizes and cuts a corpus once, in parallel, into the folder that `prepared` describes.

1. The sets are opened: each document has a set (`sets`).
2. The word sequences of held-out documents are collected, in parallel.
3. All documents are tokenized and compared with those sequences, in parallel, unit by unit. A unit
   is a range of a source's documents; what it comes to is committed to `FOLDER/work`, and a
   preparation that was killed continues after the last committed unit.
4. Documents that are near-duplicates of a held-out set leave the sets below it; the stream of each
   set is cut into windows, which are written in parallel.
5. The index is written, then `FOLDER/work` is deleted.

Windows and their order depend neither on the number of processes nor on the units.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datarater.meta_training.data.cutting import Cut, CutOptions, cut
from datarater.meta_training.data.near_duplicates import (
    HeldOutSequences,
    Sequences,
    sequences_of,
)
from datarater.meta_training.data.prepared import (
    FORMAT,
    INDEX,
    REFERENCE,
    TOKENIZER,
    Index,
    PreparedSet,
    Shard,
    file_name,
)
from datarater.meta_training.data.sets import INNER, OUTER, TEST, VALIDATION, TextSet
from datarater.meta_training.data.texts import DataError, TextReader
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.rater_model.atomic_files import replace_file, replacing, write_json
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.json_codec import to_plain
from datarater.rater_model.tokenizer import Tokenizer, in_chunks

_LOG = logging.getLogger("datarater")
_UNIT_BYTES = 2**24
_SHARD_BYTES = 2**27
_COMPARED_CHARACTERS = 2**20
_REPORT_SECONDS = 10.0
WORK = "work"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a folder is prepared from and how.

    Attributes:
        sets: The sets by role.
        tokenizer: Tokenizer of all documents.
        cutting: How documents are cut; `within_sources` is of the inner set.
        exclude_near_duplicates: Whether near-duplicates of a held-out set leave the sets below it.
        reference_documents: Maximum number of inner documents on which scores are centered.
        made_with: Values of the config's fields, for the index.
        data: Identity of the texts of all sets.
        shard_bytes: Tokens of a shard, in bytes.
        unit_bytes: Text of a unit, in bytes.
    """

    sets: dict[str, TextSet]
    tokenizer: Tokenizer
    cutting: CutOptions
    exclude_near_duplicates: bool
    reference_documents: int
    made_with: dict[str, Any]
    data: str
    shard_bytes: int = _SHARD_BYTES
    unit_bytes: int = _UNIT_BYTES

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of stored token ids."""
        return np.dtype("<u2" if self.tokenizer.vocabulary_size <= 2**16 else "<u4")

    def identity(self) -> str:
        """Returns the digest of everything that decides what a unit comes to."""
        parts = [
            FORMAT,
            self.made_with,
            self.data,
            hashlib.sha256(self.tokenizer.serialise()).hexdigest(),
            self.exclude_near_duplicates,
            self.unit_bytes,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_prepared(plan: Plan, folder: Path, pool: WorkerPool) -> Index:
    """Prepares the windows of all sets in a folder.

    Args:
        plan: What to prepare.
        folder: The folder; a preparation of the same plan that was killed in it is continued.
        pool: Worker processes.

    Raises:
        DataError: A set yields no window.
        OSError: A file cannot be read or written.
    """
    work = _begin_work(plan, folder)
    ranks = ranks_of(plan.sets)
    held_out = _held_out_sequences(plan, ranks, pool) if plan.exclude_near_duplicates else None
    units = _tokenized_units(plan, ranks, held_out, work, pool)

    left_out = _near_duplicates(units, held_out)
    streams = {
        role: _Stream.of(texts, number, units, left_out, plan)
        for number, (role, texts) in enumerate(plan.sets.items())
    }
    prepared = {
        role: _write_set(plan, folder, plan.sets[role], stream, pool)
        for role, stream in streams.items()
    }
    _report_near_duplicates(prepared)

    texts = plan.sets[INNER]
    reference = dataclasses.replace(texts, member_N=streams[INNER].kept_N)
    write_json(folder / REFERENCE, reference.spread(plan.reference_documents))
    tokenizer = plan.tokenizer.serialise()
    replace_file(folder / TOKENIZER, tokenizer)
    index = Index(
        format=FORMAT,
        made_with=plan.made_with,
        data=plan.data,
        tokenizer=hashlib.sha256(tokenizer).hexdigest(),
        bytes_per_token=plan.dtype.itemsize,
        source_names={role: list(each.source.source_names) for role, each in plan.sets.items()},
        sets=prepared,
    )
    write_json(folder / INDEX, to_plain(index))
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return index


def _begin_work(plan: Plan, folder: Path) -> Path:
    """Makes the folder of units; units of another plan are deleted."""
    (folder / INDEX).unlink(missing_ok=True)
    work, identity = folder / WORK / "units", plan.identity()
    record = folder / WORK / "plan.json"
    if not record.exists() or json.loads(record.read_bytes()) != identity:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    write_json(record, identity)
    return work


def ranks_of(roles: Sequence[str] | dict[str, Any]) -> dict[str, int]:
    """Returns the rank of each set: a document stays in the set of the lowest rank.

    Example:
        >>> ranks_of(["inner", "outer", "test"])
        {'test': 0, 'outer': 1, 'inner': 2}
    """
    order = (TEST, VALIDATION, OUTER, INNER)
    ranked = sorted(roles, key=lambda role: order.index(role.partition(" ")[0]))
    return {role: rank for rank, role in enumerate(ranked)}


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


def _held_out_sequences(plan: Plan, ranks: dict[str, int], pool: WorkerPool) -> HeldOutSequences:
    """Collects the word sequences of all sets but the last."""
    held_out = [role for role in plan.sets if ranks[role] < len(ranks) - 1]
    rank_K = np.array([ranks[role] for role in plan.sets], np.int64)
    units = _documents(plan, held_out)
    reported = _reporting(
        "held-out documents", [len(unit.index_D) for unit in units], pool.map(_sequences, units)
    )
    parts = [
        (sequences, rank_K[unit.set_D]) for unit, sequences in zip(units, reported, strict=True)
    ]
    return HeldOutSequences.of(parts)


def _sequences(documents: _Documents) -> Sequences:
    return sequences_of(list(documents.texts()))


class _Tokenizing(NamedTuple):
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

        Path(f"{self.path}.new").rename(f"{self.path}.tokens")
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
        Path(f"{self.path}.new").rename(f"{self.path}.npz")
        return self.path


def _call(task: _Tokenizing | _Writing) -> Any:
    return task()


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


class _Unit(NamedTuple):
    """A tokenized unit: its documents, and what they share with held-out sets."""

    path: str
    index_D: np.ndarray
    set_D: np.ndarray
    tokens_D: np.ndarray
    shared: np.ndarray
    equal_D: np.ndarray


def _tokenized_units(
    plan: Plan,
    ranks: dict[str, int],
    held_out: HeldOutSequences | None,
    work: Path,
    pool: WorkerPool,
) -> list[_Unit]:
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
    for _ in _reporting("documents", sizes, pool.map(_call, missing)):
        pass
    return [_read_unit(task.path) for task in tasks]


def _read_unit(path: str) -> _Unit:
    with np.load(f"{path}.npz") as arrays:
        return _Unit(f"{path}.tokens", *(arrays[name] for name in _Unit._fields[1:]))


def _moved(shared: np.ndarray, first: int) -> np.ndarray:
    """Returns rows of (document, sequence) with documents counted from another first one."""
    moved: np.ndarray = shared + np.array([first, 0])
    return moved


def _near_duplicates(units: Sequence[_Unit], held_out: HeldOutSequences | None) -> list[np.ndarray]:
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


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The tokens of a set's documents, one after the other.

    Attributes:
        paths: Files of tokens.
        path_D: Number of the file of each document.
        offset_D: First token of each document in its file.
        tokens_D: Tokens of each document.
        source_D: Number of each document's source.
        kept_N: Which texts of the source are in the stream.
        near_duplicates: Number of documents that are left out.
    """

    paths: list[str]
    path_D: np.ndarray
    offset_D: np.ndarray
    tokens_D: np.ndarray
    source_D: np.ndarray
    kept_N: np.ndarray
    near_duplicates: int

    @classmethod
    def of(
        cls,
        texts: TextSet,
        number: int,
        units: Sequence[_Unit],
        left_out: Sequence[np.ndarray],
        plan: Plan,
    ) -> _Stream:
        """Returns the stream of a set, whose number the units' documents name."""
        of_set = [unit.set_D == number for unit in units]
        kept = [mine & ~out for mine, out in zip(of_set, left_out, strict=True)]
        ends = [np.cumsum(unit.tokens_D) for unit in units]
        none = np.zeros(0, np.int64)

        def join(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(
                [none, *(part[keep] for part, keep in zip(parts, kept, strict=True))]
            )

        index_D = join([unit.index_D for unit in units])
        kept_N = np.zeros(len(texts.source), bool)
        kept_N[index_D] = True
        source_N = texts.source.source_N
        source_D = np.zeros(len(index_D), np.int32) if source_N is None else source_N[index_D]
        stream = cls(
            [unit.path for unit in units],
            join([np.full(len(unit.index_D), place) for place, unit in enumerate(units)]),
            join([end_D - unit.tokens_D for unit, end_D in zip(units, ends, strict=True)]),
            join([unit.tokens_D for unit in units]),
            source_D,
            kept_N,
            int(sum(mine.sum() for mine in of_set)) - len(index_D),
        )
        if texts.role == INNER and plan.cutting.within_sources:
            return stream.taking(np.argsort(source_D, kind="stable"))
        return stream

    def taking(self, which_D: np.ndarray) -> _Stream:
        """Returns the stream of some of the documents, in a given order."""
        return dataclasses.replace(
            self,
            path_D=self.path_D[which_D],
            offset_D=self.offset_D[which_D],
            tokens_D=self.tokens_D[which_D],
            source_D=self.source_D[which_D],
        )

    def runs(self, first: int, last: int) -> list[tuple[str, int, int]]:
        """Returns (file, first token, tokens) of pieces that documents first..last lie in."""
        path_D, offset_D = self.path_D[first : last + 1], self.offset_D[first : last + 1]
        end_D = offset_D + self.tokens_D[first : last + 1]
        joined_D = (path_D[1:] == path_D[:-1]) & (offset_D[1:] == end_D[:-1])
        begins = [0, *(np.flatnonzero(~joined_D) + 1).tolist()]
        ends = [*begins[1:], len(path_D)]
        return [
            (self.paths[path_D[begin]], int(offset_D[begin]), int(end_D[end - 1] - offset_D[begin]))
            for begin, end in zip(begins, ends, strict=True)
        ]


class _Writing(NamedTuple):
    """The work on one shard: windows at places of a piece of the stream."""

    runs: list[tuple[str, int, int]]
    start_W: np.ndarray
    length_W: np.ndarray
    length: int
    pad_id: int
    dtype: np.dtype[Any]
    path: str

    def __call__(self) -> None:
        """Writes the shard.

        Raises:
            OSError: The disk fails or is full.
        """
        from array_record.python import array_record_module  # type: ignore[import-untyped]

        pieces = [
            np.fromfile(path, self.dtype, count, offset=first * self.dtype.itemsize)
            for path, first, count in self.runs
        ]
        stream = np.concatenate(pieces)
        row_L = np.full(self.length, self.pad_id, self.dtype)
        new = f"{self.path}.new"
        try:
            writer = array_record_module.ArrayRecordWriter(new, _WRITER_OPTIONS)
            for start, count in zip(self.start_W.tolist(), self.length_W.tolist(), strict=True):
                row_L[:count] = stream[start : start + count]
                row_L[count:] = self.pad_id
                writer.write(row_L.tobytes())
            writer.close()
        except RuntimeError as error:  # when writing only the disk can fail
            raise OSError(f"{new} cannot be written: {one_line(error)}") from error
        Path(new).rename(self.path)


# Each window is a group of its own, so that reading one unpacks no other.
_WRITER_OPTIONS = "group_size:1,uncompressed"


def _write_set(
    plan: Plan, folder: Path, texts: TextSet, stream: _Stream, pool: WorkerPool
) -> PreparedSet:
    """Cuts the stream of a set and writes its shards and tables."""
    options = plan.cutting
    if texts.role != INNER:
        options = dataclasses.replace(options, within_sources=False)
    windows = cut(stream.tokens_D, stream.source_D, options)
    if not len(windows.start_W):
        raise DataError(no_window(texts.role, len(stream.tokens_D), options))

    name = file_name(texts.role)
    # Digits alone: the name of another set may begin with this one's.
    for old in folder.glob(f"{name}-{'[0-9]' * 5}.array_record*"):
        old.unlink()
    _save(folder / f"{name}.lengths.npy", windows.length_W)
    _save(folder / f"{name}.sources.npy", stream.source_D[windows.document_W].astype(np.int32))
    tasks = list(_shard_tasks(plan, folder / name, stream, windows))
    sizes = [len(task.start_W) for task in tasks]
    for _ in _reporting(f"{texts.role} windows", sizes, pool.map(_call, tasks)):
        pass
    return PreparedSet(
        source=texts.source.name,
        fingerprint=texts.source.fingerprint,
        identity=texts.source.identity,
        documents=len(stream.tokens_D),
        windows=len(windows.start_W),
        tokens=int(windows.length_W.sum()),
        in_other_sets=texts.elsewhere,
        near_duplicates=stream.near_duplicates,
        rejected=dict(texts.rejected),
        shards=[
            Shard(file=Path(task.path).name, windows=size)
            for task, size in zip(tasks, sizes, strict=True)
        ],
    )


def _save(path: Path, array: np.ndarray) -> None:
    """Writes an array, completely or not at all: another process may have mapped the old file."""
    with replacing(path) as new:
        np.save(new, array)


def no_window(role: str, documents: int, options: CutOptions) -> str:
    """Returns the message that the documents of a set yield no window."""
    which = f"the {counted(documents, 'document')} of the {role} set"
    if options.mode == "document":
        minimum = counted(max(2, options.minimum_length), "token")
        return f"{which} have no window of {minimum}; lower data.minimum_length"
    return (
        f"{which} do not fill one window of {counted(options.length, 'token')}; use a smaller "
        "length or more data"
    )


def _shard_tasks(plan: Plan, name: Path, stream: _Stream, windows: Cut) -> Iterator[_Writing]:
    length = plan.cutting.length
    at_once = max(1, plan.shard_bytes // (length * plan.dtype.itemsize))
    end_D = np.cumsum(stream.tokens_D, dtype=np.int64)
    for number, first in enumerate(range(0, len(windows.start_W), at_once)):
        start_W = windows.start_W[first : first + at_once]
        length_W = windows.length_W[first : first + at_once]
        document, last = np.searchsorted(
            end_D, [start_W[0], start_W[-1] + length_W[-1] - 1], side="right"
        )
        begin = end_D[document] - stream.tokens_D[document]
        yield _Writing(
            stream.runs(int(document), int(last)),
            start_W - begin,
            length_W,
            length,
            plan.tokenizer.pad_id,
            plan.dtype,
            f"{name}-{number:05d}.array_record",
        )


def _reporting(what: str, sizes: Sequence[int], results: Iterator[Any]) -> Iterator[Any]:
    """Yields results, and logs from time to time how many of the sizes' sum are done."""
    total, done, begun = sum(sizes), 0, time.monotonic()
    last = begun
    for size, result in zip(sizes, results, strict=True):
        yield result
        done += size
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            left = (now - begun) * (total - done) / done
            _LOG.info("prepared %s of %s %s, %.0f s left", f"{done:,}", f"{total:,}", what, left)


def _report_near_duplicates(sets: dict[str, PreparedSet]) -> None:
    for role, each in sets.items():
        for number, why in (
            (each.in_other_sets, "which are in another set too"),
            (each.near_duplicates, "which are near-duplicates of another set"),
        ):
            if number:
                _LOG.info(
                    "excluded %s of %s %s documents, %s",
                    f"{number:,}",
                    f"{each.documents + each.in_other_sets + each.near_duplicates:,}",
                    role,
                    why,
                )
