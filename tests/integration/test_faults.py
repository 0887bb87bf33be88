"""Whatever is killed, and whenever: the same command completes the run with the same results."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from datarater.pipelines import errors
from datarater.pipelines.commands import curate
from datarater.pipelines.graph import score_split
from datarater.pipelines.run_folder import commits, progress
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.stores import TEMPORARY_PREFIX
from datarater.rater_model import exit_codes
from datarater.rater_model.scorer import Scorer
from datarater.rater_model.text_scorer import PendingScores
from tests.support import ROOT
from tests.support.corpora import as_lines, make_records

KEPT = "selections/keep-0.5"
WORKER = "datarater.pipelines.runners.worker"
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")


def flags(corpus: Path, rater: Path, output: Path | str, *more: str) -> list[str]:
    args = [
        "--input",
        str(corpus / "*"),
        "--rater",
        str(rater),
        "--output",
        str(output),
        "--keep_fraction",
        "0.5",
    ]
    return [*args, "--split_bytes", "4000", "--max_windows", "4", *more]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60 splits, with records to reject, ties, and two kinds of files."""
    folder = tmp_path_factory.mktemp("faults") / "in"
    folder.mkdir()
    for number in range(12):
        lines = (
            as_lines(make_records(80, number))
            + b'no JSON\n{"id": "same", "text": "the same text"}\n' * 3
        )
        (folder / f"{number:02d}.jsonl").write_bytes(lines)
        if number % 4 == 0:
            (folder / f"{number:02d}.jsonl.gz").write_bytes(gzip.compress(lines))
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, rater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    assert curate.main(flags(corpus, rater, output)) == 0
    return output


def results(output: Path) -> dict[str, Any]:
    """Everything that must not depend on what happened during the run."""
    manifest = json.loads((output / KEPT / "manifest.json").read_bytes())
    # The name of a plan also tells for how many workers it was made.
    del manifest["identity"]["plan"]["id"]
    scores = {
        path.name: pq.read_table(path).select(["position", "key", "score", "status"]).to_pylist()
        for path in sorted(output.glob("scores/??/0*.parquet"))
    }

    return {
        "scores": scores,
        "manifest": {
            name: manifest[name] for name in ("counts", "sources", "cutoff", "files", "identity")
        },
        "scoring": json.loads((output / "scoring.json").read_bytes())["counts"],
        "rejected": {path.name: path.read_bytes() for path in output.glob("rejected/*")},
        "kept": {
            path.name: path.read_bytes()
            for path in (output / KEPT / "kept").iterdir()
            if not path.name.startswith(TEMPORARY_PREFIX)
        },
    }


def launch(args: list[str], **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "datarater.pipelines.commands.curate", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    )


def descendants(pid: int) -> dict[int, bytes]:
    """Returns the descendants of a process, each with its command line."""
    parents, lines = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
            lines[int(entry.name)] = (entry / "cmdline").read_bytes()

    found: dict[int, bytes] = {}
    queue = [pid]
    while queue:
        parent = queue.pop()
        children = [
            child
            for child, its_parent in parents.items()
            if its_parent == parent and child not in found
        ]
        found |= {child: lines[child] for child in children if child in lines}
        queue += children
    return found


