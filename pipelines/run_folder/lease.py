"""The lease: two launches at once into one run folder, and one of them says so.

A lease is a courtesy. It saves the second launch from doing the work of the first again;
correctness rests on commits alone (`datarater.pipelines.run_folder.commits`), of which the first
wins whoever makes it.

No file system of fsspec replaces a file only if it is unchanged, so a lease is a folder of terms,
`000001.json` and on. A term is created if absent, which one launch alone can do, and then is its
holder's to renew. The highest term counts. A term that its holder gave back, that has run out, or
whose holder was a process of this machine that is gone, may be followed by the next one.
"""

import contextlib
import dataclasses
import datetime
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any

import orjson

from datarater.pipelines.errors import CurationError, LeaseHeldError, RunFolderError
from datarater.pipelines.run_folder import commits, layout

TERM_SECONDS = 120.0
"""How long a lease lasts without being renewed."""
RENEWAL_SECONDS = 30.0


def process_id(pid: int | None = None) -> dict[str, Any]:
    """What tells a process of this machine from all others, now and later, here and elsewhere.

    Args:
        pid: its id; None for this process.
    """
    pid = os.getpid() if pid is None else pid
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": _start_of(pid),
        "processes": _process_namespace(),
    }


def _start_of(pid: int) -> str:
    """When a process started, as the kernel counts; "" where that is not told or there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _process_namespace() -> str:
    """Names the set of processes among which a pid means something: containers have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return sys.platform


