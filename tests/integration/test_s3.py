"""Runs on s3://, with a local server that honors If-None-Match; and hf://, which is only read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from datarater.pipelines.commands import curate, select
from datarater.pipelines.errors import RunFolderError
from datarater.pipelines.run_folder import commits
from datarater.rater_model import exit_codes
from datarater.rater_model.checkpoint import load_rater
from datarater.rater_model.documents.files import list_files
from datarater.rater_model.documents.reading import read_file
from datarater.rater_model.documents.records import Document
from tests.support.commits import check_that_one_writer_wins
from tests.support.corpora import write_corpus
from tests.support.s3_storage import s3_storage

BUCKET = "corpus-bucket"


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """The file system of a server with one bucket."""
    with s3_storage(BUCKET):
        yield fsspec.filesystem("s3")


@pytest.mark.slow
def test_of_writers_at_once_one_wins(store: Any, tmp_path: Path) -> None:
    check_that_one_writer_wins(f"s3://{BUCKET}/race")


@pytest.mark.slow
def test_a_large_staged_file_never_replaces_another(store: Any, tmp_path: Path) -> None:
    """Returns bytes of more than the size from which an upload has parts."""
    path = f"s3://{BUCKET}/staged"
    large = tmp_path / "large"
    large.write_bytes(b"a" * (60 * 2**20))
    assert commits.commit_staged(path, str(large))
    large.write_bytes(b"b" * (60 * 2**20))
    assert not commits.commit_staged(path, str(large))
    assert commits.read_bytes(path) == b"a" * (60 * 2**20)


def manifest_of(run: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(commits.read_bytes(f"{run}/selections/{name}/manifest.json"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.drill)])
def test_a_run_on_the_store_keeps_what_a_local_run_keeps(
    store: Any, rater: Path, tmp_path: Path, workers: str
) -> None:
    corpus = tmp_path / "in"
    write_corpus(corpus)
    here, there = str(tmp_path), f"s3://{BUCKET}/{workers}"
    store.put(str(corpus), f"{BUCKET}/{workers}/in", recursive=True)
    store.put(str(rater), f"{BUCKET}/{workers}/rater", recursive=True)
    assert load_rater(f"{there}/rater").digest == load_rater(rater).digest

    flags = ["--keep_fraction", "0.5", "--split_bytes", "2000", "--name", "half"]
    local = ["--input", f"{here}/in/*", "--rater", str(rater), "--output", f"{here}/run"]
    remote = ["--input", f"{there}/in/*", "--rater", f"{there}/rater", "--output", f"{there}/run"]

    assert curate.main([*local, *flags]) == exit_codes.DONE
    for _ in range(2):  # the second run has nothing to do
        assert curate.main([*remote, *flags, "--local_workers", workers]) == exit_codes.DONE
    for run in (f"{here}/run", f"{there}/run"):
        assert select.main(["--output", run, "--keep_fraction", "0.1"]) == exit_codes.DONE

    for name in ("half", "keep-0.1"):
        expected, manifest = manifest_of(f"{here}/run", name), manifest_of(f"{there}/run", name)
        assert manifest["counts"] == expected["counts"]
        assert [entry["sha256"] for entry in manifest["files"]] == [
            entry["sha256"] for entry in expected["files"]
        ]
        for entry in manifest["files"]:
            path = f"selections/{name}/{entry['path']}"
            assert (
                store.cat_file(f"{BUCKET}/{workers}/run/{path}")
                == Path(here, "run", path).read_bytes()
            )


@pytest.mark.slow
def test_a_changed_input_and_a_missing_one_are_told(
    store: Any, rater: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{BUCKET}/changed"
    store.pipe_file(f"{place}/in.jsonl", b'{"text": "first"}\n')
    run = ["--rater", str(rater), "--output", f"s3://{place}/run", "--keep_count", "1", "--input"]
    assert curate.main([*run, f"s3://{place}/in.jsonl"]) == exit_codes.DONE
    store.pipe_file(f"{place}/in.jsonl", b'{"text": "other"}\n')
    assert curate.main([*run, f"s3://{place}/in.jsonl"]) == exit_codes.OTHER_RUN
    assert "in.jsonl was modified" in capsys.readouterr().err
    run[3] = f"s3://{place}/another"
    assert curate.main([*run, f"s3://{place}/*.parquet"]) == exit_codes.NO_INPUT


def test_a_hub_is_no_place_for_a_run_folder() -> None:
    with pytest.raises(
        RunFolderError, match="HfFileSystem cannot create a file only if it does not exist"
    ):
        commits.check_file_system("hf://datasets/someone/corpus/run")


def test_a_file_on_a_hub_is_read_and_known_by_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's answers are made up, so no network is needed."""
    lines = b'{"text": "first"}\n{"text": "second"}\n'
    details = {
        "name": "datasets/someone/corpus/a.jsonl",
        "size": len(lines),
        "type": "file",
        "blob_id": "5e1c309d",
    }
    kind = fsspec.get_filesystem_class("hf")
    monkeypatch.setattr(kind, "exists", lambda self, path, **_: True)
    monkeypatch.setattr(kind, "isdir", lambda self, path, **_: False)
    monkeypatch.setattr(kind, "info", lambda self, path, **_: details)
    monkeypatch.setattr(kind, "open", lambda self, path, mode="rb", **_: io.BytesIO(lines))
    (info,) = list_files(["hf://datasets/someone/corpus/a.jsonl"])
    assert info.path == "hf://datasets/someone/corpus/a.jsonl"
    assert info.fingerprint == "blob_id-5e1c309d"
    assert [record.text for record in read_file(info.path) if isinstance(record, Document)] == [
        "first",
        "second",
    ]
