"""A device that is slower or faster than the thread that feeds it, as a test wants it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from datarater.rater_model.scorer import Scorer

_TIMEOUT = 60


class OnDevice(Scorer):
    """A scorer whose model runs on a thread that stands for a device, once it may.

    Attributes:
        may_compute: Lets the device work.
        arrived: Released with every call that has reached the device's queue.
        computed: Number of calls that the device has computed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.may_compute = threading.Event()
        self.arrived = threading.Semaphore(0)
        self.computed = 0
        self._device = ThreadPoolExecutor(1)

    def _call(self, tokens_BxL: np.ndarray, length_B: np.ndarray) -> Any:
        def compute() -> np.ndarray:
            assert self.may_compute.wait(_TIMEOUT)
            scores_B = np.asarray(Scorer._call(self, tokens_BxL, length_B))
            self.computed += 1
            return scores_B

        running = self._device.submit(compute)
        self.arrived.release()
        return _Array(running)


class _Array:
    """Scores on the device; waits when they are read."""

    def __init__(self, running: Future[np.ndarray]) -> None:
        self._running = running

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self._running.result(_TIMEOUT)
