"""The files of a deduplication, in `duplicates/NAME` of a run folder.

`documents/` has a Parquet file for each split, with a row for each of its documents that has a
neighbor: a document that ranks above it in the order of the run and is similar enough. It reads as
one table:

| column | meaning |
|---|---|
| key | key of the document |
| duplicate_of | key of its neighbor, the best-ranked one that was found |
| similarity | estimated Jaccard similarity of the two; 1 if `exact` |
| exact | whether the two have the same words in the same order |
| split, row | ordinal of the document's split, and its row in the split's score file |
| file, position | where the document is in the input |
| duplicate_of_file, duplicate_of_position | where its neighbor is |

Keys need not be unique: documents with the same text and without ids have the same key. The split
and the row name one document alone.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datarater.pipelines.dedup.signatures import PERMUTATIONS, SHINGLE_WORDS
from datarater.pipelines.errors import CountsError, RunFolderMismatchError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.identity import differences
from datarater.pipelines.run_folder.layout import (
    FORMAT_VERSION,
    DuplicatesFolder,
    now,
    read_json,
    versions,
)
from datarater.pipelines.run_folder.score_files import METADATA_KEY
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.store_errors import raising_os_errors
from datarater.rater_model.json_codec import IF_SET, DecodingError, decode, to_plain

SIGNATURE_VERSION = 1
"""Version of the normalization and the hashes, which decide what is found."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("exact", pa.bool_(), nullable=False),
        pa.field("split", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("duplicate_of_file", pa.string(), nullable=False),
        pa.field("duplicate_of_position", pa.int64(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicatesOptions:
    """The content of `options.json`: everything that decides what is found.

    Attributes:
        similarity: Jaccard similarity from which two documents are near-duplicates.
        seed: Seed that breaks ties between documents with the same score.
        shingle_words: Number of words in a shingle.
        permutations: Number of permutations of a signature.
        signatures: Version of the signatures.
        plans: Number of plans that the documents belong to; more than 1 after `--append`.
        format: Version of the format.
    """

    similarity: float
    seed: int
    shingle_words: int = SHINGLE_WORDS
    permutations: int = PERMUTATIONS
    signatures: int = SIGNATURE_VERSION
    plans: int = dataclasses.field(default=1, metadata=IF_SET)
    format: int = FORMAT_VERSION


@dataclasses.dataclass
class DuplicateCounts:
    """How many records a deduplication keeps and drops: read = kept + exact + near + rejected.

    Attributes:
        read: Number of all records.
        kept: Number of documents that have no neighbor above them.
        exact: Number of documents with the words of one above them.
        near: Number of documents that are only similar to one above them.
        rejected: Number of records without a score, which are not compared.
    """

    read: int = 0
    kept: int = 0
    exact: int = 0
    near: int = 0
    rejected: int = 0

    @property
    def documents(self) -> int:
        """Number of documents that are compared."""
        return self.kept + self.dropped

    @property
    def dropped(self) -> int:
        """Number of documents with a neighbor."""
        return self.exact + self.near

    def add(self, other: DuplicateCounts) -> None:
        """Adds other counts to these."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def check(self, what: str) -> None:
        """Reconciles the counts.

        Args:
            what: Name of what is counted, for the message.

        Raises:
            CountsError: The counts do not add up.
        """
        if self.read != self.kept + self.dropped + self.rejected:
            raise CountsError(
                f"{what}: {counted(self.read, 'record')} read, but {self.kept} kept + "
                f"{self.dropped} dropped + {self.rejected} rejected"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitDuplicates:
    """The JSON metadata of the file of a split.

    Attributes:
        split: Ordinal of the split.
        counts: Counts of its records.
        format: Version of the format.
    """

    split: int
    counts: DuplicateCounts
    format: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicatesSummary(DuplicatesOptions):
    """The content of `summary.json`.

    Attributes:
        name: Name of the deduplication.
        splits: Number of splits.
        counts: Counts of all records.
        rater: Digest of the rater whose scores rank the documents.
        versions: Versions of datarater, Beam and JAX.
        finished: Time in UTC, for people.
    """

    name: str
    splits: int
    counts: DuplicateCounts
    rater: str
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    finished: str = dataclasses.field(default_factory=now)


def default_name(similarity: float, seed: int) -> str:
    """Returns the name of a deduplication that was given none."""
    return f"similarity-{similarity:g}" + (f"-seed-{seed}" if seed else "")


def check_options(folder: DuplicatesFolder, requested: DuplicatesOptions) -> None:
    """Refuses a deduplication whose name is taken by one with other options.

    Raises:
        RunFolderMismatchError: The options differ; the message names the differences.
    """
    committed = read_json(folder.options_path, DuplicatesOptions)
    if committed is None or committed == requested:
        return
    if dataclasses.replace(committed, plans=requested.plans) == requested:
        raise RunFolderMismatchError(
            f"{folder.path} was made before files were appended to the run folder: give the "
            f"deduplication of all documents another name, by datarater dedup --similarity "
            f"{requested.similarity:g} --name NAME after datarater score --append; a selection "
            "takes it by --dedup NAME"
        )
    lines = differences(to_plain(requested), to_plain(committed))
    raise RunFolderMismatchError(
        f"{folder.path} was made with other options: {'; '.join(lines)}. Give another --name"
    )


def read_summary(folder: DuplicatesFolder) -> DuplicatesSummary | None:
    """Reads the counts of a deduplication; None if it is not complete."""
    if not commits.exists(folder.success_path):
        return None
    return read_json(folder.summary_path, DuplicatesSummary)


# The files of splits.


def to_parquet(tables: Iterable[pa.Table], split: int, counts: DuplicateCounts) -> IO[bytes]:
    """Returns the file of a split, to be read from its beginning.

    Args:
        tables: Its near-duplicates in the order of their rows, with the columns of `SCHEMA`.
        split: Ordinal of the split.
        counts: Counts of its records; complete once all tables were taken.
    """
    file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
        max_size=commits.IN_MEMORY_BYTES
    )
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table)
        metadata = SplitDuplicates(split=split, counts=counts)
        writer.add_key_value_metadata({METADATA_KEY: orjson.dumps(to_plain(metadata))})
    file.seek(0)
    return file


def duplicate_rows(folder: DuplicatesFolder, split: int) -> NDArray[np.int64]:
    """Returns the rows of a split's score file that are near-duplicates, in ascending order.

    A selection leaves these documents out. Rows are counted as `ScoreFile.read` gives them. It
    raises as `read_duplicates` does.

    Args:
        folder: A complete deduplication.
        split: Ordinal of the split.
    """
    rows: NDArray[np.int64] = read_duplicates(folder, split, ("row",))["row"].to_numpy()
    return rows


def read_duplicates(
    folder: DuplicatesFolder, split: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Reads the near-duplicates among the documents of a split, in the order of their rows.

    Args:
        folder: A complete deduplication.
        split: Ordinal of the split.
        columns: Names of the columns to read; None for all.

    Raises:
        CountsError: The file is missing or damaged.
    """
    path = folder.documents_path(split)
    names = None if columns is None else list(columns)
    try:
        with raising_os_errors(path), commits.open_committed(path) as file:
            return pq.read_table(file, columns=names)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise CountsError(f"the near-duplicates {path} cannot be read: {error}") from error


def read_counts(path: str) -> DuplicateCounts:
    """Reads the counts in the metadata of a split's file.

    Raises:
        CountsError: The file is missing or damaged.
    """
    try:
        with raising_os_errors(path), commits.open_committed(path) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return decode(SplitDuplicates, metadata[METADATA_KEY]).counts
    except (OSError, pa.ArrowInvalid, KeyError, DecodingError) as error:
        raise CountsError(f"the near-duplicates {path} cannot be read: {error}") from error


# The signatures of splits.


def write_signatures(path: str, blocks: Iterable[NDArray[np.void]]) -> None:
    """Commits the signatures of a split: the bytes of structured arrays, one after the other."""
    with tempfile.SpooledTemporaryFile(max_size=commits.IN_MEMORY_BYTES) as file:
        for block in blocks:
            file.write(block.tobytes())
        commits.commit_file(path, file)


def read_signatures(path: str, kind: np.dtype[np.void], rows: int) -> Iterator[NDArray[np.void]]:
    """Yields the signatures of a split in blocks of at most `rows`.

    Raises:
        CountsError: The file is missing or cut off.
    """
    try:
        with raising_os_errors(path), commits.open_committed(path) as file:
            while data := file.read(rows * kind.itemsize):
                yield np.frombuffer(data, kind)
    except (OSError, ValueError) as error:
        raise CountsError(f"the signatures {path} cannot be read: {error}") from error