def workers_of(pid: int) -> list[int]:
    return [
        child
        for child, line in descendants(pid).items()
        if WORKER.encode() in line and b"/sh" not in line[:16]
    ]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for(condition: Any, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def score_files(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in output.glob("scores/??/0*.parquet")}


@pytest.mark.slow
@needs_proc
def test_a_worker_that_is_killed_is_started_again(
    corpus: Path, rater: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    process = launch(flags(corpus, rater, output, "--local_workers", "2"))
    wait_for(lambda: score_files(output) and workers_of(process.pid), process)
    before = score_files(output)
    kill(max(workers_of(process.pid)))
    output_text = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output_text
    assert "a worker process died" in output_text
    assert before.items() <= score_files(output).items()
    assert results(output) == results(undisturbed)
    assert not list(output.glob("attempts/*"))


@pytest.mark.slow
@needs_proc
def test_nothing_works_on_when_the_command_is_killed(
    corpus: Path, rater: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    process = launch(flags(corpus, rater, output, "--local_workers", "2"))
    wait_for(lambda: score_files(output) and workers_of(process.pid), process)
    below = descendants(process.pid)
    assert len(workers_of(process.pid)) == 2
    kill(process.pid)
    process.communicate()
    end = time.monotonic() + 10
    while time.monotonic() < end and any(is_alive(pid) for pid in below):
        time.sleep(0.1)
    assert [line for pid, line in below.items() if is_alive(pid)] == []


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


POISON = "this text ends the process that scores it"


class _PoisonedScorer(Scorer):
    """Gives real scores, except for a text that ends the process like a crash in native code."""

    def submit(self, texts: Any) -> PendingScores:
        if POISON in texts:
            os._exit(139)
        return super().submit(texts)


@pytest.mark.slow
def test_a_split_that_ends_its_worker_again_and_again_is_named(rater: Path, tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "run"
    corpus.mkdir()
    for number in range(6):
        records = make_records(30, number)
        if number == 3:
            records[7]["text"] = POISON
        (corpus / f"{number}.jsonl").write_bytes(as_lines(records))

    # Every Python process with a module of this name on its path runs it at the start.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if {WORKER!r} in ' '.join(sys.orig_argv):\n"
        "    from datarater.rater_model import scorer\n"
        "    from tests.integration.test_faults import _PoisonedScorer\n"
        "    scorer.Scorer = _PoisonedScorer\n"
    )

    args = flags(corpus, rater, output, "--local_workers", "2")
    process = launch(args, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    output_text = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 1, output_text

    # The other worker may take the split before all are ended: then two die at once.
    assert output_text.count("a worker process died") in (1, 2)
    last = output_text.splitlines()[-1]
    named = re.search(r"split \d+ \((\S+), bytes 0 to [0-9,]+\) crashed 3 workers", last)
    assert named is not None, last
    assert named[1] == str(corpus / "3.jsonl")
    found = progress.Watcher(RunFolder(str(output))).look()
    assert found is not None

    assert found.splits_done < found.splits  # the number of the others depends on timing

    # The same command continues without the split where that is asked for, and says so.
    anyway = launch([*args, "--on_bad_split", "reject"], PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    output_text = anyway.communicate(timeout=300)[0].decode()
    assert anyway.returncode == exit_codes.BAD_SPLITS, output_text
    assert "1 file or split was rejected whole (split_crashed 1)" in output_text.splitlines()[-1]
    manifest = json.loads((output / KEPT / "manifest.json").read_bytes())
    counts, scored = manifest["counts"], manifest["scored"]
    assert 150 < scored < 180  # all but the documents of that split
    assert (counts["read"], counts["rejected_by_reason"]) == (scored + 1, {"split_crashed": 1})
    assert counts["kept"] == round(scored / 2) == scored - counts["dropped"]
    (row,) = map(json.loads, (output / "rejected/000000.jsonl").read_bytes().splitlines())
    assert (row["file"], row["reason"]) == (str(corpus / "3.jsonl"), "split_crashed")
    assert not list(output.glob("attempts/*"))

    (corpus / "3.jsonl").touch()  # another file is another run
    assert curate.main(flags(corpus, rater, output)) == 3
    assert curate.main(flags(corpus, rater, tmp_path / "anew")) == 0


@pytest.fixture
def drilled(
    request: pytest.FixtureRequest, rater: Path, tmp_path: Path
) -> tuple[Path, list[str], Path]:
    """The development corpus in about 60 splits, or else the generated one.

    Returns:
        Its folder, its flags, and an undisturbed run.
    """
    try:
        folder = request.getfixturevalue("corpora") / "dev"
    except pytest.skip.Exception:
        return request.getfixturevalue("corpus"), [], request.getfixturevalue("undisturbed")
    cut_small = ["--split_bytes", "300000", "--workers_to_fill", "64"]
    assert curate.main(flags(folder, rater, tmp_path / "undisturbed", *cut_small)) == 0
    return folder, cut_small, tmp_path / "undisturbed"


@pytest.mark.drill
@needs_proc
def test_three_kills_of_workers_and_launchers_change_nothing(
    corpus: Path, undisturbed: Path, rater: Path, tmp_path: Path
) -> None:
    kill_again_and_again(flags(corpus, rater, tmp_path / "run"), tmp_path / "run", undisturbed, 3)


@pytest.mark.drill
@needs_proc
def test_thirty_kills_of_workers_and_launchers_change_nothing(
    drilled: tuple[Path, list[str], Path], rater: Path, tmp_path: Path
) -> None:
    folder, more, undisturbed = drilled
    args = flags(folder, rater, tmp_path / "run", *more)
    kill_again_and_again(args, tmp_path / "run", undisturbed, 30)


def kill_again_and_again(
    args: list[str], output: Path, undisturbed: Path, number_of_kills: int
) -> None:
    """Kills random processes of a run until it is left alone, and checks what it comes to."""
    args = [*args, "--local_workers", "2"]
    rng = random.Random(0)
    committed: dict[Path, int] = {}
    kills = 0
    process: subprocess.Popen[bytes] | None = None

    while kills < number_of_kills:
        if process is None or process.poll() is not None:
            if process is not None:
                output_text = process.communicate()[0].decode()
                assert process.returncode in (0, 1, -signal.SIGKILL), output_text
            process = launch(args)
        wait_for(partial(workers_of, process.pid), process, 30)
        time.sleep(rng.uniform(0, 4))
        victims = [process.pid, *descendants(process.pid)]
        workers = workers_of(process.pid)
        kill(rng.choice(workers) if workers and rng.random() < 0.6 else rng.choice(victims))
        kills += 1
        assert committed.items() <= score_files(output).items()
        committed = score_files(output)

    assert process is not None
    kill(process.pid)
    process.communicate()
    assert curate.main(args) == 0
    assert committed.items() <= score_files(output).items()
    assert results(output) == results(undisturbed)
    assert not list(output.glob("attempts/*"))


# --- Full disks and failing file systems ---


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.drill)])
def test_a_full_disk_is_said_and_room_on_it_lets_the_run_go_on(
    corpus: Path,
    rater: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    workers: str,
) -> None:
    with small_disk(tmp_path / "disk", "400k") as disk:
        args = flags(corpus, rater, disk / "run", "--local_workers", workers)
        assert curate.main(args) == exit_codes.DISK_FULL
        assert "No space left on device" in capsys.readouterr().err
        committed = score_files(disk / "run")
        assert committed
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert curate.main(args) == 0
        assert committed.items() <= score_files(disk / "run").items()
        assert results(disk / "run") == results(undisturbed)


def test_a_limit_on_the_size_of_files_is_a_full_disk() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert (
            errors.writing_failed("x", OSError(number, os.strerror(number))).exit_code
            == exit_codes.DISK_FULL
        )


class FailingFileSystem(LocalFileSystem):
    """A local disk as an object store where every tenth write fails, half of them after writing."""

    protocol = "failing"
    cachable = False
    writes = 0

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).replace("failing://", "file://"))

    def unstrip_protocol(self, name: str) -> str:
        return "failing://" + name

    def _write(self, path: str, data: bytes, mode: str) -> None:
        if mode == "create":
            if not commits.commit_if_absent(path, data):
                raise FileExistsError(path)
        else:
            commits.replace(path, data)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        FailingFileSystem.writes += 1
        fails = FailingFileSystem.writes % 10 == 0
        if fails and FailingFileSystem.writes % 20:
            raise OSError("503: slow down")
        self._write(self._strip_protocol(path), value, mode)
        if fails:
            raise OSError("the connection broke while the answer was awaited")


