"""Output files: assigns the kept documents to files, and writes them in a second read of the input.

Each output file is committed whole, once. Where writing one takes more than a bound of input bytes,
as where little of a corpus is kept, it is cut into pieces, which several workers write and commit.
A resumed run continues from them. Another step then puts them together: the records of JSONL, WARC
and TFRecord files, compressed or not, follow each other; row groups of Parquet are written anew.

Some formats need more than one file for the same documents, such as an index. These companions are
committed before the output file, so an output file that is there has all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics

from datarater.pipelines import errors
from datarater.pipelines.errors import CountsError
from datarater.pipelines.graph import output_formats, record_writers
from datarater.pipelines.graph.kept_rows import copies_of_rows
from datarater.pipelines.graph.mirrored_names import MirroredNames
from datarater.pipelines.graph.requests import SECOND_READ_BYTES, SelectionRequest
from datarater.pipelines.graph.second_read import KeptSplit, by_section
from datarater.pipelines.graph.steps import Step
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.committed import at_once
from datarater.pipelines.run_folder.kept_counts import GroupCounts, KeptSplits
from datarater.pipelines.run_folder.layout import SelectionFolder, json_lines, read_json, to_json
from datarater.pipelines.run_folder.manifest import SelectionOptions
from datarater.pipelines.run_folder.plan import identity_of, plans_of
from datarater.pipelines.run_folder.score_files import ScoreFile
from datarater.pipelines.run_folder.selection_progress import SecondRead
from datarater.pipelines.selection.cutoffs import Cutoffs
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import local_path
from datarater.rater_model.documents.records import ReadOptions
from datarater.rater_model.documents.store_errors import raising_os_errors

_CHUNK_BYTES = 1 << 20
_INCOMPLETE = ".incomplete.jsonl"


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One output file to write.

    Attributes:
        name: Name of the file, such as `part-00000-of-00012.jsonl.gz`.
        written: Format of the file.
        file_class: Class of the input files that it is written from.
        splits: Its splits in order: their ordinals, and how many documents of such files are
            written of each, all copies counted.
        input_bytes: Stored bytes that reading each of these splits takes; empty if unknown.
        piece: Number of the piece, from 0.
        pieces: Number of pieces of the file; 1 if the task writes all of it.
        input: Path of the input file, if the file is for one alone; "" for all others.
    """

    name: str
    written: str
    file_class: str
    splits: tuple[tuple[int, int], ...]
    input_bytes: tuple[int, ...] = ()
    piece: int = 0
    pieces: int = 1
    input: str = ""

    @property
    def documents(self) -> int:
        """The number of documents to write."""
        return sum(kept for _, kept in self.splits)

    def cut(self, max_input_bytes: int) -> list[ShardTask]:
        """Returns tasks for the pieces of the file, each a run of splits; this one if it is small.

        Args:
            max_input_bytes: Stored bytes of input that a piece may take. A split is never cut.
        """
        starts, filled = [0], 0
        for place, size in enumerate(self.input_bytes):
            if filled and filled + size > max_input_bytes:
                starts.append(place)
                filled = 0
            filled += size
        if len(starts) == 1:
            return [self]
        return [
            dataclasses.replace(
                self,
                splits=self.splits[start:end],
                input_bytes=self.input_bytes[start:end],
                piece=piece,
                pieces=len(starts),
            )
            for piece, (start, end) in enumerate(itertools.pairwise([*starts, len(self.splits)]))
        ]

    @property
    def names(self) -> list[str]:
        """The names of the output file and of the files that are written beside it."""
        return [self.name, *output_formats.companions(self.written, self.name)]

    def path(self, selection: SelectionFolder) -> str:
        """Returns the path of what the task writes: the file, or a piece of it."""
        if self.pieces == 1:
            return selection.kept_path(self.name)
        return selection.piece_path(self.name, self.piece, self.pieces)

    def incomplete_path(self, selection: SelectionFolder) -> str:
        """Returns the path of the list of rows that are written without damaged columns."""
        if self.pieces == 1:
            return selection.incomplete_path(self.name)
        return f"{self.path(selection)}{_INCOMPLETE}"


