"""The documents of an analysis: all of a pool, or a sample of it, read once and stored.

    OUTPUT/documents/DIGEST/
      documents.parquet   key, source, hash, bytes, text and the fields of each document
      documents.json      counts
      parts/              what was computed of each part; see `parts.py`

The folder is named by the input files' fingerprints and the options, so that a second run reads
nothing again. Documents are in the order of a hash of their texts: any first part is a random
sample. A row group is a part, the unit of work.

N counts documents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.meta_training.evaluate.errors import EmptyDataError, FlagError
from datarater.meta_training.evaluate.keeping import text_hash
from datarater.rater_model.atomic_files import replacing_folder
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import BadRecord, Document, ReadOptions

DOCUMENTS_VERSION = 1
"""Raised whenever the same files and options would give other documents."""

PART = 1000
"""Documents of a part."""

_PROGRESS = 20_000


@dataclasses.dataclass(frozen=True)
class DocumentOptions:
    """Every option that changes the documents.

    Attributes:
        pool: Paths or globs of the pool.
        read: How records are read.
        fields: Further fields to group documents by.
        max_documents: Size of the sample that a larger pool is cut to.
    """

    pool: tuple[str, ...]
    read: ReadOptions = dataclasses.field(default_factory=ReadOptions)
    fields: tuple[str, ...] = ()
    max_documents: int = 50_000


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents without their texts, which stay on disk.

    Attributes:
        folder: Folder of the documents.
        keys: Key of each document.
        sources: Source of each document, "" without one.
        fields: Values of each further field, "" where a document lacks it.
        hashes_N: `text_hash` of each document, uint64, ascending.
        bytes_N: UTF-8 bytes of each document, int64.
        counts: Numbers of documents and bytes read, and of records rejected.
    """

    folder: Path
    keys: list[str]
    sources: list[str]
    fields: dict[str, list[str]]
    hashes_N: NDArray[np.uint64]
    bytes_N: NDArray[np.int64]
    counts: dict[str, Any]

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-len(self.keys) // PART)


def prepare_documents(
    options: DocumentOptions, output: Path, say: Callable[[str], None]
) -> Documents:
    """Reads the documents, or opens what an earlier run stored.

    Args:
        options: Files and options.
        output: Output folder of the analysis.
        say: Prints a line of progress.

    Raises:
        NoInputError: If a pattern matches no file.
        EmptyDataError: If the pool has no document.
        FlagError: If no document has one of the fields.
        OSError: If a file cannot be read or written.
    """
    folder = output / "documents" / _digest(options)
    if not (folder / "documents.json").is_file():
        with replacing_folder(folder) as new:
            _write_documents(options, new, say)
    return open_documents(folder, options.fields)


def open_documents(folder: Path, fields: Sequence[str]) -> Documents:
    """Opens a folder of documents."""
    names = [_column(index) for index in range(len(fields))]
    table = pq.read_table(
        folder / "documents.parquet", columns=["key", "source", "hash", "bytes", *names]
    )
    return Documents(
        folder=folder,
        keys=table["key"].to_pylist(),
        sources=table["source"].to_pylist(),
        fields={field: table[name].to_pylist() for field, name in zip(fields, names, strict=True)},
        hashes_N=table["hash"].to_numpy(),
        bytes_N=table["bytes"].to_numpy(),
        counts=json.loads((folder / "documents.json").read_text(encoding="utf-8")),
    )


def texts_of_part(folder: str, part: int) -> list[str]:
    """Returns the texts of a part's documents."""
    file = pq.ParquetFile(Path(folder) / "documents.parquet")
    return cast(list[str], file.read_row_group(part, columns=["text"])["text"].to_pylist())


def _column(index: int) -> str:
    return f"field_{index}"


def _digest(options: DocumentOptions) -> str:
    files = [dataclasses.asdict(info) for info in list_files(options.pool)]
    # The same files by another glob are the same documents.
    values = {"version": DOCUMENTS_VERSION, "files": files} | {
        name: value for name, value in dataclasses.asdict(options).items() if name != "pool"
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _read(
    options: DocumentOptions, read: ReadOptions, rejected: Counter[str]
) -> Iterator[Document]:
    """Yields the documents of the pool and counts the records that cannot be read."""
    for info in list_files(options.pool):
        for record in read_file(info.path, read):
            if isinstance(record, BadRecord):
                rejected[str(record.reason)] += record.records
            else:
                yield record


def _write_documents(options: DocumentOptions, folder: Path, say: Callable[[str], None]) -> None:
    sample, counts = _sample(options, say)
    if not sample:
        reasons = f"; records rejected: {counts['rejected']}" if counts["rejected"] else ""
        raise EmptyDataError(f"--pool has no document{reasons}")

    columns: dict[str, Any] = {
        "key": [document.key for _, _, document in sample],
        "source": [document.source for _, _, document in sample],
        "hash": pa.array([hashed for hashed, _, _ in sample], pa.uint64()),
        "bytes": pa.array([document.size for _, _, document in sample], pa.int64()),
        "text": [document.text for _, _, document in sample],
    }
    for index, field in enumerate(options.fields):
        say(f"reading the field {field}")
        columns[_column(index)] = _field_values(options, field, [place for _, place, _ in sample])
    pq.write_table(pa.table(columns), folder / "documents.parquet", row_group_size=PART)
    (folder / "documents.json").write_text(json.dumps(counts), encoding="utf-8")


def _sample(
    options: DocumentOptions, say: Callable[[str], None]
) -> tuple[list[tuple[int, int, Document]], dict[str, Any]]:
    """Returns the documents with the smallest hashes, as (hash, place in the pool, document)."""
    rejected: Counter[str] = Counter()
    heap: list[tuple[int, int, Document]] = []
    read = size = 0
    for place, document in enumerate(_read(options, options.read, rejected)):
        read, size = place + 1, size + document.size
        # Negative, because a heap gives up its smallest first; a place decides between twins.
        entry = (-text_hash(document.text), -place, dataclasses.replace(document, raw=None))
        if len(heap) < options.max_documents:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
        if read % _PROGRESS == 0:
            say(f"read {counted(read, 'document')}, {size / 1e6:,.0f} MB")

    sample = sorted((-hashed, -place, document) for hashed, place, document in heap)
    counts = {
        "documents_read": read,
        "bytes_read": size,
        "documents": len(sample),
        "rejected": dict(rejected),
    }
    return sample, counts


def _field_values(options: DocumentOptions, field: str, places: Sequence[int]) -> list[str]:
    """Returns a field of the sampled documents, read as their source to suit every format."""
    as_source = dataclasses.replace(options.read, source_field=field)
    values = dict.fromkeys(places, "")
    for place, document in enumerate(_read(options, as_source, Counter())):
        if place in values:
            values[place] = document.source
    if not any(values.values()):
        raise FlagError(f"the field {field!r} is in no document; check --by and --language_field")
    return [values[place] for place in places]
