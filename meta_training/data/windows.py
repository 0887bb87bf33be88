"""Batches of windows, drawn deterministically from anywhere in a set.

Each pass over a set has a shuffled order of its own, by the numbers of the windows. A batch follows
from its position alone, so the state of an iterator is a few numbers, and an iterator restored to
it continues with the same batches.

Dimension letters as in `datarater.meta_training.algorithm`, and N, the windows of a set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from datarater.meta_training.algorithm.language_model import Windows
from datarater.meta_training.data.batch_order import MIXED, SingleSource
from datarater.meta_training.data.worker_pool import begin_worker

_READ_AHEAD = 2  # batches, of each process that reads


class Drawable(Protocol):
    """Elements to draw batches of: windows of texts, or questions."""

    def batches(
        self,
        count: int,
        seed: int,
        single: SingleSource = MIXED,
        own_B: np.ndarray | None = None,
    ) -> grain.MapDataset:
        """Returns endless batches of `count` elements, each a tuple of arrays.

        Args:
            count: Elements of a batch.
            seed: Seed for shuffling.
            single: Share of batches of a single source.
            own_B: Which elements of every batch this process needs, others being zeros; None for
                all.

        Raises:
            DataError: If the set cannot have batches of a single source.
        """

    def describe(self) -> str:
        """Returns the size of the set, for the log."""


class WindowSet(Drawable, Protocol):
    """A set of windows, whose batches are pairs (tokens_BxL, length_B); see `PreparedWindows`."""


def draw_batches(
    windows: WindowSet,
    shape: tuple[int, ...],
    seed: int,
    within_source_share: float = 0.0,
    *,
    own: np.ndarray | None = None,
    processes: int = 0,
) -> Batches:
    """Returns an endless iterator of batches.

    Args:
        windows: The `WindowSet` to draw from, or other elements with such batches.
        shape: Leading axes of a batch, such as (P, T, B) for P inner models, T updates and B
            windows each.
        seed: Seed for shuffling.
        within_source_share: Share of the batches, along the last leading axis, whose windows are of
            a single source.
        own: Which windows of every batch this process needs, in that shape; None for all. The
            others are zeros.
        processes: Number of processes that read; 0 for a thread of this one. The batches are the
            same.

    Returns:
        An iterator of `Windows` of NumPy arrays, whose tokens have the shape [*shape, L];
        `iterator_state` and `restore_iterator` save and restore its position.
    """
    single = SingleSource(within_source_share, shape[-1])
    own_B = None if own is None else own.reshape(-1)
    batches = windows.batches(int(np.prod(shape)), seed, single, own_B)
    return in_shape(batches, shape, processes=processes)


def in_shape(
    batches: grain.MapDataset, shape: tuple[int, ...], kind: Any = Windows, processes: int = 0
) -> Batches:
    """Returns an iterator of batches with several leading axes in place of one.

    Args:
        batches: Batches of as many elements as the shape has, as tuples of arrays.
        shape: Leading axes of the arrays.
        kind: Tuple that the arrays make.
        processes: Number of processes that read; 0 for a thread of this one.
    """

    def as_batch(batch: tuple[np.ndarray, ...]) -> Any:
        # Arrays of the host, which go straight to the devices that use them.
        return kind(*(x.reshape(*shape, *x.shape[1:]) for x in batch))

    return Batches(batches, as_batch, processes)


class Batches(Iterator[Any]):
    """An iterator whose state is the number of batches it has returned, however they are read.

    Args:
        batches: Endless batches, each computed from its position alone. With processes, they
            pickle.
        finish: What to make of a batch, in this process.
        processes: Number of processes that read; 0 for a thread of this one.
    """

    def __init__(
        self, batches: grain.MapDataset, finish: Callable[[Any], Any], processes: int = 0
    ) -> None:
        self._batches, self._finish, self._processes = batches, finish, processes
        self._position = 0
        self._iterator: Any = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._from_position())
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if not self._processes:
                raise
            raise OSError(
                f"a process that reads batches ended ({error}); it may have run out of memory: "
                "lower data.reader_processes. The same command continues"
            ) from error
        self._position += 1
        return self._finish(batch)

    def _from_position(self) -> grain.IterDataset:
        """Returns the batches from the position on, read ahead."""
        rest = self._batches.slice(slice(self._position, None))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
        read = rest.to_iter_dataset(options)
        if not self._processes:
            return read
        if not flags.FLAGS.is_parsed():  # outside of a command; grain asks flags of its own
            flags.FLAGS.mark_as_parsed()
        return read.mp_prefetch(
            grain.MultiprocessingOptions(self._processes, per_worker_buffer_size=_READ_AHEAD),
            worker_init_fn=begin_worker,
        )

    def get_state(self) -> dict[str, int]:
        """Returns the position."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position."""
        self.close()
        self._position = state["next_index"]

    def close(self) -> None:
        """Ends the threads and processes that read ahead; a later batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


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
