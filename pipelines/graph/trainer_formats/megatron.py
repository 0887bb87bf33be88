"""Megatron: token files (`.bin`) with an index (`.idx`), as megatron-core's IndexedDataset reads.

Each document is one sequence and one document of the index: the tokens of its whole text, and the
end-of-document token if one is given. Tokens are uint16 if the vocabulary has fewer than 65,500 of
them, int32 otherwise.

| bytes of the index | content |
|---|---|
| 9 | `MMIDIDX`, 0, 0 |
| 8 | 1, the version |
| 1 | type of a token: 8 for uint16, 4 for int32 |
| 8 | N, the number of sequences |
| 8 | N + 1 |
| 4 N | tokens of each sequence |
| 8 N | place of each sequence in the token file, in bytes |
| 8 (N + 1) | number of the sequence at which each document begins: 0 to N |

Integers are little-endian. These files have no place for anything but tokens. So a third file,
`.scores.parquet`, has a row for each sequence, in the same order: `id`, `source`, `metadata`,
`tokens` (of the sequence) and `datarater_score`.

Source: github.com/NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datarater.pipelines.errors import CurationError
from datarater.pipelines.graph.record_writers import TableWriter
from datarater.pipelines.graph.second_read import KeptSplit
from datarater.pipelines.graph.trainer_formats.trainer_format import (
    KeptDocument,
    RecordFiles,
    TrainerFormat,
    kept_documents,
)
from datarater.pipelines.run_folder.manifest import TokenizerFields
from datarater.rater_model.documents.json_lines import SCORE_FIELD
from datarater.rater_model.plain_tokenizer import PlainTokenizer, load_plain_tokenizer

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_MAX_UINT16_VOCABULARY = 65_500
_CODES = {"<u2": 8, "<i4": 4}
_CHARACTERS_AT_ONCE = 2**20
_ROWS_AT_ONCE = 4096
_LENGTHS_AT_ONCE = 2**20

SCORES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field(SCORE_FIELD, pa.float32(), nullable=False),
    ]
)


def token_type(vocabulary_size: int) -> str:
    """Returns NumPy's name of the type of a token, little-endian.

    Example:
        >>> token_type(50_257), token_type(128_256)
        ('<u2', '<i4')
    """
    return "<u2" if vocabulary_size < _MAX_UINT16_VOCABULARY else "<i4"


@dataclasses.dataclass(frozen=True)
class MegatronFormat(TrainerFormat):
    """Token files, each with an index and a table of scores.

    Attributes:
        path: Path of the `tokenizer.json`, or the name of the tokenizer of bytes.
        tokenizer: What identifies the tokenizer; None for a format that writes nothing.
    """

    path: str = ""
    tokenizer: TokenizerFields | None = None

    name = "megatron"
    suffix = "bin"
    companion_suffixes = ("idx", "scores.parquet")

    def records(self, kept: KeptSplit) -> Iterator[bytes]:
        """Yields for each document its row of scores and its tokens."""
        tokenizer, end = self._loaded()
        kind = token_type(tokenizer.vocabulary_size)
        for some in _in_batches(kept_documents(kept)):
            for document, ids in zip(
                some, tokenizer.encode_batch([one.text for one in some]), strict=True
            ):
                tokens = np.concatenate([ids, end]).astype(kind)
                row = {**document.row(), "tokens": len(tokens)}
                del row["text"]
                yield _packed(row, tokens)

    def _loaded(self) -> tuple[PlainTokenizer, NDArray[np.int64]]:
        """Returns the tokenizer, and what follows each document: one id or none.

        Raises:
            CurationError: The file has changed since the selection began.
        """
        assert self.tokenizer is not None
        tokenizer = load_plain_tokenizer(self.path)
        if tokenizer.digest != self.tokenizer.digest:
            raise CurationError(
                f"--output_tokenizer: {self.path} has changed since the selection began; restore "
                "it, or select under another --name"
            )
        end = self.tokenizer.end_id
        return tokenizer, np.asarray([] if end is None else [end], np.int64)

    def open(self, files: Sequence[BinaryIO], documents: int) -> RecordFiles:
        """Begins a token file, its index and its table of scores."""
        assert self.tokenizer is not None
        tokens, index, scores = files
        return _MegatronFiles(tokens, index, scores, token_type(self.tokenizer.vocabulary_size))


def _in_batches(documents: Iterable[KeptDocument]) -> Iterator[list[KeptDocument]]:
    """Yields documents in lists of at most so many characters, or of one longer text."""
    some: list[KeptDocument] = []
    size = 0
    for document in documents:
        if some and size + len(document.text) > _CHARACTERS_AT_ONCE:
            yield some
            some, size = [], 0
        some.append(document)
        size += len(document.text)
    if some:
        yield some


def _packed(row: dict[str, Any], tokens: NDArray[Any]) -> bytes:
    """Returns a row and tokens as one record; `_unpacked` is the inverse."""
    head = orjson.dumps(row)
    return struct.pack("<I", len(head)) + head + tokens.tobytes()


def _unpacked(record: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack_from("<I", record)
    return orjson.loads(record[4 : 4 + size]), record[4 + size :]


class _MegatronFiles:
    """A token file with its index and its table of scores.

    Args:
        tokens: File of the tokens.
        index: File of the index, which is written last.
        scores: File of the table.
        kind: NumPy's name of the type of a token.
    """

    def __init__(self, tokens: BinaryIO, index: BinaryIO, scores: BinaryIO, kind: str):
        self._tokens = tokens
        self._index = index
        self._scores = TableWriter(scores)
        self._kind = kind
        self._lengths = array("i")
        self._rows: list[dict[str, Any]] = []

    def add(self, record: bytes) -> None:
        """Adds a sequence and its row."""
        row, tokens = _unpacked(record)
        self._tokens.write(tokens)
        self._lengths.append(row["tokens"])
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._write_rows()

    def _write_rows(self) -> None:
        if self._rows:
            self._scores.write_table(pa.Table.from_pylist(self._rows, SCORES_SCHEMA))
        self._rows = []

    def close(self) -> None:
        """Writes the rest of the table, and the index."""
        self._write_rows()
        self._scores.close()
        self._index.writelines(_index(np.asarray(self._lengths, "<i4"), self._kind))


def _index(lengths_N: NDArray[np.int32], kind: str) -> Iterator[bytes]:
    """Yields the content of an index, in parts of bounded size."""
    count = len(lengths_N)
    yield _MAGIC + struct.pack("<QBQQ", _VERSION, _CODES[kind], count, count + 1)
    yield lengths_N.tobytes()

    token_bytes, place = np.dtype(kind).itemsize, 0
    for first in range(0, count, _LENGTHS_AT_ONCE):
        sizes_M = lengths_N[first : first + _LENGTHS_AT_ONCE].astype("<i8") * token_bytes
        ends_M = place + np.cumsum(sizes_M)
        yield (ends_M - sizes_M).astype("<i8").tobytes()
        place = int(ends_M[-1])

    for first in range(0, count + 1, _LENGTHS_AT_ONCE):
        yield np.arange(first, min(first + _LENGTHS_AT_ONCE, count + 1), dtype="<i8").tobytes()
