"""Joined tables: scores and labels made elsewhere, in Parquet files with a key column.

Rows and documents meet by a 128-bit hash of the key: BLAKE2b, of which two different keys among
10^15 share one with a probability below 10^-8. They are shuffled in chunks, each with the rows of
one *bucket* of hashes, so that all work on them is done on arrays and there are few elements, and
no text of a document is among them. A worker has the rows of one bucket in memory. The number of
buckets grows with the tables.

A key of an id that is not a string, such as 7, is written 7 in a key column of ids, as in
`--output_format scores`, and so is the string "7". Both are found there.

Of several rows with one key the first counts, in the order of the files' paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.pipelines import errors
from datarater.pipelines.errors import CurationError, InputChangedError
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.run_folder.identity import InputsCounter, InputsDigest
from datarater.pipelines.run_folder.ranking_options import ColumnType, JoinCounts, JoinedTable
from datarater.pipelines.selection.ranking import rows_by_code
from datarater.rater_model.documents.files import file_info, open_file
from datarater.rater_model.documents.json_lines import id_text
from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.store_errors import raising_os_errors

_ROW_BYTES = 8  # of a stored row at least, approximately
_MAX_BUCKETS = 2**20
PART_BYTES = 64 * 2**20
"""Uncompressed bytes of row groups that a worker reads at a time."""
_FILE_SHIFT = 40

Chunk = tuple[bytes, bytes, bytes]
"""Rows of a joined table in one bucket: hashes, places in the table, and their values as JSON."""


class JoinError(CurationError):
    """A joined table cannot be used; the message names it and the file."""


# Types.


def column_type(kind: pa.DataType) -> ColumnType | None:
    """Returns what a column of a Parquet file is read as; None if rules cannot use it."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return ColumnType.TRUTH
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return ColumnType.INTEGER
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return ColumnType.NUMBER
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return ColumnType.TEXT if is_text or pa.types.is_string_view(kind) else None


def fits(stored: pa.DataType, wanted: ColumnType) -> bool:
    """Returns whether a column of a file can be read as the type that the table has."""
    if pa.types.is_null(stored):
        return True
    actual = column_type(stored)
    return actual is wanted or (actual is ColumnType.INTEGER and wanted is ColumnType.NUMBER)


def normalized(column: pa.ChunkedArray, wanted: ColumnType) -> pa.ChunkedArray:
    """Returns a column in the type of the table; numbers that are not finite become null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.cast(wanted.arrow, safe=False)
    if wanted is not ColumnType.NUMBER:
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, pa.float64()))


def is_key_type(kind: pa.DataType) -> bool:
    """Returns whether a column can be a key column: texts or integers, those of uint64 included."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or column_type(kind) is ColumnType.TEXT


# Files.


def files_of(name: str, patterns: Sequence[str]) -> Iterator[FileInfo]:
    """Yields the files of a joined table, sorted by path; raises as `Patterns.files` does."""
    yield from Patterns(tuple(patterns), flag=f"--join {name}").files()


def identify(files: Iterable[FileInfo]) -> InputsDigest:
    """Returns what identifies the files of a joined table."""
    counter = InputsCounter()
    for file in files:
        counter.add(file)
    return counter.digest()


@contextlib.contextmanager
def opened(name: str, path: str) -> Iterator[pq.ParquetFile]:
    """Opens a file of a joined table.

    Raises:
        JoinError: It is not a Parquet file.
        UnreadableInputError: It cannot be read.
    """
    try:
        with raising_os_errors(path), open_file(path) as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        raise JoinError(
            f"--join {name}: {path} is not a Parquet file that can be read: {error}"
        ) from error
    except OSError as error:
        raise errors.reading_failed(path, error) from error


@dataclasses.dataclass(frozen=True)
class TablePart:
    """Row groups of a file of a joined table.

    Attributes:
        file: The file.
        number: Number of the file, in the order of the paths.
        first_row: Number of the first row in the file.
        first: Number of the first row group.
        end: Number of the row group after the last.
    """

    file: FileInfo
    number: int
    first_row: int
    first: int
    end: int


