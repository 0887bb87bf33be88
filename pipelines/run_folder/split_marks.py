"""Marks splits in progress so that a crashed worker can be traced to its split.

Only the supervised workers of one machine (`datarater.pipelines.runners.local_workers`) leave
marks. On a cluster a worker may end for many reasons that are not its split's fault, such as a
preemption, an eviction or a restart of the job; there the runner's own limit of retries decides.

A worker writes a mark before it scores a split and removes it afterward, whether it succeeded or
failed with a message. A mark that remains belongs to a worker that ended without a message: it was
killed, ran out of memory, or crashed in native code. A split that crashes several workers of one
launch is poison: it is reported and not tried again.

A split of several files is tried again file by file once a worker has died in it. The mark then
names the file, and a file that ends two workers by itself is poison alone.

Marks count within one launch. A launch that is killed together with its workers proves nothing
about a split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import orjson

from datarater.pipelines.errors import CountsError, PoisonSplitError, RunFolderError
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.layout import RunFolder, read_json
from datarater.pipelines.run_folder.lease import Process, is_gone, process_id
from datarater.pipelines.run_folder.plan import SplitTask
from datarater.rater_model.counted import counted
from datarater.rater_model.documents.records import UNKNOWN_FORMAT, VIRTUAL_BYTES
from datarater.rater_model.json_codec import IF_SET, decode, to_plain

MAX_DEATHS_IN_SPLIT = 3
"""Number of workers of one launch after which a split is poison."""

WATCHED_PROCESS = "DATARATER_WATCHED_PROCESS"
"""Environment variable with the process that a worker process ends with, as JSON."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """The content of a mark.

    Attributes:
        launch: Id of the launch.
        ordinal: Ordinal of the split.
        split: Description of the split by `describe`.
        process: The worker process.
        started: When the worker began, in seconds since 1970.
        part: Number, in the split, of the file that is being scored; None if that is not known.
    """

    launch: str
    ordinal: int
    split: str
    process: Process
    started: float
    part: int | None = dataclasses.field(default=None, metadata=IF_SET)


@dataclasses.dataclass
class Attempt:
    """The scoring of a split that this worker has marked.

    Attributes:
        bad: Numbers of the files of the split that are poison.
        file_by_file: Whether to score one file at a time, and to call `begin` before each.
    """

    bad: frozenset[int]
    file_by_file: bool
    _path: str
    _mark: Mark

    def begin(self, number: int, part: SplitTask) -> None:
        """Marks a file of the split, given by its number, as the one that is being scored."""
        mark = dataclasses.replace(self._mark, split=describe(part), part=number)
        commits.replace(self._path, orjson.dumps(to_plain(mark)))


def _poison_parts(dead: Sequence[Mark]) -> dict[int, int]:
    """Returns the files that are poison, with the number of workers that each has ended.

    Args:
        dead: Marks of the dead workers of a split.
    """
    named = Counter(mark.part for mark in dead)
    return {
        part: deaths
        for part, deaths in named.items()
        if part is not None and deaths >= MAX_DEATHS_IN_SPLIT - 1
    }


def describe(task: SplitTask) -> str:
    """Describes a split for a person: its ordinal, its file and its part of the file."""
    split = task.split
    if task.packed:
        return (
            f"split {split.ordinal} ({split.path} and {counted(len(task.packed), 'file')} after it)"
        )

    unit, scale = "", 1
    if split.format != UNKNOWN_FORMAT:
        from datarater.rater_model.documents.formats import format_named

        unit = format_named(split.format).unit
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
    """Returns the error to raise for a split that ended `MAX_DEATHS_IN_SPLIT` workers.

    Args:
        split: Description of the split by `describe`.
    """
    return PoisonSplitError(
        f"{split} crashed {MAX_DEATHS_IN_SPLIT} workers in a row and is not tried again. Look for "
        "a crash or for too little memory (137 means killed). Committed work is kept: run the same "
        "command with fewer --local_workers or a smaller --tokens_per_batch, or continue without "
        "the split by --on_bad_split reject"
    )


def _path(folder: RunFolder, ordinal: int, launch: str, number: int) -> str:
    return f"{folder.attempts_path}/{ordinal:08d}.{launch}.{number}.json"


@contextlib.contextmanager
def taken(folder: RunFolder, task: SplitTask, launch: str) -> Iterator[Attempt | None]:
    """Marks a split as in progress, unless another live worker of this machine has marked it.

    Args:
        folder: Run folder.
        task: Split.
        launch: Id of the launch.

    Yields:
        How to score the split; None if it is not this worker's.

    Raises:
        PoisonSplitError: The split ended `MAX_DEATHS_IN_SPLIT` workers of this launch, which no
            file of it explains alone.
    """
    split = task.split
    mark = Mark(launch, split.ordinal, describe(task), process_id(), time.time())

    # Each mark that is there already was left by a worker that died, or belongs to a live one.
    dead: list[Mark] = []
    for number in itertools.count(1):
        bad = _poison_parts(dead)
        if len(dead) - sum(bad.values()) >= MAX_DEATHS_IN_SPLIT:
            raise poison(describe(task))
        path = _path(folder, split.ordinal, launch, number)
        if commits.commit_if_absent(path, orjson.dumps(to_plain(mark))):
            break
        other = read_json(path, Mark)
        if other is None or not is_gone(other.process):
            yield None
            return
        dead.append(other)

    try:
        yield Attempt(frozenset(bad), bool(dead and task.packed), path, mark)
    finally:
        # A mark that remains counts as one death, which alone does no harm.
        with contextlib.suppress(RunFolderError):
            commits.remove(path)


def unfinished(folder: RunFolder) -> list[tuple[str, Mark]]:
    """Reads all marks.

    Returns:
        The path and the content of each mark, sorted by ordinal.
    """
    marks = []
    for entry in commits.list_folder(folder.attempts_path):
        with contextlib.suppress(CountsError):
            mark = read_json(entry.path, Mark)
            if mark is not None:
                marks.append((entry.path, mark))
    return marks


def clear_bystanders(folder: RunFolder, launch: str) -> dict[str, int]:
    """Removes the marks of live workers after the death of another: they are about to be ended too.

    Returns:
        The splits that dead workers left, with the number of workers that each has ended in this
        launch.
    """
    guilty: dict[int, list[str]] = {}
    for path, mark in unfinished(folder):
        if mark.launch != launch or mark.process.host != socket.gethostname():
            continue
        if not is_gone(mark.process):
            commits.remove(path)
        elif not commits.exists(folder.score_path(mark.ordinal)):
            guilty.setdefault(mark.ordinal, []).append(mark.split)
    # The last one may name the file of several.
    return {splits[-1]: len(splits) for splits in guilty.values()}


def clear_launch(folder: RunFolder, launch: str) -> None:
    """Removes all marks of a launch whose workers were not ended by the splits that they scored."""
    for path, mark in unfinished(folder):
        if mark.launch == launch:
            commits.remove(path)


def clear_finished(folder: RunFolder) -> dict[str, int]:
    """Removes the marks of splits that are scored, before and after the work of a launch.

    Returns:
        The marked splits that are not scored, with the number of workers that ended while scoring
        them.
    """
    left: dict[str, int] = {}
    for path, mark in unfinished(folder):
        if commits.exists(folder.score_path(mark.ordinal)):
            commits.remove(path)
        else:
            left[mark.split] = left.get(mark.split, 0) + 1
    return left


def die_with(process: Process) -> None:
    """Ends this process when another one has ended; a thread watches it.

    Args:
        process: Result of `datarater.pipelines.run_folder.lease.process_id` in the other process.
    """

    def watch() -> None:
        while not is_gone(process):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="die with launcher", daemon=True).start()


def watch_launcher() -> None:
    """Ends a worker process of a supervised run when the process that runs the graph has ended."""
    watched = os.environ.get(WATCHED_PROCESS)
    if watched:
        process = decode(Process, watched.encode())
        if process.pid != os.getpid():
            die_with(process)
