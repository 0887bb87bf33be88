"""Marks of the splits that are being scored: what a worker leaves behind that died over one.

A worker writes a mark before it scores a split and removes it afterwards, whether it succeeded or
failed with a message. A mark that stays tells of a worker that ended without a word: killed, out of
memory, crashed in native code. A split that ends several workers of one launch is poison. It is
named and not tried again.

Marks count within one launch. Launches that are killed together with their workers say nothing
about a split.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson

from datarater.pipelines.errors import PoisonSplitError, RunFolderError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder
from datarater.pipelines.run_folder.lease import is_gone, process_id
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.rater_model.documents.records import VIRTUAL_BYTES, Split

MOST_DEATHS = 3
"""How many workers a split may end within one launch."""

_own_marks: set[str] = set()


def describe(split: Split) -> str:
    """Names a split for a person."""
    unit = {"parquet": "row groups", "array_record": "records"}.get(split.format, "bytes")
    scale = 1
    if split.virtual:
        unit, scale = "stored bytes", VIRTUAL_BYTES
    end = "the end" if split.end is None else f"{split.end // scale:,}"
    where = (
        "the whole file"
        if split.start == 0 and split.end is None
        else f"{unit} {split.start // scale:,} to {end}"
    )
    return f"split {split.ordinal} ({split.path}, {where})"


def poison(split: str) -> PoisonSplitError:
    """What to raise for a split that ended `MOST_DEATHS` workers.

    Args:
        split: as `describe` names it.
    """
    return PoisonSplitError(
        f"{split} ended {MOST_DEATHS} workers that scored it, one after the other; it is not tried again. Look for a "
        "crash or for too little memory (137 is a kill): fewer --local_workers, smaller --max_record_bytes or "
        "--tokens_per_batch may help, or leave the file out. What is committed stays"
    )


def _path(folder: RunFolder, ordinal: int, launch: str, number: int) -> str:
    return f"{folder.attempts_path}/{ordinal:08d}.{launch}.{number}.json"


@contextlib.contextmanager
def marked(folder: RunFolder, task: SplitTask, launch: str) -> Iterator[None]:
    """Marks a split as being scored.

    Args:
        folder: the run folder.
        task: the split.
        launch: id of the launch; "" leaves no marks.

    Raises:
        PoisonSplitError: the split ended `MOST_DEATHS` workers of this launch.
    """
    with _mark(folder, task, launch, pass_the_living=True):
        yield


@contextlib.contextmanager
def taken(folder: RunFolder, task: SplitTask, launch: str) -> Iterator[bool]:
    """Marks a split as being scored, unless another worker of this machine that lives has marked it.

    Args:
        folder: the run folder.
        task: the split.
        launch: id of the launch.

    Yields:
        Whether the split is this worker's.

    Raises:
        PoisonSplitError: the split ended `MOST_DEATHS` workers of this launch.
    """
    with _mark(folder, task, launch, pass_the_living=False) as mine:
        yield mine


@contextlib.contextmanager
def _mark(
    folder: RunFolder, task: SplitTask, launch: str, *, pass_the_living: bool
) -> Iterator[bool]:
    if not launch:
        yield True
        return
    split = task.split
    content = {
        "launch": launch,
        "ordinal": split.ordinal,
        "split": describe(split),
        "process": process_id(),
        "started": time.time(),
    }
    for number in range(1, MOST_DEATHS + 1):
        path = _path(folder, split.ordinal, launch, number)
        if commits.commit_if_absent(path, orjson.dumps(content)):
            break
        if not pass_the_living:
            other = commits.read_if_there(path)
            if other is None or not is_gone(orjson.loads(other)["process"]):
                yield False
                return
    else:
        raise poison(describe(split))
    _own_marks.add(path)
    try:
        yield True
    finally:
        _remove_own(path)


def _remove_own(path: str) -> None:
    with contextlib.suppress(
        RunFolderError
    ):  # a mark that stays counts as one death: no harm by itself
        commits.remove(path)
    _own_marks.discard(path)


def clear_own() -> None:
    """Removes this process's marks before it ends on demand: that says nothing about the splits it was scoring."""
    for path in list(_own_marks):
        _remove_own(path)


def unfinished(folder: RunFolder) -> list[tuple[str, dict[str, Any]]]:
    """The marks that are there: (path, content), by ordinal."""
    found = []
    for entry in commits.list_folder(folder.attempts_path):
        data = commits.read_if_there(entry.path)
        if data is not None:
            with contextlib.suppress(orjson.JSONDecodeError):
                found.append((entry.path, orjson.loads(data)))
    return found


def clear_bystanders(folder: RunFolder, launch: str) -> dict[str, int]:
    """After a worker's death: removes the marks of workers that live, which are about to be ended too.

    Returns:
        The splits that dead workers left, with how many each has ended in this launch.
    """
    guilty: dict[str, int] = {}
    for path, mark in unfinished(folder):
        if mark["launch"] != launch or mark["process"]["host"] != socket.gethostname():
            continue
        if not is_gone(mark["process"]):
            commits.remove(path)
        elif not commits.exists(folder.score_path(mark["ordinal"])):
            guilty[mark["split"]] = guilty.get(mark["split"], 0) + 1
    return guilty


def clear_launch(folder: RunFolder, launch: str) -> None:
    """Removes all marks of a launch: its workers were ended by something else than the splits that they scored."""
    for path, mark in unfinished(folder):
        if mark["launch"] == launch:
            commits.remove(path)


def clear_finished(folder: RunFolder) -> dict[str, int]:
    """Before and after a launch's work: removes the marks of splits that are scored.

    Returns:
        The splits that are not scored, with the number of workers that ended while scoring them.
    """
    left: dict[str, int] = {}
    for path, mark in unfinished(folder):
        if commits.exists(folder.score_path(mark["ordinal"])):
            commits.remove(path)
        else:
            left[mark["split"]] = left.get(mark["split"], 0) + 1
    return left


def die_with(process: dict[str, Any]) -> None:
    """Ends this process when another one is gone; watched from a thread.

    Args:
        process: as `datarater.pipelines.run_folder.lease.process_id` gave it there.
    """

    def watch() -> None:
        while not is_gone(process):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="die with launcher", daemon=True).start()


WATCHED_PROCESS = "DATARATER_WATCHED_PROCESS"
"""The environment variable that tells worker processes which process they are to end with."""


def watch_launcher() -> None:
    """In a worker process of a supervised run: ends it when the process that runs the graph is gone."""
    watched = os.environ.get(WATCHED_PROCESS)
    if watched:
        process = orjson.loads(watched)
        if process["pid"] != os.getpid():
            die_with(process)