def parts_of(
    table: JoinedTable, file: FileInfo, number: int, part_bytes: int = PART_BYTES
) -> list[TablePart]:
    """Divides a file into parts; raises as `opened` does.

    Args:
        table: The joined table.
        file: One of its files.
        number: Number of the file.
        part_bytes: Uncompressed bytes of a part, approximately.
    """
    parts: list[TablePart] = []
    with opened(table.name, file.path) as parquet:
        metadata = parquet.metadata
        row, begun, first, size = 0, 0, 0, 0
        for group in range(metadata.num_row_groups):
            described = metadata.row_group(group)
            if size and size + described.total_byte_size > part_bytes:
                parts.append(TablePart(file, number, begun, first, group))
                begun, first, size = row, group, 0
            row += described.num_rows
            size += described.total_byte_size
        parts.append(TablePart(file, number, begun, first, metadata.num_row_groups))
    return parts


def read_part(table: JoinedTable, part: TablePart) -> pa.Table:
    """Returns the keys of a part, first, and its used columns, in the types of the table.

    Raises:
        JoinError: A column is missing or has another type than in the other files.
        InputChangedError: The file was modified since it was listed.
        UnreadableInputError: It cannot be read.
    """
    path = part.file.path
    names = list(dict.fromkeys([table.key, *table.columns]))
    with opened(table.name, path) as parquet:
        check_columns(table, path, parquet.schema_arrow)
        read = parquet.read_row_groups(range(part.first, part.end), names, use_threads=False)
    if file_info(path).fingerprint != part.file.fingerprint:
        raise changed(table.name, path)

    # The key column may be used in rules too. A column may have any name, even "".
    columns = [_key_texts(read.column(table.key))]
    columns += [normalized(read.column(name), kind) for name, kind in table.columns.items()]
    return pa.table(columns, names=[_KEY, *table.columns])


_KEY = "key"


def changed(name: str, what: str) -> InputChangedError:
    """Returns the error about a joined table that was modified."""
    return InputChangedError(
        f"--join {name}: {what} was modified since the selection began; restore it, or run the "
        "command again with another --name"
    )


def check_names(name: str, path: str, schema: pa.Schema, used: Iterable[str]) -> None:
    """Refuses a file in which several columns share a name.

    Args:
        name: Name of the joined table.
        path: Path of the file.
        schema: Schema of the file.
        used: Names of the columns to check.

    Raises:
        JoinError: Two columns have the name of one.
    """
    times = Counter(schema.names)
    for column in used:
        if times[column] > 1:
            raise JoinError(
                f"--join {name}: {path} has {times[column]} columns {column!r}; give each a name "
                "of its own"
            )


def check_columns(table: JoinedTable, path: str, schema: pa.Schema) -> None:
    """Refuses a file whose columns are not those of the table.

    Raises:
        JoinError: A column is missing, is there twice, or has another type.
    """
    for name in (table.key, *table.columns):
        if name not in schema.names:
            raise JoinError(f"--join {table.name}: {path} has no column {name!r}")
    check_names(table.name, path, schema, (table.key, *table.columns))
    kind = schema.field(table.key).type
    if not is_key_type(kind) and not pa.types.is_null(kind):
        raise JoinError(
            f"--join {table.name}: the key column {table.key!r} of {path} is of type {kind}, not "
            "text or integer"
        )
    for name, wanted in table.columns.items():
        kind = schema.field(name).type
        if not fits(kind, wanted):
            raise JoinError(
                f"--join {table.name}: the column {name!r} of {path} is of type {kind}, but of "
                f"type {wanted} in the first files; write all files with one type"
            )


def _key_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


# Hashes and buckets.


