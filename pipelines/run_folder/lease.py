"""A lease that keeps two launches from working in one run folder.

A lease is a courtesy: it saves the second launch from repeating the work of the first. Correctness
depends on commits alone (`datarater.pipelines.run_folder.commits`), of which the first wins,
whoever makes it.

No file system of fsspec can replace a file only if it is unchanged. So a lease is a folder of
terms, `000001.json` and up. A term is created only if it is absent, which just one launch can do;
from then on its holder renews it. The highest term counts. The next term may follow once the holder
has released the current one, it has expired, or the holder was a process of this machine that has
ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import random
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Self

from datarater.pipelines.errors import (
    CountsError,
    CurationError,
    LeaseHeldError,
    RunFolderError,
)
from datarater.pipelines.run_folder import commits, layout
from datarater.pipelines.run_folder.background import Background
from datarater.rater_model.command_line import print_line
from datarater.rater_model.json_codec import NOT_STORED

TERM_SECONDS = 120.0
"""Lifetime of a lease that is not renewed."""
FIRST_TERM_SECONDS = 1200.0
"""The same until the first worker of a cluster renews it: machines may have to start first."""
RENEWAL_SECONDS = 30.0
_TERM = re.compile(r"(\d{6,})\.json")


@dataclasses.dataclass(frozen=True)
class Process:
    """What distinguishes a process from all others, everywhere and forever.

    Attributes:
        host: Name of the machine.
        pid: Id of the process there.
        started: When it started, in the kernel's count; "" if unknown.
        processes: Name of the set of processes in which the pid is unique.
    """

    host: str
    pid: int
    started: str
    processes: str


def process_id(pid: int | None = None) -> Process:
    """Returns what distinguishes a process of this machine from all others.

    Args:
        pid: Id of the process; None for this one.
    """
    pid = os.getpid() if pid is None else pid
    return Process(socket.gethostname(), pid, _start_of(pid), _process_namespace())


def _start_of(pid: int) -> str:
    """Returns when a process started, in the kernel's count; "" if unknown or not running."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _process_namespace() -> str:
    """Names the set of processes in which a pid is unique: containers have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return sys.platform


def is_gone(process: Process) -> bool:
    """Returns whether a process is known to have ended: it ran on this machine, and no longer does.

    Args:
        process: Result of `process_id` in that process.
    """
    # Nothing is known about processes of other machines and containers.
    if (process.host, process.processes) != (socket.gethostname(), _process_namespace()):
        return False

    # The start time recognizes a pid that a later process has taken over.
    if os.path.isdir("/proc/self"):
        return _start_of(process.pid) != process.started

    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of a command.

    Attributes:
        id: Unique id.
        runner: Name of the runner.
        local: Whether the work ends with the launching process.
        process: Launching process, as `process_id` returns it.
        started: Time of the start, in seconds since 1970.
    """

    id: str
    runner: str
    local: bool
    process: Process
    started: float

    @classmethod
    def new(cls, runner: str, *, local: bool) -> Launch:
        """Returns a new launch by this process."""
        return cls(uuid.uuid4().hex[:12], runner, local, process_id(), time.time())


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a lease.

    Attributes:
        path: Path of its file.
        launch: Launch that holds it.
        renewed: Time of the last renewal, in seconds since 1970.
        expires: Time at which it expires, in seconds since 1970.
        released: Whether the holder released it.
    """

    launch: Launch
    renewed: float
    expires: float
    released: bool = False
    path: str = dataclasses.field(default="", metadata=NOT_STORED)

    def is_held(self) -> bool:
        """Returns whether its holder still works, as far as is known."""
        dead = self.launch.local and is_gone(self.launch.process)
        return not self.released and not dead and time.time() < self.expires

    def write(self) -> None:
        """Writes the term to its file, replacing the old content; only its holder does that."""
        commits.replace(self.path, layout.to_json(self))

    def renew(self, lifetime: float | None = None) -> Term:
        """Returns the term, renewed and written.

        Args:
            lifetime: Seconds until it expires; as long as before if None.
        """
        now = time.time()
        lifetime = self.expires - self.renewed if lifetime is None else lifetime
        term = dataclasses.replace(self, renewed=now, expires=now + lifetime)
        term.write()
        return term

    @classmethod
    def read(cls, path: str) -> Term | None:
        """Reads a term from its file; None if the file is gone or damaged."""
        try:
            term = layout.read_json(path, cls)
        except CountsError:
            return None
        return None if term is None else dataclasses.replace(term, path=path)

    def describe(self) -> str:
        """Describes the holder, for a person."""
        since = datetime.datetime.fromtimestamp(self.launch.started, datetime.UTC)
        return (
            f"launch {self.launch.id}, process {self.launch.process.pid} on "
            f"{self.launch.process.host}, runner {self.launch.runner}, since "
            f"{since:%Y-%m-%d %H:%M:%S} UTC"
        )


def current(folder: str) -> Term | None:
    """Reads the current term, held or not; None before the first, or if its file is damaged.

    A damaged file names no holder. So it holds nothing, and the next launch takes a new term.

    Args:
        folder: Folder of the lease: `RunFolder.scoring_lease_path` or a selection's.
    """
    number = _highest(folder)
    return Term.read(_path(folder, number)) if number else None


def _highest(folder: str) -> int:
    """Returns the number of the highest term; 0 if there is none."""
    names = [entry.path.rsplit("/", 1)[-1] for entry in commits.list_folder(folder)]
    return max((int(match[1]) for name in names if (match := _TERM.fullmatch(name))), default=0)


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:06d}.json"


def take(folder: str, launch: Launch, term_seconds: float = TERM_SECONDS) -> Term:
    """Takes a lease.

    Args:
        folder: Folder of the lease.
        launch: Launch that takes it.
        term_seconds: Lifetime of the lease if it is not renewed.

    Raises:
        LeaseHeldError: Another launch holds it; the message names that launch and when the lease
            expires.
    """
    number = _highest(folder)
    previous = Term.read(_path(folder, number)) if number else None
    if previous is not None and previous.is_held():
        raise _held(folder, previous)

    now = time.time()
    term = Term(launch, now, now + term_seconds, path=_path(folder, number + 1))
    commits.commit_if_absent(term.path, layout.to_json(term))

    # The highest term counts: another launch may have taken this one, or one after it.
    highest = current(folder)
    if highest is None or highest.launch.id != launch.id:
        raise _held(folder, highest or term)
    if number:
        commits.remove(_path(folder, number))
    return term


def _held(folder: str, term: Term) -> LeaseHeldError:
    left = max(0.0, term.expires - time.time())
    run_folder = folder.rsplit("/lease/", 1)[0]
    return LeaseHeldError(
        f"{run_folder}: another launch is working here ({term.describe()}); its lease expires in "
        f"{left:.0f} s unless it is renewed. Watch it with datarater status, or stop it and run "
        "the same command to continue"
    )


_kept: set[tuple[str, str]] = set()
_kept_lock = threading.Lock()


def keep(folder: str, launch: str, renewal_seconds: float = RENEWAL_SECONDS) -> None:
    """Renews a launch's lease from a process of a worker, from now on and in the background.

    A job continues when its launcher has ended, and so must its lease. The renewals end with the
    process, or once the lease is released or another launch has taken it.

    Args:
        folder: Folder of the lease.
        launch: Id of the launch that the worker works for; "" for none.
        renewal_seconds: Time between two looks at the lease.
    """
    with _kept_lock:
        if not launch or (folder, launch) in _kept:
            return
        _kept.add((folder, launch))
    threading.Thread(
        target=_keep, args=(folder, launch, renewal_seconds), name="keep lease", daemon=True
    ).start()


def _keep(folder: str, launch: str, renewal_seconds: float) -> None:
    try:
        while renew_for(folder, launch, renewal_seconds):
            # Many workers look at different times, so that the first to see an old term renews it
            # for all.
            time.sleep(renewal_seconds * random.uniform(0.75, 1.25))
    finally:
        with _kept_lock:
            _kept.discard((folder, launch))


def renew_for(folder: str, launch: str, renewal_seconds: float = RENEWAL_SECONDS) -> bool:
    """Renews a launch's lease from a worker, if it is due.

    Args:
        folder: Folder of the lease.
        launch: Id of the launch that the worker works for.
        renewal_seconds: Time between two looks at the lease.

    Returns:
        Whether to look again: False once the lease is released or another launch has taken it.
    """
    # A failure does no harm: the next look may succeed, and no result depends on it.
    with contextlib.suppress(CurationError, OSError):
        term = current(folder)
        if term is None:
            return True
        if term.released or term.launch.id != launch:
            return False
        # Few of many workers see a term older than this, so that few write. The first one shortens
        # the term that the start of a cluster needed.
        if time.time() - term.renewed > renewal_seconds or term.expires > time.time() + (
            TERM_SECONDS
        ):
            term.renew(TERM_SECONDS)
    return True


class Lease(Background):
    """Holds several leases while a command works: renews them, and releases them at the end.

    Args:
        folders: Folders of the leases.
        launch: Launch that holds them.
        on_lost: Called once, from another thread, if another launch took a lease over. That happens
            to a process that was suspended for longer than a lease lasts.
        term_seconds: Lifetime of a lease that is not renewed; by default `TERM_SECONDS`, and
            `FIRST_TERM_SECONDS` for work that a cluster must first start machines for.
        renewal_seconds: Time between two renewals.
    """

    def __init__(
        self,
        folders: list[str],
        launch: Launch,
        on_lost: Callable[[CurationError], None],
        *,
        term_seconds: float | None = None,
        renewal_seconds: float = RENEWAL_SECONDS,
    ):
        super().__init__("lease")
        if term_seconds is None:
            term_seconds = TERM_SECONDS if launch.local else FIRST_TERM_SECONDS
        self._term_seconds, self._renewal_seconds = term_seconds, renewal_seconds
        self._folders = folders
        self._launch = launch
        self._on_lost = on_lost
        self._terms: list[Term] = []
        self._releases = True

    def leave_to_workers(self) -> None:
        """Keeps the leases at the end: a job continues, and its workers renew them."""
        self._releases = False

    def run(self) -> None:
        """Renews the leases until the block ends; a failure to do so never ends the run."""
        while not self.ended.wait(self._renewal_seconds):
            for index, folder in enumerate(self._folders):
                try:
                    highest = current(folder)
                    if highest is not None and highest.launch.id != self._launch.id:
                        self._on_lost(_held(folder, highest))
                        return
                    # A worker may have changed how long a term lasts.
                    self._terms[index] = (highest or self._terms[index]).renew()
                except (CurationError, OSError) as error:
                    path = self._terms[index].path
                    print_line(f"the lease {path} was not renewed: {error}", sys.stderr)

    def __enter__(self) -> Self:
        try:
            for folder in self._folders:
                self._terms.append(take(folder, self._launch, self._term_seconds))
        except BaseException:
            self._release()
            raise
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._releases:
            self._release()

    def _release(self) -> None:
        for folder, term in zip(self._folders, self._terms, strict=False):
            # A lease that cannot be released expires.
            with contextlib.suppress(CurationError, OSError):
                highest = current(folder) or term
                if highest.launch.id != self._launch.id:
                    continue
                try:
                    dataclasses.replace(highest, released=True).write()
                except RunFolderError:  # a full disk has room to remove a file
                    commits.remove(highest.path)
