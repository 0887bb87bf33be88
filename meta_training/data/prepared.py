"""Prepared data: the windows of all sets as ArrayRecord shards in a folder, with an index.

    FOLDER/
      index.json              what the windows were made from and how; written last
      tokenizer.json          the tokenizer
      reference.json          inner documents on which exported scores are centered
      inner-00000.array_record    windows, one per record: token ids, little-endian
      inner.lengths.npy       valid tokens of each window
      inner.sources.npy       number of each window's source; names are in the index
      ...                     the same for the other sets

Any window is read by its number alone, so a shuffle over the whole set costs nothing, nor does a
resume. Source: github.com/google/array_record.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datarater.meta_training.data.batch_order import MIXED, SingleSource, batch_numbers
from datarater.meta_training.data.texts import DataError
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.json_codec import DecodingError, decode

if TYPE_CHECKING:
    import grain

FORMAT = 1
_OPEN_SHARDS = 256
_READ_BYTES = 2**15  # that the library reads at a time from a shard
INDEX, TOKENIZER, REFERENCE = "index.json", "tokenizer.json", "reference.json"
LENGTHS, SOURCES = "lengths", "sources"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of windows.

    Attributes:
        file: Its name in the folder.
        windows: Number of its windows.
    """

    file: str
    windows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """One set in the index.

    Attributes:
        source: Name of its source, as the config gave it.
        fingerprint: Digest of the files' names, sizes and times, or of the dataset's own record.
        identity: Digest of the source's texts.
        documents: Number of its documents.
        windows: Number of its windows.
        tokens: Number of valid tokens in them.
        in_other_sets: Documents that were left out because another set has the same text.
        near_duplicates: Documents that were left out as near-duplicates of another set.
        rejected: Number of unusable records of the source, by reason.
        shards: Its files, in the order of the windows.
    """

    source: str
    fingerprint: str
    identity: str
    documents: int
    windows: int
    tokens: int
    in_other_sets: int
    near_duplicates: int
    rejected: dict[str, int]
    shards: list[Shard]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """The content of `index.json`.

    Attributes:
        format: Version of the folder's layout.
        made_with: Values of the config's fields that decide which windows there are.
        data: Identity of the texts of all sets.
        tokenizer: SHA-256 of the tokenizer.
        bytes_per_token: 2, or 4 for a vocabulary above 65,536.
        source_names: Names of the documents' sources, by set and number.
        sets: The sets, by role; the inner set is the first.
    """

    format: int
    made_with: dict[str, Any]
    data: str
    tokenizer: str
    bytes_per_token: int
    source_names: dict[str, list[str]]
    sets: dict[str, PreparedSet]


def read_index(folder: Path) -> Index | None:
    """Returns the index of a folder; None if there is none, so that nothing in it counts.

    Raises:
        DataError: It is damaged, or of another version.
    """
    path = folder / INDEX
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        index = decode(Index, content)
    except DecodingError as error:
        raise DataError(
            f"{path} is damaged or of another version ({error}); delete {folder} and prepare again"
        ) from error
    if index.format != FORMAT:
        raise DataError(
            f"{path} has format {index.format}, and this version reads format {FORMAT}; delete "
            f"{folder} and prepare again"
        )
    return index


def check_complete(folder: Path, index: Index) -> None:
    """Refuses a folder that lacks a file of its index, such as one that was copied in part.

    Raises:
        DataError: It does; the message names the file.
    """
    names = [TOKENIZER, REFERENCE]
    for role, each in index.sets.items():
        names += [table_name(role, table) for table in (LENGTHS, SOURCES)]
        names += [shard.file for shard in each.shards]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        others = f" and {counted(len(missing) - 1, 'other file')}" if missing[1:] else ""
        raise DataError(
            f"{folder} lacks {missing[0]}{others} of its {INDEX}; copy it again, or delete it and "
            "prepare again"
        )


