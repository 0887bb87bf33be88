"""Reads ArrayRecord files of `tf.train.Example`, as TensorFlow Datasets prepares them.

Positions are the numbers of the records. The library reads local files: a remote shard is first
fetched into a temporary file, and is one split. The library unpacks a record as a whole before its
size is known: memory is bounded by a few of the largest records, not by `max_record_bytes`.

Source: github.com/google/array_record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
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
from datarater.rater_model.documents.sniffing import FileHead
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.documents.tfrecord import ExampleFormat, read_example

_MAGIC = bytes.fromhex("83af70d10d884a3f0000000000000000")
_SYSTEM_CALL_FAILED = re.compile(r"\b\w+\(\) failed: ")
_BATCH_BYTES = 2**22
_BATCH_RECORDS = 256


class BrokenArrayRecordError(Exception):
    """A file that begins like an ArrayRecord file cannot be read as one."""


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Opens a file with the library's reader.

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
        yield reader


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
            with _opened(split.path) as reader:
                total = reader.num_records()
                end = total if split.end is None else min(split.end, total)

                start, step = split.start, 1
                while start < end:
                    stop, unpacked = min(start + step, end), 0
                    for record, size in _batch(reader, start, stop, options):
                        unpacked += size
                        yield record
                    # The size of a record is known once it is unpacked: a file of bombs is read one
                    # by one.
                    fitting = _BATCH_BYTES * (stop - start) // max(unpacked, 1)
                    start, step = stop, max(1, min(_BATCH_RECORDS, 2 * step, fitting))
        except BrokenArrayRecordError as error:
            yield BadRecord(0, Reason.UNREADABLE_FILE, str(error), head)

    def count_records(self, path: str) -> int:
        """Returns the number of records by the footer; 0 if it is damaged.

        Raises:
            OSError: if the file cannot be read, or the library is not installed.
        """
        try:
            with _opened(path) as reader:
                return int(reader.num_records())
        except BrokenArrayRecordError:
            return 0
