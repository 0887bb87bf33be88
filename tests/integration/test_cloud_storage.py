"""Runs on gs://: commits by generation preconditions, a failing store, and whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from datarater.pipelines.commands import curate, select
from datarater.pipelines.errors import RunFolderError, RunFolderPermissionError
from datarater.pipelines.run_folder import commits
from datarater.rater_model import exit_codes
from tests.support.cloud_storage import LOST, CloudStorage, Request, cloud_storage, times, used_here
from tests.support.commits import check_that_one_writer_wins
from tests.support.corpora import as_lines, make_records

BUCKET = "corpus-bucket"
SUBPROCESS_SECONDS = 300


@pytest.fixture(scope="module")
def store() -> Iterator[CloudStorage]:
    with cloud_storage(BUCKET) as running, used_here(running):
        yield running


@pytest.fixture(autouse=True)
def _no_faults(store: CloudStorage) -> Iterator[None]:
    yield
    store.faults.clear()


def uploads_of(name: str) -> Any:
    return lambda request: request.is_upload and request.object_name.endswith(name)


def test_of_two_writers_with_different_bytes_one_wins(store: CloudStorage) -> None:
    check_that_one_writer_wins(f"gs://{BUCKET}/race")


def test_a_staged_file_never_replaces_another(store: CloudStorage, tmp_path: Path) -> None:
    """Returns six megabytes, more than the size from which an upload is resumable."""
    path = f"gs://{BUCKET}/staged"
    for content, won in ((b"a" * 6_000_000, True), (b"b" * 6_000_000, False), (b"c", False)):
        with commits.staged(path) as name:
            Path(name).write_bytes(content)
            assert commits.commit_staged(path, name) is won
    assert commits.read_bytes(path) == b"a" * 6_000_000


def test_a_success_whose_answer_is_lost_is_still_ones_own(store: CloudStorage) -> None:
    store.faults.append(times(1, LOST, uploads_of("lost")))
    path = f"gs://{BUCKET}/lost"
    assert commits.commit_if_absent(path, b"first")
    assert [made for made in store.requests if made[0] == "POST" and made[1].endswith("/lost")][
        1:
    ], "no second try"
    assert not commits.commit_if_absent(path, b"another's")
    assert commits.read_bytes(path) == b"first"


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_sheds_load_is_asked_again(store: CloudStorage, status: int) -> None:
    path = f"gs://{BUCKET}/shed/{status}"
    store.faults.append(times(2, status, lambda request: f"shed/{status}" in request.object_name))
    assert commits.commit_if_absent(path, b"content")
    store.faults.append(times(1, status, lambda request: f"shed/{status}" in request.object_name))
    assert commits.read_bytes(path) == b"content"
    store.faults.append(times(1, status, lambda request: request.method == "GET"))
    assert [entry.path for entry in commits.list_folder(f"gs://{BUCKET}/shed")].count(path) == 1


def test_what_is_missing_or_forbidden_is_said(store: CloudStorage) -> None:
    with pytest.raises(RunFolderError, match=r"no such file or bucket|cannot be written"):
        commits.commit_if_absent("gs://no-such-bucket/file", b"content")
    store.faults.append(lambda request: 403 if request.object_name.endswith("forbidden") else None)
    with pytest.raises(
        RunFolderPermissionError, match="forbidden cannot be written: no permission"
    ):
        commits.commit_if_absent(f"gs://{BUCKET}/forbidden", b"content")
    store.faults.append(lambda request: 401 if request.object_name.endswith("stranger") else None)
    with pytest.raises(
        RunFolderPermissionError,
        match=r"no valid credentials.*gcloud auth application-default login",
    ):
        commits.commit_if_absent(f"gs://{BUCKET}/stranger", b"content")


# --- Whole runs ---


@pytest.fixture(scope="module")
def in_the_cloud(
    store: CloudStorage, rater: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A corpus and a rater, in the store and on disk.

    Returns:
        The folder in the store, the local corpus, and the local run.
    """
    local = tmp_path_factory.mktemp("local")
    (local / "in").mkdir()
    for number in range(4):
        lines = as_lines(make_records(40, number)) + b"no JSON\n"
        (local / "in" / f"{number}.jsonl").write_bytes(lines)
    file_system = fsspec.filesystem("gs")
    folder = f"gs://{BUCKET}/project"
    for path in sorted((local / "in").iterdir()):
        file_system.pipe_file(f"{folder}/in/{path.name}", path.read_bytes())
    for path in sorted(rater.iterdir()):
        file_system.pipe_file(f"{folder}/rater/{path.name}", path.read_bytes())
    assert curate.main(run_flags(str(local / "in"), str(rater), str(local / "run"))) == 0
    return folder, local / "in", local / "run"