class PreparedWindows:
    """The windows of one set in a folder. It pickles, so that worker processes can read as well.

    Args:
        folder: The folder.
        role: Role of the set.

    Attributes:
        length_N: Valid tokens of each window, int32.
        source_N: Number of each window's source, int32: that of the document at its middle.
        source_names: Names of the sources by their number.

    Raises:
        DataError: The folder has no such set.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self._folder, self._role = folder, role
        index = read_index(folder)
        if index is None or role not in index.sets:
            raise DataError(f"{folder} has no {role} set; prepare it again")
        self._set = index.sets[role]
        self.within_sources = bool(index.made_with.get("data.within_source_share"))
        self._dtype = np.dtype(f"<u{index.bytes_per_token}")
        self.source_names = index.source_names[role]
        self._end_K = np.cumsum([shard.windows for shard in self._set.shards])
        self._reader = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._open)
        self.length_N: np.ndarray = np.load(folder / table_name(role, LENGTHS), mmap_mode="r")
        self.source_N: np.ndarray = np.load(folder / table_name(role, SOURCES), mmap_mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedWindows, (self._folder, self._role)

    def __len__(self) -> int:
        return len(self.length_N)

    def read(
        self, number_B: np.ndarray, own_B: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads windows by their numbers.

        Args:
            number_B: The numbers.
            own_B: Which of the windows this process needs; None for all.

        Returns:
            tokens_BxL and length_B, both int32; zeros for windows that are not needed.

        Raises:
            OSError: A shard cannot be read.
        """
        if own_B is not None and not own_B.all():
            # A process without any of the windows still tells their length from one of them.
            own_M = np.flatnonzero(own_B)
            tokens_MxL, length_M = self.read(number_B[own_M] if len(own_M) else number_B[:1])
            tokens_BxL = np.zeros((len(number_B), tokens_MxL.shape[1]), np.int32)
            length_B = np.zeros(len(number_B), np.int32)
            tokens_BxL[own_M], length_B[own_M] = tokens_MxL[: len(own_M)], length_M[: len(own_M)]
            return tokens_BxL, length_B

        shard_B = np.searchsorted(self._end_K, number_B, side="right")
        tokens_BxL = np.empty((len(number_B), 0), np.int32)
        for shard in np.unique(shard_B):
            of_shard_B = shard_B == shard
            first = self._end_K[shard] - self._set.shards[shard].windows
            rows = self._records(int(shard), (number_B[of_shard_B] - first).tolist())
            if not tokens_BxL.shape[1]:
                tokens_BxL = np.empty((len(number_B), rows.shape[1]), np.int32)
            tokens_BxL[of_shard_B] = rows
        return tokens_BxL, np.asarray(self.length_N[number_B], np.int32)

    def _records(self, shard: int, positions: list[int]) -> np.ndarray:
        """Reads windows of one shard by their positions in it."""
        path = self._folder / self._set.shards[shard].file
        try:
            records = self._reader(shard).read(positions)
        except (RuntimeError, ValueError, IndexError) as error:
            raise OSError(
                f"{path} cannot be read: {one_line(error)}; if it is damaged, delete "
                f"{self._folder} and prepare again"
            ) from error
        return np.frombuffer(b"".join(records), self._dtype).reshape(len(positions), -1)

    def _open(self, shard: int) -> Any:
        from array_record.python import array_record_module  # type: ignore[import-untyped]

        # One thread: draws are scaled by processes.
        return array_record_module.ArrayRecordReader(
            str(self._folder / self._set.shards[shard].file),
            "readahead_buffer_size:0,max_parallelism:0",
            file_reader_buffer_size=_READ_BYTES,
        )

    def batches(
        self,
        count: int,
        seed: int,
        single: SingleSource = MIXED,
        own_B: np.ndarray | None = None,
    ) -> grain.MapDataset:
        """Returns endless batches; each pass over the whole set has a shuffled order of its own.

        Args:
            count: Windows of a batch.
            seed: Seed for shuffling.
            single: Share of batches of a single source.
            own_B: Which windows of every batch this process needs; None for all.

        Raises:
            DataError: The windows were not prepared for batches of a single source, or do not fill
                one.
        """
        if single.share and not self.within_sources:
            raise DataError(
                f"{self._folder} was prepared for data.within_source_share 0, so a window may have "
                "documents of several sources; prepare it again with the share of this run"
            )
        numbers = batch_numbers(self.source_N, count, seed, single)
        return numbers.map(functools.partial(self.read, own_B=own_B))

    def describe(self) -> str:
        """Returns the numbers of windows and documents, for the log."""
        windows, documents = self._set.windows, self._set.documents
        return f"{counted(windows, 'window')} of {counted(documents, 'document')}"

    def __repr__(self) -> str:
        return f"PreparedWindows({len(self)} {self._role} windows)"


def file_name(role: str) -> str:
    """Returns what the names of a set's files begin with."""
    return role.replace(" ", "-")


def table_name(role: str, table: str) -> str:
    """Returns the name of the file of a set's table, LENGTHS or SOURCES."""
    return f"{file_name(role)}.{table}.npy"
