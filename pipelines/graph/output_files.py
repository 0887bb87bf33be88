"""Output files: assigns the kept documents to files, and writes them in a second read of the input.

Each output file is committed whole, once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics

from datarater.pipelines import errors
from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph import record_writers
from datarater.pipelines.graph.kept_rows import kept_rows
from datarater.pipelines.graph.requests import SelectionRequest
from datarater.pipelines.graph.second_read import KeptSplit
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.kept_counts import GroupCounts, KeptSplits
from datarater.pipelines.run_folder.layout import json_lines
from datarater.pipelines.run_folder.plan import identity_of
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.documents.store_errors import raising_os_errors

_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One output file to write.

    Attributes:
        name: Name of the file, such as `part-00000-of-00012.jsonl.gz`.
        written: Format of the file.
        file_class: Class of the input files that it is written from.
        splits: Its splits in order: their ordinals, and how many documents of such files each
            keeps.
    """

    name: str
    written: str
    file_class: str
    splits: tuple[tuple[int, int], ...]

    @property
    def documents(self) -> int:
        """The number of documents to write."""
        return sum(kept for _, kept in self.splits)


@dataclasses.dataclass(frozen=True, slots=True)
class WrittenShard:
    """A committed output file.

    Attributes:
        name: Name of the file.
        written: Format of the file.
        documents: Number of its documents.
        size: Size in bytes.
        sha256: SHA-256 of its content, in hexadecimal.
    """

    name: str
    written: str
    documents: int
    size: int
    sha256: str


def plan_shards(splits: KeptSplits, output_format: str, shard_bytes: int) -> Iterator[ShardTask]:
    """Assigns the kept documents to output files: contiguous runs of splits that can share one.

    Args:
        splits: Kept counts of every split, by ordinal.
        output_format: A value of `--output_format`; `same` follows the input.
        shard_bytes: Size in bytes of kept text at which a file is closed. Splits are never cut.
    """
    # A file ends where it is full, or where the next split needs a file of another class.
    rows_K = np.flatnonzero(splits.counts["kept"])
    classes = [record_writers.file_class(layout, output_format) for layout in splits.layouts]
    starts, last_class, filled = [], "", 0
    rows = zip(
        splits.layout_codes_S[rows_K].tolist(),
        splits.counts["kept_bytes"][rows_K].tolist(),
        strict=True,
    )
    for row, (code, size) in enumerate(rows):
        if classes[code] != last_class or (filled >= shard_bytes and output_format != "attributes"):
            starts.append(row)
            last_class, filled = classes[code], 0
        filled += size

    for index, (start, end) in enumerate(itertools.pairwise([*starts, len(rows_K)])):
        rows_R = rows_K[start:end]
        written = record_writers.output_format(
            splits.layouts[splits.layout_codes_S[rows_R[0]]], output_format
        )
        suffix = record_writers.SUFFIXES.get(written, written)
        yield ShardTask(
            f"part-{index:05d}-of-{len(starts):05d}.{suffix}",
            written,
            classes[splits.layout_codes_S[rows_R[0]]],
            tuple(
                zip(
                    splits.ordinals_S[rows_R].tolist(),
                    splits.counts["kept"][rows_R].tolist(),
                    strict=True,
                )
            ),
        )


@beam.typehints.with_output_types(Iterable[ShardTask])
def plan_shards_of(
    scored: Any, groups: Iterable[GroupCounts], request: SelectionRequest
) -> Iterator[ShardTask]:
    """Plans the output files of a selection (`plan_shards`); `scored` only starts the step."""
    splits = KeptSplits.merge(group.splits for group in groups)
    yield from plan_shards(splits, request.output_format, request.output_shard_bytes)


def _digest(path: str) -> tuple[int, str]:
    """Returns the size and the SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with raising_os_errors(path), commits.open_committed(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


@beam.typehints.with_output_types(WrittenShard)
class WriteShard(Step[SelectionRequest]):
    """Writes one output file and commits it, unless it is already committed."""

    def __init__(self, request: SelectionRequest):
        super().__init__(request)
        self._read: ReadOptions | None = None

    def _read_options(self) -> ReadOptions:
        if self._read is None:
            self._read = identity_of(self._request.folder).read
        return self._read

    def process(self, task: ShardTask, cutoffs: Cutoffs) -> Iterator[WrittenShard]:
        """Writes one file; emits the committed file.

        Raises:
            InputChangedError: An input has changed since it was scored.
            CountsError: The number of documents written differs from the number counted.
        """
        path = self._request.selection.kept_path(task.name)
        if not commits.exists(path):
            with commits.staged(path) as name:
                self._write(name, task, cutoffs)
                own = _digest(name)
                if commits.commit_staged(path, name):
                    Metrics.counter("datarater", "documents_kept").inc(task.documents)
                    yield WrittenShard(task.name, task.written, task.documents, *own)
                    return

        # It is committed already, or another worker committed it first.
        yield WrittenShard(task.name, task.written, task.documents, *_digest(path))

    def _write(self, name: str, task: ShardTask, cutoffs: Cutoffs) -> None:
        read = self._read_options()
        with open(name, "xb") as out:
            writer = record_writers.open_writer(out, task.written)
            for ordinal, expected in task.splits:
                file = ScoreFile.read(self._request.folder, ordinal)
                count = 0
                for kept in self._kept_of(file, task.file_class, cutoffs, read):
                    path = kept.file.task.split.path
                    try:
                        with raising_os_errors(path):
                            count += writer.write(kept)
                    except OSError as error:
                        raise errors.copying_failed(
                            path, self._request.selection.kept_path(task.name), error
                        ) from error

                if count != expected:
                    raise CountsError(
                        f"{file.task.split.path}, split {ordinal}: {count} documents written, but "
                        f"{expected} kept"
                    )

            try:
                writer.close()
            except OSError as error:
                raise errors.writing_failed(
                    self._request.selection.kept_path(task.name), error
                ) from error
        if writer.incomplete:
            path = self._request.selection.incomplete_path(task.name)
            commits.commit_if_absent(path, json_lines(writer.incomplete))

    def _kept_of(
        self, file: ScoreFile, file_class: str, cutoffs: Cutoffs, read: ReadOptions
    ) -> Iterator[KeptSplit]:
        """Yields what is kept of each file of a class in a score file; skips those of nothing."""
        requested = self._request.output_format
        kept_R = kept_rows(file, cutoffs, self._request.seed)
        first = 0
        for section in file.sections():
            end = first + section.table.num_rows
            layout = record_writers.layout_for(section.layout, section.task.split.path, requested)
            if (
                kept_R[first:end].any()
                and record_writers.file_class(layout, requested) == file_class
            ):
                yield KeptSplit(section, kept_R[first:end], read)
            first = end
