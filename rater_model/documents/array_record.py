"""ArrayRecord files of `tf.train.Example`, as TensorFlow Datasets are prepared for reading by number.

Positions are the records' numbers. The library reads local files: a shard that lies elsewhere is
fetched into a temporary file first, and is one split. A record is unpacked whole by the library
before its size is known: memory is bounded by a few of the largest records, not by
`max_record_bytes`.

Source: github.com/google/array_record.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from datarater.rater_model.documents.files import local_path, open_file, read_head
from datarater.rater_model.documents.records import (
    EXCERPT_BYTES,
    BadRecord,
    ReadOptions,
    Reason,
    Record,
    Split,
)
from datarater.rater_model.documents.tfrecord import read_example

_MAGIC = bytes.fromhex("83af70d10d884a3f0000000000000000")
_SYSTEM_CALL_FAILED = re.compile(r"\b\w+\(\) failed: ")
_BATCH_BYTES = 2**22
_BATCH_RECORDS = 256


class BrokenArrayRecordError(Exception):
    """A file that begins like one cannot be read as ArrayRecord."""


def is_array_record(head: bytes) -> bool:
    """Says whether bytes open a Riegeli file, which ArrayRecord is built on."""
    return head.startswith(_MAGIC)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The library's reader of a file.

    Raises:
        BrokenArrayRecordError: what stands in the file cannot be read.
        OSError: the file is not to be had, or the library is not installed.
    """
    try:
        from array_record.python import array_record_module  # type: ignore[import-untyped]
    except ImportError as error:
        raise OSError(
            "ArrayRecord files are read by the package array_record: pip install 'datarater[tfds]'"
        ) from error

    with contextlib.ExitStack() as stack:
        local = local_path(path)
        if local is None:
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="datarater-shard-"))
            with open_file(path) as file:
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
                    f"the file is no whole ArrayRecord file: {_one_line(error)}"
                ) from error
        yield reader


def is_file_system_failure(error: Exception) -> bool:
    """Says whether an error of the library is one of a file or a disk, and not of what is read.

    The library has one class for both; of a failure it names the system call: `open() failed: No
    such file`.
    """
    return isinstance(error, RuntimeError) and _SYSTEM_CALL_FAILED.search(str(error)) is not None


def _close(reader: Any) -> None:
    with contextlib.suppress(RuntimeError):  # says once more what reading has met
        reader.close()


def _raise_if_file_system(error: Exception) -> None:
    """Raises what is not the content's fault."""
    if is_file_system_failure(error):
        raise OSError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def count_records(path: str) -> int:
    """How many records a local file has, by its footer; 0 if it is damaged.

    Raises:
        OSError: the file cannot be read, or the library is not installed.
    """
    try:
        with _opened(path) as reader:
            return int(reader.num_records())
    except BrokenArrayRecordError:
        return 0


def read_array_record(split: Split, options: ReadOptions) -> Iterator[Record]:
    """Reads a split of an ArrayRecord file; see `datarater.rater_model.documents.reading.read_split`.

    Damage costs the records that it lies in; a file without a sound footer is one bad record.
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
                # What a record unpacks to is known once it is: a file of bombs is taken one by one.
                fitting = _BATCH_BYTES * (stop - start) // max(unpacked, 1)
                start, step = stop, max(1, min(_BATCH_RECORDS, 2 * step, fitting))
    except BrokenArrayRecordError as error:
        yield BadRecord(0, Reason.UNREADABLE_FILE, str(error), head)


def _batch(reader: Any, start: int, end: int, options: ReadOptions) -> Iterator[tuple[Record, int]]:
    """Records, each with the bytes that it unpacks to."""
    try:
        found = reader.read(start, end)
    except RuntimeError as error:
        _raise_if_file_system(error)
        if end - start > 1:
            for index in range(start, end):
                yield from _batch(reader, index, index + 1, options)
        else:
            yield (
                BadRecord(
                    start, Reason.RECORD_CORRUPT, f"the record is damaged: {_one_line(error)}", b""
                ),
                0,
            )
        return
    for index, data in enumerate(found, start):
        if len(data) > options.max_record_bytes:
            detail = f"the record has {len(data)} bytes, more than the limit of {options.max_record_bytes} "
            detail += "(max_record_bytes)"
            yield BadRecord(index, Reason.RECORD_TOO_LARGE, detail, data[:EXCERPT_BYTES]), len(data)
        else:
            yield read_example(data, index, options), len(data)