@dataclasses.dataclass(frozen=True, slots=True)
class WrittenShard:
    """A committed output file, or one that is written beside it.

    Attributes:
        name: Name of the file.
        written: Format of the output file.
        documents: Number of its documents; 0 for a file that is written beside it.
        size: Size in bytes.
        sha256: SHA-256 of its content, in hexadecimal.
        input: Path of the input file, if the file is for one alone; "" for all others.
    """

    name: str
    written: str
    documents: int
    size: int
    sha256: str
    input: str = ""


def plan_shards(
    splits: KeptSplits,
    output_format: str,
    shard_bytes: int,
    name_of: Callable[[str], str] | None = None,
) -> Iterator[ShardTask]:
    """Assigns the kept documents to output files: contiguous runs of splits that can share one.

    Args:
        splits: Kept counts of every split, by ordinal.
        output_format: A value of `--output_format`; `same` follows the input.
        shard_bytes: Size in bytes of kept text at which a file is closed. Splits are never cut.
        name_of: Names the file for an input file; None to number the files.
    """
    # A file ends where it is full, or where the next split needs a file of another class.
    rows_K = np.flatnonzero(splits.counts["kept"])
    written_S = splits.counts["kept"] + splits.counts["repeats"]
    bytes_S = splits.counts["kept_bytes"] * written_S // np.maximum(splits.counts["kept"], 1)
    classes = [output_formats.file_class(layout, output_format) for layout in splits.layouts]
    starts, last_class, filled = [], "", 0
    rows = zip(
        splits.layout_codes_S[rows_K].tolist(),
        bytes_S[rows_K].tolist(),
        strict=True,
    )
    for row, (code, size) in enumerate(rows):
        if classes[code] != last_class or (filled >= shard_bytes and output_format != "attributes"):
            starts.append(row)
            last_class, filled = classes[code], 0
        filled += size

    for index, (start, end) in enumerate(itertools.pairwise([*starts, len(rows_K)])):
        rows_R = rows_K[start:end]
        layout = splits.layouts[splits.layout_codes_S[rows_R[0]]]
        written = output_formats.output_format(layout, output_format)
        name = output_formats.file_name(written, index, len(starts))
        path = record_writers.only_input(layout, output_format)
        yield ShardTask(
            name if name_of is None else name_of(path),
            written,
            classes[splits.layout_codes_S[rows_R[0]]],
            tuple(
                zip(
                    splits.ordinals_S[rows_R].tolist(),
                    written_S[rows_R].tolist(),
                    strict=True,
                )
            ),
            tuple(splits.input_bytes_S[rows_R].tolist()),
            input=path,
        )


@beam.typehints.with_output_types(Iterable[ShardTask])
def plan_shards_of(
    scored: Any, groups: Iterable[GroupCounts], request: SelectionRequest
) -> Iterator[ShardTask]:
    """Plans the output files of a selection and their pieces; `scored` only starts the step."""
    splits = KeptSplits.merge(group.splits for group in groups)
    size = SecondRead(0, 0, 0)
    tasks = []
    name_of = names_of(request, committed_rule(request))
    for shard in plan_shards(splits, request.output_format, request.output_shard_bytes, name_of):
        pieces = shard.cut(request.second_read_bytes or SECOND_READ_BYTES)
        size = SecondRead(
            size.steps + len(shard.names) + (len(pieces) if len(pieces) > 1 else 0),
            size.documents + shard.documents,
            size.input_bytes + sum(shard.input_bytes),
        )
        tasks += pieces
    commits.commit_if_absent(request.selection.second_read_path, to_json(size))
    yield from tasks


def committed_rule(request: SelectionRequest) -> SelectionOptions:
    """Returns the options that a selection began with."""
    return read_json(request.selection.rule_path, SelectionOptions) or request.options


def names_of(request: SelectionRequest, rule: SelectionOptions) -> MirroredNames | None:
    """Returns how output files are named after their input files; None if they are numbered.

    Args:
        request: The selection.
        rule: The options that it began with.
    """
    if not rule.mirrors_paths:
        return None
    return MirroredNames.of(plans_of(request.folder).outermost_inputs(rule.plans))


