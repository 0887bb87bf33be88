"""MosaicML Streaming: shards in the MDS format, and the index `index.json` of all of them.

Each sample has the columns `id`, `text`, `source`, `metadata` (JSON of all other fields) and
`datarater_score`. `streaming.StreamingDataset(local=FOLDER)` reads the folder `kept/` as it is.

A shard is the number of samples (N), N + 1 offsets, a JSON object that describes the columns, and
the samples. A sample is the sizes of its columns of variable size, then all columns, by name. All
integers are uint32, little-endian, so a shard has less than 4 GiB.

Source: github.com/mosaicml/streaming, streaming/base/format/mds/writer.py.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import orjson

from datarater.pipelines.errors import CurationError
from datarater.pipelines.graph.second_read import KeptSplit
from datarater.pipelines.graph.trainer_formats.trainer_format import (
    RecordFiles,
    TrainerFormat,
    kept_documents,
)
from datarater.rater_model.documents.json_lines import SCORE_FIELD

if TYPE_CHECKING:
    from datarater.pipelines.run_folder.manifest import Manifest

INDEX = "index.json"
MAX_SHARD_BYTES = 2**32 - 1
_COLUMNS = dict.fromkeys(("id", "metadata", "source", "text"), "str") | {SCORE_FIELD: "float32"}
_NAMES = sorted(_COLUMNS)
_SIZES = {"str": None, "float32": 4}
_HASH = "sha256"


def _config() -> dict[str, Any]:
    """Returns what a shard and the index say about the columns."""
    return {
        "column_encodings": [_COLUMNS[name] for name in _NAMES],
        "column_names": _NAMES,
        "column_sizes": [_SIZES[_COLUMNS[name]] for name in _NAMES],
        "compression": None,
        "format": "mds",
        "hashes": [_HASH],
        "size_limit": None,
        "version": 2,
    }


class MdsFormat(TrainerFormat):
    """MDS shards with an index."""

    name = "mds"
    suffix = "mds"

    def records(self, kept: KeptSplit) -> Iterator[bytes]:
        """Yields samples."""
        for document in kept_documents(kept):
            row = document.row()
            values = [
                row[name].encode() if _COLUMNS[name] == "str" else struct.pack("<f", row[name])
                for name in _NAMES
            ]
            sizes = [
                len(value)
                for name, value in zip(_NAMES, values, strict=True)
                if _SIZES[_COLUMNS[name]] is None
            ]
            yield b"".join([struct.pack(f"<{len(sizes)}I", *sizes), *values])

    def open(self, files: Sequence[BinaryIO], documents: int) -> RecordFiles:
        """Begins a shard."""
        (file,) = files
        return _Shard(file, documents)

    def whole_files(self, manifest: Manifest) -> dict[str, bytes]:
        """Returns the index of all shards."""
        shards = [
            {
                **_config(),
                "raw_data": {
                    "basename": file.path.removeprefix("kept/"),
                    "bytes": file.bytes,
                    "hashes": {_HASH: file.sha256},
                },
                "samples": file.documents,
                "zip_data": None,
            }
            for file in manifest.files
        ]
        return {INDEX: orjson.dumps({"shards": shards, "version": 2}, option=orjson.OPT_SORT_KEYS)}


class _Shard:
    """A shard. Its offsets precede the samples, and are written last.

    Args:
        file: Empty file, in which places can be sought.
        documents: Number of samples that will be added.
        max_bytes: Size that the shard must not exceed.
    """

    def __init__(self, file: BinaryIO, documents: int, max_bytes: int = MAX_SHARD_BYTES):
        config = json.dumps(_config(), sort_keys=True).encode()
        self._file = file
        self._documents = documents
        self._max_bytes = max_bytes
        self._end = 4 * (documents + 2) + len(config)
        self._offsets = array("I", [self._end])
        file.seek(4 * (documents + 2))
        file.write(config)

    def add(self, record: bytes) -> None:
        """Adds a sample.

        Raises:
            CurationError: The shard would be too large.
        """
        self._end += len(record)
        if self._end > self._max_bytes:
            raise CurationError(
                "an MDS shard cannot have more than 4 GiB, and one split keeps more than that; "
                "select with another --output_format, or store the input in smaller files"
            )
        self._offsets.append(self._end)
        self._file.write(record)

    def close(self) -> None:
        """Writes the number of samples and their offsets."""
        self._file.seek(0)
        self._file.write(struct.pack("<I", len(self._offsets) - 1))
        self._file.write(np.asarray(self._offsets, "<u4").tobytes())
        self._file.seek(0, os.SEEK_END)
