"""A format that nobody knows is curated once it is written as one class."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from datarater.rater_model.documents import formats
from datarater.rater_model.documents.file_format import FileFormat
from datarater.rater_model.documents.files import file_info, open_file
from datarater.rater_model.documents.json_lines import score_text
from datarater.rater_model.documents.jsonl import document_of
from datarater.rater_model.documents.reading import plan_file, read_file, read_split, sniff
from datarater.rater_model.documents.records import (
    Compression,
    Document,
    ReadOptions,
    Record,
    Split,
)
from datarater.rater_model.documents.sniffing import FileHead
from tests.support.corpora import as_lines, make_records
from tests.support.curation import curated


class Tabbed(FileFormat):
    """Lines of `@`, id, tab, text; a score follows after another tab."""

    name = "tabbed"
    unit = "toy bytes"
    written_as = "tabbed"

    def sniff(self, head: FileHead) -> Compression | None:
        return Compression.NONE if head.stored.startswith(b"@") else None

    def plan(
        self, whole: Split, head: FileHead, options: ReadOptions, target_bytes: int
    ) -> list[Split]:
        return whole.cut_at(range(target_bytes, whole.size, target_bytes))

    def read(self, split: Split, options: ReadOptions) -> Iterator[Record]:
        with open_file(split.path) as file:
            if split.start:
                file.seek(split.start - 1)
                file.readline()
            while (position := file.tell()) < (split.end or float("inf")):
                line = file.readline().rstrip(b"\n")
                if not line:
                    return
                identifier, _, text = line[1:].decode().partition("\t")
                yield document_of(text, identifier, None, position, line, options)

    def scored_record(self, document: Document, score: float, options: ReadOptions) -> bytes:
        return b"%s\t%s" % (document.raw, score_text(score).encode())


@pytest.fixture
def corpus(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [f"@{row['id']}\t{row['text']}\n" for row in make_records(40, seed=1)]
    (folder / "a.data").write_text("".join(lines))
    (folder / "b.jsonl").write_bytes(as_lines(make_records(20, seed=2)))
    with formats.registered(Tabbed()):
        yield folder


def test_a_new_format_is_recognized_split_and_read(corpus: Path) -> None:
    path = str(corpus / "a.data")
    assert sniff(path) == ("tabbed", Compression.NONE)
    assert sniff(str(corpus / "b.jsonl")) == ("jsonl", Compression.NONE)

    splits = plan_file(file_info(path), ReadOptions(), 500)
    assert len(splits) > 5
    parts = [record for split in splits for record in read_split(split, ReadOptions())]
    assert parts == list(read_file(path))
    assert [record.raw for record in parts if isinstance(record, Document)] == (
        Path(path).read_bytes().splitlines()
    )


def test_a_new_format_is_curated_into_files_of_its_own(
    corpus: Path, rater: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    manifest = curated(corpus / "*", rater, output, "--split_bytes=500")
    assert manifest["counts"]["kept"] == 30
    own, other = (output / "selections/it" / entry["path"] for entry in manifest["files"])
    assert (own.suffix, other.suffix) == (".tabbed", ".jsonl")

    # The kept lines are those of the input, in its order, each with its score.
    stored = (corpus / "a.data").read_text().splitlines()
    kept = [line.rpartition("\t") for line in own.read_text().splitlines()]
    lines = [line for line, _, _ in kept]
    assert 0 < len(lines) < len(stored)
    assert lines == [line for line in stored if line in set(lines)]
    assert all(np.isfinite(float(score)) for _, _, score in kept)


@pytest.mark.parametrize("output_format", ["jsonl.gz", "attributes", "parquet", "scores"])
def test_a_new_format_is_written_in_every_other_form(
    corpus: Path, rater: Path, tmp_path: Path, output_format: str
) -> None:
    output = tmp_path / "run"
    manifest = curated(corpus / "a.data", rater, output, "--output_format", output_format)
    (entry,) = manifest["files"]
    path = output / "selections/it" / entry["path"]
    rows = rows_of(path)
    stored = dict(line[1:].split("\t") for line in (corpus / "a.data").read_text().splitlines())
    assert len(rows) == 20
    for row in rows:
        text = stored[row["id"]]
        if "attributes" in row:
            ((start, end, score),) = row["attributes"]["datarater__score"]
            assert (start, end) == (0, len(text))
        else:
            score = row["datarater_score"]
            assert row.get("text", text) == text
        assert np.isfinite(score)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
