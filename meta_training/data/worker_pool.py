"""Worker processes that prepare data: spawned, without JAX, ended when their parent ends."""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

_LOG = logging.getLogger("datarater")
_REPORT_SECONDS = 10.0
_MANY = 4  # tasks, below which one process is done sooner than others have started

T = TypeVar("T")
R = TypeVar("R")


class WorkerPool:
    """Runs tasks in worker processes, or in this process if there are none.

    Args:
        processes: Number of worker processes; 0 for none.

    Example:
        >>> with WorkerPool(0) as pool:
        ...     list(pool.map(str.upper, ["a", "b"]))
        ['A', 'B']
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Yields the results of tasks in their order; a few tasks run in this process.

        Args:
            function: Function of a task; it pickles, and so do tasks and results.
            tasks: The tasks.

        Raises:
            OSError: A worker died, such as for lack of memory.
        """
        if not self._processes or len(tasks) < _MANY:
            yield from map(function, tasks)
            return

        if self._executor is None:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                self._processes, multiprocessing.get_context("spawn"), begin_worker
            )
        try:
            yield from self._executor.map(function, tasks)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise OSError(
                "a worker process that prepares data died; it may have run out of memory: use "
                "fewer processes. The same command continues"
            ) from error

    def run(self, tasks: Sequence[Callable[[], R]], what: str, sizes: Sequence[int]) -> Iterator[R]:
        """Yields what tasks return in their order, and logs from time to time how many are done.

        Args:
            tasks: The tasks, which pickle, and so do their results.
            what: What a task has several of, such as "documents".
            sizes: How many each task has.

        Raises:
            OSError: A worker died, such as for lack of memory.
        """
        total, done, begun = sum(sizes), 0, time.monotonic()
        last = begun
        for size, result in zip(sizes, self.map(_call, tasks), strict=True):
            yield result
            done += size
            now = time.monotonic()
            if now - last >= _REPORT_SECONDS:
                last = now
                left = (now - begun) * (total - done) / done
                _LOG.info(
                    "prepared %s of %s %s, %.0f s left", f"{done:,}", f"{total:,}", what, left
                )


def _call(task: Callable[[], R]) -> R:
    return task()


def begin_worker(*_: int) -> None:
    """Prepares a worker: it has one thread, leaves Ctrl-C to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
