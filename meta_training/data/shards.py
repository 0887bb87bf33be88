"""Cuts the stream of a set's tokens into windows and writes their shards and tables."""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datarater.meta_training.data.cutting import Cut, CutOptions, cut
from datarater.meta_training.data.plan import Plan
from datarater.meta_training.data.prepared import (
    LENGTHS,
    SOURCES,
    PreparedSet,
    Shard,
    file_name,
    table_name,
)
from datarater.meta_training.data.sets import INNER, TextSet
from datarater.meta_training.data.texts import DataError
from datarater.meta_training.data.tokenized_units import Unit
from datarater.meta_training.data.worker_pool import WorkerPool
from datarater.rater_model.atomic_files import rename_durably, replacing
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.store_errors import one_line


@dataclasses.dataclass(frozen=True)
class Stream:
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
        units: Sequence[Unit],
        left_out: Sequence[np.ndarray],
        plan: Plan,
    ) -> Stream:
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

    def taking(self, which_D: np.ndarray) -> Stream:
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


@dataclasses.dataclass(frozen=True)
class _Writing:
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
            message = f"{new} cannot be written: {one_line(error)}"
            full = _NO_SPACE.search(message)
            raise (OSError(errno.ENOSPC, message) if full else OSError(message)) from error
        rename_durably(new, self.path)


# Each window is a group of its own, so that reading one unpacks no other.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_NO_SPACE = re.compile(r"no space left|disk quota exceeded", re.IGNORECASE)


def write_set(
    plan: Plan, folder: Path, texts: TextSet, stream: Stream, pool: WorkerPool
) -> PreparedSet:
    """Cuts the stream of a set and writes its shards and tables."""
    options = plan.cutting
    if texts.role != INNER:
        options = dataclasses.replace(options, within_sources=False)
    windows = cut(stream.tokens_D, stream.source_D, options)
    if not len(windows.start_W):
        raise DataError(no_window(texts, stream, options))

    name = file_name(texts.role)
    # Digits alone: the name of another set may begin with this one's.
    for old in folder.glob(f"{name}-{'[0-9]' * 5}.array_record*"):
        old.unlink()
    _save(folder / table_name(texts.role, LENGTHS), windows.length_W)
    _save(
        folder / table_name(texts.role, SOURCES),
        stream.source_D[windows.document_W].astype(np.int32),
    )
    tasks = list(_shard_tasks(plan, folder / name, stream, windows))
    sizes = [len(task.start_W) for task in tasks]
    for _ in pool.run(tasks, f"{texts.role} windows", sizes):
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


def no_window(texts: TextSet, stream: Stream, options: CutOptions) -> str:
    """Returns the message that the documents of a set yield no window, and which were left out."""
    which = f"the {counted(len(stream.tokens_D), 'document')} of the {texts.role} set"
    if stream.near_duplicates:
        left_out = counted(stream.near_duplicates, "near-duplicate")
        which += f", without {left_out} of held-out ones (data.exclude_near_duplicates),"
    if options.mode == "document":
        minimum = counted(max(2, options.minimum_length), "token")
        return f"{which} have no window of {minimum}; lower data.minimum_length"
    return (
        f"{which} do not fill one window of {counted(options.length, 'token')}; use a smaller "
        "length or more data"
    )


def _shard_tasks(plan: Plan, name: Path, stream: Stream, windows: Cut) -> Iterator[_Writing]:
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