def hashes_of(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Returns the hashes of N keys, uint64, of shape (N, 2)."""
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts
    )
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def document_hashes(keys: Iterable[str], *, by_id: bool) -> NDArray[np.uint64]:
    """Returns the hashes of the keys of N documents, uint64, of shape (N, 2).

    Args:
        keys: Keys as score files have them.
        by_id: Whether to hash the ids that they were made from.
    """
    return hashes_of(map(id_text, keys) if by_id else keys)


def count_buckets(documents: int, tables: Iterable[JoinedTable], rows_per_bucket: int) -> int:
    """Returns the number of buckets for a corpus and the tables joined with it.

    Args:
        documents: Number of documents of the corpus.
        tables: The tables.
        rows_per_bucket: Maximum number of rows of a table in a bucket, approximately.
    """
    rows = max([documents, *(table.inputs.bytes // _ROW_BYTES for table in tables)])
    return min(_MAX_BUCKETS, 1 + rows // rows_per_bucket)


def by_bucket(
    hashes_N2: NDArray[np.uint64], buckets: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields the buckets of N hashes, each with the numbers of its hashes."""
    codes_N = (hashes_N2[:, 1] % np.uint64(buckets)).astype(np.int64)
    yield from rows_by_code(codes_N, np.ones(len(codes_N), bool))


def chunks_of(
    table: JoinedTable, part: TablePart, buckets: int
) -> tuple[list[tuple[int, Chunk]], JoinCounts]:
    """Reads a part of a joined table.

    Returns:
        The rows by bucket, each key once, and the counts of the part; keys that other parts have
        too are not counted as duplicates here.

    Raises:
        CurationError: As `read_part`.
    """
    read = read_part(table, part)
    keys = read.column(0)
    has_key_R = keys.is_valid().to_numpy()
    rows_N = np.flatnonzero(has_key_R)
    try:
        hashes_N2 = hashes_of(keys.filter(pa.array(has_key_R)).to_pylist())
        values = [column.to_pylist() for column in read.columns[1:]]
    except UnicodeDecodeError as error:
        raise JoinError(
            f"--join {table.name}: {part.file.path} has a text that is not UTF-8: {error}"
        ) from error

    first_M = first_of_each(hashes_N2)
    counts = JoinCounts(read.num_rows, read.num_rows - len(rows_N), len(rows_N) - len(first_M))
    rows_M, hashes_M2 = rows_N[first_M], hashes_N2[first_M]
    places_M = (part.number << _FILE_SHIFT) + part.first_row + rows_M
    chunks = []
    for bucket, chosen in by_bucket(hashes_M2, buckets):
        picked = rows_M[chosen].tolist()
        chunk = orjson.dumps([[column[row] for row in picked] for column in values])
        chunks.append((bucket, (hashes_M2[chosen].tobytes(), places_M[chosen].tobytes(), chunk)))
    return chunks, counts


def first_of_each(
    hashes_N2: NDArray[np.uint64], places_N: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Returns the number of the first of each group of equal hashes, in the order of the hashes.

    Args:
        hashes_N2: Hashes.
        places_N: What says which one is the first; None if they are in order.
    """
    columns = [hashes_N2[:, 1], hashes_N2[:, 0]]
    order_N = np.lexsort(columns if places_N is None else [places_N, *columns])
    sorted_N2 = hashes_N2[order_N]
    is_first_N = np.ones(len(order_N), bool)
    is_first_N[1:] = (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)
    first: NDArray[np.int64] = order_N[is_first_N]
    return first


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The rows of a joined table in one bucket, by key.

    Attributes:
        hashes_J2: Hashes in ascending order, each once.
        columns: Values of each used column, in the order of the hashes.
        duplicates: Number of rows that were left out.
    """

    hashes_J2: NDArray[np.uint64]
    columns: list[list[Any]]
    duplicates: int

    @classmethod
    def of(cls, chunks: Iterable[Chunk], columns: int) -> Lookup:
        """Returns the rows of some chunks, in any order.

        Args:
            chunks: The chunks.
            columns: Number of columns.
        """
        hashes, places, values = [], [], [[] for _ in range(columns)]  # type: ignore[var-annotated]
        for chunk_hashes, chunk_places, chunk in chunks:
            hashes.append(np.frombuffer(chunk_hashes, np.uint64).reshape(-1, 2))
            places.append(np.frombuffer(chunk_places, np.int64))
            for column, more in zip(values, orjson.loads(chunk), strict=True):
                column += more
        hashes_N2 = np.concatenate([np.zeros((0, 2), np.uint64), *hashes])
        places_N = np.concatenate([np.zeros(0, np.int64), *places])
        first_J = first_of_each(hashes_N2, places_N)
        picked = first_J.tolist()
        return cls(
            hashes_N2[first_J],
            [[column[row] for row in picked] for column in values],
            len(hashes_N2) - len(first_J),
        )

    def find(self, hashes_N2: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns the number of the row of each key; -1 where there is none."""
        first_J, second_J = self.hashes_J2[:, 0], self.hashes_J2[:, 1]
        places_N = np.searchsorted(first_J, hashes_N2[:, 0])
        found_N = np.full(len(hashes_N2), -1, np.int64)

        # Rows whose hashes differ in the second half alone follow each other.
        open_M = np.arange(len(hashes_N2))
        while len(open_M):
            open_M = open_M[places_N[open_M] < len(first_J)]
            at_M = places_N[open_M]
            same_M = first_J[at_M] == hashes_N2[open_M, 0]
            open_M, at_M = open_M[same_M], at_M[same_M]
            is_it_M = second_J[at_M] == hashes_N2[open_M, 1]
            found_N[open_M[is_it_M]] = at_M[is_it_M]
            open_M = open_M[~is_it_M]
            places_N[open_M] += 1
        return found_N
