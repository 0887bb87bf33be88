"""Metrics of steps that are dispatched but not fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from datarater.meta_training.run.pending import PendingMetrics


class Leaf:
    """A number on a device, which records when it is fetched."""

    def __init__(self, value: float, events: list[Any]) -> None:
        self.value, self.events = value, events

    def copy_to_host_async(self) -> None:
        self.events.append(("copy", self.value))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.events.append(("fetch", self.value))
        return np.asarray(self.value)


def ticking(*seconds: float) -> Any:
    times: Iterator[float] = iter(seconds)
    return lambda: next(times)


def test_metrics_are_fetched_in_order_and_only_when_asked_for() -> None:
    events: list[Any] = []
    pending: PendingMetrics[Any] = PendingMetrics()
    for step in (1, 2, 3):
        pending.add(step, Leaf(step, events), 0.0)
    assert events == [("copy", 1), ("copy", 2), ("copy", 3)]  # started, not waited for

    events.clear()
    assert [arrived.step for arrived in pending.arrived(left=1)] == [1, 2]
    assert [event for event in events if event[0] == "fetch"] == [("fetch", 1), ("fetch", 2)]
    assert [int(arrived.metrics) for arrived in pending.arrived()] == [3]
    assert len(pending) == 0


def test_seconds_add_up_and_leave_out_what_lies_between_steps() -> None:
    # Step 2 is dispatched while step 1 runs; step 3 after an export that took until 20.
    pending: PendingMetrics[Any] = PendingMetrics(ticking(5.0, 8.0, 21.5))
    pending.add(1, jnp.float32(1), started=1.0)
    pending.add(2, jnp.float32(2), started=3.0)
    assert [arrived.seconds for arrived in pending.arrived()] == [4.0, 3.0]
    pending.add(3, jnp.float32(3), started=20.0)
    assert [arrived.seconds for arrived in pending.arrived()] == [pytest.approx(1.5)]
