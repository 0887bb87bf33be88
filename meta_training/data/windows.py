"""Batches of windows, drawn deterministically from anywhere in a set.

Each pass over a set has a shuffled order of its own, by the numbers of the windows. A batch follows
from its position alone, so the state of an iterator is a few numbers, and an iterator restored to
it continues with the same batches.

Dimension letters as in `datarater.meta_training.algorithm`, and N, the windows of a set.
"""

from __future__ import annotations

from typing import Any, Protocol

import grain
import numpy as np

from datarater.meta_training.algorithm.language_model import Windows
from datarater.meta_training.data.batch_order import MIXED, SingleSource


class WindowSet(Protocol):
    """A set of windows to draw batches from; see `PreparedWindows`."""

    def batches(self, count: int, seed: int, single: SingleSource = MIXED) -> grain.IterDataset:
        """Returns endless batches of `count` windows: pairs (tokens_BxL, length_B), both int32.

        Args:
            count: Windows of a batch.
            seed: Seed for shuffling.
            single: Share of batches of a single source.

        Raises:
            DataError: If the set cannot have batches of a single source.
        """

    def describe(self) -> str:
        """Returns the size of the set, for the log."""


def draw_batches(
    windows: WindowSet, shape: tuple[int, ...], seed: int, within_source_share: float = 0.0
) -> Any:
    """Returns an endless iterator of batches.

    Args:
        windows: The `WindowSet` to draw from, or other elements with such batches.
        shape: Leading axes of a batch, such as (P, T, B) for P inner models, T updates and B
            windows each.
        seed: Seed for shuffling.
        within_source_share: Share of the batches, along the last leading axis, whose windows are of
            a single source.

    Returns:
        A grain iterator of `Windows` of NumPy arrays, whose tokens have the shape [*shape, L];
        `iterator_state` and `restore_iterator` save and restore its position.
    """
    single = SingleSource(within_source_share, shape[-1])
    return in_shape(windows.batches(int(np.prod(shape)), seed, single), shape)


def in_shape(batches: grain.IterDataset, shape: tuple[int, ...], kind: Any = Windows) -> Any:
    """Returns an iterator of batches with several leading axes in place of one.

    Args:
        batches: Batches of as many elements as the shape has, as tuples of arrays.
        shape: Leading axes of the arrays.
        kind: Tuple that the arrays make.
    """

    def as_batch(batch: tuple[np.ndarray, ...]) -> Any:
        # Arrays of the host, which go straight to the devices that use them.
        return kind(*(x.reshape(*shape, *x.shape[1:]) for x in batch))

    return iter(batches.map(as_batch))


def iterator_state(iterator: Any) -> Any:
    """Returns the position of an iterator of `draw_batches`, as JSON."""
    return iterator.get_state()


def restore_iterator(iterator: Any, state: Any) -> None:
    """Moves an iterator to the position of another one with the same data, shape and seed.

    Args:
        iterator: Iterator of `draw_batches`.
        state: Position that `iterator_state` returned, whether or not it has been stored as JSON.
    """
    iterator.set_state(state)
