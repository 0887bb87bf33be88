"""Metrics of meta-steps that the devices may still be computing.

A device that has finished a step continues with the next one only if that one is dispatched by
then. So the loop dispatches a step before it fetches the metrics of the one before:

    Python   dispatch n+1 | wait for n ...... | write row n, draw batches, dispatch n+2 | wait ...
    device   ......... step n ............... | step n+1 ..............................
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import jax

T = TypeVar("T")


class Arrived(NamedTuple, Generic[T]):
    """Metrics of a step that is done.

    Attributes:
        step: The step.
        metrics: Its metrics, on the host.
        seconds: Wall seconds of the step, from the arrival of the step before, or from its own
            start if that was later. The seconds of consecutive steps add up to the time of all.
    """

    step: int
    metrics: T
    seconds: float


class PendingMetrics(Generic[T]):
    """Metrics of dispatched steps, fetched in order and no sooner than they are asked for.

    Args:
        clock: Returns seconds.

    Example:
        >>> pending = PendingMetrics()
        >>> for step in (1, 2):
        ...     pending.add(step, {"loss": jax.numpy.float32(step)}, time.monotonic())
        >>> [(arrived.step, float(arrived.metrics["loss"])) for arrived in pending.arrived(1)]
        [(1, 1.0)]
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: collections.deque[tuple[int, T, float]] = collections.deque()
        self._last_arrival = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, step: int, metrics: T, started: float) -> None:
        """Keeps the metrics of a step and starts to copy them to the host.

        Args:
            step: The step, above those before.
            metrics: Tree of arrays that the step returned.
            started: When the step's work began, by the clock.
        """
        for leaf in jax.tree.leaves(metrics):
            leaf.copy_to_host_async()
        self._waiting.append((step, metrics, started))

    def arrived(self, left: int = 0) -> Iterator[Arrived[T]]:
        """Waits for the oldest steps and yields their metrics, in order.

        Args:
            left: Number of newest steps to leave waiting.
        """
        while len(self._waiting) > left:
            step, metrics, started = self._waiting.popleft()
            on_host: Any = jax.device_get(metrics)
            now = self._clock()
            seconds = now - max(self._last_arrival, started)
            self._last_arrival = now
            yield Arrived(step, on_host, seconds)
