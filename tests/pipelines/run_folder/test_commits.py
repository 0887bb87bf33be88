from __future__ import annotations

import errno
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datarater.pipelines.errors import RunFolderError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.stores import TEMPORARY_PREFIX


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory:/{tmp_path}"}[
        request.param
    ]


def test_the_first_commit_wins(folder: str) -> None:
    path = f"{folder}/deep/er/file"
    assert commits.read_if_there(path) is None
    assert not commits.exists(path)
    assert commits.commit_if_absent(path, b"first")
    assert not commits.commit_if_absent(path, b"second")
    assert commits.read_bytes(path) == b"first"
    assert commits.exists(path)
    with commits.open_committed(path) as file:
        assert file.read() == b"first"


def test_a_staged_file_is_committed_whole_and_once(folder: str) -> None:
    path = f"{folder}/a/file"
    for content, won in ((b"first", True), (b"second", False)):
        with commits.staged(path) as name:
            Path(name).write_bytes(content)
            assert commits.commit_staged(path, name) is won
        assert not os.path.exists(name)
    assert commits.read_bytes(path) == b"first"


def test_a_staged_file_that_is_not_committed_is_nowhere(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with commits.staged(path) as name:
        Path(name).write_bytes(b"half")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_removes_what_the_killed_left_and_nothing_else(tmp_path: Path) -> None:
    commits.commit_if_absent(str(tmp_path / "a" / "whole"), b"whole")
    for folder in (tmp_path, tmp_path / "a"):
        (folder / f"{TEMPORARY_PREFIX}1").write_bytes(b"half")
    commits.sweep(str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "a" / "whole"]
    commits.sweep(str(tmp_path / "missing"))
    commits.sweep("memory://there/is/none")


def _commit(path: str, content: bytes) -> bool:
    return commits.commit_if_absent(path, content)


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "raced")
    contents = [b"%d" % index * 10_000 for index in range(16)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda content: _commit(path, content), contents))
    assert sum(won) == 1
    assert commits.read_bytes(path) == contents[won.index(True)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["raced"]


@pytest.mark.slow
def test_of_many_processes_at_once_one_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "raced")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        won = pool.starmap(_commit, [(path, b"%d" % index) for index in range(12)])
    assert sum(won) == 1
    assert commits.read_bytes(path) == b"%d" % won.index(True)


def test_a_file_system_without_create_if_absent_is_refused_by_name() -> None:
    class ForgetfulFileSystem(MemoryFileSystem):
        protocol = "forgetful"

        def pipe_file(self, path: str, value: bytes) -> None:
            super().pipe_file(path, value)

    fsspec.register_implementation("forgetful", ForgetfulFileSystem, clobber=True)
    with pytest.raises(RunFolderError, match="ForgetfulFileSystem"):
        commits.check_file_system("forgetful://run")
    with pytest.raises(RunFolderError, match="ForgetfulFileSystem"):
        commits.commit_if_absent("forgetful://run/file", b"x")
    commits.check_file_system("memory://run")
    commits.check_file_system("/run")


def test_a_store_that_replaces_what_exists_is_refused_by_a_probe() -> None:
    class ReplacingFileSystem(MemoryFileSystem):
        protocol = "replacing"
        store: ClassVar[dict[str, Any]] = {}
        endpoint_url = "http://bucket.example"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
            super().pipe_file(path, value)

    fsspec.register_implementation("replacing", ReplacingFileSystem, clobber=True)
    commits.check_file_system("replacing://run")
    with pytest.raises(
        RunFolderError,
        match=r"replacing://run: the store ReplacingFileSystem at http://bucket\.example replaced",
    ):
        commits.check_creates_once("replacing://run")
    assert not ReplacingFileSystem.store
    for folder in ("memory://run", "/run"):
        commits.check_creates_once(folder)
    assert commits.list_folder("memory://run") == []


def test_a_file_system_without_links_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(RunFolderError, match="hard links"):
        commits.commit_if_absent(str(tmp_path / "file"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = str(tmp_path / "file")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="file cannot be written: No space left"):
        commits.commit_if_absent(path, b"x")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert commits.commit_if_absent(path, b"x")


def test_a_file_where_a_folder_should_be_is_no_lost_race(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(RunFolderError, match="folder/file"):
        commits.commit_if_absent(str(tmp_path / "folder/file"), b"x")
