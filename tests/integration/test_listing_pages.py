"""Object stores are listed page by page, and match what their own file systems match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from datarater.rater_model.documents.files import NoInputError, file_info, list_files
from datarater.rater_model.documents.object_pages import objects_under
from tests.integration.test_counting_stores import BUCKET, counting_store

NAMES = [
    "crawl/2024/a.jsonl",
    "crawl/2024/b.jsonl.gz",
    "crawl/2025/a.jsonl",
    "crawl/2025/deep/a.jsonl",
    "crawl/2025/_SUCCESS",
    "crawl/[x]/a.jsonl",
    "crawl/README.md",
    "crawl/top.jsonl",
]


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    with counting_store(request.param):
        file_system = fsspec.filesystem(request.param, use_listings_cache=False)
        for name in NAMES:
            file_system.pipe_file(f"{BUCKET}/{name}", name.encode())
        yield f"{request.param}://{BUCKET}", file_system


def test_pages_of_any_size_give_all_objects_in_order(store: tuple[str, Any]) -> None:
    url, file_system = store
    for page_size in (1, 2, 1000):
        found = objects_under(file_system, url, f"{BUCKET}/crawl/", page_size=page_size)
        assert [name for name, _ in found] == [f"{BUCKET}/{name}" for name in sorted(NAMES)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("crawl/*.jsonl", ["crawl/top.jsonl"]),
        ("crawl/*/a.jsonl", ["crawl/2024/a.jsonl", "crawl/2025/a.jsonl", "crawl/[x]/a.jsonl"]),
        ("crawl/202?/*", ["crawl/2024/a.jsonl", "crawl/2024/b.jsonl.gz", "crawl/2025/a.jsonl"]),
        ("crawl/{2024,2025}/a*", ["crawl/2024/a.jsonl", "crawl/2025/a.jsonl"]),
        ("crawl/2025/**/a.jsonl", ["crawl/2025/a.jsonl", "crawl/2025/deep/a.jsonl"]),
        ("crawl/*/deep/*.jsonl", ["crawl/2025/deep/a.jsonl"]),
        ("crawl/2025", ["crawl/2025/a.jsonl", "crawl/2025/deep/a.jsonl"]),
        ("crawl/2024/b.jsonl.gz", ["crawl/2024/b.jsonl.gz"]),
    ],
)
def test_patterns_match_with_sizes_and_the_fingerprints_of_a_later_look(
    store: tuple[str, Any], pattern: str, names: list[str]
) -> None:
    url, _ = store
    found = list_files([f"{url}/{pattern}"])
    assert [info.path for info in found] == [f"{url}/{name}" for name in names]
    assert found == [file_info(info.path) for info in found]


@pytest.mark.parametrize("pattern", ["crawl/*.parquet", "nowhere/*", "crawl/202*"])
def test_a_pattern_without_a_file_is_named(store: tuple[str, Any], pattern: str) -> None:
    with pytest.raises(NoInputError, match="no file matches"):
        list_files([f"{store[0]}/{pattern}"])
