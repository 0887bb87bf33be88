"""Readers of files that trainers read, written from the definitions of the formats alone."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np


def read_mds(folder: Path) -> list[dict[str, Any]]:
    """Returns the samples of a folder in the MDS format, in order."""
    index = json.loads((folder / "index.json").read_bytes())
    assert index["version"] == 2
    samples: list[dict[str, Any]] = []
    for shard in index["shards"]:
        assert (shard["format"], shard["compression"], shard["zip_data"]) == ("mds", None, None)
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        config = json.loads(data[4 * (count + 2) : offsets[0]])
        assert config.items() <= shard.items()
        assert offsets[-1] == len(data)
        for begin, end in itertools.pairwise(offsets):
            samples.append(_sample(data[begin:end], config))
    return samples


def _sample(data: bytes, config: dict[str, Any]) -> dict[str, Any]:
    sizes = list(config["column_sizes"])
    at = 0
    for column, size in enumerate(sizes):
        if size is None:
            (sizes[column],) = struct.unpack_from("<I", data, at)
            at += 4
    sample = {}
    columns = zip(config["column_names"], config["column_encodings"], sizes, strict=True)
    for name, encoding, size in columns:
        value = data[at : at + size]
        sample[name] = {"str": bytes.decode, "float32": lambda raw: struct.unpack("<f", raw)[0]}[
            encoding
        ](value)
        at += size
    assert at == len(data)
    return sample


def read_megatron(prefix: Path) -> list[list[int]]:
    """Returns the tokens of each document of `PREFIX.bin` and `PREFIX.idx`."""
    index = Path(f"{prefix}.idx").read_bytes()
    magic, version, code, count, documents = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version) == (b"MMIDIDX\x00\x00", 1)
    kind: np.dtype[Any] = np.dtype({4: "<i4", 8: "<u2"}[code])
    at = 34
    lengths_N = np.frombuffer(index, "<i4", count, at)
    pointers_N = np.frombuffer(index, "<i8", count, at + 4 * count)
    ends_D = np.frombuffer(index, "<i8", documents, at + 12 * count)
    assert len(index) == at + 12 * count + 8 * documents
    assert ends_D.tolist() == list(range(count + 1))

    tokens = Path(f"{prefix}.bin").read_bytes()
    assert lengths_N.sum(dtype=np.int64) * kind.itemsize == len(tokens)
    return [
        np.frombuffer(tokens, kind, length, pointer).tolist()
        for length, pointer in zip(lengths_N.tolist(), pointers_N.tolist(), strict=True)
    ]