def _digest(path: str) -> tuple[int, str]:
    """Returns the size and the SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with raising_os_errors(path), commits.open_committed(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _committed(
    selection: SelectionFolder,
    task: ShardTask,
    documents: int,
    write: Callable[[Sequence[str]], None],
) -> Iterator[WrittenShard]:
    """Commits an output file and its companions, unless it is committed; yields what is committed.

    Args:
        selection: Folder of the selection.
        task: Any task of the file.
        documents: Number of documents in the file.
        write: Writes the files under names on the local disk, given in the order of `task.names`.

    Raises:
        CountsError: A companion was committed before with another content.
    """
    known: dict[str, tuple[int, str]] = {}
    if not commits.exists(selection.kept_path(task.name)):
        with contextlib.ExitStack() as stack:
            paths = [selection.kept_path(name) for name in task.names]
            staged = [stack.enter_context(commits.staged(path)) for path in paths]
            write(staged)

            # The output file comes last: once it is there, the task is done.
            for name, path, own_path in reversed(list(zip(task.names, paths, staged, strict=True))):
                own = _digest(own_path)
                if commits.commit_staged(path, own_path):
                    known[name] = own
                    if name == task.name:
                        Metrics.counter("datarater", "documents_kept").inc(documents)
                elif name != task.name and _digest(path) != own:
                    raise CountsError(
                        f"{path} was written before with another content, by another version of "
                        "datarater or of a library; select under another --name"
                    )

    # What is not known is committed already, or another worker committed it first.
    for name in task.names:
        size, sha256 = known.get(name) or _digest(selection.kept_path(name))
        count = documents if name == task.name else 0
        yield WrittenShard(name, task.written, count, size, sha256, task.input)


ScoredPart = tuple[ScoreFile, np.ndarray]
"""Rows of a score file, and the number of copies to keep of each; a mask where there is one."""


@contextlib.contextmanager
def _opened(names: Sequence[str]) -> Iterator[list[BinaryIO]]:
    """Creates files on the local disk and opens them."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open(name, "xb")) for name in names]


class WriteShard(Step[SelectionRequest]):
    """Writes one output file, or a piece of one, and commits it, unless it is already committed.

    It emits the committed files, and the tasks of committed pieces by the names of their files.
    """

    PIECES = "pieces"

    def __init__(self, request: SelectionRequest):
        super().__init__(request)
        self._read: ReadOptions | None = None
        self._packed: ScoredPart | None = None

    def _scored(self, ordinal: int, cutoffs: Cutoffs) -> Callable[[], Iterable[ScoredPart]]:
        """Returns what gives the parts of a score file with the masks of their kept rows.

        A file of one part is read once. That of packed files is remembered, because each of the
        files may have attributes of its own, which are written one after the other.
        """
        remembered = self._packed
        if remembered is not None and remembered[0].task.split.ordinal == ordinal:
            return lambda: [remembered]

        parts = self._parts(ordinal, cutoffs)
        first = next(parts)
        if next(parts, None) is not None:
            return functools.partial(self._parts, ordinal, cutoffs)
        if first[0].parts:
            self._packed = first
        return lambda: [first]

    def _parts(self, ordinal: int, cutoffs: Cutoffs) -> Iterator[ScoredPart]:
        for file in ScoreFile.in_chunks(self._request.ranked, ordinal):
            yield file.with_own_scores(), copies_of_rows(file, cutoffs, self._request.seed)

    def _read_options(self) -> ReadOptions:
        if self._read is None:
            self._read = identity_of(self._request.folder).read
        return self._read

    def process(self, task: ShardTask, cutoffs: Cutoffs) -> Iterator[Any]:
        """Writes one file or piece.

        Raises:
            InputChangedError: An input has changed since it was scored.
            CountsError: The number of documents written differs from the number counted.
        """
        selection = self._request.selection
        if task.pieces > 1:
            path = task.path(selection)
            # Pieces are removed once all files are there.
            if not commits.exists(path) and not commits.exists(selection.kept_path(task.name)):
                with commits.staged(path) as name:
                    self._write([name], task, cutoffs)
                    commits.commit_staged(path, name)
            yield beam.pvalue.TaggedOutput(self.PIECES, (task.name, task))
            return

        yield from _committed(
            selection, task, task.documents, lambda names: self._write(names, task, cutoffs)
        )

    def _write(self, names: Sequence[str], task: ShardTask, cutoffs: Cutoffs) -> None:
        read = self._read_options()
        with _opened(names) as files:
            trainer_format = output_formats.trainer_format(self._request)
            if task.pieces > 1:
                writer = output_formats.open_piece(
                    files[0], task.written, task.name, trainer_format
                )
            else:
                writer = output_formats.open_writer(
                    files, task.written, task.name, trainer_format, task.documents
                )
            for ordinal, expected in task.splits:
                path, count = "", 0
                for kept in self._kept_of(ordinal, cutoffs, task.file_class, read):
                    path = kept.task.split.path
                    try:
                        with raising_os_errors(path):
                            count += writer.write(kept)
                    except OSError as error:
                        raise errors.copying_failed(
                            path, task.path(self._request.selection), error
                        ) from error

                if count != expected:
                    raise CountsError(
                        f"{path}, split {ordinal}: {counted(count, 'document')} written, but "
                        f"{expected} kept"
                    )

            try:
                writer.close()
            except OSError as error:
                raise errors.writing_failed(task.path(self._request.selection), error) from error
        if writer.incomplete:
            path = task.incomplete_path(self._request.selection)
            commits.commit_if_absent(path, json_lines(writer.incomplete))

    def _kept_of(
        self, ordinal: int, cutoffs: Cutoffs, file_class: str, read: ReadOptions
    ) -> Iterator[KeptSplit]:
        """Yields what is kept of each file of a class in a split; skips those of nothing."""
        requested = self._request.output_format
        scored = self._scored(ordinal, cutoffs)
        kept_sections = {
            number for part in scored() for number, _, kept_S in by_section(*part) if kept_S.any()
        }

        # The rows of a file follow each other, in one or more parts of the score file.
        rows = (row for part in scored() for row in by_section(*part))
        for number, of_section in itertools.groupby(rows, operator.itemgetter(0)):
            if number not in kept_sections:
                continue
            _, section, kept_S = next(of_section)
            layout = record_writers.layout_for(section.layout, section.task.split.path, requested)
            if output_formats.file_class(layout, requested) == file_class:
                tables = ((more.table, more_S) for _, more, more_S in of_section)
                yield KeptSplit(
                    section.task,
                    section.content,
                    itertools.chain([(section.table, kept_S)], tables),
                    read,
                )


