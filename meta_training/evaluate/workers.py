"""Worker processes: single-threaded, each with JAX of its own and a shared compilation cache."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from datarater.meta_training.evaluate.errors import WorkerError


class Task(Protocol):
    """Work that pickles: called in a worker with a function that reports the share done."""

    def __call__(self, report: Callable[[float], None]) -> Any:
        """Does the work and returns a result that pickles."""


class Event(NamedTuple):
    """What a worker reports.

    Attributes:
        task: Index of the task.
        share: Share of the task that is done.
        result: Result of the task, once `finished`.
        finished: Whether the task is done.
    """

    task: int
    share: float
    result: Any = None
    finished: bool = False


class Workers:
    """A few worker processes that run tasks, started when the first tasks come.

    Args:
        processes: Number of processes.
        compiled: Folder of the compilation cache that they share.
    """

    def __init__(self, processes: int, compiled: Path) -> None:
        self.processes = processes
        self._compiled = str(compiled)
        self._members: list[tuple[Any, connection.Connection]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, pipe in self._members:
            process.kill()
            process.join()
            pipe.close()
        self._members.clear()

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Runs tasks, in their order, and yields what the workers report.

        Raises:
            WorkerError: If a task fails or its process dies. The others are stopped with the
                workers.
        """
        waiting = list(enumerate(tasks))[::-1]
        working: dict[connection.Connection, int] = {}
        idle = [pipe for _, pipe in self._members]
        while waiting or working:
            while waiting and (idle or len(self._members) < self.processes):
                pipe = idle.pop() if idle else self._start()
                index, task = waiting.pop()
                pipe.send(task)
                working[pipe] = index
            for ready in connection.wait(list(working)):
                assert isinstance(ready, connection.Connection)
                event = self._receive(ready, working[ready])
                if event.finished:
                    del working[ready]
                    idle.append(ready)
                yield event

    def _start(self) -> connection.Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._compiled), daemon=True)
        process.start()
        theirs.close()
        self._members.append((process, ours))
        return ours

    def _receive(self, pipe: connection.Connection, index: int) -> Event:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError) as error:
            process = next(each for each, own in self._members if own is pipe)
            process.join()
            code = process.exitcode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            hint = "; it may have run out of memory: lower --processes" if code == -9 else ""
            raise WorkerError(f"a worker process {how}{hint}") from error
        if kind == "failed":
            raise WorkerError(value)
        return Event(index, value) if kind == "share" else Event(index, 1.0, value, True)


def _serve(pipe: connection.Connection, compiled: str) -> None:
    """Runs the tasks that come through a pipe until its other end is closed."""
    # The parent decides when to stop: Ctrl-C reaches every process of the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    # Several processes share an accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    import jax

    from datarater.rater_model.scoring_options import limit_cpu_threads

    limit_cpu_threads()
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = task(lambda share: pipe.send(("share", share)))
        except Exception as error:
            message = str(error) or traceback.format_exc(limit=-1)
            pipe.send(("failed", f"{type(error).__name__}: {message}"))
        else:
            pipe.send(("result", result))
