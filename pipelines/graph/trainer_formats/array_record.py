"""ArrayRecord: what Grain and TensorFlow Datasets read at any place in any order.

A record is a serialized `tf.train.Example`, which TensorFlow Datasets, MaxText and this package's
own reader expect. One that came as an example keeps its bytes and gains the float feature
`datarater_score`. Any other document becomes an example of `id`, `text`, `source`, `metadata` (JSON
of all other fields) and `datarater_score`.

Each record is a group of its own, as TensorFlow Datasets writes them, so that reading one record
unpacks no other.

Source: github.com/google/array_record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from datarater.pipelines.graph.second_read import KeptSplit
from datarater.pipelines.graph.trainer_formats.trainer_format import (
    RecordFiles,
    TrainerFormat,
    kept_documents,
)
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.documents.tfrecord import TFRecord, make_example

# One thread, so that memory does not grow with the cores: workers are scaled by processes.
_OPTIONS = "group_size:1,max_parallelism:1"


class ArrayRecordFormat(TrainerFormat):
    """ArrayRecord files of `tf.train.Example`."""

    name = "array_record"
    suffix = "array_record"

    def records(self, kept: KeptSplit) -> Iterator[bytes]:
        """Yields examples: their own bytes where the input has them."""
        source, options = kept.source, kept.options
        if source.written_as == TFRecord.name:
            for document, score in kept.documents():
                yield source.scored_record(document, score, options)
            return
        for kept_document in kept_documents(kept):
            yield make_example(kept_document.row())

    def open(self, files: Sequence[BinaryIO], documents: int) -> RecordFiles:
        """Begins a file; the library opens it again by its name."""
        (file,) = files
        return _ArrayRecordFile(file.name)


class _ArrayRecordFile:
    """A file that the library writes.

    Args:
        path: Path on the local disk.
    """

    def __init__(self, path: str):
        from array_record.python import array_record_module  # type: ignore[import-untyped]

        self._writer: Any = array_record_module.ArrayRecordWriter(path, _OPTIONS)

    def add(self, record: bytes) -> None:
        """Adds a record."""
        with _as_os_errors():
            self._writer.write(record)

    def close(self) -> None:
        """Writes the footer."""
        with _as_os_errors():
            self._writer.close()


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raises an OSError for what the library reports: when writing only the disk can fail."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(error)) from error