@pytest.mark.slow
def test_a_file_system_that_fails_every_tenth_write(
    corpus: Path, rater: Path, undisturbed: Path, tmp_path: Path
) -> None:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    args = flags(corpus, rater, f"failing://{tmp_path}/run")
    assert curate.main(args) == 0
    assert FailingFileSystem.writes > 50
    found, expected = results(tmp_path / "run"), results(undisturbed)
    assert found == expected


def test_inputs_and_folders_that_may_not_be_used_have_their_own_codes() -> None:
    denied = OSError(errno.EACCES, "Permission denied")
    broken = OSError(errno.EIO, "Input/output error")
    assert errors.reading_failed("a", denied).exit_code == exit_codes.NO_PERMISSION
    assert errors.reading_failed("a", broken).exit_code == exit_codes.UNREADABLE_INPUT
    assert errors.writing_failed("a", denied).exit_code == exit_codes.NO_PERMISSION
    assert errors.writing_failed("a", broken).exit_code == exit_codes.FAILED
    assert errors.copying_failed("a", "b", broken).exit_code == exit_codes.UNREADABLE_INPUT
    full = errors.copying_failed("a", "b", OSError(errno.ENOSPC, "No space left on device"))
    assert (full.exit_code, str(full).split()[0]) == (exit_codes.DISK_FULL, "b")
    assert len(set(exit_codes.EXIT_CODES)) == len(exit_codes.EXIT_CODES) == 12


def test_an_input_that_may_not_be_read_is_named(
    rater: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(make_records(5, 1)))

    def denied(*_: object) -> Iterator[object]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(score_split, "read_split", denied)
    args = [
        "--input",
        str(tmp_path / "a.jsonl"),
        "--rater",
        str(rater),
        "--output",
        str(tmp_path / "run"),
    ]
    assert curate.main([*args, "--keep_fraction", "1"]) == exit_codes.NO_PERMISSION
    assert (
        f"the input {tmp_path / 'a.jsonl'} cannot be read: Permission denied"
        in capsys.readouterr().err
    )
    monkeypatch.undo()
    assert curate.main([*args, "--keep_fraction", "1"]) == 0


@pytest.mark.slow
def test_garbage_is_not_eaten_to_the_end(rater: Path, tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "run"
    corpus.mkdir()
    for number in range(40):
        lines = b"garbage\n" * 2000 if number < 20 else as_lines(make_records(400, number))
        (corpus / f"{number:02d}.jsonl").write_bytes(lines)

    args = [
        "--input",
        f"{corpus}/*",
        "--rater",
        str(rater),
        "--output",
        str(output),
        "--keep_fraction",
        "0.5",
    ]

    process = launch([*args, "--max_rejected_fraction", "0.1", "--local_workers", "2"])
    output_text = process.communicate(timeout=300)[0].decode()
    assert process.returncode == exit_codes.PAST_LIMIT, output_text
    assert "--max_rejected_fraction 0.1" in output_text.splitlines()[-1]
    assert not (output / "scoring.json").exists()
