"""Reads ArrayRecord files of `tf.train.Example`, as TensorFlow Datasets prepares them.

Positions are the numbers of the records. The library reads local files: a remote shard is first
fetched into a temporary file, and is one split. The library unpacks a chunk of records as a whole;
what it unpacks to is looked up before (`datarater.rater_model.documents.riegeli`).

Source: github.com/google/array_record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from datarater.rater_model.documents.files import local_path, open_file, read_head
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    BadRecord,
    Compression,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.remote_file import WHOLE
from datarater.rater_model.documents.riegeli import ChunkIndex, UnsafeFileError
from datarater.rater_model.documents.sniffing import FileHead
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.documents.tfrecord import ExampleFormat, read_example

_MAGIC = bytes.fromhex("83af70d10d884a3f0000000000000000")
_SYSTEM_CALL_FAILED = re.compile(r"\b\w+\(\) failed: ")
_BATCH_BYTES = 2**22
_BATCH_RECORDS = 256
_MIN_CHUNK_BYTES = 64 * 2**20
_MAX_FOOTER_BYTES = 64 * 2**20


class BrokenArrayRecordError(Exception):
    """A file that begins like an ArrayRecord file cannot be read as one."""


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, ChunkIndex]]:
    """Opens a file with the library's reader.

    Yields:
        The reader and the file's chunks.

    Raises:
        BrokenArrayRecordError: if the content of the file cannot be read.
        OSError: if the file is not available, or the library is not installed.
    """
    try:
        from array_record.python import array_record_module  # type: ignore[import-untyped]
    except ImportError as error:
        raise OSError(
            "reading ArrayRecord files needs the package array_record: "
            "pip install 'datarater[tfds]'"
        ) from error

    with contextlib.ExitStack() as stack:
        local = local_path(path)
        if local is None:
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="datarater-shard-"))
            with open_file(path, in_order_to=WHOLE) as file:
                shutil.copyfileobj(file, copy)
            copy.flush()
            local = copy.name

        descriptor = os.open(local, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        try:
            chunks = ChunkIndex.of(descriptor, _MAX_FOOTER_BYTES)
        except UnsafeFileError as error:
            raise BrokenArrayRecordError(
                f"the file cannot be read in bounded memory: {error}"
            ) from error

        # One thread: workers are scaled by processes.
        reader = array_record_module.ArrayRecordReader(
            local, "readahead_buffer_size:0,max_parallelism:0"
        )
        stack.callback(_close, reader)
        if not reader.ok():
            try:
                reader.read([0])
            except (RuntimeError, IndexError) as error:
                _raise_if_file_system(error)
                raise BrokenArrayRecordError(
                    f"the file is not a complete ArrayRecord file: {one_line(error)}"
                ) from error
            # A file that is cut where its first block ends reads like one without records.
            raise BrokenArrayRecordError("the file is cut off: it has no footer")
        if chunks is None:
            raise BrokenArrayRecordError("the footer is not one that ArrayRecord writes")
        yield reader, chunks


def is_file_system_failure(error: Exception) -> bool:
    """Reports whether an error of the library comes from a file or disk, not from the content.

    The library has one class for both; for a failure it names the system call: `open() failed: No
    such file`.
    """
    return isinstance(error, RuntimeError) and _SYSTEM_CALL_FAILED.search(str(error)) is not None


def _close(reader: Any) -> None:
    with contextlib.suppress(RuntimeError):  # repeats the error that reading raised
        reader.close()


def _raise_if_file_system(error: Exception) -> None:
    """Raises an OSError if an error does not come from the content."""
    if is_file_system_failure(error):
        raise OSError(one_line(error)) from error


def _batch(reader: Any, start: int, end: int, options: ReadOptions) -> Iterator[tuple[Record, int]]:
    """Yields records, each with the number of bytes that it unpacks to.

    A batch that cannot be read is read record by record, to find the damaged ones.
    """
    try:
        records = reader.read(start, end)
    except RuntimeError as error:
        _raise_if_file_system(error)
        if end - start > 1:
            for index in range(start, end):
                yield from _batch(reader, index, index + 1, options)
        else:
            yield (
                BadRecord(
                    start, Reason.RECORD_CORRUPT, f"the record is damaged: {one_line(error)}", b""
                ),
                0,
            )
        return

    for index, data in enumerate(records, start):
        if len(data) > options.max_record_bytes:
            detail = (
                f"the record has {len(data)} bytes, more than the limit of "
                f"{options.max_record_bytes} (max_record_bytes)"
            )
            yield BadRecord(index, Reason.RECORD_TOO_LARGE, detail, data[:EXCERPT_BYTES]), len(data)
        else:
            yield read_example(data, index, options), len(data)


def max_chunk_bytes(max_record_bytes: int) -> int:
    """Returns the maximum unpacked size of a chunk: 4 records of maximum size, at least 64 MiB."""
    return max(_MIN_CHUNK_BYTES, 4 * max_record_bytes)


def _too_large(start: int, end: int, chunks: ChunkIndex, limit: int) -> BadRecord:
    """Returns the bad record for a chunk that is too large, from a record on.

    Args:
        start: Number of the first record that is left of the chunk.
        end: Number of the record at which the split ends.
        chunks: The chunks of the file.
        limit: Maximum unpacked size of a chunk in bytes.
    """
    number = start // chunks.records_per_chunk
    lost = min(end, (number + 1) * chunks.records_per_chunk) - start
    detail = (
        f"the chunk of the record unpacks to {chunks.memory(number)} bytes, more than the limit of "
        f"{limit}, which follows max_record_bytes: its records are lost; raise --max_record_bytes, "
        "or write the file with a smaller group_size"
    )
    return BadRecord(start, Reason.RECORD_TOO_LARGE, detail, b"", lost)


class ArrayRecord(ExampleFormat):
    """ArrayRecord files, written as TFRecord."""

    name = "array_record"
    unit = "records"

    def sniff(self, head: FileHead) -> Compression | None:
        """Recognizes a file by the beginning of a Riegeli file, which ArrayRecord is built on."""
        return Compression.NONE if head.stored.startswith(_MAGIC) else None

    def plan(self, whole: Split, head: FileHead, options: ReadOptions, target: int) -> list[Split]:
        """Cuts a local file between records."""
        count = -(-whole.size // target)
        if count < 2 or local_path(whole.path) is None:
            return [whole]
        total = self.count_records(whole.path)
        cuts = sorted({total * index // count for index in range(count + 1)})
        return [
            dataclasses.replace(
                whole,
                start=start,
                end=end if end < total else None,
                size=whole.size * (end - start) // total,
            )
            for start, end in itertools.pairwise(cuts)
        ] or [whole]

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        """Reads the records of a split.

        Damage costs the records that contain it; a file without a sound footer is one bad record.
        """
        head = read_head(split.path, EXCERPT_BYTES)
        try:
            with _opened(split.path) as (reader, chunks):
                total = reader.num_records()
                end = total if split.end is None else min(split.end, total)

                limit = max_chunk_bytes(options.max_record_bytes)
                start, step = split.start, 1
                while start < end:
                    stop, unpacked = chunks.fitting(start, min(start + step, end), limit), 0
                    if stop == start:
                        bad = _too_large(start, end, chunks, limit)
                        yield bad
                        start += bad.records
                        continue
                    for record, size in _batch(reader, start, stop, options):
                        unpacked += size
                        yield record
                    # The records of a batch are in memory together.
                    fitting = _BATCH_BYTES * (stop - start) // max(unpacked, 1)
                    start, step = stop, max(1, min(_BATCH_RECORDS, 2 * step, fitting))
        except BrokenArrayRecordError as error:
            yield BadRecord(0, Reason.UNREADABLE_FILE, str(error), head)

    def narrowed(self, split: Split, positions: Sequence[int]) -> list[Split]:
        """Returns the record at each position of a local file; a remote one is fetched whole."""
        if local_path(split.path) is None:
            return [split]
        return [dataclasses.replace(split, start=at, end=at + 1) for at in positions]

    def count_records(self, path: str) -> int:
        """Returns the number of records by the footer; 0 if it is damaged.

        Raises:
            OSError: if the file cannot be read, or the library is not installed.
        """
        try:
            with _opened(path) as (reader, _):
                return int(reader.num_records())
        except BrokenArrayRecordError:
            return 0