def run_flags(corpus: str, rater: str, output: str, *more: str) -> list[str]:
    args = [
        "--input",
        f"{corpus}/*.jsonl",
        "--rater",
        rater,
        "--output",
        output,
        "--keep_fraction",
        "0.5",
    ]
    return [*args, "--split_bytes", "4000", *more]


def kept_of(run: str) -> tuple[dict[str, Any], list[bytes]]:
    """Returns the counts of the manifest and the kept documents, which contain no path."""
    manifest = json.loads(commits.read_bytes(f"{run}/selections/keep-0.5/manifest.json"))
    files = [f"{run}/selections/keep-0.5/{file['path']}" for file in manifest["files"]]
    assert commits.exists(f"{run}/selections/keep-0.5/_SUCCESS")
    return manifest["counts"], [commits.read_bytes(path) for path in files]


@pytest.mark.slow
def test_a_run_on_the_store_keeps_what_a_local_run_keeps(
    store: CloudStorage, in_the_cloud: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, local_run = in_the_cloud
    # The store sometimes sheds load while it reads, writes or lists.
    count = iter(range(1_000_000))
    store.faults.append(
        lambda request: (429, 503)[next(count) // 23 % 2] if next(count) % 23 == 0 else None
    )
    flags = run_flags(f"{folder}/in", f"{folder}/rater", f"{folder}/run")
    assert curate.main(flags) == 0
    store.faults.clear()
    assert kept_of(f"{folder}/run") == kept_of(str(local_run))
    made = len(store.requests)
    assert curate.main(flags) == 0
    assert not [
        name for method, name in store.requests[made:] if method == "POST" and "/scores/" in name
    ]
    assert select.main(["--output", f"{folder}/run", "--keep_count", "7"]) == 0
    assert "kept                 7" in capsys.readouterr().out


@pytest.mark.slow
def test_workers_need_no_shared_disk(
    store: CloudStorage, in_the_cloud: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """Two worker processes in an empty working directory with their own temporary folder."""
    folder, _, local_run = in_the_cloud
    (tmp_path / "empty").mkdir()
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, **store.environment, "TMPDIR": str(tmp_path / "temporary")}

    output = f"{folder}/two_workers"
    for command, *flags in (
        ["curate", *run_flags(f"{folder}/in", f"{folder}/rater", output, "--local_workers", "2")],
        ["status", output, "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"datarater.pipelines.commands.{command}", *flags],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
            timeout=SUBPROCESS_SECONDS,
        )
        assert done.returncode == 0, done.stderr

    assert json.loads(done.stdout.splitlines()[-1])["splits_done"] > 1
    assert kept_of(output) == kept_of(str(local_run))
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "corpus", "code", "says"),
    [
        (None, "gs://no-such-bucket/in", exit_codes.NO_INPUT, "gs://no-such-bucket/in"),
        ((403, "/in/"), None, exit_codes.NO_PERMISSION, "no permission"),
        ((401, "/in/"), None, exit_codes.NO_PERMISSION, "no valid credentials"),
        ((403, "/refused"), None, exit_codes.NO_PERMISSION, "no permission"),
    ],
    ids=["missing bucket", "forbidden input", "no credentials", "forbidden output"],
)
def test_a_run_that_cannot_be_says_why(
    store: CloudStorage,
    in_the_cloud: tuple[str, Path, Path],
    fault: tuple[int, str] | None,
    corpus: str | None,
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _, _ = in_the_cloud
    if fault is not None:
        status, part = fault

        def refuse(request: Request) -> int | None:
            about = f"{request.object_name} {request.query.get('prefix', '')}/"
            return status if f"{part}" in f"/{about}" else None

        store.faults.append(refuse)
    flags = run_flags(corpus or f"{folder}/in", f"{folder}/rater", f"{folder}/refused")
    assert curate.main(flags) == code
    assert says in capsys.readouterr().err