@beam.typehints.with_output_types(WrittenShard)
class JoinPieces(Step[SelectionRequest]):
    """Puts the pieces of one output file together and commits it, unless it is committed."""

    def process(self, element: tuple[str, Iterable[ShardTask]]) -> Iterator[WrittenShard]:
        """Writes one file; emits the committed file.

        Args:
            element: Name of the file, and the tasks of all its pieces.
        """
        _, unordered = element
        tasks = sorted({task.piece: task for task in unordered}.values(), key=lambda t: t.piece)
        documents = sum(task.documents for task in tasks)
        yield from _committed(
            self._request.selection,
            tasks[0],
            documents,
            lambda names: self._write(names, tasks, documents),
        )

    def _write(self, names: Sequence[str], tasks: list[ShardTask], documents: int) -> None:
        selection = self._request.selection
        with _opened(names) as files:
            trainer_format = output_formats.trainer_format(self._request)
            join = output_formats.piece_joiner(files, tasks[0].written, trainer_format, documents)
            for task in tasks:
                path = task.path(selection)
                try:
                    with raising_os_errors(path), commits.open_committed(path) as piece:
                        join.add(piece)
                except OSError as error:
                    raise errors.copying_failed(
                        path, selection.kept_path(task.name), error
                    ) from error
            join.close()

        lists = at_once(commits.read_if_there, [task.incomplete_path(selection) for task in tasks])
        incomplete = b"".join(filter(None, lists))
        if incomplete:
            commits.commit_if_absent(selection.incomplete_path(tasks[0].name), incomplete)


def remove_pieces(selection: SelectionFolder) -> None:
    """Removes the pieces of a selection, of which all files are committed."""
    paths = [entry.path for entry in commits.list_folder(selection.pieces_folder)]
    at_once(commits.remove, paths)
    local = local_path(selection.pieces_folder)
    if local is not None:
        with contextlib.suppress(OSError):  # there is none, or a late worker has written to it
            os.rmdir(local)
