"""The loopback stores count what they are asked for and what they serve."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fsspec
import pytest

from datarater.pipelines.errors import RunFolderError
from datarater.pipelines.run_folder import commits
from tests.support.cloud_storage import CloudStorage, cloud_storage, used_here
from tests.support.request_log import Kind, RequestLog
from tests.support.s3_storage import S3Storage, s3_storage

BUCKET = "counted-bucket"


@contextlib.contextmanager
def running_store(protocol: str) -> Iterator[S3Storage | CloudStorage]:
    """Runs a store of a protocol with one bucket."""
    if protocol == "s3":
        with s3_storage(BUCKET) as s3:
            yield s3
    else:
        with cloud_storage(BUCKET) as cloud, used_here(cloud):
            yield cloud


@contextlib.contextmanager
def counting_store(protocol: str) -> Iterator[RequestLog]:
    """Runs a store of a protocol with one bucket; yields the log of its requests."""
    with running_store(protocol) as running:
        yield running.log


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_requests_are_counted_by_kind_and_object_and_bytes_as_served(protocol: str) -> None:
    with running_store(protocol) as running:
        log = running.log
        store = fsspec.filesystem(protocol, use_listings_cache=False)
        name = f"{BUCKET}/folder/file"
        store.pipe_file(name, b"0123456789" * 100, mode="create")
        with pytest.raises(FileExistsError):
            store.pipe_file(name, b"another", mode="create")
        assert log.by_kind(name) == {"create": 2}
        log.clear()

        assert store.cat_file(name, start=10, end=30) == b"0123456789" * 2
        assert store.cat_file(name, start=980, end=2000) == b"0123456789" * 2
        assert log.by_object(BUCKET) == {name: 40}
        assert log.by_kind() == {"get": 2}
        assert store.info(name)["size"] == 1000
        assert log.requests(name, Kind.GET) == 2
        assert log.requests(name, Kind.HEAD) > 0
        assert store.ls(f"{BUCKET}/folder", detail=False) == [name]
        assert log.requests(f"{BUCKET}/folder") > log.requests(name)
        assert log.bytes_served() == 40


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_a_store_that_ignores_create_if_absent_is_refused_once_a_run_folder_by_name(
    protocol: str,
) -> None:
    with running_store(protocol) as running:
        folder = f"{protocol}://{BUCKET}/run"
        commits.check_creates_once(folder)
        assert running.log.requests(f"{BUCKET}/run", Kind.CREATE) == 2
        assert commits.list_folder(folder) == []

        running.ignores_conditions = True
        with pytest.raises(RunFolderError, match=f"the store .* at {running.url}.* replaced"):
            commits.check_creates_once(folder)
        assert commits.list_folder(folder) == []
