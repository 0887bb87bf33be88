from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datarater.meta_training.evaluate.errors import WorkerError
from datarater.meta_training.evaluate.workers import Workers


@dataclasses.dataclass(frozen=True)
class Square:
    number: int

    def __call__(self, report: Callable[[float], None]) -> tuple[int, int]:
        report(0.5)
        time.sleep(0.1)
        return self.number**2, os.getpid()


@dataclasses.dataclass(frozen=True)
class Fail:
    def __call__(self, report: Callable[[float], None]) -> None:
        raise ValueError("the learning rate is too high")


@dataclasses.dataclass(frozen=True)
class Die:
    def __call__(self, report: Callable[[float], None]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_processes_share_the_tasks_and_serve_more_than_one_list(tmp_path: Path) -> None:
    with Workers(2, tmp_path) as workers:
        events = list(workers.run([Square(number) for number in range(6)]))
        results = {event.task: event.result for event in events if event.finished}
        assert [results[task][0] for task in range(6)] == [0, 1, 4, 9, 16, 25]
        assert [event.share for event in events if not event.finished] == [0.5] * 6
        processes = {process for _, process in results.values()}
        assert len(processes) <= 2
        assert os.getpid() not in processes

        (again,) = [event for event in workers.run([Square(7)]) if event.finished]
        assert again.result[0] == 49
        assert again.result[1] in processes
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Fail(), "ValueError: the learning rate is too high"),
        (Die(), "a worker process was killed by signal 9; it may have run out of memory"),
    ],
)
def test_a_task_that_fails_or_kills_its_process_is_reported(
    task: Fail | Die, message: str, tmp_path: Path
) -> None:
    with Workers(1, tmp_path) as workers, pytest.raises(WorkerError, match=message):
        list(workers.run([task]))
