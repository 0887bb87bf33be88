"""Runs of `datarater curate`, and what a reader finds in them."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import zstandard

from datarater.pipelines.commands import curate


def curated(inputs: Path | str, rater: Path, output: Path, *more: str) -> dict[str, Any]:
    flags = [
        "--input",
        str(inputs),
        "--rater",
        str(rater),
        "--output",
        str(output),
        "--max_windows",
        "4",
    ]
    assert curate.main([*flags, "--keep_fraction", "0.5", "--name", "it", *more]) == 0
    manifest: dict[str, Any] = json.loads((output / "selections/it/manifest.json").read_bytes())
    counts = manifest["counts"]
    assert counts["read"] == counts["kept"] + counts["dropped"] + counts["rejected"]
    assert counts["kept"] == round(manifest["scored"] / 2)
    return manifest


def read_kept(selection: Path) -> list[dict[str, Any]]:
    """What a reader finds who trusts the manifest alone."""
    manifest = json.loads((selection / "manifest.json").read_bytes())
    rows: list[dict[str, Any]] = []
    for entry in manifest["files"]:
        data = (selection / entry["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        if entry["format"] == "parquet":
            found = pq.read_table(selection / entry["path"]).to_pylist()
        else:
            if entry["format"] == "jsonl.gz":
                data = gzip.decompress(data)
            elif entry["format"] == "jsonl.zst":
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            found = [json.loads(line) for line in data.splitlines()]
        assert len(found) == entry["documents"]
        rows += found
    return rows