def is_gone(process: dict[str, Any]) -> bool:
    """Whether a process is known to have ended: it ran on this machine, and no longer does.

    Args:
        process: what `process_id` gave in it.
    """
    if (
        process.get("host") != socket.gethostname()
        or process.get("processes") != _process_namespace()
    ):
        return False
    pid = int(process["pid"])
    if os.path.isdir("/proc/self"):
        return _start_of(pid) != process["started"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclasses.dataclass(frozen=True)
class Launch:
    """One start of a command.

    Attributes:
        id: differs between any two.
        runner: what does the work.
        local: whether the work ends with the launching process.
        process: as `process_id` gives it.
        started: seconds since 1970.
    """

    id: str
    runner: str
    local: bool
    process: dict[str, Any]
    started: float

    @classmethod
    def new(cls, runner: str, *, local: bool) -> "Launch":
        """A launch by this process."""
        return cls(uuid.uuid4().hex[:12], runner, local, process_id(), time.time())


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a lease.

    Attributes:
        path: its file.
        launch: the holder.
        renewed: when, in seconds since 1970.
        expires: when it runs out.
        released: whether the holder gave it back.
    """

    path: str
    launch: Launch
    renewed: float
    expires: float
    released: bool = False

    def is_held(self) -> bool:
        """Whether its holder still works, as far as can be told."""
        dead = self.launch.local and is_gone(self.launch.process)
        return not self.released and not dead and time.time() < self.expires

    def write(self) -> None:
        """Writes the term over what is there; only its holder does."""
        commits.replace(self.path, self.to_json())

    def renew(self) -> "Term":
        """The term, renewed now and written."""
        now = time.time()
        term = dataclasses.replace(self, renewed=now, expires=now + TERM_SECONDS)
        term.write()
        return term

    def to_json(self) -> bytes:
        """The content of its file."""
        fields = dataclasses.asdict(self)
        del fields["path"]
        return layout.to_json(fields)

    @classmethod
    def read(cls, path: str) -> "Term | None":
        """A term from its file; None if it is gone."""
        data = commits.read_if_there(path)
        if data is None:
            return None
        fields = orjson.loads(data)
        return cls(path=path, launch=Launch(**fields.pop("launch")), **fields)

    def describe(self) -> str:
        """Who holds it, for a person."""
        since = datetime.datetime.fromtimestamp(self.launch.started, datetime.UTC)
        return (
            f"launch {self.launch.id}, process {self.launch.process['pid']} on {self.launch.process['host']}, runner "
            f"{self.launch.runner}, since {since:%Y-%m-%d %H:%M:%S} UTC"
        )


def current(folder: str) -> Term | None:
    """The term that counts, held or not; None before the first.

    Args:
        folder: of the lease: `RunFolder.scoring_lease_path`, or a selection's.
    """
    entries = commits.list_folder(folder)
    return Term.read(entries[-1].path) if entries else None


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:06d}.json"


def _number(term: Term) -> int:
    return int(term.path.rsplit("/", 1)[-1].removesuffix(".json"))


def take(folder: str, launch: Launch) -> Term:
    """Takes a lease.

    Raises:
        LeaseHeldError: another launch holds it; the message names it and says when the lease runs
            out.
    """
    found = current(folder)
    if found is not None and found.is_held():
        raise _held(folder, found)
    now = time.time()
    term = Term(
        _path(folder, 1 if found is None else _number(found) + 1), launch, now, now + TERM_SECONDS
    )
    commits.commit_if_absent(term.path, term.to_json())
    # What counts is the highest term: another launch may have taken this one, or one after it.
    highest = current(folder)
    if highest is None or highest.launch.id != launch.id:
        raise _held(folder, highest or term)
    if found is not None:
        commits.remove(found.path)
    return term


def _held(folder: str, term: Term) -> LeaseHeldError:
    left = max(0.0, term.expires - time.time())
    run_folder = folder.rsplit("/lease/", 1)[0]
    return LeaseHeldError(
        f"{run_folder}: another launch is at work here ({term.describe()}); its lease runs out in {left:.0f} s unless "
        "it is renewed. Watch it with datarater status, or end it and run the same command to go on"
    )


_last_look: dict[str, float] = {}
_look_lock = threading.Lock()


def keep(folder: str, launch: str) -> None:
    """Renews a launch's lease from a worker, now and then: a job goes on when its launcher has ended.

    Args:
        folder: of the lease.
        launch: id of the launch that the worker works for.
    """
    with _look_lock:
        if time.monotonic() - _last_look.get(folder, -RENEWAL_SECONDS) < RENEWAL_SECONDS:
            return
        _last_look[folder] = time.monotonic()
    with contextlib.suppress(
        RunFolderError, OSError
    ):  # the next look may fare better, and nothing rests on it
        term = current(folder)
        # Of many workers few find it older than this, so that few write.
        due = term is not None and time.time() - term.renewed > RENEWAL_SECONDS * 1.5
        if term is not None and due and term.launch.id == launch and not term.released:
            term.renew()


class Lease(threading.Thread):
    """Holds the leases of several folders while a command works; renews them, and gives them back at its end.

    Args:
        folders: of the leases.
        launch: who holds it.
        on_lost: called once, from another thread, if another launch took a lease over. That happens
            to a process that was stopped for longer than a lease lasts.
    """

    def __init__(
        self, folders: list[str], launch: Launch, on_lost: Callable[[CurationError], None]
    ):
        super().__init__(name="lease", daemon=True)
        self._folders = folders
        self._launch = launch
        self._on_lost = on_lost
        self._terms: list[Term] = []
        self._ended = threading.Event()
        self._give_back = True

    def leave_to_workers(self) -> None:
        """At the end, leaves the leases as they are: a job goes on without this process, and its workers renew them."""
        self._give_back = False

    def run(self) -> None:
        """Renews until the end."""
        while not self._ended.wait(RENEWAL_SECONDS):
            for index, (folder, term) in enumerate(zip(self._folders, self._terms, strict=True)):
                try:
                    highest = current(folder)
                    if highest is not None and highest.launch.id != self._launch.id:
                        self._on_lost(_held(folder, highest))
                        return
                    self._terms[index] = term.renew()
                except (RunFolderError, OSError) as error:
                    print(
                        f"the lease {term.path} was not renewed: {error}",
                        file=sys.stderr,
                        flush=True,
                    )

    def __enter__(self) -> "Lease":
        try:
            for folder in self._folders:
                self._terms.append(take(folder, self._launch))
        except BaseException:
            self._release()
            raise
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self.join()
        if self._give_back:
            self._release()

    def _release(self) -> None:
        for folder, term in zip(self._folders, self._terms, strict=False):
            # A lease that cannot be given back runs out.
            with contextlib.suppress(RunFolderError, OSError):
                highest = current(folder)
                if highest is not None and highest.launch.id == self._launch.id:
                    dataclasses.replace(term, released=True).write()
