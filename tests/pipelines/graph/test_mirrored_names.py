from __future__ import annotations

import gzip
import json
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarater.pipelines.graph.mirrored_names import MirroredNames, compression_of
from datarater.rater_model.documents.records import Compression
from tests.pipelines.graph.test_packing import request_for, scored, written


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/a/1.jsonl.gz", "/d/b/1.jsonl.gz"], ["a/1.jsonl.gz", "b/1.jsonl.gz"]),
        (["gs://b/docs/x.json.zst"], ["x.json.zst"]),
        (["gs://b/c/1.jsonl", "s3://b/c/1.jsonl"], ["gs/b/c/1.jsonl", "s3/b/c/1.jsonl"]),
        (["/d/one.parquet", "/d/two.warc.gz"], ["one.parquet.jsonl.gz", "two.warc.gz.jsonl.gz"]),
        (["/d/ab/1.jsonl", "/d/ac/1.jsonl"], ["ab/1.jsonl", "ac/1.jsonl"]),
        (["in.jsonl"], ["in.jsonl"]),
    ],
)
def test_names_are_those_of_the_documents_below_their_common_folder(
    paths: list[str], names: list[str]
) -> None:
    name_of = MirroredNames.of(paths)
    assert [name_of(path) for path in paths] == names


SEGMENTS = st.lists(st.sampled_from(["a", "..", ".", "", "b.jsonl", "b"]), min_size=1, max_size=4)


@given(st.lists(SEGMENTS.map("/".join), min_size=1, unique=True))
def test_names_differ_and_none_leads_out_of_the_folder(paths: list[str]) -> None:
    name_of = MirroredNames.of(paths)
    names = [name_of(path) for path in [*paths, *paths]]
    assert len(set(names)) == len(paths)
    for name in names:
        parts = PurePosixPath(name).parts
        assert parts
        assert not name.startswith("/")
        assert ".." not in parts


@pytest.mark.parametrize(
    ("name", "compression"),
    [("a.jsonl", "none"), ("a.jsonl.GZ", "gzip"), ("b/a.json.zst", "zstd"), ("a.bz2", "bzip2")],
)
def test_the_name_says_how_a_file_is_compressed(name: str, compression: str) -> None:
    assert compression_of(name) is Compression(compression)


def test_attributes_lie_where_their_documents_lie(tmp_path: Path) -> None:
    for name in ("a/1.jsonl", "a/2.jsonl", "b/deep/1.jsonl.gz", "c.jsonl"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps({"id": f"{name} {i}", "text": "t"}) + "\n" for i in range(3))
        path.write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
    request = request_for(tmp_path / "in", tmp_path / "run", files_per_split=3)
    scored(request)
    files = written(request, "attributes", "1")
    assert sorted(files) == ["a/1.jsonl", "a/2.jsonl", "b/deep/1.jsonl.gz", "c.jsonl"]
    for name, content in files.items():
        lines = gzip.decompress(content) if name.endswith("gz") else content
        ids = [json.loads(line)["id"] for line in lines.splitlines()]
        assert ids == [f"{name} {i}" for i in range(3)]
